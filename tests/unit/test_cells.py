"""Every cell, and every network of the literature, equals its equations, and starts from the weights it says."""

import copy
import pickle
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rnnjax
from rnnjax import initialise, unroll

T, I, H, P, HEADS = 12, 3, 8, 5, 2  # noqa: E741
LARGE = 100.0  # a bias that saturates a gate in float64
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 3e-2, "float16": 4e-3}


def lstm_variants() -> dict[str, Callable[..., rnnjax.AbstractCell]]:
    """The LSTM, plain and projected, with its options in every combination."""
    variants = {}
    for peepholes, coupled, clip in product((False, True), (False, True), (None, 0.3)):
        options = {"peepholes": peepholes, "coupled": coupled, "clip": clip}
        name = "".join(f"_{option}" for option, value in options.items() if value)
        variants[f"lstm{name}"] = partial(rnnjax.LSTM, **options)
        variants[f"lstm{name}_heads"] = partial(rnnjax.LSTM, heads=HEADS, **options)
        variants[f"projected_lstm{name}"] = partial(rnnjax.ProjectedLSTM, projected_size=P, **options)
    return variants


VARIANTS = lstm_variants() | {
    "lstm_no_bias": partial(rnnjax.LSTM, bias=False),
    "lstm_activations": partial(
        rnnjax.LSTM,
        peepholes=True,
        activation=jax.nn.soft_sign,
        output_activation=rnnjax.cells.linear,
        gate_activation=jax.nn.hard_sigmoid,
    ),
    "lstm_bounded": partial(
        rnnjax.LSTM,
        activation=rnnjax.cells.clipped(jnp.tanh, 0.2),
        output_activation=jnp.tanh,
        gate_activation=rnnjax.cells.clipped(jax.nn.sigmoid, 0.2),
    ),
    "elman_tanh": rnnjax.Elman,
    "elman_relu": partial(rnnjax.Elman, activation=jax.nn.relu),
    "elman_linear": partial(rnnjax.Elman, activation=rnnjax.cells.linear),
    "elman_heads": partial(rnnjax.Elman, heads=HEADS),
    "elman_leak": partial(rnnjax.Elman, leak=0.3),
    "rate_rnn": partial(rnnjax.cells.RateRNN, leak=0.3),
    "rate_rnn_relu": partial(rnnjax.cells.RateRNN, leak=1.0, activation=jax.nn.relu, bias=False),
    "rate_rnn_low_rank": partial(rnnjax.cells.RateRNN, leak=0.3, rank=2),
    "gru": rnnjax.GRU,
    "gru_no_bias": partial(rnnjax.GRU, bias=False),
    "gru_activations": partial(rnnjax.GRU, activation=jax.nn.soft_sign, gate_activation=jax.nn.hard_sigmoid),
    "gru_heads": partial(rnnjax.GRU, heads=HEADS),
    "reset_before_gru": rnnjax.ResetBeforeGRU,
    "reset_before_gru_no_bias": partial(rnnjax.ResetBeforeGRU, bias=False),
    "reset_before_gru_activations": partial(
        rnnjax.ResetBeforeGRU, activation=jax.nn.soft_sign, gate_activation=jax.nn.hard_sigmoid
    ),
    "reset_before_gru_heads": partial(rnnjax.ResetBeforeGRU, heads=HEADS),
    "slstm": rnnjax.cells.SLSTM,
    "slstm_exponential_heads": partial(
        rnnjax.cells.SLSTM, heads=HEADS, exponential_forget_gate=True, recurrent_initialiser=initialise.orthogonal
    ),
    "slstm_no_bias": partial(rnnjax.cells.SLSTM, bias=False),
    "lem": rnnjax.LEM,
    "lem_no_bias": partial(rnnjax.LEM, time_step=0.4, bias=False),
    "min_gru": rnnjax.MinGRU,
    "min_gru_no_bias": partial(rnnjax.MinGRU, bias=False),
    "ind_rnn": rnnjax.IndRNN,
    "ind_rnn_tanh": partial(rnnjax.IndRNN, activation=jnp.tanh),
    "ind_rnn_no_bias": partial(rnnjax.IndRNN, bias=False),
    "diagonal_gru": rnnjax.DiagonalGRU,
    "diagonal_gru_no_bias": partial(rnnjax.DiagonalGRU, bias=False),
    "diagonal_lstm": rnnjax.DiagonalLSTM,
    "diagonal_lstm_no_bias": partial(rnnjax.DiagonalLSTM, bias=False),
    "min_gru_positive": partial(rnnjax.MinGRU, activation=rnnjax.cells.positive),
    "min_lstm": rnnjax.MinLSTM,
    "min_lstm_no_bias": partial(rnnjax.MinLSTM, bias=False),
    "min_lstm_positive": partial(rnnjax.MinLSTM, activation=rnnjax.cells.positive),
    "linear_rnn": rnnjax.LinearRNN,
    "linear_rnn_no_bias": partial(rnnjax.LinearRNN, bias=False),
    "sru": rnnjax.SRU,
    "sru_no_bias": partial(rnnjax.SRU, bias=False),
    "sru_no_projection": lambda inputs, _, **options: rnnjax.SRU(inputs, inputs, **options),
    "sru_linear": partial(rnnjax.SRU, activation=rnnjax.cells.linear),
    "lru": rnnjax.LRU,
    "lru_no_skip": partial(rnnjax.LRU, output_size=P, skip=False),
    "s5": rnnjax.S5,
    "s5_no_skip": partial(rnnjax.S5, output_size=P, skip=False, blocks=2),
    "s5_bilinear_bounded": partial(rnnjax.S5, discretise=rnnjax.cells.bilinear, largest_real_part=-0.1),
}
NETWORKS = {
    "convolution": partial(rnnjax.networks.CausalConvolution, window=3),
    "convolution_no_bias": partial(rnnjax.networks.CausalConvolution, window=1, bias=False),
    "depthwise_convolution": lambda inputs, _, **options: rnnjax.networks.DepthwiseConvolution(
        inputs, window=4, **options
    ),
    "qrnn": rnnjax.QRNN,
    "qrnn_f": partial(rnnjax.QRNN, window=1, output_gate=False),
    "qrnn_ifo": partial(rnnjax.QRNN, window=3, input_gate=True),
    "qrnn_if_no_bias": partial(rnnjax.QRNN, input_gate=True, output_gate=False, bias=False),
    "rg_lru": lambda inputs, _, **options: rnnjax.RGLRU(inputs, **options),
    "cg_lru": lambda inputs, _, **options: rnnjax.networks.CGLRU(2 * inputs, **options),
    "cg_lru_heads_no_bias": lambda inputs, _, **options: rnnjax.networks.CGLRU(
        2 * inputs, heads=inputs, bias=False, **options
    ),
    "mlstm": partial(rnnjax.networks.MLSTM, heads=HEADS, key_size=3),
    "mlstm_sigmoid": partial(rnnjax.networks.MLSTM, heads=HEADS, sigmoid_input_gate=True),
    "mlstm_exponential": partial(rnnjax.networks.MLSTM, heads=HEADS, exponential_forget_gate=True),
    "rg_lru_heads_no_bias": lambda inputs, _, **options: rnnjax.RGLRU(inputs, heads=inputs, bias=False, **options),
}
CELLS = {
    name: VARIANTS[name]
    for name in (
        "elman_tanh",
        "lstm",
        "lstm_peepholes",
        "lstm_coupled",
        "projected_lstm",
        "gru",
        "reset_before_gru",
        "lem",
        "min_gru",
        "ind_rnn_tanh",
        "diagonal_gru",
        "diagonal_lstm",
        "min_lstm",
        "linear_rnn",
        "sru",
        "lru",
        "s5",
    )
}
QUICK_LSTM = (  # peepholes alone, and all options together; most other combinations are slow
    *("lstm", "lstm_heads", "lstm_peepholes", "lstm_no_bias", "lstm_coupled", "projected_lstm"),
    *(f"{kind}_peepholes_coupled_clip" for kind in ("lstm", "projected_lstm")),
    *("lstm_peepholes_coupled_clip_heads", "lstm_activations", "lstm_bounded"),
)
QUICK_GRADIENTS = (  # a cell for each way to be different; other gradients are slow
    *("lstm_peepholes_coupled_clip_heads", "projected_lstm", "gru", "reset_before_gru", "lem", "diagonal_lstm"),
    *("min_lstm", "sru", "lru", "qrnn", "rg_lru", "cg_lru", "slstm", "mlstm", "rate_rnn_low_rank"),
)
QUICK_STARTS = ("lstm", "projected_lstm", "gru", "min_gru", "lru")  # a cell for each way to begin
UNIFORM = ("lem",)  # which draws all its weights as torch does
STATE_SPACES = ("lru", "s5")  # which have no bias, and draw their weights otherwise
HEADED = [name for name in VARIANTS if name.endswith("_heads")]
GATED = [name for name in VARIANTS if name.startswith(("lstm", "gru", "elman"))]
MATRICES = ("input_weight", "recurrent_weight", "candidate_weight")  # [.., GH]


