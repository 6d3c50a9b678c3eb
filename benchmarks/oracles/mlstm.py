"""xLSTM beside its authors' code: `python -m benchmarks.oracles.mlstm MLSTM_KERNELS XLSTM`.

The folders are clones of github.com/NX-AI/mlstm_kernels and github.com/NX-AI/xlstm, which run from where they are. It
needs torch. With the same weights: outputs, last states, and the gradients of a loss on all outputs by weights and
inputs. Their constant in denominators, 1e-6, is set to zero. States of an mLSTM are compared as C exp(m) and n exp(m):
the programs begin with another m, which changes no output, and `xlstm` divides the key where this library divides the
query.
"""
# pyright: reportMissingImports=false

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from common.command_line import command_line, option

from benchmarks import report
from benchmarks.report import JSON
from rnnjax import Auto, Fused, Scan, cells, models, networks, unroll
from rnnjax.engines import Chunked

T, N, K, V, I = 37, 4, 16, 24, 64  # noqa: E741
ENGINES = {"Scan": Scan(), "Fused, Chunked": Auto((Fused(), Chunked(16)))}
NATIVE = "mlstm_kernels/torch"

Outcome = tuple[Any, Any, Any]  # outputs, last states and gradients; None where there is nothing to compare
parse = command_line(
    __doc__,
    JSON,
    option("kernels", type=Path, help="the folder of mlstm_kernels"),
    option("xlstm", type=Path, help="the folder of xlstm"),
)


def main() -> None:
    options = parse()
    jax.config.update("jax_enable_x64", True)
    sys.path.append(str(options.xlstm))
    print(report.heading(), flush=True)
    records = []
    for dtype in ("float32", "float64"):
        torch.set_default_dtype(getattr(torch, dtype))
        for layer, reference, compare in comparisons(options.kernels):
            for engine in ENGINES:
                records.append(record(layer, reference, dtype, engine, compare))
    report.write(options.json, [each | report.machine() for each in records])


def comparisons(kernels: Path) -> list[tuple[str, str, Callable[[str, Any], tuple[Outcome, Outcome]]]]:
    """Each layer, what it is compared with, and the function that runs both."""
    return [
        ("MLSTMRecurrence", "mlstm_kernels, parallel/native", partial(of_parallel, kernels, False)),
        ("MLSTMRecurrence", "mlstm_kernels, recurrent/native_step", partial(of_steps, kernels)),
        ("SigmoidMLSTMRecurrence", "mlstm_kernels, parallel/native_siging", partial(of_parallel, kernels, True)),
        ("SLSTM", "xlstm, slstm/src/vanilla", of_slstm),
        ("MLSTMBlock", "xlstm, mLSTMBlock", of_mlstm_block),
        ("SLSTMBlock", "xlstm, sLSTMBlock", of_slstm_block),
        ("xlstm_layers", "xlstm, xLSTMBlockStack", of_stack),
    ]


def record(layer: str, reference: str, dtype: str, engine: str, compare: Callable[..., Any]) -> dict[str, Any]:
    """The largest differences as a record, printed as a row."""
    got, expected = compare(dtype, ENGINES[engine])
    kinds = ("outputs", "states", "gradients")
    found = {
        kind: difference(one, other) for kind, one, other in zip(kinds, got, expected, strict=True) if other is not None
    }
    row = "  ".join(f"{kind} {found[kind]:.1e}" if kind in found else " " * (len(kind) + 8) for kind in kinds)
    print(f"{layer:23} {dtype} {engine:15} {row}  {reference}", flush=True)
    return {"layer": layer, "reference": reference, "dtype": dtype, "engine": engine, **found}


