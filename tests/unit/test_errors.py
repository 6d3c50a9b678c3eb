"""Bad input meets a clear error: which argument, what was expected, what came. Empty input meets none."""

from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import (
    GRU,
    LSTM,
    Associative,
    Auto,
    Bidirectional,
    Checkpointed,
    Elman,
    Hidden,
    LSTMState,
    MinGRU,
    ProjectedLSTM,
    ResetBeforeGRU,
    Scan,
    Stack,
    unroll,
)

T, I, H = 12, 3, 8  # noqa: E741
KEY = jax.random.key(5)
F32, F64 = jnp.float32, jnp.float64

LSTM_CELL, GRU_CELL, LINEAR_CELL = (cell(I, H, key=KEY) for cell in (LSTM, GRU, MinGRU))
XS = jax.random.normal(KEY, (T, I), F32)
CELLS = {
    "elman": Elman(I, H, key=KEY),
    "lstm": LSTM_CELL,
    "projected_lstm": ProjectedLSTM(I, H, projected_size=5, key=KEY),
    "gru": GRU_CELL,
    "reset_before_gru": ResetBeforeGRU(I, H, key=KEY),
    "min_gru": LINEAR_CELL,
    "sru": rnnjax.SRU(I, H, key=KEY),
    "lru": rnnjax.LRU(I, H, key=KEY),
}
BIDIRECTIONAL = Bidirectional(GRU_CELL, LSTM_CELL)
NETWORKS = {
    "stack": Stack([LSTM_CELL, MinGRU(H, 5, key=KEY)], dropout=0.5),
    "bidirectional": BIDIRECTIONAL,
    "deep": Stack([rnnjax.skip(BIDIRECTIONAL), rnnjax.Reversed(GRU(2 * H + I, H, key=KEY))]),
    "convolution": rnnjax.CausalConvolution(I, H, window=3, key=KEY),
    "qrnn": rnnjax.QRNN(I, H, key=KEY),
    "rg_lru": rnnjax.RGLRU(I, key=KEY),
}