def quick(names: Iterable[str], *chosen: str) -> pytest.MarkDecorator:
    """Parameters `name`, of which all but the chosen are slow."""
    marked = [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


IS_COMBINATION = re.compile("(projected_)?lstm")
QUICK_VARIANTS = [name for name in VARIANTS | NETWORKS if name in QUICK_LSTM or not IS_COMBINATION.match(name)]
each_variant = quick(VARIANTS | NETWORKS, *QUICK_VARIANTS)
each_gradient = quick(VARIANTS | NETWORKS, *QUICK_GRADIENTS)
each_cell = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
each_biased_cell = pytest.mark.parametrize("make", [CELLS[name] for name in CELLS if name not in STATE_SPACES])


@grid.once
def key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def draw(tree: Any, seed: int, scale: float = 0.5) -> Any:
    """`tree` with every array drawn afresh, by NumPy."""
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)

    def one(leaf: Any) -> np.ndarray:
        normal = lambda: scale * generator.standard_normal(leaf.shape)  # noqa: E731
        if leaf.dtype == bool:
            return normal() > 0
        return np.asarray(normal() + 1j * normal() if jnp.iscomplexobj(leaf) else normal()).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [one(leaf) for leaf in leaves])


@grid.once
def random_cell(name: str, dtype: str = "float64") -> Any:
    """A cell with random weights, biases and peepholes included, as arrays of NumPy."""
    return draw((VARIANTS | NETWORKS)[name](I, H, key=key(), dtype=jnp.dtype(dtype)), seed=1, scale=0.3)