def difference(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest expected entry of each array if that is above 1."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    worst = 0.0
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
        assert one.shape == other.shape
        worst = max(worst, float(np.max(abs(one - other)) / max(1.0, np.max(abs(other)))))
    return worst


def file(path: Path) -> Any:
    """The module of one file, without the package around it, which compiles for a GPU when it is imported."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# Both sides


def leaf(array: Any) -> torch.Tensor:
    """A tensor whose gradient is wanted."""
    return torch.tensor(np.array(array), requires_grad=True)


def weights_of_loss(ys: Any) -> np.ndarray:
    """By which the outputs are summed, so that every one of them counts."""
    return np.cos(np.arange(ys.size) * 0.7).reshape(ys.shape)


def run(layer: Any, state: Any, xs: Any, engine: Any) -> tuple[Any, Any, Any]:
    """Outputs, last state, and the gradients by weights, the state given and the inputs."""
    weights, static = eqx.partition(layer, eqx.is_inexact_array)

    def loss(weights: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        last, ys = unroll(eqx.combine(weights, static), state, xs, engine=engine)
        return jnp.sum(ys * weights_of_loss(ys).astype(ys.dtype)), (last, ys)

    given = layer.initial() if state is None else state
    gradients, (last, ys) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(weights, given, xs)
    return ys, last, gradients


def backward(ys: torch.Tensor) -> None:
    (ys * torch.tensor(weights_of_loss(ys.detach().numpy()), dtype=ys.dtype)).sum().backward()


def numbers(tensors: Any) -> Any:
    """The arrays of tensors."""
    return jax.tree.map(lambda tensor: tensor.detach().numpy(), tensors)


def slopes(leaves: Any) -> Any:
    """The gradients of tensors."""
    return jax.tree.map(lambda tensor: tensor.grad.numpy(), leaves)


def noisy(layer: Any) -> Any:
    """The layer, its weights the initial ones and noise, so that none of them is zero."""
    generator = np.random.default_rng(3)
    noise = lambda leaf: (leaf + 0.2 * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(lambda leaf: noise(leaf) if eqx.is_inexact_array(leaf) else leaf, layer)


def inputs(dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(dtype)


# The recurrences


def gates(dtype: str) -> networks.MLSTMInputs:
    generator = np.random.default_rng(1)

    def draw(*shape: int) -> Any:
        return generator.normal(size=(T, N, *shape)).astype(dtype)

    return networks.MLSTMInputs(draw(K), draw(K), draw(V), 2 * draw(), 2 * draw() + 1)


def of_parallel(kernels: Path, sigmoid: bool, dtype: str, engine: Any) -> tuple[Outcome, Outcome]:
    """The recurrence, from its initial state."""
    kind = networks.SigmoidMLSTMRecurrence if sigmoid else networks.MLSTMRecurrence
    xs = gates(dtype)
    ys, _, (_, _, slope) = run(kind(N, K, V, dtype=jnp.dtype(dtype)), None, xs, engine)
    module = file(kernels / NATIVE / "parallel" / ("native_siging" if sigmoid else "native") / "fw.py")
    leaves = [leaf(each) for each in xs]
    by_head = [each.movedim(0, 1)[None] for each in leaves]
    if sigmoid:
        hs = module.mlstm_siging_parallel_fw(*by_head, eps=0.0, normalize=False)[0]
    else:
        hs = module.mlstm_parallel_fw(*by_head, eps=0.0)[0]
    hs = hs[0].movedim(0, 1)
    backward(hs)
    return (ys, None, list(slope)), (numbers(hs), None, slopes(leaves))


def of_steps(kernels: Path, dtype: str, engine: Any) -> tuple[Outcome, Outcome]:
    """The recurrence, from a state that is given."""
    generator = np.random.default_rng(2)

    def draw(*shape: int) -> Any:
        return generator.normal(size=(N, *shape)).astype(dtype)

    state, xs = networks.MLSTMState(draw(K, V), draw(K), draw()), gates(dtype)
    ys, last, (_, of_state, of_xs) = run(networks.MLSTMRecurrence(N, K, V, dtype=jnp.dtype(dtype)), state, xs, engine)
    step = file(kernels / NATIVE / "recurrent/native_step.py").mlstm_recurrent_step__native
    given, leaves = [leaf(each) for each in state], [leaf(each) for each in xs]
    c, n, m = given[0][None], given[1][None], given[2][None, :, None]
    hs = []
    for t in range(T):
        q, k, v, i, f = (each[t][None] for each in leaves)
        i, f, wide = i[..., None], f[..., None], getattr(torch, dtype)
        h, (c, n, m) = step(q=q, k=k, v=v, i=i, f=f, c=c, n=n, m=m, eps=0.0, dtype_state=wide)
        hs.append(h[0])
    hs = torch.stack(hs)
    backward(hs)
    states = [c[0], n[0], m[0, :, 0]]
    return (ys, list(last), [*of_state, *of_xs]), (numbers(hs), numbers(states), slopes([*given, *leaves]))


def of_slstm(dtype: str, engine: Any) -> tuple[Outcome, Outcome]:
    """The cell, whose product with W their code gets as an input."""
    vanilla = importlib.import_module("xlstm.blocks.slstm.src.vanilla")
    units = I // N
    cell = noisy(cells.SLSTM(I, I, heads=N, key=jax.random.key(0), dtype=jnp.dtype(dtype)))
    xs = inputs(dtype, T, I)
    ys, last, (slope, _, of_xs) = run(cell, None, xs, engine)
    W, R, b, x = map(leaf, (cell.input_weight, cell.recurrent_weight, cell.bias, xs))
    states = torch.zeros(4, 1, I)
    by_row = R.reshape(N, units, 4, units).permute(0, 2, 3, 1).reshape(N, 4 * units, units)
    pointwise = vanilla.slstm_pointwise_function_registry["slstm"]
    everything, states, _ = vanilla.slstm_forward((x @ W)[:, None], states, by_row, b, pointwise)
    hs = everything[0, 1:, 0]
    backward(hs)
    got = [slope.input_weight, slope.recurrent_weight, slope.bias, of_xs]
    return (ys, list(last), got), (numbers(hs), numbers(list(states[:, 0])), slopes([W, R, b, x]))


# The blocks


def convolution(layer: Any) -> dict[str, Any]:
    kernel = jnp.flip(layer.convolution.weight, 0).T[:, None]
    return {"xlstm.conv1d.conv.weight": kernel, "xlstm.conv1d.conv.bias": layer.convolution.bias}


def blocks(weight: Any) -> Any:
    return jnp.swapaxes(weight, 1, 2)


def of_matrix(layer: Any) -> dict[str, Any]:
    """The weights of an `MLSTMBlock`, or their gradients, by their names in the authors' code."""
    q, k = jnp.split(layer.query_key_weight, 2, axis=2)
    i, f = jnp.split(layer.gate_weight, 2, axis=1)
    b_i, b_f = jnp.split(layer.gate_bias, 2)
    return convolution(layer) | {
        "xlstm_norm.weight": layer.input_scale,
        "xlstm.proj_up.weight": layer.up_weight.T,
        "xlstm.q_proj.weight": blocks(q),
        "xlstm.k_proj.weight": blocks(k),
        "xlstm.v_proj.weight": blocks(layer.value_weight),
        "xlstm.mlstm_cell.igate.weight": i.T,
        "xlstm.mlstm_cell.fgate.weight": f.T,
        "xlstm.mlstm_cell.igate.bias": b_i,
        "xlstm.mlstm_cell.fgate.bias": b_f,
        "xlstm.mlstm_cell.outnorm.weight": layer.norm_scale,
        "xlstm.learnable_skip": layer.skip,
        "xlstm.proj_down.weight": layer.down_weight.T,
    }


def of_scalar(layer: Any) -> dict[str, Any]:
    """The same of an `SLSTMBlock`. The modules `fgate` and `igate` make i and f."""
    heads, units = layer.input_weight.shape[:2]
    gates = zip(("fgate", "igate", "zgate", "ogate"), jnp.split(layer.input_weight, 4, axis=2), strict=True)
    return convolution(layer) | {
        "xlstm_norm.weight": layer.input_scale,
        **{f"xlstm.{gate}.weight": blocks(weight) for gate, weight in gates},
        "xlstm.slstm_cell._recurrent_kernel_": blocks(layer.recurrent_weight),
        "xlstm.slstm_cell._bias_": jnp.swapaxes(layer.bias.reshape(heads, 4, units), 0, 1).reshape(-1),
        "xlstm.group_norm.weight": layer.norm_scale,
        "ffn_norm.weight": layer.up_scale,
        "ffn.proj_up.weight": layer.up_weight.T,
        "ffn.proj_down.weight": layer.down_weight.T,
    }


def of_network(stack: Any) -> dict[str, Any]:
    """The same of a stack of blocks."""
    named = {}
    for number, block in enumerate(stack.layers[:-1]):
        names = of_matrix(block) if isinstance(block, networks.MLSTMBlock) else of_scalar(block)
        named |= {f"blocks.{number}.{name}": value for name, value in names.items()}
    return named | {"post_blocks_norm.weight": stack.layers[-1].function.weight}


def stored(name: str, weight: Any) -> torch.Tensor:
    """A weight as the authors' code stores it: the scales of norms less one."""
    is_scale = name.rsplit(".", 2)[-2] in ("xlstm_norm", "outnorm", "group_norm", "ffn_norm", "post_blocks_norm")
    return torch.tensor(np.array(weight) - is_scale)


def compare_modules(
    layer: Any, module: Any, names: Callable[[Any], dict[str, Any]], dtype: str, engine: Any
) -> tuple[Outcome, Outcome, Any]:
    """Outputs and gradients of a layer, and of a module with its weights; and the layer's last state."""
    xs = inputs(dtype, T, I)
    ys, last, (slope, _, of_xs) = run(layer, None, xs, engine)
    module.load_state_dict({name: stored(name, weight) for name, weight in names(layer).items()}, strict=True)
    for part in module.modules():
        if hasattr(part, "backend_fn"):
            part.backend_fn = partial(part.backend_fn, eps=0.0)
            part.backend_fn_step = partial(part.backend_fn_step, eps=0.0)
    x = leaf(xs)
    hs = module(x[None])[0]
    backward(hs)
    got, expected = names(slope) | {"x": of_xs}, slopes(dict(module.named_parameters()) | {"x": x})
    return (ys, None, got), (numbers(hs), None, expected), last


def settings(kind: str, **options: Any) -> Any:
    """A configuration of their package."""
    return getattr(importlib.import_module("xlstm"), f"{kind}Config")(**options)


def matrix_settings() -> Any:
    return settings("mLSTMLayer", embedding_dim=I, num_heads=N, context_length=T)


def scalar_settings() -> Any:
    single = dict.fromkeys(("dtype", "dtype_b", "dtype_r", "dtype_w", "dtype_g", "dtype_s", "dtype_a"), "float32")
    return settings("sLSTMLayer", embedding_dim=I, num_heads=N, backend="vanilla", **single)


def of_mlstm_block(dtype: str, engine: Any) -> tuple[Outcome, Outcome]:
    xlstm = importlib.import_module("xlstm")
    layer = noisy(networks.MLSTMBlock(I, heads=N, key=jax.random.key(0), dtype=jnp.dtype(dtype)))
    module = xlstm.mLSTMBlock(settings("mLSTMBlock", mlstm=matrix_settings(), _num_blocks=1, _block_idx=0))
    got, expected, last = compare_modules(layer, module, of_matrix, dtype, engine)
    state: dict[str, Any] = {}
    with torch.no_grad():
        for x in torch.tensor(inputs(dtype, T, I)):
            _, state = module.step(x[None, None], **state)
    c, n, m = (numbers(each)[0] for each in state["mlstm_state"])
    c, n = c * np.exp(m), n[..., 0] * np.exp(m[..., 0])
    C, vector, maximum = last.recurrence
    scale = C.shape[1] ** -0.5
    mine = C * np.exp(maximum)[:, None, None] * scale, vector * np.exp(maximum)[:, None] * scale
    states = [*mine, last.window.inputs]
    return (got[0], states, got[2]), (expected[0], [c, n, numbers(state["conv_state"][0])[0, 1:]], expected[2])


def of_slstm_block(dtype: str, engine: Any) -> tuple[Outcome, Outcome]:
    xlstm = importlib.import_module("xlstm")
    feedforward = settings("FeedForward", proj_factor=1.3, embedding_dim=I)
    layer = noisy(
        networks.SLSTMBlock(
            I, heads=N, inner_size=feedforward._proj_up_dim, key=jax.random.key(0), dtype=jnp.dtype(dtype)
        )
    )
    block = settings("sLSTMBlock", slstm=scalar_settings(), feedforward=feedforward, _num_blocks=1, _block_idx=0)
    module = xlstm.sLSTMBlock(block)
    got, expected, last = compare_modules(layer, module, of_scalar, dtype, engine)
    with torch.no_grad():
        normed = module.xlstm_norm(torch.tensor(inputs(dtype, T, I))[None])
        _, state = module.xlstm(normed, return_last_state=True)
    states = numbers(state["slstm_state"])[:, 0].reshape(4, N, -1)
    mine = [*last.slstm, last.window.inputs]
    return (got[0], mine, got[2]), (expected[0], [*states, numbers(state["conv_state"])[0]], expected[2])


def of_stack(dtype: str, engine: Any) -> tuple[Outcome, Outcome]:
    """Three blocks, the second of which has an sLSTM."""
    xlstm = importlib.import_module("xlstm")
    feedforward = settings("FeedForward", proj_factor=1.3, embedding_dim=I)
    stack = models.xlstm_layers(I, 3, slstm_at=[1], heads=N, key=jax.random.key(0), dtype=jnp.dtype(dtype))
    scalar = networks.SLSTMBlock(
        I, heads=N, inner_size=feedforward._proj_up_dim, blocks=3, depth=0.5, key=jax.random.key(1), dtype=dtype
    )
    stack = noisy(eqx.tree_at(lambda stack: stack.layers[1], stack, scalar))
    module = xlstm.xLSTMBlockStack(
        xlstm.xLSTMBlockStackConfig(
            mlstm_block=settings("mLSTMBlock", mlstm=matrix_settings()),
            slstm_block=settings("sLSTMBlock", slstm=scalar_settings(), feedforward=feedforward),
            context_length=T,
            num_blocks=3,
            embedding_dim=I,
            slstm_at=[1],
        )
    )
    got, expected, _ = compare_modules(stack, module, of_network, dtype, engine)
    return got, expected


if __name__ == "__main__":
    main()
