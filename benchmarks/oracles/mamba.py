"""Mamba beside the released code: `python -m benchmarks.oracles.mamba FOLDER`.

The folder is a clone of github.com/state-spaces/mamba. Needs torch and einops. The module `Mamba` runs its slow path,
with `selective_scan_ref` in place of the kernel of CUDA, and random weights: outputs, last states, and the gradients by
all weights and inputs. In float64, the torch code casts to float64 wherever it casts to float32.
"""
# pyright: reportMissingImports=false

import importlib
import math
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common.command_line import command_line, option

from benchmarks import report
from benchmarks.oracles.reference import difference, gradient_of, parts, show
from benchmarks.report import JSON
from rnnjax import Associative, Scan, networks, unroll

H, T, B = 40, 37, 2
ENGINES = {"Scan": Scan(), "Associative": Associative()}

parse = command_line(__doc__, JSON, option("source", type=Path, help="mamba"))


def main() -> None:
    options = parse()
    jax.config.update("jax_enable_x64", True)
    print(report.heading(), flush=True)
    records = [compare(options.source, dtype, engine) for dtype in ("float32", "float64") for engine in ENGINES]
    report.write(options.json, [record | report.machine() for record in records])


def named_weights(layer: networks.Mamba) -> dict[str, np.ndarray]:
    """All weights of a layer, or their gradients, by their names in the released code."""
    cell = layer.recurrence
    named = {
        "in_proj.weight": layer.input_weight.T,
        "conv1d.weight": layer.convolution.weight[::-1].T[:, None],
        "conv1d.bias": layer.convolution.bias,
        "x_proj.weight": cell.selection_weight.T,
        "dt_proj.weight": cell.step_weight.T,
        "dt_proj.bias": cell.step_bias,
        "A_log": cell.log_rate,
        "D": cell.skip,
        "out_proj.weight": layer.output_weight.T,
    }
    return {name: np.asarray(value) for name, value in named.items()}


def ours(layer: networks.Mamba, xs: np.ndarray, engine: str) -> tuple[Any, Any, Any]:
    """Outputs, last states, and gradients by weights and inputs of a weighted sum of the outputs."""

    def loss(layer: networks.Mamba, xs: jax.Array) -> tuple[jax.Array, Any]:
        state, ys = jax.vmap(lambda xs: unroll(layer, None, xs, engine=ENGINES[engine]))(xs)
        return jnp.sum(ys * weights_of_loss(ys)), (ys, state)

    (dlayer, dxs), (ys, state) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(layer, jnp.asarray(xs))
    return ys, [state.inputs, state.h], {"xs": np.asarray(dxs)} | named_weights(dlayer)


def weights_of_loss(ys: Any) -> np.ndarray:
    return np.cos(np.arange(ys.size)).reshape(ys.shape).astype(ys.dtype)


def compare(source: Path, dtype: str, engine: str) -> dict[str, Any]:
    """The record of one layer, dtype and engine."""
    generator = np.random.default_rng(0)
    noise = lambda leaf: (leaf + 0.1 * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    layer = jax.tree.map(noise, networks.Mamba(H, key=jax.random.key(0), dtype=jnp.dtype(dtype)))
    xs, weights = generator.normal(size=(B, T, H)).astype(dtype), named_weights(layer)
    module = reference(source, doubles=dtype == "float64").to(torch.float64 if dtype == "float64" else torch.float32)
    named = dict(module.named_parameters())
    assert named.keys() == weights.keys()
    for name, weight in named.items():
        weight.data = torch.tensor(weights[name].copy()).reshape(weight.shape)
    inputs = torch.tensor(xs, requires_grad=True)
    ys = module(inputs)
    (ys * torch.tensor(weights_of_loss(xs))).sum().backward()
    expected = {"xs": gradient_of(inputs)}
    expected |= {name: gradient_of(weight).reshape(weights[name].shape) for name, weight in named.items()}
    got_ys, got_states, got_gradient = ours(layer, xs, engine)
    record: dict[str, Any] = {"layer": f"Mamba, {engine}", "dtype": dtype, "reference": "mamba_simple.py"}
    record |= {"outputs": difference(got_ys, ys.detach().numpy()), "states": difference(got_states, states(module, xs))}
    return show(record | {"gradients": difference(got_gradient, expected)})


def reference(source: Path, *, doubles: bool) -> torch.nn.Module:
    """The authors' module, without any of its kernels."""
    einops = importlib.import_module("einops")
    rearranging = {"rearrange": einops.rearrange, "repeat": einops.repeat}
    given = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math, **rearranging}
    given |= {"Tensor": torch.Tensor, "Optional": Any, "mamba_inner_fn": None, "selective_state_update": None}
    given |= dict.fromkeys(("causal_conv1d_fn", "causal_conv1d_update"))
    folder = source / "mamba_ssm"
    parts(folder / "ops/selective_scan_interface.py", ["selective_scan_ref"], given, doubles=doubles)
    given["selective_scan_fn"] = given["selective_scan_ref"]
    return parts(folder / "modules/mamba_simple.py", ["Mamba"], given, doubles=doubles)["Mamba"](H, layer_idx=0)


def states(module: torch.nn.Module, xs: np.ndarray) -> list[np.ndarray]:
    """The last inputs of the convolution, of which the module keeps one more, and the states of the recurrence."""
    cache = types.SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    with torch.no_grad():
        module(torch.tensor(xs), inference_params=cache)
    inputs, h = (state.numpy() for state in cache.key_value_memory_dict[0])
    return [inputs[..., 1:].swapaxes(1, 2), h.reshape(B, -1)]


if __name__ == "__main__":
    main()