def random_state(cell: Any) -> Any:
    return draw(jax.eval_shape(lambda cell: cell.initial(), cell), seed=2)


def random_inputs(dtype: str = "float64", features: int = I) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((T, features)).astype(jnp.dtype(dtype))


def loss(last: Any, ys: Any) -> Any:
    """A weighted sum of all that comes out, the same in NumPy and in JAX."""
    leaves = [leaf for leaf in (*jax.tree.leaves(last), ys) if leaf.dtype != bool]
    parts = [part for leaf in leaves for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))]
    return sum(
        (part * np.cos(np.arange(part.size) + number).reshape(part.shape)).sum() for number, part in enumerate(parts)
    )


@lru_cache
def values() -> Callable[..., tuple[Any, jax.Array]]:
    """The last state and the outputs of (cell, state, xs): compiled once for each form of a cell."""
    return eqx.filter_jit(partial(unroll, engine=rnnjax.Scan()))


@lru_cache
def evaluate(name: str) -> tuple[Any, jax.Array]:
    """The last state and the outputs of a random cell."""
    return values()(*arguments_of(name))


def arguments_of(name: str) -> tuple[Any, Any, np.ndarray]:
    cell = random_cell(name)
    return cell, random_state(cell), random_inputs(features=cell.input_type().shape[0])


@lru_cache
def gradients(names: tuple[str, ...]) -> dict[str, Any]:
    """The gradients of the loss in (cell, state, xs) of random cells, as one compiled program."""
    slope = eqx.filter_grad(lambda arguments: loss(*unroll(*arguments, engine=rnnjax.Scan())))
    together = eqx.filter_jit(lambda given: {name: slope(arguments) for name, arguments in given.items()})
    return together({name: arguments_of(name) for name in names})


def compiled_with(name: str) -> tuple[str, ...]:
    """The variants whose gradients are compiled together with that of `name`: none, or all slow ones of its kind."""
    kind = name.partition("_")[0]
    slow = [other for other in VARIANTS | NETWORKS if other.partition("_")[0] == kind and other not in QUICK_GRADIENTS]
    return (name,) if name in QUICK_GRADIENTS else tuple(slow)


def assert_close(got: Any, expected: Any, dtype: str = "float64") -> None:
    leaves, like = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(leaves) == len(like)
    for leaf, other in zip(leaves, like, strict=True):
        np.testing.assert_allclose(oracle.float64(leaf), oracle.float64(other), rtol=0, atol=TOLERANCE[dtype])


def replace(cell: Any, **fields: Any) -> Any:
    """The cell with other arrays in some of its fields."""
    return eqx.tree_at(lambda cell: [getattr(cell, field) for field in fields], cell, list(fields.values()))


# Values and gradients


@each_variant
def test_values_are_those_of_the_equations(name):
    assert_close(evaluate(name), oracle.run(*arguments_of(name)))


