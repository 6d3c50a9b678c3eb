"""RWKV-6 and RWKV-7 beside the released code: `python -m benchmarks.oracles.rwkv FOLDER [FOLDER_OF_FLA]`.

The folders are clones of github.com/BlinkDL/RWKV-LM and github.com/fla-org/flash-linear-attention; the second is for
RWKV-6, whose authors released no recurrence for CPUs. Needs torch. Whole networks of blocks and normalisations are
compared, with random weights: outputs, last states, and the gradients by all weights and inputs. In float64, the torch
code casts to float64 wherever it casts to float32. The last rows compare the initial values that are not random with
those of the code for training.
"""
# pyright: reportMissingImports=false

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
from rnnjax import Scan, networks, unroll
from rnnjax.engines import Chunked

H, HEAD, LAYERS, T = 128, 64, 3, 37
ENGINES = {"Scan": Scan(), "Chunked": Chunked(16)}

parse = command_line(
    __doc__, JSON, option("source", type=Path, help="RWKV-LM"), option("fla", type=Path, nargs="?", help="or none")
)


def main() -> None:
    options = parse()
    jax.config.update("jax_enable_x64", True)
    print(report.heading(), flush=True)
    records = []
    for dtype in ("float32", "float64"):
        for engine in ENGINES:
            records.append(of_torch(options.source / "RWKV-v7/rwkv_v7_demo.py", 7, dtype, engine, None))
            if options.fla is not None:
                records.append(of_torch(options.source / "RWKV-v5/rwkv_v6_demo.py", 6, dtype, engine, options.fla))
    records.append(of_numpy(options.source / "RWKV-v7/rwkv_v7_numpy.py"))
    records.append(of_initial(options.source / "RWKV-v7/train_temp/src/model.py", 7))
    records.append(of_initial(options.source / "RWKV-v5/src/model.py", 6))
    report.write(options.json, [record | report.machine() for record in records])