def total(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A function to unroll: the running sum of the inputs."""
    return state + x.sum(), state


def one_value(state: jax.Array, x: jax.Array) -> jax.Array:
    return state + x.sum()


def three_values(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return state, x, x


def new_shape(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return state + x, x


def new_dtype(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return state.astype(F64), x


def run(cell: Any = LSTM_CELL, state: Any = None, xs: Any = XS, **options: Any) -> Any:
    return partial(unroll, cell, state, xs, **options)


def of_dtype(dtype: Any) -> jax.Array:
    return jnp.ones((T, I), dtype)


ZERO = jnp.zeros((), F32)
ONLY_ASSOCIATIVE = Auto((Associative(), Auto((Associative(),))))
NEEDS_LINEAR = "Associative cannot run LSTM: it needs an AbstractLinearCell. Use Scan()"
BATCH = ["jax.vmap", "one sequence"]

INPUTS = [
    pytest.param(run(xs=jnp.ones((T, 4), F32)), ValueError, ["xs", "[T, 3]", "LSTM", "[12, 4]"], id="feature_size"),
    pytest.param(run(xs=jnp.ones(T, F32)), ValueError, ["xs", "rank 2", "[T, 3]", "[12]"], id="rank_too_low"),
    pytest.param(run(xs=jnp.ones((2, 5, T, I), F32)), ValueError, ["xs", "rank 2", "5, 12, 3]"], id="rank_too_high"),
    pytest.param(run(xs=ZERO), ValueError, ["xs", "[T, ...]", "scalar"], id="scalar"),
    pytest.param(run(xs=jnp.ones((5, T, I), F32)), ValueError, ["xs", "[T, 3]", "[5, 12, 3]", *BATCH], id="batch"),
    pytest.param(run(xs=[[1.0, 2.0, 3.0]]), TypeError, ["xs", "array", "float"], id="list"),
    pytest.param(run(xs=(XS, XS)), ValueError, ["xs", "f32[3]", "(f32[12,3], f32[12,3])"], id="two_inputs"),
    pytest.param(run(xs=(XS, XS[:5])), ValueError, ["xs", "one length", "[5, 12]"], id="two_lengths"),
    pytest.param(run(xs=of_dtype(jnp.int32)), TypeError, ["xs", "float32", "int32", "astype"], id="integer_inputs"),
    pytest.param(run(xs=of_dtype(bool)), TypeError, ["xs", "float32", "bool"], id="boolean_inputs"),
    pytest.param(run(xs=of_dtype(F64)), TypeError, ["xs", "float32", "float64", "astype"], id="float64_inputs"),
    pytest.param(run(xs=of_dtype(jnp.bfloat16)), TypeError, ["xs", "float32", "bfloat16"], id="bfloat16_inputs"),
    pytest.param(run(BIDIRECTIONAL, xs=XS[:, :2]), ValueError, ["xs", "Bidirectional", "[12, 2]"], id="network_inputs"),
    pytest.param(run(3), TypeError, ["cell", "(state, x) -> (state, y)", "3"], id="not_callable"),
]

STATES = [
    pytest.param(run(state=Hidden(jnp.zeros(H, F32))), ValueError, ["state", "LSTMState(", "Hidden("], id="other_cell"),
    pytest.param(run(GRU_CELL, XS[:, 0]), ValueError, ["state", "Hidden(h=f32[8])", "got f32"], id="bare_array"),
    pytest.param(
        run(GRU_CELL, Hidden(jnp.zeros(7, F32))), ValueError, ["state", "h=f32[8]", "GRU", "h=f32[7]"], id="state_shape"
    ),
    pytest.param(
        run(GRU_CELL, Hidden(jnp.zeros((5, H), F32))), ValueError, ["state", "h=f32[8]", "h=f32[5,8]"], id="state_batch"
    ),
    pytest.param(
        run(GRU_CELL, Hidden(jnp.zeros(H, F64))), TypeError, ["state", "h=f32[8]", "h=f64[8]"], id="state_dtype"
    ),
    pytest.param(run(GRU_CELL, "zeros"), ValueError, ["state", "Hidden(h=f32[8])", "zeros"], id="state_string"),
    pytest.param(
        run(NETWORKS["stack"], Hidden(XS[0])), ValueError, ["state", "LSTMState(", "got Hidden("], id="network_state"
    ),
]

MARKS = [
    pytest.param(run(length=3.0), TypeError, ["length", "integer", "3.0"], id="length_float"),
    pytest.param(run(length=True), TypeError, ["length", "integer", "True"], id="length_bool"),
    pytest.param(run(length="3"), TypeError, ["length", "integer", "'3'"], id="length_string"),
    pytest.param(run(length=[3]), TypeError, ["length", "integer", "[3]"], id="length_list"),
    pytest.param(run(length=jnp.asarray(3.0, F32)), TypeError, ["length", "integer", "float32"], id="length_floats"),
    pytest.param(run(length=jnp.asarray(True)), TypeError, ["length", "integer", "bool"], id="length_bools"),
    pytest.param(run(length=jnp.array([3, 4])), ValueError, ["length", "scalar", "[2]", *BATCH], id="length_vector"),
    pytest.param(run(length=-1), ValueError, ["length", "0", "T=12", "-1"], id="length_negative"),
    pytest.param(run(length=13), ValueError, ["length", "0", "T=12", "13"], id="length_over"),
    pytest.param(run(length=np.int32(13)), ValueError, ["length", "T=12", "13"], id="length_over_numpy"),
    pytest.param(run(length=jnp.asarray(13)), ValueError, ["length", "T=12", "13"], id="length_over_array"),
    pytest.param(jax.jit(run(length=13)), ValueError, ["length", "T=12", "13"], id="length_over_known_inside_jit"),
    pytest.param(run(resets=jnp.zeros(11, bool)), ValueError, ["resets", "[12]", "[11]"], id="resets_shape"),
    pytest.param(run(resets=jnp.zeros((5, T), bool)), ValueError, ["resets", "[12]", "[5, 12]"], id="resets_batch"),
    pytest.param(run(resets=jnp.zeros(T, int)), TypeError, ["resets", "booleans", "T=12", "int64"], id="resets_int"),
    pytest.param(run(resets=[False] * T), TypeError, ["resets", "booleans", "T=12", "list"], id="resets_list"),
    pytest.param(run(resets=True), TypeError, ["resets", "booleans", "T=12", "bool"], id="resets_bool"),
]

ENGINES = [
    pytest.param(run(engine="scan"), TypeError, ["engine", "Scan()", "'scan'"], id="engine_string"),
    pytest.param(run(engine=Scan), TypeError, ["engine", "class Scan", "Scan()"], id="engine_class"),
    pytest.param(run(engine=None), TypeError, ["engine", "Scan()", "None"], id="engine_none"),
    pytest.param(run(engine=Associative()), ValueError, ["engine", NEEDS_LINEAR], id="engine_refuses"),
    pytest.param(
        run(NETWORKS["stack"], engine=Associative()), ValueError, ["engine", NEEDS_LINEAR], id="engine_refuses_a_layer"
    ),
    pytest.param(
        run(engine=ONLY_ASSOCIATIVE),
        ValueError,
        ["engine", f"Auto has no candidate left. {NEEDS_LINEAR}. Auto has no candidate left. {NEEDS_LINEAR}"],
        id="auto_says_every_reason",
    ),
    pytest.param(
        run(total, ZERO, engine=Associative()), ValueError, ["engine", "cannot run total"], id="refuses_function"
    ),
    pytest.param(partial(Scan, unroll=0), ValueError, ["unroll", "positive", "0"], id="unroll_zero"),
    pytest.param(partial(Scan, unroll=True), ValueError, ["unroll", "positive", "True"], id="unroll_bool"),
    pytest.param(partial(Associative, block=0), ValueError, ["block", "positive", "0"], id="block_zero"),
    pytest.param(partial(Associative, block=True), ValueError, ["block", "positive", "True"], id="block_bool"),
    pytest.param(partial(Checkpointed, segment=0), ValueError, ["segment", "positive", "0"], id="segment_zero"),
    pytest.param(partial(Auto, ()), ValueError, ["candidates", "at least one", "()"], id="no_candidates"),
    pytest.param(partial(Auto, [Scan()]), ValueError, ["candidates", "tuple", "[Scan()]"], id="candidates_list"),
    pytest.param(partial(Auto, (Scan,)), TypeError, ["candidates", "Scan()", "class"], id="candidate_class"),
]

make_lstm, make_projected = partial(LSTM, key=KEY), partial(ProjectedLSTM, key=KEY)
CONSTRUCTION = [
    pytest.param(partial(make_lstm, I, 0), ValueError, ["hidden_size", "positive", "0"], id="hidden_size_zero"),
    pytest.param(partial(make_lstm, I, 8.0), ValueError, ["hidden_size", "integer", "8.0"], id="hidden_size_float"),
    pytest.param(partial(make_lstm, I, True), ValueError, ["hidden_size", "integer", "True"], id="hidden_size_bool"),
    pytest.param(partial(make_lstm, -3, H), ValueError, ["input_size", "positive", "-3"], id="input_size_negative"),
    pytest.param(partial(make_lstm, I, H, heads=3), ValueError, ["heads", "hidden_size=8", "3"], id="heads_misfit"),
    pytest.param(partial(make_lstm, I, H, heads=0), ValueError, ["heads", "positive", "0"], id="heads_zero"),
    pytest.param(partial(make_lstm, I, H, clip=-1.0), ValueError, ["clip", "positive", "-1.0"], id="clip_negative"),
    pytest.param(
        partial(make_projected, I, H, projected_size=5, clip=-1.0),
        ValueError,
        ["clip", "positive", "-1.0"],
        id="projected_clip_negative",
    ),
    pytest.param(
        partial(make_projected, I, H, projected_size=0), ValueError, ["projected_size", "0"], id="projected_size_zero"
    ),
    pytest.param(
        partial(rnnjax.LEM, I, H, key=KEY, time_step=0.0), ValueError, ["time_step", "positive", "0.0"], id="lem_step"
    ),
    pytest.param(partial(rnnjax.initialise.chrono, 2), ValueError, ["longest", "more than 2", "2"], id="chrono_two"),
    pytest.param(
        partial(rnnjax.initialise.time_constants, 9, 3), ValueError, ["shortest", "<= longest", "9", "3"], id="shortest"
    ),
]

make_lru, make_s5 = partial(rnnjax.LRU, key=KEY), partial(rnnjax.S5, key=KEY)
make_convolution, make_rg_lru = partial(rnnjax.CausalConvolution, key=KEY), partial(rnnjax.RGLRU, key=KEY)
LINEAR = [
    pytest.param(partial(make_lru, I, 0), ValueError, ["hidden_size", "positive", "0"], id="lru_size"),
    pytest.param(partial(make_lru, I, H, r_min=0.9, r_max=0.5), ValueError, ["r_min", "r_max=0.5", "0.9"], id="ring"),
    pytest.param(partial(make_lru, I, H, r_max=1.1), ValueError, ["r_min", "<= 1", "r_max=1.1"], id="ring_too_wide"),
    pytest.param(partial(make_lru, I, H, max_phase=7.0), ValueError, ["max_phase", "2 pi", "7.0"], id="phase"),
    pytest.param(
        partial(make_lru, I, H, output_size=5), ValueError, ["output_size", "=3", "5", "skip=False"], id="lru_skip"
    ),
    pytest.param(
        partial(make_s5, I, H, output_size=5), ValueError, ["output_size", "=3", "5", "skip=False"], id="s5_skip"
    ),
    pytest.param(
        partial(make_s5, I, H, skip=False, output_size=0), ValueError, ["output_size", "0"], id="output_size_zero"
    ),
    pytest.param(partial(make_s5, I, 7), ValueError, ["hidden_size", "multiple of 2", "pairs", "7"], id="s5_odd"),
    pytest.param(partial(make_s5, I, H, blocks=3), ValueError, ["hidden_size", "6", "8"], id="s5_blocks_misfit"),
    pytest.param(partial(make_s5, I, H, blocks=0), ValueError, ["blocks", "positive", "0"], id="s5_blocks_zero"),
    pytest.param(
        partial(make_s5, I, H, shortest_step=0.0),
        ValueError,
        ["shortest_step", "longest_step=0.1", "0.0"],
        id="s5_step",
    ),
    pytest.param(
        partial(make_s5, I, 512, dtype=jnp.float16), ValueError, ["dtype", "float16", "bfloat16"], id="s5_frequencies"
    ),
    pytest.param(partial(make_s5, I, H, dtype=jnp.int32), TypeError, ["dtype", "float32", "int32"], id="s5_dtype"),
    pytest.param(
        partial(make_convolution, I, H, window=0), ValueError, ["window", "positive", "0"], id="convolution_window"
    ),
    pytest.param(partial(make_convolution, 0, H, window=2), ValueError, ["input_size", "0"], id="convolution_inputs"),
    pytest.param(
        partial(rnnjax.DepthwiseConvolution, I, window=-1, key=KEY), ValueError, ["window", "-1"], id="depthwise_window"
    ),
    pytest.param(partial(rnnjax.QRNN, I, H, window=0, key=KEY), ValueError, ["window", "0"], id="qrnn_window"),
    pytest.param(partial(make_rg_lru, H, heads=3), ValueError, ["heads", "hidden_size=8", "3"], id="rg_lru_heads"),
    pytest.param(
        run(rnnjax.QRNN(I, H, key=KEY), engine=rnnjax.Fused()),
        ValueError,
        ["engine", "LinearRecurrence", "AbstractGatedCell", "Scan()"],
        id="qrnn_not_fused",
    ),
    pytest.param(run(rnnjax.RGLRU(4, key=KEY)), ValueError, ["xs", "[T, 4]", "RGLRU", "[12, 3]"], id="rg_lru_inputs"),
]

COMPOSITION = [
    pytest.param(partial(Stack, []), ValueError, ["layers", "at least one", "none"], id="no_layers"),
    pytest.param(
        partial(Stack, [LSTM_CELL, GRU(H, 7, key=KEY), GRU(H, 7, key=KEY)]),
        ValueError,
        ["layers[2]", "f32[8]", "f32[7]"],
        id="layers_misfit",
    ),
    pytest.param(
        partial(Stack, [LSTM_CELL, GRU(H, H, key=KEY, dtype=jnp.bfloat16)]),
        ValueError,
        ["layers[1]", "bf16[8]", "f32[8]"],
        id="layers_of_two_dtypes",
    ),
    pytest.param(partial(Stack, [LSTM_CELL, jnp.tanh]), TypeError, ["layers[1]", "cell", "tanh"], id="layer_function"),
    pytest.param(
        partial(rnnjax.TimeDistributed, eqx.nn.Linear, I),
        TypeError,
        ["function", "a layer", "Linear"],
        id="function_class",
    ),
    pytest.param(partial(rnnjax.LinearRecurrence, jnp.zeros(4)), TypeError, ["start", "Hidden"], id="bare_start"),
    pytest.param(partial(rnnjax.LRU, 4, 8, key=KEY, dtype=jnp.int8), TypeError, ["dtype", "int8"], id="integer_lru"),
    pytest.param(partial(rnnjax.TimeDistributed, 3.0, I), TypeError, ["function", "3.0"], id="function_number"),
    pytest.param(
        partial(rnnjax.TimeDistributed, jnp.tanh, 0), ValueError, ["input_shape", "positive", "0"], id="function_of_0"
    ),
    pytest.param(
        partial(rnnjax.TimeDistributed, jnp.tanh, [1, 28]), ValueError, ["input_shape", "tuple", "[1, 28]"], id="list"
    ),
    pytest.param(
        run(rnnjax.TimeDistributed(jnp.tanh, (2, 4))), ValueError, ["xs", "[T, 2, 4]", "[12, 3]"], id="function_frames"
    ),
    pytest.param(
        run(rnnjax.TimeDistributed(jnp.tanh, 4)), ValueError, ["xs", "[T, 4]", "[12, 3]"], id="function_inputs"
    ),
    pytest.param(partial(Stack, [LSTM]), TypeError, ["layers[0]", "cell", "LSTM"], id="layer_class"),
    pytest.param(partial(Stack, [LSTM_CELL], dropout=1.0), ValueError, ["dropout", "1", "1.0"], id="dropout_one"),
    pytest.param(partial(Stack, [LSTM_CELL], dropout=-0.1), ValueError, ["dropout", "-0.1"], id="dropout_negative"),
    pytest.param(
        partial(Bidirectional, LSTM_CELL, GRU(4, H, key=KEY)),
        ValueError,
        ["backward", "f32[4]", "f32[3]"],
        id="directions_misfit",
    ),
    pytest.param(
        partial(Bidirectional, total, LSTM_CELL), TypeError, ["forward", "cell", "total"], id="not_a_direction"
    ),
    pytest.param(partial(rnnjax.residual, LSTM_CELL), ValueError, ["part", "f32[3]", "f32[8]"], id="residual_misfit"),
    pytest.param(partial(rnnjax.residual, total), TypeError, ["part", "cell", "total"], id="residual_function"),
    pytest.param(partial(rnnjax.skip, total), TypeError, ["part", "cell", "total"], id="skip_function"),
    pytest.param(partial(rnnjax.Reversed, total), TypeError, ["part", "cell", "total"], id="reversed_function"),
]

FUNCTIONS = [
    pytest.param(run(total), ValueError, ["state", "total", "function"], id="function_without_state"),
    pytest.param(run(one_value, ZERO), ValueError, ["cell", "one_value", "(state, y)", "f32[]"], id="function_no_pair"),
    pytest.param(run(three_values, ZERO), ValueError, ["cell", "three_values", "(state, y)"], id="function_of_three"),
    pytest.param(run(new_shape, ZERO), ValueError, ["cell", "new_shape", "f32[]", "f32[3]"], id="function_new_shape"),
    pytest.param(run(new_dtype, ZERO), ValueError, ["cell", "new_dtype", "f32[]", "f64[]"], id="function_new_dtype"),
    pytest.param(run(LSTM, ZERO), TypeError, ["cell", "class LSTM"], id="cell_class"),
]


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("call", "kind", "fragments"), INPUTS + STATES + MARKS + ENGINES + CONSTRUCTION + LINEAR + COMPOSITION + FUNCTIONS
)
def test_error_names_what_was_expected_and_what_came(call, kind, fragments):
    grid.assert_error(call, kind, fragments)


# Lengths that are not known when traced


@pytest.mark.parametrize("cell", [LSTM_CELL, LINEAR_CELL, BIDIRECTIONAL], ids=["lstm", "min_gru", "bidirectional"])
@pytest.mark.parametrize(("length", "clamped"), [(99, T), (-3, 0)])
def test_traced_length_is_clamped(cell, length, clamped):
    traced = jax.jit(lambda length: unroll(cell, None, XS, length=length))(length)
    assert_equal(traced, jax.jit(lambda: unroll(cell, None, XS, length=clamped))())


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
def test_length_may_be_of_any_integer_dtype(dtype):
    xs = jnp.sin(jnp.arange(300 * I, dtype=F32)).reshape(300, I)  # more steps than eight bits can count
    resets = jnp.arange(300) == 50
    at = jax.jit(lambda length: unroll(GRU_CELL, None, xs, length=length, resets=resets, reverse=True))
    assert_equal(at(jnp.asarray(100, dtype)), at(100))


# No steps at all


@pytest.mark.parametrize(
    "options",
    [{}, {"length": 0}, {"resets": jnp.zeros(0, bool)}, {"length": 0, "resets": jnp.zeros(0, bool), "reverse": True}],
    ids=["plain", "length", "resets", "all"],
)
@pytest.mark.parametrize("name", CELLS | NETWORKS)
def test_no_steps_return_the_state_and_no_outputs(name, options):
    cell = (CELLS | NETWORKS)[name]
    state = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3, leaf.dtype), jax.eval_shape(cell.initial))
    last, ys = unroll(cell, state, XS[:0], **options)
    assert_equal(last, state)
    one_step = jax.eval_shape(lambda: unroll(cell, state, XS[:1]))[1]
    assert (ys.shape, ys.dtype) == ((0, *one_step.shape[1:]), one_step.dtype)


def test_no_steps_of_a_function():
    state = LSTMState(jnp.arange(2.0), jnp.arange(3))
    last, ys = unroll(
        lambda state, x: (state, (x, state.c)), state, XS[:0], length=0, resets=jnp.zeros(0, bool), reverse=True
    )
    assert_equal(last, state)
    assert [leaf.shape for leaf in ys] == [(0, I), (0, 3)]


@pytest.mark.parametrize("name", CELLS)
def test_no_steps_have_a_gradient(name):
    gradient = jax.grad(lambda cell: unroll(cell, None, XS[:0])[1].sum())(CELLS[name])
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