@each_gradient
def test_gradient_is_the_slope_of_the_equations(name):
    arguments, gradient = arguments_of(name), gradients(compiled_with(name))[name]
    for seed in (4, 5):
        direction = draw(eqx.filter(arguments, eqx.is_inexact_array), seed, scale=1.0)
        along = lambda size, direction=direction: eqx.apply_updates(  # noqa: E731
            arguments, jax.tree.map(lambda d: size * d, direction)
        )
        high, low = (loss(*oracle.run(*along(size))) for size in (1e-6, -1e-6))
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        slope = sum(np.sum(np.asarray(leaf) * along).real for leaf, along in pairs)
        np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-6)


@quick([name for name in VARIANTS if "clip" in name], *QUICK_VARIANTS)
def test_clipped_cell_reaches_its_bound(name):
    last, _ = evaluate(name)
    assert np.abs(last.c).max() == 0.3


# Activations


def test_activation_of_the_output_is_that_of_the_candidate_by_default():
    cell = rnnjax.LSTM(I, H, key=key(), activation=jax.nn.relu)
    assert cell.output_activation == cell.activation == jax.nn.relu


@pytest.mark.parametrize("name", ["lstm_activations", "lstm_bounded", "gru_activations"])
def test_any_activation_is_fused(name):
    cell, state, xs = arguments_of(name)
    engine = rnnjax.Fused(min_steps=1)
    assert not isinstance(engine.plan(cell, jnp.asarray(xs)), rnnjax.engines.Refusal)
    assert_close(eqx.filter_jit(unroll)(cell, state, xs, engine=engine), oracle.run(cell, state, xs))


def test_a_bound_of_pre_activations_is_part_of_the_function():
    """Two cells with one bound are one kind of pytree, so that they share a compiled program; with two they do not."""
    tanh = rnnjax.cells.clipped(jnp.tanh, 0.2)
    assert tanh == rnnjax.cells.clipped(jnp.tanh, 0.2) == copy.deepcopy(tanh) == pickle.loads(pickle.dumps(tanh))
    assert tanh not in (rnnjax.cells.clipped(jnp.tanh, 0.3), rnnjax.cells.clipped(jax.nn.relu, 0.2), jnp.tanh)


# Gates


@lru_cache
def one_step() -> Callable[[Any, Any], Any]:
    """The state after one step of zeros: compiled once for each form of a cell."""
    return eqx.filter_jit(lambda cell, state: unroll(cell, state, np.zeros((1, I)))[0])


def saturated(make: Callable[..., Any], order: str, biases: dict[str, float], **fields: Any) -> Any:
    """One step, from a state of 0.3s, of a cell that has no weights but the biases of some gates (and `fields`)."""
    cell = jax.tree.map(np.zeros_like, make(I, H, key=key(), dtype=jnp.float64))
    assert cell.gates == ("fg" if make is rnnjax.SRU else order)  # its b is of f and r
    assert cell.bias.shape == (len(order) * H,)
    rows = np.concatenate([np.full(H, biases.get(gate, 0.0)) for gate in order])
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3), jax.eval_shape(cell.initial))
    return one_step()(replace(cell, bias=rows, **fields), state)


