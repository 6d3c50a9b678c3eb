"""Mixers beside the released code: `python -m benchmarks.oracles.fla FOLDER`.

The folder is a clone of github.com/fla-org/flash-linear-attention. Needs torch and einops. Its layers run with random
weights, and with the plain functions of the clone in place of the Triton kernels: outputs, last states, and the
gradients by all weights and inputs. In float64, the torch code casts to float64 wherever it casts to float32. The
recurrences alone are compared, too, from a random state, with the gradients by it and by all inputs.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from common.command_line import command_line, option

from benchmarks import report
from benchmarks.oracles import fla_recurrences
from benchmarks.oracles.fla_source import Source
from benchmarks.oracles.reference import difference, show
from benchmarks.report import JSON
from rnnjax import Scan, networks, unroll
from rnnjax.named import as_module
from rnnjax.networks.mixers import weighted_mean

I, T, B = 48, 21, 2  # noqa: E741
ENGINE = Scan()  # the tests compare `Chunked` with it
Weights = dict[str, Any]

parse = command_line(
    __doc__,
    JSON,
    option("source", type=Path, help="flash-linear-attention"),
    option("--dtypes", nargs="+", default=["float32", "float64"], help="float32, float64 or both"),
)


def main() -> None:
    options = parse()
    jax.config.update("jax_enable_x64", True)
    print(report.heading(), flush=True)
    for dtype in options.dtypes:
        source = Source(options.source, doubles=dtype == "float64")
        layers = (compare(source, name, dtype) for name in LAYERS)
        for record in chain(layers, fla_recurrences.compare_all(source, dtype, ENGINE)):
            report.keep(options.json, record | report.machine(), ("layer", "dtype"))


class Case(NamedTuple):
    """A layer of ours, the one of the clone, and all weights, or their gradients, by the names in the clone."""

    make: Callable[..., networks.MatrixMixer]
    file: str
    name: str
    options: dict[str, Any]
    named: Callable[[Any], Weights]


def columns(layer: Any) -> list[np.ndarray]:
    """The columns of queries, keys and values."""
    n, K = layer.micro_steps, layer.key_heads * layer.key_size
    return np.split(np.arange(layer.input_weight.shape[1]), [K, K + n * K])


def projections(layer: Any, names: str = "qkv") -> Weights:
    """Of queries, keys, values and outputs, and of their convolutions."""
    weights = {"o_proj.weight": layer.output_weight.T}
    for name, own in zip(names, columns(layer), strict=True):
        weights[f"{name}_proj.weight"] = layer.input_weight[:, own].T
        if layer.convolution is not None:
            weights[f"{name}_conv1d.weight"] = layer.convolution.weight[::-1, own].T[:, None]
    return weights


def delta_net(layer: Any) -> Weights:
    strength = layer.write.projection.weight.T
    return projections(layer) | {"b_proj.weight": strength, "o_norm.weight": layer.norm.weight}


def gated_delta_net(layer: Any) -> Weights:
    steps = layer.decay.projection
    weights = {"a_proj.weight": steps.weight.T, "dt_bias": steps.bias, "A_log": layer.decay.log_rate}
    return delta_net(layer) | weights | {"g_proj.weight": layer.gate.projection.weight.T}


def kda(layer: Any) -> Weights:
    steps, gate = layer.decay.projection, layer.gate.projection
    weights = {"f_proj.0.weight": steps.down.weight.T, "f_proj.1.weight": steps.up.weight.T, "dt_bias": steps.up.bias}
    weights |= {
        "g_proj.0.weight": gate.down.weight.T,
        "g_proj.1.weight": gate.up.weight.T,
        "g_proj.1.bias": gate.up.bias,
    }
    return delta_net(layer) | weights | {"A_log": layer.decay.log_rate}


def ret_net(layer: Any) -> Weights:
    return projections(layer) | {
        "g_proj.weight": layer.gate.projection.weight.T,
        "g_norm_swish_gate.weight": layer.norm.weight,
    }


def gla(layer: Any) -> Weights:
    decay = layer.decay.projection
    weights = {"gk_proj.0.weight": decay.down.weight.T, "gk_proj.1.weight": decay.up.weight.T}
    return ret_net(layer) | weights | {"gk_proj.1.bias": decay.up.bias}


def hgrn2(layer: Any) -> Weights:
    return projections(layer, "qfi") | {"g_norm.weight": layer.norm.weight.reshape(-1)}


def mamba2(layer: Any) -> Weights:
    C, B, u = columns(layer)
    mixed = np.concatenate([u, B, C])
    rows = layer.gate.projection.weight, layer.input_weight[:, mixed], layer.write.projection.weight
    return {
        "in_proj.weight": np.concatenate([np.asarray(each) for each in rows], axis=1).T,
        "conv1d.weight": layer.convolution.weight[::-1, mixed].T[:, None],
        "conv1d.bias": layer.convolution.bias[mixed],
        "dt_bias": layer.write.projection.bias,
        "A_log": layer.decay.log_rate,
        "D": layer.skip.weight,
        "norm.weight": layer.norm.weight.reshape(-1),
        "out_proj.weight": layer.output_weight.T,
    }


def linear_attention(**options: Any) -> networks.MatrixMixer:
    """With the small number in the denominator that the clone has; there it is added to scaled queries."""
    layer = networks.LinearAttention(I, heads=4, **options)
    norm = partial(weighted_mean, epsilon=1e-10 * (I / 4) ** 0.5)
    return eqx.tree_at(lambda layer: layer.norm, layer, as_module(norm))


LINEAR_OPTIONS = {"feature_map": "elu", "output_norm": "identity", "do_feature_map_norm": True, "num_heads": 4}
LAYERS = {
    "LinearAttention": Case(linear_attention, "linear_attn.py", "LinearAttention", LINEAR_OPTIONS, projections),
    "RetNet": Case(
        partial(networks.RetNet, I, heads=4),
        "multiscale_retention.py",
        "MultiScaleRetention",
        {"num_heads": 4},
        ret_net,
    ),
    "GLA": Case(partial(networks.GLA, I), "gla.py", "GatedLinearAttention", {}, gla),
    "HGRN2": Case(
        partial(networks.HGRN2, I, key_size=12, lower_bound=0.2),
        "hgrn2.py",
        "HGRN2Attention",
        {"expand_ratio": 12},
        hgrn2,
    ),
    "Mamba2": Case(
        partial(
            networks.Mamba2, I, head_size=12, states=8
        ),  # with groups, the clone's plain path pairs heads otherwise
        "mamba2.py",
        "Mamba2",
        {"head_dim": 12, "state_size": 8, "chunk_size": 16},
        mamba2,
    ),
    "DeltaNet": Case(partial(networks.DeltaNet, I), "delta_net.py", "DeltaNet", {}, delta_net),
    "DeltaNet, [-1, 1]": Case(
        partial(networks.DeltaNet, I, negative_eigenvalues=True),
        "delta_net.py",
        "DeltaNet",
        {"allow_neg_eigval": True},
        delta_net,
    ),
    "GatedDeltaNet": Case(
        partial(networks.GatedDeltaNet, I, heads=4, key_heads=2, key_size=6),
        "gated_deltanet.py",
        "GatedDeltaNet",
        {"num_heads": 2, "num_v_heads": 4, "head_dim": 6},
        gated_delta_net,
    ),
    "KDA": Case(
        partial(networks.KDA, I, heads=4, key_heads=2, key_size=6),
        "kda.py",
        "KimiDeltaAttention",
        {"num_heads": 2, "num_v_heads": 4, "head_dim": 6},
        kda,
    ),
    "DeltaProduct": Case(
        partial(networks.DeltaProduct, I, householders=3),
        "gated_deltaproduct.py",
        "GatedDeltaProduct",
        {"num_heads": 6, "head_dim": 6, "num_householder": 3},
        gated_delta_net,
    ),
}


def weights_of_loss(ys: Any) -> np.ndarray:
    return np.cos(np.arange(ys.size)).reshape(ys.shape).astype(ys.dtype)


@eqx.filter_jit
def ours(layer: networks.MatrixMixer, xs: jax.Array) -> tuple[Any, Any, Any, Any]:
    """Outputs, last states, and gradients by weights and inputs of a weighted sum of the outputs."""

    def loss(layer: networks.MatrixMixer, xs: jax.Array) -> tuple[jax.Array, Any]:
        state, ys = jax.vmap(lambda xs: unroll(layer, None, xs, engine=ENGINE))(xs)
        return jnp.sum(ys * weights_of_loss(ys)), (ys, state.S)

    (dlayer, dxs), (ys, S) = jax.grad(loss, (0, 1), has_aux=True)(layer, xs)
    return ys, S, dlayer, dxs


def arrays(weights: Weights) -> Weights:
    return {name: np.asarray(weight) for name, weight in weights.items()}


def compare(source: Source, name: str, dtype: str) -> dict[str, Any]:
    """The record of one layer and dtype."""
    case, generator = LAYERS[name], np.random.default_rng(0)
    noise = lambda leaf: (leaf + 0.1 * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    layer = jax.tree.map(noise, case.make(key=jax.random.key(0), dtype=jnp.dtype(dtype)))
    xs, weights = generator.normal(size=(B, T, I)).astype(dtype), arrays(case.named(layer))
    module = source.layer(case.file, case.name, hidden_size=I, **case.options).to(getattr(torch, dtype))
    named = dict(module.named_parameters())
    assert named.keys() == weights.keys(), named.keys() ^ weights.keys()
    for key, weight in named.items():
        assert weight.numel() == weights[key].size
        weight.data = torch.tensor(weights[key].copy()).reshape(weight.shape)
    inputs = torch.tensor(xs, requires_grad=True)
    bounds = {"lower_bound": torch.full((I,), 0.2, dtype=inputs.dtype)} if name == "HGRN2" else {}
    ys = module(inputs, use_cache=True, **bounds)[0]
    (ys * torch.tensor(weights_of_loss(xs))).sum().backward()
    expected = {"xs": np.asarray(inputs.grad)}
    expected |= {key: np.asarray(weight.grad).reshape(weights[key].shape) for key, weight in named.items()}
    got_ys, got_S, dlayer, dxs = ours(layer, jnp.asarray(xs))
    record: dict[str, Any] = {"layer": name, "dtype": dtype, "reference": f"layers/{case.file}"}
    record |= {"outputs": difference(got_ys, ys.detach().numpy())}
    if name != "RetNet":  # whose states there are of rotated keys
        record |= {"states": difference(got_S, state_of(module, name))}
    return show(record | {"gradients": difference({"xs": dxs} | arrays(case.named(dlayer)), expected)})


def state_of(module: Any, name: str) -> np.ndarray:
    """The last state as keys by values; of linear attention with the normaliser as a column."""
    if name == "LinearAttention":
        S, z = (part.detach().numpy() for part in module.state)
        return np.concatenate([S, z.swapaxes(1, 2).swapaxes(2, 3)], axis=-1)
    state = module.state.detach().numpy()
    return state.swapaxes(-1, -2) if name == "Mamba2" else state


if __name__ == "__main__":
    main()
