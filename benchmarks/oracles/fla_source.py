"""Layers and plain recurrences of flash-linear-attention without Triton: stand-ins for what its files import."""
# pyright: reportMissingImports=false

import math
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.oracles.reference import parts


class Wide:
    """torch, whose float32 is float64: code that casts to float32 for precision then casts to float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Plain(nn.Module):
    """An RMSNorm with a weight, and perhaps a gate after it."""

    def __init__(self, hidden_size: int, *, eps: float, activation: str = "swish", **_: Any):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(hidden_size)), None, eps
        self.activation = torch.sigmoid if activation == "sigmoid" else functional.silu

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        normed = normalised(x, self.weight, self.eps)
        return normed if gate is None else normed * self.activation(gate)


class GateFirst(nn.Module):
    """Of Mamba-2: the gate, and then an RMSNorm of each group."""

    def __init__(self, hidden_size: int, *, eps: float, norm_before_gate: bool, group_size: int):
        super().__init__()
        assert not norm_before_gate
        self.weight, self.eps, self.group_size = nn.Parameter(torch.ones(hidden_size)), eps, group_size

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        groups = (x * functional.silu(gate)).unflatten(-1, (-1, self.group_size))
        return normalised(groups, 1.0, self.eps).flatten(-2) * self.weight


class ShortConvolution(nn.Module):
    """A causal depthwise convolution and SiLU."""

    def __init__(self, hidden_size: int, kernel_size: int, bias: bool, activation: str):
        super().__init__()
        assert (bias, activation) == (False, "silu")
        self.weight = nn.Parameter(torch.zeros(hidden_size, 1, kernel_size))
        self.kernel_size, self.bias = kernel_size, None

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        padded = functional.pad(x.mT, (self.kernel_size - 1, 0))
        return functional.silu(functional.conv1d(padded, self.weight, groups=len(self.weight))).mT, x


class Rotary(nn.Module):
    """Rotary position embeddings of queries and keys, each half of a vector being one part of the pairs."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, q: Tensor, k: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        half = torch.arange(self.dim // 2, dtype=q.dtype)
        angles = torch.arange(q.shape[1], dtype=q.dtype)[:, None, None] * 10000.0 ** (-2 * half / self.dim)

        def turned(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)

        return turned(q), turned(k)


def normalised(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def unit(x: Tensor) -> Tensor:
    """As the kernels of the package normalise queries and keys."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


class Source:
    """A clone of github.com/fla-org/flash-linear-attention, with float64 for float32 if `doubles`."""

    def __init__(self, folder: Path, *, doubles: bool):
        self.folder, self.doubles = folder / "fla", doubles

    def function(self, file: str, name: str) -> Callable[..., Any]:
        return self._made(file, name, {})

    def layer(self, file: str, name: str, **options: Any) -> nn.Module:
        """A layer in evaluation mode, which notes its last state in `layer.state`."""
        warnings.simplefilter("ignore")
        given = {name: object, "rms_norm_linear": rms_norm_linear, **STANDINS, **self.operations()}
        helpers = HELPERS if name == "Mamba2" else ()
        return self._made(f"layers/{file}", name, given, *helpers)(layer_idx=1, **options).eval()

    def _made(self, file: str, name: str, given: dict[str, Any], *helpers: str) -> Any:
        module = Wide() if self.doubles else torch
        annotations = {"Cache": object, "Unpack": {dict: object}, "warnings": warnings, "math": math}
        common = {"torch": module, "nn": nn, "F": functional, "rearrange": einops.rearrange, "repeat": einops.repeat}
        given = common | annotations | given
        return parts(self.folder / file, [*helpers, name], given, doubles=self.doubles)[name]

    def operations(self) -> dict[str, Callable[..., Any]]:
        """The package's kernels by its plain functions."""
        gla = self.function("ops/gla/naive.py", "naive_recurrent_gla")
        linear = self.function("ops/linear_attn/naive.py", "naive_recurrent_linear_attn")
        retention = self.function("ops/retention/naive.py", "naive_retention")
        delta = self.function("ops/delta_rule/naive.py", "delta_rule_recurrence")
        gated = self.function("ops/gated_delta_rule/naive.py", "naive_recurrent_gated_delta_rule")
        gate_of_gated = self.function("ops/gated_delta_rule/gate.py", "naive_gdn_gate")
        kda = self.function("ops/kda/naive.py", "naive_recurrent_kda")
        gate_of_kda = self.function("ops/kda/gate.py", "naive_kda_gate")
        heads_first = lambda x: x.transpose(1, 2)  # noqa: E731

        def run_gla(*, q, k, v, gk, **_):
            return gla(q, k, v, gk, output_final_state=True)

        def run_linear(*, q, k, v, normalize, **_):
            return linear(q, k, v, normalize=normalize, output_final_state=True)

        def run_retention(*, q, k, v, **_):
            return heads_first(retention(*map(heads_first, (q, k, v)))), None

        def run_delta(*, q, k, v, beta, use_qk_l2norm_in_kernel, **_):
            assert use_qk_l2norm_in_kernel
            o, state = delta(*map(heads_first, (unit(q), unit(k), v, beta)))
            return heads_first(o), state

        def with_gates(naive, gate):
            def run(*, q, k, v, g, beta, A_log=None, dt_bias=None, use_beta_sigmoid_in_kernel=False, **options):
                if A_log is not None:
                    g = gate(g, A_log, dt_bias)
                if use_beta_sigmoid_in_kernel:
                    beta = (2 if options["allow_neg_eigval"] else 1) * beta.sigmoid()
                q, k = (unit(x).repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
                return naive(q=q, k=k, v=v, beta=beta, g=g, output_final_state=True)

            return run

        return {
            "fused_recurrent_gla": run_gla,
            "fused_recurrent_linear_attn": run_linear,
            "fused_recurrent_retention": run_retention,
            "fused_recurrent_delta_rule": run_delta,
            "fused_recurrent_gated_delta_rule": with_gates(gated, gate_of_gated),
            "fused_recurrent_kda": with_gates(kda, gate_of_kda),
        }


def rms_norm_linear(x: Tensor, weight: Tensor, bias: None, matrix: Tensor, matrix_bias: None) -> Tensor:
    assert (bias, matrix_bias) == (None, None)
    return functional.linear(normalised(x, weight, 1e-5), matrix)


def note_state(layer: Any, _cache: None, *, recurrent_state: Tensor | None, **_: Any) -> None:
    layer.state = recurrent_state


HELPERS = "apply_mask_to_padding_states", "pad_tensor_by_size", "reshape_into_chunks", "segment_sum"
STANDINS: dict[str, Any] = {
    "get_layer_cache": lambda *_: None,
    "update_layer_cache": note_state,
    "unpad_hidden_states": lambda x, lengths, *_: (x, None, lengths),
    "repad_hidden_states": lambda x, *_: x,
    "FusedRMSNormGated": Plain,
    "RMSNorm": Plain,
    "RMSNormGated": GateFirst,
    "ShortConvolution": ShortConvolution,
    "RotaryEmbedding": Rotary,
    "ACT2FN": {"silu": functional.silu},
    "swish": functional.silu,
    "logger": types.SimpleNamespace(warning_once=lambda _: None),
    "is_fast_path_available": False,
    **dict.fromkeys(("causal_conv1d_fn", "causal_conv1d_update"), object()),
}