WRITE = {"i": LARGE, "f": -LARGE}
GATES = [
    pytest.param(rnnjax.LSTM, "ifgo", {"i": -LARGE, "f": LARGE}, {}, "c", 0.3, id="lstm_f_keeps"),
    pytest.param(rnnjax.LSTM, "ifgo", {"i": -LARGE, "f": -LARGE}, {}, "c", 0.0, id="lstm_f_forgets"),
    pytest.param(rnnjax.LSTM, "ifgo", WRITE | {"g": LARGE}, {}, "c", 1.0, id="lstm_i_writes_g"),
    pytest.param(rnnjax.LSTM, "ifgo", {"o": -LARGE}, {}, "h", 0.0, id="lstm_o_closes"),
    pytest.param(rnnjax.LSTM, "ifgo", WRITE | {"g": LARGE, "o": LARGE}, {}, "h", np.tanh(1), id="lstm_o_opens"),
    pytest.param(partial(rnnjax.LSTM, coupled=True), "igo", {"i": -LARGE}, {}, "c", 0.3, id="coupled_keeps"),
    pytest.param(
        partial(rnnjax.LSTM, coupled=True), "igo", {"i": LARGE, "g": LARGE}, {}, "c", 1.0, id="coupled_writes"
    ),
    pytest.param(partial(rnnjax.LSTM, coupled=True), "igo", {"o": -LARGE}, {}, "h", 0.0, id="coupled_o_closes"),
    pytest.param(rnnjax.GRU, "rzn", {"z": LARGE, "n": LARGE}, {}, "h", 0.3, id="gru_z_keeps"),
    pytest.param(rnnjax.GRU, "rzn", {"z": -LARGE, "n": LARGE}, {}, "h", 1.0, id="gru_n_is_written"),
    pytest.param(
        rnnjax.GRU,
        "rzn",
        {"z": -LARGE, "r": LARGE},
        {"candidate_bias": np.full(H, 0.5)},
        "h",
        np.tanh(0.5),
        id="gru_r_opens",
    ),
    pytest.param(
        rnnjax.GRU, "rzn", {"z": -LARGE, "r": -LARGE}, {"candidate_bias": np.full(H, 0.5)}, "h", 0.0, id="gru_r_closes"
    ),
    pytest.param(rnnjax.ResetBeforeGRU, "rzn", {"z": LARGE, "n": LARGE}, {}, "h", 0.3, id="reset_before_z_keeps"),
    pytest.param(rnnjax.ResetBeforeGRU, "rzn", {"z": -LARGE, "n": LARGE}, {}, "h", 1.0, id="reset_before_n_is_written"),
    pytest.param(
        rnnjax.ResetBeforeGRU,
        "rzn",
        {"z": -LARGE, "r": LARGE},
        {"candidate_weight": np.eye(H)},
        "h",
        np.tanh(0.3),
        id="reset_before_r_opens",
    ),
    pytest.param(
        rnnjax.ResetBeforeGRU,
        "rzn",
        {"z": -LARGE, "r": -LARGE},
        {"candidate_weight": np.eye(H)},
        "h",
        0.0,
        id="reset_before_r_closes",
    ),
    pytest.param(rnnjax.LEM, "iigg", {"i": -LARGE, "g": LARGE}, {}, "h", 0.3, id="lem_h_keeps"),
    pytest.param(rnnjax.LEM, "iigg", {"i": -LARGE, "g": LARGE}, {}, "z", 0.3, id="lem_z_keeps"),
    pytest.param(partial(rnnjax.LEM, time_step=0.5), "iigg", {"i": LARGE, "g": LARGE}, {}, "h", 0.65, id="lem_half"),
    pytest.param(rnnjax.MinGRU, "ig", {"i": -LARGE, "g": 0.7}, {}, "h", 0.3, id="min_gru_keeps"),
    pytest.param(rnnjax.MinGRU, "ig", {"i": LARGE, "g": 0.7}, {}, "h", 0.7, id="min_gru_i_writes_g"),
    pytest.param(rnnjax.MinLSTM, "ifg", {"i": -LARGE, "f": 0.0, "g": 0.7}, {}, "h", 0.3, id="min_lstm_f_keeps"),
    pytest.param(rnnjax.MinLSTM, "ifg", {"i": 0.0, "f": -LARGE, "g": 0.7}, {}, "h", 0.7, id="min_lstm_i_writes_g"),
    pytest.param(rnnjax.SRU, "fr", {"f": LARGE, "r": LARGE}, {}, "h", 0.3, id="sru_f_keeps"),
    pytest.param(rnnjax.SRU, "fr", {"f": -LARGE}, {}, "h", 0.0, id="sru_f_writes"),
]


@pytest.mark.parametrize(("make", "order", "biases", "fields", "field", "expected"), GATES)
def test_gates_stand_in_their_order(make, order, biases, fields, field, expected):
    last = saturated(make, order, biases, **fields)
    assert_close(getattr(last, field), np.full(H, expected))


# Heads