def network_of(version: int, dtype: str) -> tuple[Any, np.ndarray]:
    """A network whose weights are the initial ones and noise, and its inputs."""
    make = networks.rwkv7_layers if version == 7 else networks.rwkv6_layers
    generator = np.random.default_rng(version)
    noise = lambda leaf: (leaf + 0.1 * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    network = make(H, LAYERS, key=jax.random.key(0), head_size=HEAD, dtype=jnp.dtype(dtype))
    return jax.tree.map(noise, network), generator.normal(size=(T, H)).astype(dtype)


def time_mixing(layer: Any) -> dict[str, Any]:
    """The weights of a time mixing, or their gradients, by their names in the released code."""
    named = {
        "receptance.weight": layer.receptance_weight.T,
        "key.weight": layer.key_weight.T,
        "value.weight": layer.value_weight.T,
        "output.weight": layer.output_weight.T,
        "ln_x.weight": layer.norm.weight,
        "ln_x.bias": layer.norm.bias,
    }
    if isinstance(layer, networks.RWKV6):
        mixes = {f"time_maa_{name}": share for name, share in layer.mix._asdict().items()}
        named |= mixes | {
            "time_maa_w1": layer.mix_down,
            "time_maa_w2": layer.mix_up,
            "gate.weight": layer.gate_weight.T,
        }
        named |= {"time_decay": layer.decay.offset, "time_decay_w1": layer.decay.down, "time_decay_w2": layer.decay.up}
        return named | {"time_faaaa": layer.bonus.reshape(-1, HEAD)}
    named |= {f"x_{name}": share for name, share in layer.mix._asdict().items()}
    for letter, low in {"w": layer.decay, "a": layer.rate, "v": layer.value_gate, "g": layer.gate}.items():
        if low is not None:
            named |= {f"{letter}0": low.offset, f"{letter}1": low.down, f"{letter}2": low.up}
    named |= {"k_k": layer.removal_scale, "k_a": layer.rate_share, "r_k": layer.bonus.reshape(-1, HEAD)}
    return {name: value for name, value in named.items() if value is not None}


def channel_mixing(layer: Any) -> dict[str, Any]:
    named = {"key.weight": layer.key_weight.T, "value.weight": layer.value_weight.T}
    if layer.receptance_weight is None:
        return named | {"x_k": layer.key_mix}
    mixes = {"time_maa_k": layer.key_mix, "time_maa_r": layer.receptance_mix}
    return named | mixes | {"receptance.weight": layer.receptance_weight.T}


def named_weights(network: Any) -> dict[str, np.ndarray]:
    """All weights of a network, or their gradients, by their names in the released code."""
    first, *blocks, last = network.layers
    named = {f"blocks.0.ln0.{name}": getattr(first.function, name) for name in ("weight", "bias")}
    named |= {f"ln_out.{name}": getattr(last.function, name) for name in ("weight", "bias")}
    for number, block in enumerate(blocks):
        inside = {f"att.{name}": value for name, value in time_mixing(block.time_mixing).items()}
        inside |= {f"ffn.{name}": value for name, value in channel_mixing(block.channel_mixing).items()}
        for norm, layer in {"ln1": block.time_norm, "ln2": block.channel_norm}.items():
            inside |= {f"{norm}.weight": layer.weight, f"{norm}.bias": layer.bias}
        named |= {f"blocks.{number}.{name}": value for name, value in inside.items()}
    return {name: np.asarray(value) for name, value in named.items()}


def ours(network: Any, xs: np.ndarray, engine: str) -> tuple[Any, Any, Any]:
    """Outputs, the S of all layers, and gradients by weights and inputs of a weighted sum of the outputs."""

    def loss(network: Any, xs: jax.Array) -> tuple[jax.Array, Any]:
        state, ys = unroll(network, None, xs, engine=ENGINES[engine])
        return jnp.sum(ys * weights_of_loss(ys)), (ys, [block.time.S for block in state[1:-1]])

    (dnetwork, dxs), (ys, states) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(network, jnp.asarray(xs))
    return np.asarray(ys), [np.asarray(S) for S in states], {"xs": np.asarray(dxs)} | named_weights(dnetwork)


def weights_of_loss(ys: Any) -> np.ndarray:
    return np.cos(np.arange(ys.size)).reshape(ys.shape).astype(ys.dtype)


def of_torch(file: Path, version: int, dtype: str, engine: str, fla: Path | None) -> dict[str, Any]:
    """The record of a network beside the released modules of torch."""
    network, xs = network_of(version, dtype)
    weights = named_weights(network)
    wide, kind = dtype == "float64", torch.float64 if dtype == "float64" else torch.float32
    given = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "DTYPE": kind, "HEAD_SIZE": HEAD}
    given |= {"MyModule": torch.nn.Module, "MyFunction": lambda function: function}
    for name, letter in {"DECAY": "w1", "AAA": "a1", "MV": "v1", "GATE": "g1"}.items():
        matrix = weights.get(f"blocks.1.att.{letter}")
        given[f"D_{name}_LORA"] = None if matrix is None else matrix.shape[1]
    kept: list[torch.Tensor] = []
    if fla is not None:
        given["RUN_CUDA_RWKV6"] = recurrence_of_rwkv6(fla, kept, doubles=wide)
    classes = [f"RWKV_Tmix_x0{version}0", f"RWKV_CMix_x0{version}0", "Block"]
    parts(file, ["RWKV7_OP", *classes] if version == 7 else classes, given, doubles=wide)
    inner = weights["blocks.0.ffn.key.weight"].shape[0]
    sizes = {"n_embd": H, "dim_att": H, "dim_ffn": inner, "n_layer": LAYERS, "head_size_a": HEAD}
    about = types.SimpleNamespace(**sizes, head_size_divisor=8)
    blocks = torch.nn.ModuleList([given["Block"](about, layer) for layer in range(LAYERS)]).to(kind)
    norm = torch.nn.LayerNorm(H).to(kind)
    named = {f"blocks.{name}": weight for name, weight in blocks.named_parameters()}
    named |= {f"ln_out.{name}": weight for name, weight in norm.named_parameters()}
    for name, weight in named.items():
        if name in weights:  # the norm `ln0` of other blocks than the first, and the v of the first, are not used
            weight.data = torch.tensor(weights[name]).reshape(weight.shape)
    inputs = torch.tensor(xs[None], requires_grad=True)
    x, first = inputs, torch.empty_like(inputs)
    for block in blocks:
        x, first = block(x, first) if version == 7 else (block(x), first)
    ys = norm(x)[0]
    (ys * torch.tensor(weights_of_loss(xs))).sum().backward()
    gradient = {name: gradient_of(named[name]).reshape(weights[name].shape) for name in weights}
    expected = {"xs": gradient_of(inputs)[0]} | gradient
    got_ys, got_states, got_gradient = ours(network, xs, engine)
    record: dict[str, Any] = {"layer": f"RWKV-{version}, {engine}", "dtype": dtype, "reference": file.name}
    record |= {"outputs": difference(got_ys, ys.detach().numpy()), "gradients": difference(got_gradient, expected)}
    if kept:
        record |= {"states": difference(got_states, [S[0].numpy() for S in kept])}
        record["reference"] += " and fla's recurrence"
    return show(record)


