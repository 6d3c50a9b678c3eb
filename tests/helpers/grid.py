"""The grid: every cell, network, engine and view, and the tolerances, once. To be in a table here is to be tested."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial, wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PyTree
from kernel import NO_KERNEL

import rnnjax
from rnnjax.arrays import carry_dtype
from rnnjax.cell import carried_copy
from rnnjax.cells import LSTMState

T, I, H, B = 12, 3, 8, 5  # noqa: E741
KEY = jax.random.key(7)

VIEW_T = 7  # compiled many times over, and still two segments of 5

TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 6e-2, "float16": 8e-3}


class MatrixOfInputs(rnnjax.cells.AbstractMatrixCell):
    """A matrix cell of two heads, three keys and two values, of which all coefficients are linear in the input."""

    reads_before = False
    weight: Array
    initial_state: rnnjax.cells.Matrix

    @staticmethod
    def draw(inputs: int, dtype: Any) -> "MatrixOfInputs":
        generator = np.random.default_rng(3)
        array = lambda *shape: place(generator.normal(size=shape).astype(dtype) / 2)  # noqa: E731
        return MatrixOfInputs(array(inputs, 2 * 17), rnnjax.cells.Matrix(array(2, 3, 2)))

    @property
    def weight_shapes(self):
        return {"weight": (self.weight.shape[0], 2 * 17), "initial_state": (2, 3, 2)}

    def input_type(self):
        return jax.ShapeDtypeStruct(self.weight.shape[:1], self.weight.dtype)

    def initial(self):
        return carried_copy(self.initial_state, self.weight.dtype)

    def project(self, xs):
        return (xs @ self.weight).reshape(-1, 2, 17)

    def coefficients(self, u):
        wide = u.astype(carry_dtype(u.dtype))
        decay, key, query, erase, erase_key, value = jnp.split(wide, (3, 6, 9, 12, 15), axis=-1)
        erase, erase_key = jnp.sin(erase) / 2, jnp.sin(erase_key) / 2  # small ones, so that the state stays bounded
        return rnnjax.cells.Transition(jnp.tanh(decay), key, value, query, erase, erase_key)

    def readout(self, states, xs):
        return states.reshape(len(states), -1).astype(xs.dtype)


CELLS: dict[str, Callable[..., rnnjax.AbstractCell]] = {
    "elman": lambda inputs, dtype: rnnjax.Elman(inputs, H, key=KEY, dtype=dtype),
    "lstm": lambda inputs, dtype: rnnjax.LSTM(inputs, H, key=KEY, dtype=dtype),
    "lstm_options": lambda inputs, dtype: rnnjax.LSTM(
        inputs, H, key=KEY, peepholes=True, coupled=True, clip=0.8, heads=2, learn_initial=True, dtype=dtype
    ),
    "projected_lstm": lambda inputs, dtype: rnnjax.ProjectedLSTM(
        inputs, H, projected_size=H // 2, key=KEY, peepholes=True, dtype=dtype
    ),
    "gru": lambda inputs, dtype: rnnjax.GRU(inputs, H, key=KEY, learn_initial=True, bias=False, dtype=dtype),
    "reset_before_gru": lambda inputs, dtype: rnnjax.ResetBeforeGRU(inputs, H, key=KEY, dtype=dtype),
    "lem": lambda inputs, dtype: rnnjax.LEM(inputs, H, key=KEY, time_step=0.7, learn_initial=True, dtype=dtype),
    "rate_rnn": lambda inputs, dtype: rnnjax.cells.RateRNN(
        inputs, H, key=KEY, leak=0.3, rank=2, learn_initial=True, dtype=dtype
    ),
    "slstm": lambda inputs, dtype: rnnjax.cells.SLSTM(inputs, H, key=KEY, heads=2, dtype=dtype),
    "min_gru": lambda inputs, dtype: rnnjax.MinGRU(inputs, H, key=KEY, learn_initial=True, dtype=dtype),
    "ind_rnn": lambda inputs, dtype: rnnjax.IndRNN(inputs, H, key=KEY, activation=jnp.tanh, dtype=dtype),
    "diagonal_gru": lambda inputs, dtype: rnnjax.DiagonalGRU(inputs, H, key=KEY, learn_initial=True, dtype=dtype),
    "diagonal_lstm": lambda inputs, dtype: rnnjax.DiagonalLSTM(inputs, H, key=KEY, dtype=dtype),
    "min_lstm": lambda inputs, dtype: rnnjax.MinLSTM(inputs, H, key=KEY, activation=rnnjax.cells.positive, dtype=dtype),
    "linear_rnn": lambda inputs, dtype: rnnjax.LinearRNN(inputs, H, key=KEY, dtype=dtype),
    "sru": lambda inputs, dtype: rnnjax.SRU(inputs, H, key=KEY, dtype=dtype),
    "lru": lambda inputs, dtype: rnnjax.LRU(inputs, H, key=KEY, learn_initial=True, dtype=dtype),
    "s5": lambda inputs, dtype: rnnjax.S5(inputs, H, key=KEY, blocks=2, output_size=5, skip=False, dtype=dtype),
    "s6": lambda inputs, dtype: rnnjax.cells.S6(inputs, key=KEY, states=3, learn_initial=True, dtype=dtype),
    "matrix": lambda inputs, dtype: MatrixOfInputs.draw(inputs, dtype),
}
REPRESENTATIVES = ("lstm_options", "gru", "projected_lstm", "min_gru", "lru")  # a cell for each way to be different


def _layer(inputs: int, dtype: Any, cell: type = rnnjax.GRU) -> Any:
    return cell(inputs, H, key=KEY, dtype=dtype)


def of_frames(cell: type, inputs: int, dtype: Any, **options: Any) -> rnnjax.Stack:
    """A convolutional cell of inputs that are lines of one channel, its outputs in a row."""
    recurrent = cell(1, 2, inputs, kernel_size=3, learn_initial=True, key=KEY, dtype=dtype, **options)
    enter = rnnjax.TimeDistributed(lambda x: x[None], inputs, dtype=dtype)
    return rnnjax.Stack(
        [enter, recurrent, rnnjax.TimeDistributed(jnp.ravel, (2, *recurrent.hidden_space), dtype=dtype)]
    )


def both_ways(x: Array) -> Array:
    """A vector, and then the same from its end."""
    return jnp.concatenate([x, x[::-1]])


def doubled(inputs: int, network: Callable[..., Any], **options: Any) -> rnnjax.Stack:
    """A network that is built as `network(2 * inputs, **options)`, of inputs that are doubled."""
    enter = rnnjax.TimeDistributed(both_ways, inputs, dtype=options["dtype"])
    return rnnjax.Stack([enter, network(2 * inputs, **options)])


def of_pairs(inputs: int, **options: Any) -> rnnjax.Stack:
    """A CGLRU, whose features are real and imaginary parts, of inputs that are real parts and doubled."""
    return doubled(inputs, rnnjax.networks.CGLRU, **options)


def valued(x: Array) -> tuple[Array, Array]:
    """An input twice, and values of as many features."""
    return both_ways(x), both_ways(x[::-1])


def rwkv7_block(inputs: int, **options: Any) -> rnnjax.Stack:
    """A block of RWKV-7 that takes values from below, of two heads."""
    H, names = 2 * inputs, rnnjax.networks
    time = names.RWKV7(H, head_size=inputs, takes_value=True, learn_initial=True, **options)
    enter = rnnjax.TimeDistributed(valued, inputs, dtype=options["dtype"])
    return rnnjax.Stack([enter, names.RWKVBlock(time, names.ChannelMixing(H, inner_size=5, **options))])


def xlstm_blocks(size: int, **options: Any) -> rnnjax.Stack:
    """Both kinds of xLSTM blocks, of two heads."""
    matrix = rnnjax.networks.MLSTMBlock(size, heads=2, inner_size=8, **options)
    return rnnjax.Stack([matrix, rnnjax.networks.SLSTMBlock(size, heads=2, **options)])


def flagged(x: Array) -> tuple[Array, LSTMState]:
    """An input, and flags for h and c where it is large."""
    return x, LSTMState(h=x[0] > 0.3, c=x[1] > 0.3)


def with_flags(inputs: int, dtype: Any) -> rnnjax.Stack:
    """An LSTM whose h and c are each reset where an input is large."""
    cell = rnnjax.LSTM(inputs, H, key=KEY, learn_initial=True, dtype=dtype)
    network = rnnjax.networks.PartialResets(cell, LSTMState(h=True, c=True))
    return rnnjax.Stack([rnnjax.TimeDistributed(flagged, inputs, dtype=dtype), network])


NETWORKS: dict[str, Callable[..., rnnjax.AbstractNetwork]] = {
    "stack": lambda inputs, dtype: rnnjax.Stack([_layer(inputs, dtype), _layer(H, dtype, rnnjax.MinGRU)], dropout=0.5),
    "residual_and_skip": lambda inputs, dtype: rnnjax.Stack(
        [rnnjax.skip(_layer(inputs, dtype)), _layer(H + inputs, dtype), rnnjax.residual(_layer(H, dtype))]
    ),
    "reversed": lambda inputs, dtype: rnnjax.Reversed(_layer(inputs, dtype)),
    "bidirectional": lambda inputs, dtype: rnnjax.Bidirectional(_layer(inputs, dtype), _layer(inputs, dtype)),
    "shared_bidirectional": lambda inputs, dtype: rnnjax.networks.SharedBidirectional(_layer(inputs, dtype)),
    "stack_of_bidirectional": lambda inputs, dtype: rnnjax.Stack(
        [
            rnnjax.Bidirectional(_layer(inputs, dtype), _layer(inputs, dtype, rnnjax.MinGRU)),
            rnnjax.Bidirectional(_layer(2 * H, dtype), _layer(2 * H, dtype), merge=rnnjax.networks.average),
        ]
    ),
    "bidirectional_of_stacks": lambda inputs, dtype: rnnjax.Bidirectional(
        rnnjax.Stack([_layer(inputs, dtype), _layer(H, dtype)]), _layer(inputs, dtype), merge=rnnjax.networks.multiply
    ),
    "time_distributed": lambda inputs, dtype: rnnjax.residual(
        rnnjax.Stack(
            [
                rnnjax.TimeDistributed(eqx.nn.LayerNorm(inputs, dtype=dtype), inputs, dtype=dtype),
                _layer(inputs, dtype, rnnjax.MinGRU),
                rnnjax.TimeDistributed(eqx.nn.Linear(H, inputs, key=KEY, dtype=dtype), H, dtype=dtype),
            ]
        )
    ),
    "conv_lstm": lambda inputs, dtype: of_frames(rnnjax.ConvLSTM, inputs, dtype, peepholes=True),
    "conv_gru": lambda inputs, dtype: of_frames(rnnjax.ConvGRU, inputs, dtype, stride=2),
    "convolution": lambda inputs, dtype: rnnjax.networks.CausalConvolution(inputs, H, window=4, key=KEY, dtype=dtype),
    "depthwise_convolution": lambda inputs, dtype: rnnjax.networks.DepthwiseConvolution(
        inputs, window=4, key=KEY, dtype=dtype
    ),
    "dilated": lambda inputs, dtype: rnnjax.networks.Dilated(
        rnnjax.LSTM(inputs, H, key=KEY, learn_initial=True, dtype=dtype), 3
    ),
    "qrnn": lambda inputs, dtype: rnnjax.QRNN(
        inputs, H, key=KEY, window=3, input_gate=True, zoneout=0.5, learn_initial=True, dtype=dtype
    ),
    "rg_lru": lambda inputs, dtype: rnnjax.RGLRU(inputs, key=KEY, heads=inputs, learn_initial=True, dtype=dtype),
    "partial_resets": with_flags,
    "linear_attention": lambda inputs, dtype: rnnjax.networks.LinearAttention(
        inputs, key=KEY, heads=1, value_size=2, learn_initial=True, dtype=dtype
    ),
    "ret_net": lambda inputs, dtype: rnnjax.networks.RetNet(inputs, key=KEY, heads=2, key_size=4, dtype=dtype),
    "gla": lambda inputs, dtype: rnnjax.networks.GLA(inputs, key=KEY, heads=1, key_size=2, rank=2, dtype=dtype),
    "hgrn2": lambda inputs, dtype: rnnjax.networks.HGRN2(
        inputs, key=KEY, key_size=2, heads=3, lower_bound=0.2, dtype=dtype
    ),
    "mamba2": lambda inputs, dtype: rnnjax.networks.Mamba2(
        inputs, key=KEY, expansion=4, head_size=3, states=2, groups=2, dtype=dtype
    ),
    "delta_net": lambda inputs, dtype: rnnjax.networks.DeltaNet(
        inputs, key=KEY, heads=1, negative_eigenvalues=True, convolution=None, dtype=dtype
    ),
    "gated_delta_net": lambda inputs, dtype: rnnjax.networks.GatedDeltaNet(
        inputs, key=KEY, heads=2, key_heads=1, key_size=3, value_size=2, dtype=dtype
    ),
    "kda": lambda inputs, dtype: rnnjax.networks.KDA(inputs, key=KEY, heads=2, key_size=2, value_size=3, dtype=dtype),
    "delta_product": lambda inputs, dtype: rnnjax.networks.DeltaProduct(
        inputs, key=KEY, heads=2, householders=3, key_size=2, value_size=3, learn_initial=True, dtype=dtype
    ),
    "cg_lru": lambda inputs, dtype: doubled(
        inputs, rnnjax.networks.CGLRU, key=KEY, heads=inputs, learn_initial=True, dtype=dtype
    ),
    "rwkv6": lambda inputs, dtype: doubled(inputs, rnnjax.networks.RWKV6, key=KEY, head_size=inputs, dtype=dtype),
    "rwkv7": lambda inputs, dtype: rwkv7_block(inputs, key=KEY, dtype=dtype),
    "mamba": lambda inputs, dtype: rnnjax.networks.Mamba(inputs, key=KEY, states=2, learn_initial=True, dtype=dtype),
    "mlstm": lambda inputs, dtype: rnnjax.networks.MLSTM(inputs, H, heads=2, key_size=3, key=KEY, dtype=dtype),
    "xlstm": lambda inputs, dtype: doubled(inputs, xlstm_blocks, key=KEY, dtype=dtype),
}
MIXERS = (  # networks around a matrix cell
    *("linear_attention", "ret_net", "gla", "hgrn2", "mamba2"),
    *("delta_net", "gated_delta_net", "kda", "delta_product"),
)
POOLED = ("qrnn", "rg_lru", "cg_lru")  # networks around a linear cell, which one engine or another runs
CAUSAL = (  # those that read their sequence from the left alone
    *(*CELLS, "stack", "residual_and_skip"),
    *("time_distributed", "conv_lstm", "conv_gru", "convolution", "depthwise_convolution", "dilated", "partial_resets"),
    *POOLED,
    *MIXERS,
    *("rwkv6", "rwkv7", "mamba", "mlstm", "xlstm"),
)

ENGINES: dict[str, rnnjax.AbstractEngine] = {
    "scan": rnnjax.Scan(unroll=2),
    "unrolled": rnnjax.Unrolled(),
    "checkpointed": rnnjax.Checkpointed(segment=5),
    "associative": rnnjax.Associative(),
    "associative_blocks": rnnjax.Associative(block=5),
    "chunked": rnnjax.engines.Chunked(size=4),
    "newton": rnnjax.Newton(),
    "newton_diagonal": rnnjax.Newton(rnnjax.engines.Diagonal()),
    "fused": rnnjax.Fused(),
    "fused_tpu": rnnjax.Fused(cpu=rnnjax.kernels.TPU(interpret=True)),  # emulated, which takes float64 too
    "fused_gpu": rnnjax.Fused(cpu=rnnjax.kernels.GPU(interpret=True)),
}
ORACLE = rnnjax.Scan()

Run = Callable[[Any, PyTree, Array], tuple[PyTree, Array]]


def grouped(cell: str, *others: str) -> Any:
    """A case of a test: one worker sees all cases of a cell, and what `Scan` gives is computed once."""
    return pytest.param(cell, *others, marks=pytest.mark.xdist_group(cell))


# The engines that do not run every cell, and the cells that they run.
EMITTING = ("s6", "matrix")  # cells whose steps emit something else than their state
LINEAR = ("min_gru", "min_lstm", "linear_rnn", "sru", "lru", "s5", "s6")
GATED = ("elman", "lstm", "lstm_options", "gru", "slstm")
ADMITTED: dict[str, tuple[str, ...]] = {
    "associative": LINEAR,
    "associative_blocks": LINEAR,
    "newton_diagonal": tuple(cell for cell in CELLS if cell not in ("projected_lstm", "matrix")),
    "chunked": ("matrix", *MIXERS),
    **dict.fromkeys(("fused_tpu", "fused_gpu"), GATED),
    "fused": () if NO_KERNEL else GATED,
}


def admits(engine: str, cell: str) -> bool:
    """Whether the engine runs the cell; `test_engines_admit_the_cells_of_the_table` holds the table to the engines."""
    return cell in ADMITTED.get(engine, CELLS)


def once(build: Callable[..., Any]) -> Any:
    """Cache what `build` makes, also where it is first asked for inside of a program that is traced."""

    @lru_cache
    @wraps(build)
    def built(*arguments: Any, **options: Any) -> Any:
        with jax.ensure_compile_time_eval():
            return build(*arguments, **options)

    return built


@once
def build(name: str, dtype: str = "float64") -> Any:
    """The cell or network of that name, its zero-valued weights (biases, learned states) made random."""
    generator = np.random.default_rng(7)
    shaken = lambda leaf: (leaf + 0.1 * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    made = (CELLS | NETWORKS)[name](I, jnp.dtype(dtype))
    return jax.tree.map(lambda leaf: place(shaken(np.asarray(leaf))) if eqx.is_inexact_array(leaf) else leaf, made)


def place(array: np.ndarray) -> Array:
    """The array as one of JAX, without compiling anything."""
    return jax.device_put(array)


def inputs(*shape: int, dtype: str = "float64", seed: int = 1) -> Array:
    """Random inputs [*shape, I]."""
    return place(np.random.default_rng(seed).normal(size=(*shape, I)).astype(jnp.dtype(dtype)))


def random_state(part: Any, *shape: int, seed: int = 2) -> PyTree:
    """A random state of a cell or network, with leading axes `shape`."""
    generator = np.random.default_rng(seed)

    def draw(leaf: Any) -> Array:
        size = (*shape, *leaf.shape)
        if leaf.dtype == bool:
            return place(generator.random(size) < 0.5)
        drawn = generator.normal(size=size) / 2
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            drawn = (drawn + 0.5j * generator.normal(size=size)) / np.sqrt(2)
        return place(drawn.astype(leaf.dtype))

    return jax.tree.map(draw, jax.eval_shape(part.initial))


def widen(leaf: Any) -> Any:
    """`leaf` in float64, or complex128."""
    dtype = "complex128" if jnp.iscomplexobj(leaf) else "float64"
    return leaf.astype(dtype) if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf).astype(dtype)


def contract(tree: PyTree) -> Array:
    """A scalar that sees every entry of `tree`, each with a weight of its own: random cotangents for a gradient."""

    def leaf(number: int, values: Array) -> Array:
        if jnp.iscomplexobj(values):
            return leaf(number, values.real) + leaf(number + 1, values.imag)
        weights = np.cos(np.arange(values.size) * 0.7 + number).reshape(values.shape)
        return jnp.sum(values.astype("float64") * weights)

    return sum(leaf(number, values) for number, values in enumerate(jax.tree.leaves(tree)))


def contraction(tree: PyTree) -> PyTree:
    """The gradient of `contract` by the numbers in `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    weights = lambda size, number: np.cos(np.arange(size) * 0.7 + number)  # noqa: E731
    made = [
        weights(leaf.size, number) - (1j * weights(leaf.size, number + 1) if jnp.iscomplexobj(leaf) else 0)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, [one.reshape(leaf.shape) for one, leaf in zip(made, leaves, strict=True)])


def loss(run: Run) -> Callable[[PyTree, Any, PyTree, Array], Array]:
    """A loss on the outputs and the last state, of (weights, the rest of the cell, state, xs)."""
    return lambda weights, static, state, xs: contract(run(eqx.combine(weights, static), state, xs))


def view_plain(run: Run, cell: Any) -> PyTree:
    return run(cell, random_state(cell), inputs(VIEW_T))


def view_vmap(run: Run, cell: Any) -> PyTree:
    return jax.vmap(lambda state, xs: run(cell, state, xs))(random_state(cell, B), inputs(B, VIEW_T))


def view_vmap_vmap(run: Run, cell: Any) -> PyTree:
    inner = jax.vmap(lambda state, xs: run(cell, state, xs), (None, 0))
    return jax.vmap(inner, (0, 1), 1)(random_state(cell, 2), inputs(B, 2, VIEW_T))


def view_weights_vmapped(run: Run, cell: Any) -> PyTree:
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, 0.5 * leaf]), weights)
    return jax.vmap(lambda weights: run(eqx.combine(weights, static), random_state(cell), inputs(VIEW_T)))(many)


def view_batch(run: Run, cell: Any) -> PyTree:
    """Values and gradient of a batch: what most is asked for."""
    weights, static = eqx.partition(cell, eqx.is_inexact_array)

    def batched(weights: PyTree, state: PyTree, xs: Array) -> tuple[Array, PyTree]:
        made = jax.vmap(lambda state, xs: run(eqx.combine(weights, static), state, xs))(state, xs)
        return contract(made), made

    return jax.grad(batched, (0, 1, 2), has_aux=True)(weights, random_state(cell, B), inputs(B, VIEW_T))


def view_grad(run: Run, cell: Any) -> PyTree:
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    return jax.grad(loss(run), (0, 2, 3))(weights, static, random_state(cell), inputs(VIEW_T))


def view_vmap_of_grad(run: Run, cell: Any) -> PyTree:
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    gradient = jax.grad(loss(run), (0, 2, 3))
    return jax.vmap(gradient, (None, None, 0, 0))(weights, static, random_state(cell, B), inputs(B, VIEW_T))


def view_jvp(run: Run, cell: Any) -> PyTree:
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    primals = weights, random_state(cell), inputs(VIEW_T)
    tangents = jax.tree.map(jnp.sin, primals)
    return jax.jvp(lambda weights, state, xs: run(eqx.combine(weights, static), state, xs), primals, tangents)


def view_remat(run: Run, cell: Any) -> PyTree:
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    rematerialised = jax.checkpoint(lambda weights, state, xs: loss(run)(weights, static, state, xs))
    return jax.grad(rematerialised, (0, 1, 2))(weights, random_state(cell), inputs(VIEW_T))


def view_inside_scan(run: Run, cell: Any) -> PyTree:
    return jax.lax.scan(lambda state, xs: run(cell, state, xs), random_state(cell), inputs(4, 3))


VIEWS = {name.removeprefix("view_"): view for name, view in dict(globals()).items() if name.startswith("view_")}


@lru_cache
def view(name: str, cell: str, engine: rnnjax.AbstractEngine = ORACLE) -> PyTree:
    """What an engine gives under a view, as one compiled program."""
    run = partial(rnnjax.unroll, engine=engine)
    return jax.block_until_ready(eqx.filter_jit(partial(VIEWS[name], run))(build(cell)))


def values_and_gradients(cell: rnnjax.AbstractCell, xs: jax.Array, engine: rnnjax.AbstractEngine) -> PyTree:
    """Outputs and last state, and the gradients of a loss on both, all as float64."""
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    run = partial(rnnjax.unroll, engine=engine)

    def with_values(weights: PyTree, xs: Array) -> tuple[Array, PyTree]:
        made = run(eqx.combine(weights, static), None, xs)
        return contract(made), made

    gradients, values = jax.grad(with_values, (0, 1), has_aux=True)(weights, xs)
    return jax.tree.map(widen, (values, gradients))


NARROW = ("float32", "bfloat16", "float16")


@lru_cache
def rounded(cell: str, engine: rnnjax.AbstractEngine) -> dict[str, PyTree]:
    """What an engine gives in each narrow dtype, as one compiled program."""
    given = {dtype: (build(cell, dtype), inputs(T, dtype=dtype)) for dtype in NARROW}
    return _of_each(given, engine)


@lru_cache
def expected_rounded(cell: str) -> dict[str, PyTree]:
    """What float64 `Scan` gives for the weights and inputs that each narrow dtype can hold."""
    wide = lambda leaf: widen(leaf) if eqx.is_inexact_array(leaf) else leaf  # noqa: E731
    given = {dtype: jax.tree.map(wide, (build(cell, dtype), inputs(T, dtype=dtype))) for dtype in NARROW}
    return _of_each(given, ORACLE)


@eqx.filter_jit
def _of_each(given: dict[str, tuple[rnnjax.AbstractCell, Array]], engine: rnnjax.AbstractEngine) -> dict[str, PyTree]:
    return {dtype: values_and_gradients(cell, xs, engine) for dtype, (cell, xs) in given.items()}


def assert_close(got: PyTree, expected: PyTree, dtype: str = "float64") -> None:
    """Equal to the tolerance of `dtype`, relative to the largest expected entry of each leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = widen(one), widen(other)
        assert one.shape == other.shape
        scale = max(1.0, float(np.max(np.abs(other), initial=0.0)))
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[dtype] * scale)


def assert_error(call: Callable[[], Any], kind: type[Exception], fragments: Sequence[str]) -> str:
    """Just this kind of error, in one line that begins with the name of the argument, and holds all `fragments`.

    Returns the message.
    """
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert caught.type is kind
    assert message.startswith(f"{fragments[0]}: ")
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message
    return message


def refusal(engine: rnnjax.AbstractEngine, cell: Any, xs: Any) -> str | None:
    """Why an engine does not run a cell; None if it has a plan."""
    plan = engine.plan(cell, xs)
    return str(plan) if isinstance(plan, rnnjax.engines.Refusal) else None


class Counted(rnnjax.AbstractCell):
    """A cell that counts its steps: not all of its state is floating."""

    cell: rnnjax.AbstractCell

    def input_type(self):
        return self.cell.input_type()

    def initial(self):
        return jnp.asarray(0, "int32"), self.cell.initial()

    def project(self, xs):
        return self.cell.project(xs)

    def step(self, state, u):
        return state[0] + 1, self.cell.step(state[1], u)

    def readout(self, states, xs):
        return self.cell.readout(states[1], xs)