@quick(HEADED, *QUICK_VARIANTS)
def test_heads_are_a_block_diagonal_matrix(name):
    cell = random_cell(name)
    matrices = [field for field in MATRICES[1:] if hasattr(cell, field)]
    assert all(getattr(cell, field).shape[0] == HEADS for field in matrices)
    dense = lambda R: oracle.dense(R, R.shape[-1] // R.shape[1]).reshape(H, -1)  # noqa: E731
    one_head = replace(cell, **{field: dense(getattr(cell, field)) for field in matrices})
    assert_close(values()(one_head, random_state(cell), random_inputs()), evaluate(name))


# The initial state


class Begun(NamedTuple):
    """What a cell does with the start that it learns."""

    initial: Any  # as `cell.initial()` says
    gradient: Any  # in the start, of a run from there
    whole: Any  # that run: the last state and the outputs
    marked: Any  # another run, of a given state and resets


def begun(cell: Any, state: Any, xs: Any, resets: Any) -> Begun:
    def from_start(start: Any) -> Any:
        last, ys = unroll(replace(cell, initial_state=start), None, xs)
        return loss(last, ys), (last, ys)

    gradient, whole = jax.grad(from_start, has_aux=True)(cell.initial_state)
    return Begun(cell.initial(), gradient, whole, unroll(cell, state, xs, resets=resets))


@lru_cache
def begin() -> Callable[[dict[str, Any]], dict[str, Begun]]:
    """`begun` of some cells, as one compiled program."""
    return eqx.filter_jit(lambda given: {name: begun(*arguments) for name, arguments in given.items()})


@grid.once
def learning(name: str) -> Any:
    """A new cell that learns its start."""
    return CELLS[name](I, H, key=key(), learn_initial=True, dtype=jnp.float64)


RESETS = np.arange(T) == 5


@lru_cache
def begin_new(names: tuple[str, ...]) -> dict[str, Begun]:
    """Cells as they are constructed."""
    cells = {name: learning(name) for name in names}
    return begin()({name: (cell, random_state(cell), random_inputs(), RESETS) for name, cell in cells.items()})


@lru_cache
def begin_drawn(names: tuple[str, ...]) -> dict[str, Begun]:
    """Cells with random weights and a random start, and a random state for the run with a reset."""
    cells = {name: draw(learning(name), seed=1) for name in names}
    return begin()({name: (cell, random_state(cell), random_inputs(), RESETS) for name, cell in cells.items()})


@lru_cache
def begin_given(names: tuple[str, ...]) -> dict[str, Begun]:
    """The same cells, given their start as the state, with no resets."""
    cells = {name: draw(learning(name), seed=1) for name in names}
    starts = {name: begin_drawn(names)[name].initial for name in names}
    return begin()({name: (cells[name], starts[name], random_inputs(), np.zeros(T, bool)) for name in names})


SLOW_STARTS = tuple(name for name in CELLS if name not in QUICK_STARTS)
each_start = pytest.mark.parametrize(  # the slow ones are compiled together
    ("name", "names"),
    [pytest.param(name, (name,), id=name) for name in QUICK_STARTS]
    + [pytest.param(name, SLOW_STARTS, id=name, marks=pytest.mark.slow) for name in SLOW_STARTS],
)


@each_start
def test_learned_start_is_zero_and_gets_a_gradient(name, names):
    begun = begin_new(names)[name]
    assert_same(begun.initial, CELLS[name](I, H, key=key(), dtype=jnp.float64).initial())
    assert not numbers(learning(name).initial_state).any()
    assert all(np.asarray(leaf).all() for leaf in jax.tree.leaves(begun.gradient))
    assert CELLS[name](I, H, key=key()).initial_state is None


@each_start
def test_learned_start_is_where_runs_and_resets_begin(name, names):
    cell, xs = draw(learning(name), seed=1), random_inputs()
    start, _, whole, (last, ys) = begin_drawn(names)[name]
    np.testing.assert_array_equal(numbers(start), numbers(cell.initial_state))
    assert_close(whole, begin_given(names)[name].marked)
    assert_close(whole, oracle.run(cell, start, xs))
    assert_close((last, ys[5:]), oracle.run(cell, start, xs[5:]))


def numbers(tree: Any) -> np.ndarray:
    """All real numbers that `tree` holds, those of a complex leaf part by part."""
    leaves = map(np.asarray, jax.tree.leaves(tree))
    parts = [part for leaf in leaves for part in ((leaf.real, leaf.imag) if np.iscomplexobj(leaf) else (leaf,))]
    return np.concatenate([np.ravel(part) for part in parts])


def assert_same(got: Any, expected: Any) -> None:
    """Equal in structure, dtypes, shapes and numbers."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [leaf.dtype for leaf in jax.tree.leaves(expected)]
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# The drawn weights


def gates_of(weight: Any, units: int) -> np.ndarray:
    """The blocks of a weight, one for each gate."""
    return np.stack(np.split(np.asarray(weight), weight.shape[-1] // units, -1))


@each_biased_cell
def test_bias_false_leaves_no_bias(make):
    cell = make(I, H, key=key(), bias=False)
    assert cell.bias is None
    biases = 2 if make is rnnjax.GRU else 1  # the GRU's other one is inside the reset
    assert len(jax.tree.leaves(make(I, H, key=key()))) - len(jax.tree.leaves(cell)) == biases


DEFAULT_BIASES = {
    "elman_tanh": {"n": 0},
    "lstm": {"i": 0, "f": 1, "g": 0, "o": 0},
    "lstm_peepholes": {"i": 0, "f": 1, "g": 0, "o": 0},
    "lstm_coupled": {"i": -1, "g": 0, "o": 0},
    "projected_lstm": {"i": 0, "f": 1, "g": 0, "o": 0},
    "gru": {"r": 0, "z": 0, "n": 0},
    "reset_before_gru": {"r": 0, "z": 0, "n": 0},
    "min_gru": {"i": 0, "g": 0},
    "ind_rnn_tanh": {"n": 0},
    "diagonal_gru": {"r": 0, "z": 0, "n": 0},
    "diagonal_lstm": {"f": 1, "g": 0, "o": 0},
    "min_lstm": {"i": 0, "f": 1, "g": 0},
    "linear_rnn": {"n": 0},
    "sru": {"f": 0, "r": 0},
}


@pytest.mark.parametrize("name", DEFAULT_BIASES)
def test_default_biases(name):
    cell = CELLS[name](I, H, key=key())
    np.testing.assert_array_equal(cell.bias, np.repeat(list(DEFAULT_BIASES[name].values()), H))


def test_default_bias_of_the_gru_inside_its_reset_is_zero():
    np.testing.assert_array_equal(rnnjax.GRU(I, H, key=key()).candidate_bias, np.zeros(H))


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("make", [rnnjax.Elman, rnnjax.LSTM, rnnjax.GRU, rnnjax.ResetBeforeGRU])
def test_recurrent_blocks_are_orthogonal(make, heads):
    cell = make(I, H, heads=heads, key=key(), dtype=jnp.float64)
    matrices = [cell.recurrent_weight] + ([cell.candidate_weight] if make is rnnjax.ResetBeforeGRU else [])
    for matrix in matrices:
        blocks = gates_of(matrix.reshape(heads, H // heads, -1), H // heads)
        assert_close(np.linalg.svd(blocks, compute_uv=False), np.ones((len(blocks), heads, H // heads)))


@pytest.mark.parametrize("make", [CELLS[name] for name in CELLS if name not in (*STATE_SPACES, *UNIFORM)])
def test_glorot_counts_the_fan_of_one_gate(make):
    inputs, units = 40, 60
    largest = np.abs(gates_of(make(inputs, units, key=key()).input_weight, units)).max((1, 2))
    bound = np.sqrt(6 / (inputs + units))
    assert np.all(largest <= bound)
    assert np.all(largest > 0.95 * bound)


def test_uniform_stays_within_one_over_the_root_of_the_units():
    draws = {
        "input_initialiser": initialise.uniform,
        "recurrent_initialiser": initialise.uniform,
        "bias_initialiser": initialise.uniform_bias,
    }
    cells = rnnjax.LSTM(40, 60, key=key(), peepholes=True, **draws), rnnjax.LEM(40, 60, key=key())
    bound = 60**-0.5
    for leaf in jax.tree.leaves(cells):
        assert 0.9 * bound < np.abs(leaf).max() <= bound


@pytest.mark.parametrize("heads", [1, HEADS])
def test_identity_makes_the_irnn(heads):
    cell = rnnjax.Elman(
        I,
        H,
        heads=heads,
        key=key(),
        activation=jax.nn.relu,
        recurrent_initialiser=initialise.identity,
        dtype=jnp.float64,
    )
    np.testing.assert_array_equal(oracle.dense(cell.recurrent_weight, 1)[:, 0], np.eye(H))
    positive = rnnjax.Hidden(np.linspace(0.1, 2.0, H))
    last, _ = values()(cell, positive, np.zeros((T, I)))
    np.testing.assert_array_equal(last.h, positive.h)


CHRONO = {
    "lstm": (rnnjax.LSTM, "ifgo", "f", "i"),
    "projected_lstm": (VARIANTS["projected_lstm"], "ifgo", "f", "i"),
    "lstm_coupled": (VARIANTS["lstm_coupled"], "igo", None, "i"),
    "gru": (rnnjax.GRU, "rzn", "z", None),
    "reset_before_gru": (rnnjax.ResetBeforeGRU, "rzn", "z", None),
    "min_gru": (rnnjax.MinGRU, "ig", None, "i"),
    "min_lstm": (rnnjax.MinLSTM, "ifg", "f", "i"),
    "sru": (rnnjax.SRU, "fr", "f", None),
}


@pytest.mark.parametrize(("make", "order", "keep", "write"), CHRONO.values(), ids=CHRONO)
def test_chrono_spreads_the_gate_that_keeps(make, order, keep, write):
    longest, units = 50, 100
    cell = make(I, units, key=key(), bias_initialiser=initialise.chrono(longest))
    biases = dict(zip(order, np.split(np.asarray(cell.bias), len(order)), strict=True))
    kept = biases.pop(keep) if keep else -biases[write]
    assert np.all((kept >= 0) & (kept <= np.log(longest - 1)))
    memories = np.exp(kept)  # uniform within 1 and longest - 1
    assert memories.max() > 0.9 * longest
    assert abs(memories.mean() - longest / 2) < 0.1 * longest
    if write:
        np.testing.assert_array_equal(biases.pop(write), -kept)
    assert all(not row.any() for row in biases.values())


def test_forget_puts_its_value_where_the_cell_keeps():
    lstm = rnnjax.LSTM(I, H, key=key(), bias_initialiser=initialise.forget(2.5))
    np.testing.assert_array_equal(lstm.bias, np.repeat([0, 2.5, 0, 0], H))
    gru = rnnjax.GRU(I, H, key=key(), bias_initialiser=initialise.forget(2.5))
    np.testing.assert_array_equal(gru.bias, np.repeat([0, 2.5, 0], H))


@each_cell
def test_weights_are_drawn_from_the_key(make):
    one, same, other = (make(I, H, key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert_same(one, same)
    assert not np.array_equal(numbers(one), numbers(other))


@pytest.mark.parametrize("name", [*CELLS, *HEADED])
def test_no_two_gates_or_heads_are_drawn_alike(name):
    cell = VARIANTS[name](I, H, key=key())
    matrices = [np.asarray(getattr(cell, field)) for field in MATRICES if hasattr(cell, field)]
    units = [H // len(matrix) if matrix.ndim == 3 else H for matrix in matrices]  # of one head
    blocks = [block for matrix, size in zip(matrices, units, strict=True) for block in gates_of(matrix, size)]
    corners = [
        np.atleast_2d(head)[:2, :3].tobytes() for block in blocks for head in (block if block.ndim == 3 else [block])
    ]
    assert len(set(corners)) == len(corners)


# Dtypes


NARROW = (*CELLS, "lstm_peepholes_coupled_clip_heads", "gru_heads")


@lru_cache
def run_narrow(names: tuple[str, ...], *dtypes: str) -> dict[tuple[str, str], Any]:
    """The initial state, the last one and the outputs of some cells in some narrow dtypes, as one compiled program."""
    given = {}
    for name, dtype in product(names, dtypes):
        cell = random_cell(name, dtype)
        given[name, dtype] = cell, random_state(cell), random_inputs(dtype)
    run = lambda given: {case: (one[0].initial(), unroll(*one)) for case, one in given.items()}  # noqa: E731
    return eqx.filter_jit(run)(given)


def assert_narrow(name: str, dtype: str, initial: Any, last: Any, ys: jax.Array) -> None:
    cell = random_cell(name, dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cell)} == {dtype}
    assert ys.dtype == dtype
    assert {np.asarray(leaf).real.dtype.name for leaf in jax.tree.leaves((last, initial))} == {"float32"}
    assert_close((last, ys), oracle.run(cell, random_state(cell), random_inputs(dtype)), dtype)


@pytest.mark.parametrize("name", NARROW)
def test_bfloat16_weights_give_bfloat16_outputs_and_a_wide_state(name):
    initial, (last, ys) = run_narrow((name,), "bfloat16")[name, "bfloat16"]
    assert_narrow(name, "bfloat16", initial, last, ys)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_weights_give_narrow_outputs_and_a_wide_state(name, dtype):
    initial, (last, ys) = run_narrow(NARROW, "float32", "float16")[name, dtype]
    assert_narrow(name, dtype, initial, last, ys)


# What a kernel relies on


@lru_cache
def pointwise() -> Callable[..., Any]:
    """The state after a step, and its transpose of itself: compiled once for each cell without its arrays."""

    def run(hollow: Any, *arguments: Any) -> tuple[Any, Any]:
        after, transpose = jax.vjp(jax.vmap(hollow.pointwise, -1, -1), *arguments)
        return after, transpose(after)

    return eqx.filter_jit(run)


@quick(GATED, *QUICK_VARIANTS)
def test_pointwise_needs_no_array_of_its_cell(name):
    cell = jax.device_put(random_cell(name))
    state, x, gates = random_state(cell), random_inputs()[0], len(cell.gates)
    u = np.stack([oracle.from_input(cell, x, gate) for gate in range(gates)])
    v = np.stack([oracle.from_state(cell.recurrent_weight, state.h, gate, gates) for gate in range(gates)])
    hollow = eqx.filter(cell, eqx.is_array, inverse=True)
    assert not jax.tree.leaves(eqx.filter(hollow, eqx.is_array))
    after, transposed = pointwise()(hollow, cell.unit_parameters, u, v, state)
    expected, _ = oracle.run(cell, state, random_inputs()[:1])
    assert_close(after, expected)
    assert all(leaf.shape[-1] == H for leaf in jax.tree.leaves(transposed))
    assert not jax.make_jaxpr(jax.vmap(hollow.pointwise, -1, -1))(cell.unit_parameters, u, v, state).consts