def recurrence_of_rwkv6(fla: Path, kept: list[torch.Tensor], *, doubles: bool) -> Any:
    """In place of the kernel of CUDA; the last states are kept."""
    file, name = fla / "fla/ops/rwkv6/recurrent_naive.py", "naive_recurrent_rwkv6"
    plain = parts(file, [name], {"torch": torch}, doubles=doubles)[name]

    def run(B: int, T: int, C: int, N: int, r: Any, k: Any, v: Any, w: Any, u: Any) -> torch.Tensor:
        by_head = lambda flat: flat.view(B, T, N, C // N).transpose(1, 2)  # noqa: E731
        decay = -torch.exp(by_head(w))
        ys, S = plain(by_head(r), by_head(k), by_head(v), decay, u, scale=1.0, output_final_state=True)
        kept.append(S.detach())
        return ys.transpose(1, 2).reshape(B, T, C)

    return run


def of_numpy(file: Path) -> dict[str, Any]:
    """The record of RWKV-7 beside the NumPy program: inputs are its embedding, outputs its logits."""
    network, xs = network_of(7, "float64")
    weights = named_weights(network) | {"emb": xs, "head": np.eye(H)}
    att = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "r_k", "w1", "w2", "a1", "a2", "a0", "g1", "g2"]
    late = ["k_k", "k_a", *(f"{name}.weight" for name in ("receptance", "key", "value", "output"))]
    order = {"att": [*att, "v2", "v1", "v0", *late, "ln_x.weight", "ln_x.bias"]}
    order |= {"ffn": ["x_k", "key.weight", "value.weight"]}

    def params(prefix: str) -> list[np.ndarray]:
        if prefix in weights:
            return [weights[prefix]]
        names = order.get(prefix.rpartition(".")[2], ["weight", "bias"])
        return [weights[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in weights]

    names = ["layer_norm", "group_norm", "sigmoid", "time_mixing", "channel_mixing", "RWKV7"]
    given = {"np": np, "N_LAYER": LAYERS, "N_EMBD": H, "HEAD_SIZE": HEAD, "N_HEAD": H // HEAD}
    step = parts(file, names, given)["RWKV7"]
    state = np.zeros((LAYERS, 2, H)), np.zeros((LAYERS, H // HEAD, HEAD, HEAD))
    expected = []
    for t in range(T):
        y, state = step(params, t, state)
        expected.append(y)
    ys, states, _ = ours(network, xs, "Scan")
    record = {"layer": "RWKV-7, Scan", "dtype": "float64", "reference": file.name}
    record |= {"outputs": difference(ys, np.stack(expected))}
    return show(record | {"states": difference(states, [S.swapaxes(1, 2) for S in state[1]])})


def of_initial(file: Path, version: int) -> dict[str, Any]:
    """The record of the initial values that are not random."""
    make = networks.rwkv7_layers if version == 7 else networks.rwkv6_layers
    weights = named_weights(make(H, LAYERS, key=jax.random.key(0), head_size=HEAD))
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math}
    given |= {"MyModule": torch.nn.Module, "MyFunction": lambda function: function}
    classes = {"att": f"RWKV_Tmix_x0{version}0", "ffn": f"RWKV_CMix_x0{version}0"}
    parts(file, list(classes.values()), given)
    about = types.SimpleNamespace(
        n_embd=H, dim_att=H, dim_ffn=4 * H, n_layer=LAYERS, head_size=HEAD, head_size_a=HEAD, my_testing=""
    )
    about.head_size_divisor = 8
    got, expected, sizes = {}, {}, 0
    for layer in range(LAYERS):
        for kind, name in classes.items():
            for parameter, value in given[name](about, layer).state_dict().items():
                place = f"blocks.{layer}.{kind}.{parameter}"
                is_random = parameter.endswith(("w2", "a2", "v2", "g2", ".weight"))
                if place in weights and not is_random:
                    expected[place] = value.numpy()
                    got[place] = weights[place].reshape(value.shape)
                elif place in weights and ".weight" not in parameter:
                    sizes += weights[place].shape != value.shape
    assert sizes == 0, "ranks differ"
    record = {"layer": f"RWKV-{version}, initial values", "dtype": "float32", "reference": file.parts[-3] + " model.py"}
    return show(record | {"outputs": difference(got, expected)})


if __name__ == "__main__":
    main()
