"""Bad input meets a clear error: which argument, what was expected, what came. Empty input meets none."""

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import instructs, messages

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
    MinGRU,
    ProjectedLSTM,
    ResetBeforeGRU,
    Scan,
    Stack,
    unroll,
)
from rnnjax.cells import LSTMState

T, I, H = 12, 3, 8  # noqa: E741
F32, F64 = jnp.float32, jnp.float64
XS = np.random.default_rng(5).standard_normal((T, I)).astype(F32)


@grid.once
def key() -> jax.Array:
    return jax.random.key(5)


CELLS: dict[str, Callable[[], Any]] = {
    "elman": lambda: Elman(I, H, key=key()),
    "lstm": lambda: LSTM(I, H, key=key()),
    "projected_lstm": lambda: ProjectedLSTM(I, H, projected_size=5, key=key()),
    "gru": lambda: GRU(I, H, key=key()),
    "reset_before_gru": lambda: ResetBeforeGRU(I, H, key=key()),
    "min_gru": lambda: MinGRU(I, H, key=key()),
    "sru": lambda: rnnjax.SRU(I, H, key=key()),
    "lru": lambda: rnnjax.LRU(I, H, key=key()),
}
NETWORKS: dict[str, Callable[[], Any]] = {
    "stack": lambda: Stack([built("lstm"), MinGRU(H, 5, key=key())], dropout=0.5),
    "bidirectional": lambda: Bidirectional(built("gru"), built("lstm")),
    "deep": lambda: Stack(
        [rnnjax.skip(built("bidirectional")), rnnjax.Reversed(GRU(2 * H + I, H, key=key()))],
    ),
    "convolution": lambda: rnnjax.networks.CausalConvolution(I, H, window=3, key=key()),
    "qrnn": lambda: rnnjax.QRNN(I, H, key=key()),
    "rg_lru": lambda: rnnjax.RGLRU(I, key=key()),
}
OF_OTHER_INPUTS: dict[str, Callable[[], Any]] = {
    "rg_lru_of_four": lambda: rnnjax.RGLRU(4, key=key()),
    "tanh_of_four": lambda: rnnjax.TimeDistributed(jnp.tanh, 4),
    "tanh_of_frames": lambda: rnnjax.TimeDistributed(jnp.tanh, (2, 4)),
}


@grid.once
def built(name: str) -> Any:
    """The cell or network of that name."""
    return (CELLS | NETWORKS | OF_OTHER_INPUTS)[name]()


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


def run(cell: Any = "lstm", state: Any = None, xs: Any = XS, **options: Any) -> Callable[[], Any]:
    """A call of `unroll`, of a cell by its name or as it is."""
    return lambda: unroll(built(cell) if isinstance(cell, str) else cell, state, xs, **options)


def placed(array: Any) -> jax.Array:
    """The array as one of JAX."""
    return jax.device_put(array)


def of_dtype(dtype: Any) -> np.ndarray:
    return np.ones((T, I), dtype)


ZERO = np.zeros((), F32)
ONLY_ASSOCIATIVE = Auto((Associative(), Auto((Associative(),))))
NEEDS_LINEAR = "Associative cannot run LSTM: it needs an AbstractLinearCell. Use Scan()"
BATCH = ["jax.vmap", "one sequence"]

INPUTS = [
    pytest.param(run(xs=np.ones((T, 4), F32)), ValueError, ["xs", "[T, 3]", "LSTM", "[12, 4]"], id="feature_size"),
    pytest.param(run(xs=np.ones(T, F32)), ValueError, ["xs", "rank 2", "[T, 3]", "[12]"], id="rank_too_low"),
    pytest.param(run(xs=np.ones((2, 5, T, I), F32)), ValueError, ["xs", "rank 2", "5, 12, 3]"], id="rank_too_high"),
    pytest.param(run(xs=ZERO), ValueError, ["xs", "[T, ...]", "scalar"], id="scalar"),
    pytest.param(run(xs=np.ones((5, T, I), F32)), ValueError, ["xs", "[T, 3]", "[5, 12, 3]", *BATCH], id="batch"),
    pytest.param(run(xs=[[1.0, 2.0, 3.0]]), TypeError, ["xs", "array", "float"], id="list"),
    pytest.param(run(xs=(XS, XS)), ValueError, ["xs", "f32[3]", "(f32[12,3], f32[12,3])"], id="two_inputs"),
    pytest.param(run(xs=(XS, XS[:5])), ValueError, ["xs", "one length", "[5, 12]"], id="two_lengths"),
    pytest.param(run(xs=of_dtype(jnp.int32)), TypeError, ["xs", "float32", "int32", "astype"], id="integer_inputs"),
    pytest.param(run(xs=of_dtype(bool)), TypeError, ["xs", "float32", "bool"], id="boolean_inputs"),
    pytest.param(run(xs=of_dtype(F64)), TypeError, ["xs", "float32", "float64", "astype"], id="float64_inputs"),
    pytest.param(run(xs=of_dtype(jnp.bfloat16)), TypeError, ["xs", "float32", "bfloat16"], id="bfloat16_inputs"),
    pytest.param(
        run("bidirectional", xs=XS[:, :2]), ValueError, ["xs", "Bidirectional", "[12, 2]"], id="network_inputs"
    ),
    pytest.param(run(3), TypeError, ["cell", "(state, x) -> (state, y)", "3"], id="not_callable"),
]

STATES = [
    pytest.param(run(state=Hidden(np.zeros(H, F32))), ValueError, ["state", "LSTMState(", "Hidden("], id="other_cell"),
    pytest.param(run("gru", XS[:, 0]), ValueError, ["state", "Hidden(h=f32[8])", "got f32"], id="bare_array"),
    pytest.param(
        run("gru", Hidden(np.zeros(7, F32))), ValueError, ["state", "h=f32[8]", "GRU", "h=f32[7]"], id="state_shape"
    ),
    pytest.param(
        run("gru", Hidden(np.zeros((5, H), F32))), ValueError, ["state", "h=f32[8]", "h=f32[5,8]"], id="state_batch"
    ),
    pytest.param(run("gru", Hidden(np.zeros(H, F64))), TypeError, ["state", "h=f32[8]", "h=f64[8]"], id="state_dtype"),
    pytest.param(run("gru", "zeros"), ValueError, ["state", "Hidden(h=f32[8])", "zeros"], id="state_string"),
    pytest.param(run("stack", Hidden(XS[0])), ValueError, ["state", "LSTMState(", "got Hidden("], id="network_state"),
]

OPTIONS = [
    pytest.param(run(reverse="no"), TypeError, ["reverse", "True or False", "'no'"], id="reverse_string"),
    pytest.param(partial(rnnjax.Newton, fall_back="no"), TypeError, ["fall_back", "True or False"], id="fall_back"),
    pytest.param(lambda: Stack([built("gru")], dropout="0.5"), TypeError, ["dropout", "number", "'0.5'"], id="dropout"),
    pytest.param(lambda: Elman(I, H, key=key(), leak="0.5"), TypeError, ["leak", "number", "'0.5'"], id="leak"),
    pytest.param(
        lambda: Elman(I, H, key=key(), activation="relu"), TypeError, ["activation", "'relu'"], id="activation"
    ),
    pytest.param(
        lambda: LSTM(I, H, key=key(), gate_activation="relu"), TypeError, ["gate_activation", "'relu'"], id="gates"
    ),
    pytest.param(lambda: rnnjax.cells.clipped(jnp.tanh, "1"), TypeError, ["bound", "number", "'1'"], id="bound"),
    pytest.param(lambda: rnnjax.cells.clipped(jnp.tanh, 0.0), ValueError, ["bound", "positive", "0.0"], id="bound_0"),
    pytest.param(lambda: LSTM(I, H, key=key(), clip="1"), TypeError, ["clip", "number", "'1'"], id="clip"),
    pytest.param(lambda: rnnjax.LEM(I, H, key=key(), time_step=True), TypeError, ["time_step", "True"], id="time_step"),
    pytest.param(lambda: rnnjax.LRU(I, H, key=key(), r_min=XS), TypeError, ["r_min", "number"], id="r_min_array"),
    pytest.param(
        lambda: rnnjax.S5(I, H, key=key(), shortest_step=None), TypeError, ["shortest_step", "None"], id="shortest_step"
    ),
]
# Every flag of every constructor, by name.
FLAGGED = [
    *(rnnjax.LSTM, rnnjax.GRU, rnnjax.Elman, rnnjax.ProjectedLSTM, rnnjax.ResetBeforeGRU, rnnjax.LEM, rnnjax.MinGRU),
    *(rnnjax.IndRNN, rnnjax.DiagonalGRU, rnnjax.DiagonalLSTM, rnnjax.MinLSTM, rnnjax.LinearRNN, rnnjax.SRU),
    *(
        rnnjax.LRU,
        rnnjax.S5,
        rnnjax.ConvLSTM,
        rnnjax.ConvGRU,
        rnnjax.QRNN,
        rnnjax.RGLRU,
        rnnjax.networks.CGLRU,
        rnnjax.networks.CausalConvolution,
    ),
    *(rnnjax.networks.MatrixMixer, rnnjax.networks.LinearAttention, rnnjax.networks.GLA, rnnjax.networks.HGRN2),
    *(rnnjax.networks.Mamba2, rnnjax.networks.DeltaNet, rnnjax.networks.GatedDeltaNet, rnnjax.networks.KDA),
    rnnjax.networks.DeltaProduct,
    *(
        rnnjax.networks.DepthwiseConvolution,
        rnnjax.models.LanguageModel,
        rnnjax.trees.ChildSumTreeLSTM,
        rnnjax.trees.NaryTreeLSTM,
    ),
    *(rnnjax.trees.RecursiveNetwork, rnnjax.trees.RNTN),
    *(rnnjax.networks.RWKV6, rnnjax.networks.RWKV7, rnnjax.networks.ChannelMixing, rnnjax.networks.Mamba),
]
FLAGS = [
    (constructor, name, value)
    for constructor in FLAGGED
    for name, parameter in inspect.signature(constructor).parameters.items()
    if isinstance(parameter.default, bool)
    for value in ("False", 1)
]


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("constructor", "name", "value"), FLAGS)
def test_a_flag_is_a_boolean(constructor, name, value):
    """The string "False" would count as true."""
    others = {
        each: {"key": key(), "kernel_size": 3, "projected_size": 2, "network": built("gru")}.get(each, 4)
        for each, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    with pytest.raises(TypeError, match=f"^{name}: expected True or False, got {value!r}"):
        constructor(**others | {name: value})


MARKS = [
    pytest.param(run(length=3.0), TypeError, ["length", "integer", "3.0"], id="length_float"),
    pytest.param(run(length=True), TypeError, ["length", "integer", "True"], id="length_bool"),
    pytest.param(run(length="3"), TypeError, ["length", "integer", "'3'"], id="length_string"),
    pytest.param(run(length=[3]), TypeError, ["length", "integer", "[3]"], id="length_list"),
    pytest.param(
        lambda: run(length=placed(np.float32(3)))(), TypeError, ["length", "integer", "float32"], id="length_floats"
    ),
    pytest.param(
        lambda: run(length=placed(np.bool_(True)))(), TypeError, ["length", "integer", "bool"], id="length_bools"
    ),
    pytest.param(
        lambda: run(length=placed(np.asarray([3, 4])))(),
        ValueError,
        ["length", "scalar", "[2]", *BATCH],
        id="length_vector",
    ),
    pytest.param(run(length=-1), ValueError, ["length", "0", "T=12", "-1"], id="length_negative"),
    pytest.param(run(length=13), ValueError, ["length", "0", "T=12", "13"], id="length_over"),
    pytest.param(run(length=np.int32(13)), ValueError, ["length", "T=12", "13"], id="length_over_numpy"),
    pytest.param(lambda: run(length=placed(13))(), ValueError, ["length", "T=12", "13"], id="length_over_array"),
    pytest.param(jax.jit(run(length=13)), ValueError, ["length", "T=12", "13"], id="length_over_known_inside_jit"),
    pytest.param(run(resets=np.zeros(11, bool)), ValueError, ["resets", "[12]", "[11]"], id="resets_shape"),
    pytest.param(run(resets=np.zeros((5, T), bool)), ValueError, ["resets", "[12]", "[5, 12]"], id="resets_batch"),
    pytest.param(run(resets=np.zeros(T, int)), TypeError, ["resets", "booleans", "T=12", "int64"], id="resets_int"),
    pytest.param(run(resets=[False] * T), TypeError, ["resets", "booleans", "T=12", "list"], id="resets_list"),
    pytest.param(run(resets=True), TypeError, ["resets", "booleans", "T=12", "bool"], id="resets_bool"),
]

ENGINES = [
    pytest.param(run(engine="scan"), TypeError, ["engine", "Scan()", "'scan'"], id="engine_string"),
    pytest.param(run(engine=Scan), TypeError, ["engine", "class Scan", "Scan()"], id="engine_class"),
    pytest.param(run(engine=None), TypeError, ["engine", "Scan()", "None"], id="engine_none"),
    pytest.param(run(engine=Associative()), ValueError, ["engine", NEEDS_LINEAR], id="engine_refuses"),
    pytest.param(run("stack", engine=Associative()), ValueError, ["engine", NEEDS_LINEAR], id="engine_refuses_a_layer"),
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
    pytest.param(partial(Associative, pallas="cuda"), TypeError, ["pallas", "True or False", "'cuda'"], id="pallas"),
    pytest.param(
        partial(Associative, block=7, pallas=True), ValueError, ["block", "pallas=True", "7"], id="block_and_pallas"
    ),
    pytest.param(partial(rnnjax.Fused, cuda=True), TypeError, ["cuda", "GPU()", "None", "True"], id="kernel_flag"),
    pytest.param(
        partial(rnnjax.Fused, tpu=rnnjax.kernels.TPU), TypeError, ["tpu", "TPU()", "class"], id="kernel_class"
    ),
    pytest.param(partial(Checkpointed, segment=0), ValueError, ["segment", "positive", "0"], id="segment_zero"),
    pytest.param(partial(Auto, ()), ValueError, ["candidates", "at least one", "()"], id="no_candidates"),
    pytest.param(partial(Auto, [Scan()]), ValueError, ["candidates", "tuple", "[Scan()]"], id="candidates_list"),
    pytest.param(partial(Auto, (Scan,)), TypeError, ["candidates", "Scan()", "class"], id="candidate_class"),
]


def keyed(make: Callable[..., Any]) -> Callable[..., Any]:
    """The class with a key."""
    return lambda *sizes, **options: make(*sizes, key=key(), **options)


make_lstm, make_projected = keyed(LSTM), keyed(ProjectedLSTM)
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
        partial(keyed(rnnjax.LEM), I, H, time_step=0.0), ValueError, ["time_step", "positive", "0.0"], id="lem_step"
    ),
    pytest.param(partial(rnnjax.initialise.chrono, 2), ValueError, ["longest", "more than 2", "2"], id="chrono_two"),
    pytest.param(
        partial(rnnjax.initialise.time_constants, 9, 3), ValueError, ["shortest", "<= longest", "9", "3"], id="shortest"
    ),
]

make_lru, make_s5 = keyed(rnnjax.LRU), keyed(rnnjax.S5)
make_convolution, make_rg_lru = keyed(rnnjax.networks.CausalConvolution), keyed(rnnjax.RGLRU)
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
        partial(make_s5, I, H, discretise="bilinear"), TypeError, ["discretise", "cells.bilinear"], id="s5_discretise"
    ),
    pytest.param(
        lambda: run(make_s5(I, H, discretise=lambda rate, step: (jnp.abs(rate), step)))(),
        ValueError,
        ["discretise", "<lambda>", "each c64[4]", "(f32[4], f32[4])"],
        id="s5_discretise_real",
    ),
    pytest.param(
        lambda: run(make_s5(I, H, discretise=lambda *_: 0.5))(),
        ValueError,
        ["discretise", "(a, scale)", "each c64[4]", "64[]"],
        id="s5_discretise_one",
    ),
    pytest.param(
        partial(make_s5, I, H, largest_real_part=0.0), ValueError, ["largest_real_part", "-0.5", "0.0"], id="s5_bound"
    ),
    pytest.param(
        partial(make_s5, I, H, largest_real_part="-1"), TypeError, ["largest_real_part", "number"], id="s5_bound_text"
    ),
    pytest.param(
        partial(make_convolution, I, H, window=0), ValueError, ["window", "positive", "0"], id="convolution_window"
    ),
    pytest.param(partial(make_convolution, 0, H, window=2), ValueError, ["input_size", "0"], id="convolution_inputs"),
    pytest.param(
        partial(keyed(rnnjax.networks.DepthwiseConvolution), I, window=-1),
        ValueError,
        ["window", "-1"],
        id="depthwise_window",
    ),
    pytest.param(partial(keyed(rnnjax.QRNN), I, H, window=0), ValueError, ["window", "0"], id="qrnn_window"),
    pytest.param(
        partial(keyed(rnnjax.QRNN), I, H, zoneout=1.0), ValueError, ["zoneout", "0 <= p < 1", "1.0"], id="qrnn_zoneout"
    ),
    pytest.param(
        partial(keyed(rnnjax.QRNN), I, H, zoneout="0.1"), TypeError, ["zoneout", "'0.1'"], id="qrnn_zoneout_text"
    ),
    pytest.param(partial(make_rg_lru, H, heads=3), ValueError, ["heads", "hidden_size=8", "3"], id="rg_lru_heads"),
    pytest.param(
        partial(keyed(rnnjax.networks.CGLRU), 6, heads=2), ValueError, ["hidden_size", "2 * heads = 4", "6"], id="odd"
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.CGLRU), 6, max_phase=0), ValueError, ["max_phase", "2 pi", "0"], id="no_phase"
    ),
    pytest.param(
        lambda: jax.eval_shape(run("qrnn", engine=rnnjax.Fused())),
        ValueError,
        ["engine", "LinearRecurrence", "AbstractGatedCell", "Scan()"],
        id="qrnn_not_fused",
    ),
    pytest.param(run("rg_lru_of_four"), ValueError, ["xs", "[T, 4]", "RGLRU", "[12, 3]"], id="rg_lru_inputs"),
]

as_complex = rnnjax.networks.mixers.as_complex
make_mixer = partial(keyed(rnnjax.networks.MatrixMixer), 4, heads=2, key_size=3, value_size=5)


def rows(*shape: int) -> Callable[[Any], jax.Array]:
    """A module of a mixer that returns an array of that shape for each step."""
    return lambda projected: jnp.ones((len(projected.x), *shape), F32)


mixers = rnnjax.networks.mixers
three_columns = mixers.Linear(4, 3, key=jax.random.key(0))

MIXERS = [
    pytest.param(
        partial(keyed(rnnjax.networks.GatedDeltaNet), 10),
        ValueError,
        ["heads", "0.75 * input_size=7.5", "got 6", "Pass key_size itself"],
        id="no_head_size",
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.HGRN2), 24, heads=5),
        ValueError,
        ["heads", "=24, got 5", "heads=4"],
        id="hgrn2_heads",
    ),
    pytest.param(partial(make_mixer, query_map=3), TypeError, ["query_map", "function", "3", "silu"], id="number_map"),
    pytest.param(partial(make_mixer, decay=0.9), TypeError, ["decay", "0.9", "FixedDecay((0.9,)"], id="number_decay"),
    pytest.param(partial(make_mixer, norm=eqx.nn.RMSNorm), TypeError, ["norm", "RMSNorm", "HeadNorm"], id="norm_class"),
    pytest.param(
        partial(make_mixer, erase=mixers.written),
        ValueError,
        ["erase", "write", "Pass write"],
        id="erase_without_write",
    ),
    pytest.param(
        partial(make_mixer, decay=mixers.WriteDecay(jnp.zeros(2))),
        ValueError,
        ["decay", "write", "Pass write"],
        id="decay_without_write",
    ),
    pytest.param(
        partial(make_mixer, write=mixers.Gate(three_columns, jax.nn.sigmoid, 2)),
        ValueError,
        ["projection", "multiple of 2", "got 3", "4 columns"],
        id="gate_columns",
    ),
    pytest.param(
        partial(make_mixer, key_map=as_complex), ValueError, ["key_size", "even", "got 3", "Pass 4"], id="odd_complex"
    ),
    pytest.param(
        lambda: mixers.GroupedNorm(10, 3, dtype=F32), ValueError, ["groups", "size=10", "3"], id="norm_groups"
    ),
    pytest.param(partial(make_mixer, key_heads=3), ValueError, ["key_heads", "heads=2", "3"], id="key_heads"),
    pytest.param(
        partial(make_mixer, decay=rows(2, 4)), ValueError, ["decay", "[T, 2, 1] or [T, 2, 3]", "[1,2,4]"], id="decay"
    ),
    pytest.param(
        partial(make_mixer, micro_steps=2, write=rows(2, 1)), ValueError, ["write", "[T, 4, 1]", "[1,2,1]"], id="write"
    ),
    pytest.param(partial(make_mixer, erase=rows(2)), ValueError, ["erase", "[T, 2, 1]", "[1,2]"], id="erase"),
    pytest.param(partial(make_mixer, gate=rows(2, 1)), ValueError, ["gate", "[T, 2, 5]", "[1,2,1]"], id="mixer_gate"),
    pytest.param(partial(make_mixer, norm=jnp.sum), ValueError, ["norm", "[2, 5]", "[]"], id="norm"),
    pytest.param(
        partial(make_mixer, key_size=4, key_map=as_complex),
        ValueError,
        ["query_map", "[T, 2, 2]", "key_map", "[1,2,4]"],
        id="query_map",
    ),
    pytest.param(partial(make_mixer, value_map=jnp.sum), ValueError, ["value_map", "[T, 2, size]", "[]"], id="map"),
    pytest.param(partial(make_mixer, convolution=0), ValueError, ["convolution", "positive", "0"], id="mixer_window"),
    pytest.param(partial(make_mixer, scale="1"), TypeError, ["scale", "number", "'1'"], id="scale"),
    pytest.param(
        partial(make_mixer, key_map=as_complex, query_map=as_complex, key_size=4, learn_initial=True),
        ValueError,
        ["learn_initial", "False", "complex64", "True"],
        id="complex_start",
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.GatedDeltaNet), 20),
        ValueError,
        ["heads", "0.75 * input_size=15", "key_size", "got 6", "heads=5, or key_size"],
        id="head_size",
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.Mamba2), 20), ValueError, ["head_size", "=40", "groups=1", "64"], id="mamba2"
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.Mamba2), 6, head_size=4, groups=2),
        ValueError,
        ["head_size", "=12", "groups=2", "4"],
        id="mamba2_groups",
    ),
    pytest.param(partial(keyed(rnnjax.networks.HGRN2), 20), ValueError, ["key_size", "=20", "128"], id="hgrn2"),
    pytest.param(
        partial(keyed(rnnjax.networks.HGRN2), 8, key_size=4, lower_bound=1.0),
        ValueError,
        ["lower_bound", "0 <= lower_bound < 1", "1.0", "Pass 0"],
        id="lower_bound",
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.RetNet), 8, key_size=3), ValueError, ["key_size", "even", "3"], id="ret_net_odd"
    ),
    pytest.param(
        partial(keyed(rnnjax.networks.LinearAttention), 8, feature_map=eqx.nn.PReLU()),
        ValueError,
        ["feature_map", "without weights", "PReLU"],
        id="feature_map",
    ),
]

H_ALONE = rnnjax.cells.LSTMState(h=True, c=False)
COMPOSITION = [
    pytest.param(
        lambda: rnnjax.networks.PartialResets(built("gru"), H_ALONE),
        ValueError,
        ["parts", "each part of Hidden(h=f32[8])", "GRU", "LSTMState(h=True, c=False)", "or True for all"],
        id="parts_of_another_state",
    ),
    pytest.param(
        lambda: rnnjax.networks.PartialResets(built("stack"), (H_ALONE, rnnjax.Hidden(h=1))),
        ValueError,
        ["parts[1]", "MinGRU", "Hidden(h=1)"],
        id="parts_of_a_stack",
    ),
    pytest.param(
        lambda: rnnjax.networks.PartialResets(built("stack"), (True,)), ValueError, ["parts", "Stack"], id="few_parts"
    ),
    pytest.param(
        lambda: rnnjax.networks.PartialResets(built("bidirectional"), (True, False)),
        ValueError,
        ["parts", "Bidirectional", "neither a cell nor a Stack", "(True, False)"],
        id="parts_of_a_network",
    ),
    pytest.param(
        lambda: rnnjax.networks.PartialResets(built("lstm"), False), ValueError, ["parts", "at least one"], id="no_part"
    ),
    pytest.param(
        lambda: rnnjax.networks.PartialResets(jnp.tanh, True), TypeError, ["layer", "cell or a network"], id="part_of_0"
    ),
    pytest.param(
        lambda: run(rnnjax.networks.PartialResets(built("lstm"), H_ALONE))(),
        ValueError,
        ["xs", "LSTMState(h=bool[], c=None)", "PartialResets", "f32[12,3]"],
        id="no_flags",
    ),
    pytest.param(
        lambda: rnnjax.networks.AllStates(built("stack")), TypeError, ["cell", "Stack", "one by one"], id="all_of_stack"
    ),
    pytest.param(
        lambda: rnnjax.networks.AllStates(rnnjax.cells.S6(3, key=key())),
        TypeError,
        ["cell", "S6", "emits its states", "cell.step(state, u)"],
        id="states_not_emitted",
    ),
    pytest.param(partial(Stack, []), ValueError, ["layers", "at least one", "none"], id="no_layers"),
    pytest.param(
        lambda: Stack([built("lstm"), GRU(H, 7, key=key()), GRU(H, 7, key=key())]),
        ValueError,
        ["layers[2]", "f32[8]", "f32[7]"],
        id="layers_misfit",
    ),
    pytest.param(
        lambda: Stack([built("lstm"), GRU(H, H, key=key(), dtype=jnp.bfloat16)]),
        ValueError,
        ["layers[1]", "bf16[8]", "f32[8]"],
        id="layers_of_two_dtypes",
    ),
    pytest.param(
        lambda: Stack([built("lstm"), jnp.tanh]), TypeError, ["layers[1]", "cell", "tanh"], id="layer_function"
    ),
    pytest.param(
        partial(rnnjax.TimeDistributed, eqx.nn.Linear, I),
        TypeError,
        ["function", "a layer", "Linear"],
        id="function_class",
    ),
    pytest.param(
        lambda: rnnjax.LinearRecurrence(placed(np.zeros(4))), TypeError, ["initial_state", "Hidden"], id="bare_start"
    ),
    pytest.param(partial(make_lru, 4, 8, dtype=jnp.int8), TypeError, ["dtype", "int8"], id="integer_lru"),
    pytest.param(partial(rnnjax.TimeDistributed, 3.0, I), TypeError, ["function", "3.0"], id="function_number"),
    pytest.param(
        partial(rnnjax.TimeDistributed, jnp.tanh, 0), ValueError, ["input_shape", "positive", "0"], id="function_of_0"
    ),
    pytest.param(
        partial(rnnjax.TimeDistributed, jnp.tanh, [1, 28]), ValueError, ["input_shape", "tuple", "[1, 28]"], id="list"
    ),
    pytest.param(run("tanh_of_frames"), ValueError, ["xs", "[T, 2, 4]", "[12, 3]"], id="function_frames"),
    pytest.param(run("tanh_of_four"), ValueError, ["xs", "[T, 4]", "[12, 3]"], id="function_inputs"),
    pytest.param(partial(Stack, [LSTM]), TypeError, ["layers[0]", "cell", "LSTM"], id="layer_class"),
    pytest.param(lambda: Stack([built("lstm")], dropout=1.0), ValueError, ["dropout", "1", "1.0"], id="dropout_one"),
    pytest.param(lambda: Stack([built("lstm")], dropout=-0.1), ValueError, ["dropout", "-0.1"], id="dropout_negative"),
    pytest.param(
        lambda: Bidirectional(built("lstm"), GRU(4, H, key=key())),
        ValueError,
        ["backward", "f32[4]", "f32[3]"],
        id="directions_misfit",
    ),
    pytest.param(
        lambda: Bidirectional(total, built("lstm")), TypeError, ["forward", "cell", "total"], id="not_a_direction"
    ),
    pytest.param(
        lambda: rnnjax.residual(built("lstm")), ValueError, ["layer", "f32[3]", "f32[8]"], id="residual_misfit"
    ),
    pytest.param(partial(rnnjax.residual, total), TypeError, ["layer", "cell", "total"], id="residual_function"),
    pytest.param(partial(rnnjax.skip, total), TypeError, ["layer", "cell", "total"], id="skip_function"),
    pytest.param(
        partial(rnnjax.networks.SharedBidirectional, total), TypeError, ["layer", "cell", "total"], id="shared_function"
    ),
    pytest.param(partial(rnnjax.Reversed, total), TypeError, ["layer", "cell", "total"], id="reversed_function"),
]

FUNCTIONS = [
    pytest.param(run(total), ValueError, ["state", "total", "function"], id="function_without_state"),
    pytest.param(run(one_value, ZERO), ValueError, ["cell", "one_value", "(state, y)", "f32[]"], id="function_no_pair"),
    pytest.param(run(three_values, ZERO), ValueError, ["cell", "three_values", "(state, y)"], id="function_of_three"),
    pytest.param(run(new_shape, ZERO), ValueError, ["cell", "new_shape", "f32[]", "f32[3]"], id="function_new_shape"),
    pytest.param(run(new_dtype, ZERO), ValueError, ["cell", "new_dtype", "f32[]", "f64[]"], id="function_new_dtype"),
    pytest.param(run(LSTM, ZERO), TypeError, ["cell", "class LSTM"], id="cell_class"),
]


# Messages whose "expected True or False" or "expected a positive integer" needs no further advice.
SELF_EXPLANATORY = {
    *("reverse_string", "fall_back", "pallas"),
    *("hidden_size_zero", "hidden_size_float", "hidden_size_bool", "input_size_negative", "heads_zero"),
    *("projected_size_zero", "lru_size", "output_size_zero", "s5_blocks_zero"),
    *("mixer_window", "convolution_window", "convolution_inputs", "depthwise_window", "qrnn_window"),
}
CASES = INPUTS + STATES + MARKS + OPTIONS + ENGINES + CONSTRUCTION + LINEAR + MIXERS + COMPOSITION + FUNCTIONS


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("call", "kind", "fragments"), CASES)
def test_error_names_what_was_expected_and_what_came(call, kind, fragments, request):
    """The message also says what to do, unless it is in `SELF_EXPLANATORY`."""
    message = grid.assert_error(call, kind, fragments)
    assert instructs(message) != (request.node.callspec.id in SELF_EXPLANATORY), message


# What the messages say in the source


def test_messages_say_what_to_do():
    """At least 200 do. The others give a reason within another message, or what they expect says it all."""
    silent = [f"{message.place}: {message.text}" for message in messages() if not instructs(message.text)]
    assert len(messages()) - len(silent) >= 200, "\n".join(silent)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("xs: expected an array [T, ...], got a scalar. Write xs[None] for one step", True),
        ("Fused has no kernel for LSTM. {} Use Scan().", True),
        ("heads: expected a positive integer, got 0", False),
        ("width: expected 3, got 4. The first step has no more hypotheses than tokens", False),
        ("Use Scan() was not written", False),
    ],
)
def test_an_instruction_is_a_sentence_that_begins_with_a_verb(message, expected):
    assert instructs(message) is expected


# Lengths that are not known when traced


@lru_cache
def by_length(name: str) -> Callable[[int], Any]:
    """A run of a traced length, and those of all steps and of none, which are known: one program."""
    return jax.jit(lambda length: tuple(unroll(built(name), None, XS, length=given) for given in (length, T, 0)))


@pytest.mark.parametrize("name", ["lstm", "min_gru", "bidirectional"])
@pytest.mark.parametrize(("length", "clamped"), [(99, T), (-3, 0), (np.uint8(255), T)])
def test_traced_length_is_clamped(name, length, clamped):
    traced, whole, nothing = by_length(name)(length)
    assert_equal(traced, whole if clamped == T else nothing)


INTEGERS = ("int8", "uint8", "int16", "int32", "uint32", "int64")


@lru_cache
def by_dtype() -> list[Any]:
    """A run of the same length in every integer dtype, and last that of a plain integer."""
    xs = np.sin(np.arange(300 * I, dtype=F32)).reshape(300, I)  # more steps than eight bits can count
    run = lambda length: unroll(total, ZERO, xs, length=length, resets=np.arange(300) == 50, reverse=True)  # noqa: E731
    return jax.jit(lambda lengths: list(map(run, lengths)))([*(np.asarray(100, dtype) for dtype in INTEGERS), 100])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_length_may_be_of_any_integer_dtype(dtype):
    *runs, expected = by_dtype()
    assert_equal(runs[INTEGERS.index(dtype)], expected)
    from_zero = {50, 99}  # where a run in reverse puts out the state it was given
    assert set(np.flatnonzero(expected[1])) == set(range(100)) - from_zero


# No steps at all


EMPTY_OPTIONS = {
    "plain": {},
    "length": {"length": 0},
    "resets": {"resets": np.zeros(0, bool)},
    "all": {"length": 0, "resets": np.zeros(0, bool), "reverse": True},
}


@lru_cache
def without_steps(name: str) -> tuple[dict[str, Any], Any, Any]:
    """A state, the last states and outputs of no steps from it, by the options, and the gradient of the outputs."""
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3, leaf.dtype), jax.eval_shape(built(name).initial))
    weights, static = eqx.partition(built(name), eqx.is_inexact_array)

    @jax.jit
    def empty(weights: Any, state: Any) -> Any:
        cell = lambda weights: eqx.combine(weights, static)  # noqa: E731
        runs = {option: unroll(cell(weights), state, XS[:0], **options) for option, options in EMPTY_OPTIONS.items()}
        return runs, jax.grad(lambda weights: unroll(cell(weights), None, XS[:0])[1].sum())(weights)

    return state, *empty(weights, state)


@pytest.mark.parametrize("options", EMPTY_OPTIONS)
@pytest.mark.parametrize("name", CELLS | NETWORKS)
def test_no_steps_return_the_state_and_no_outputs(name, options):
    state, runs, _ = without_steps(name)
    last, ys = runs[options]
    assert_equal(last, state)
    one_step = jax.eval_shape(lambda: unroll(built(name), state, XS[:1]))[1]
    assert (ys.shape, ys.dtype) == ((0, *one_step.shape[1:]), one_step.dtype)


def test_no_steps_of_a_function():
    state = LSTMState(np.arange(2.0), np.arange(3))
    keep = lambda state, x: (state, (x, state.c))  # noqa: E731
    run = lambda state: unroll(keep, state, XS[:0], length=0, resets=np.zeros(0, bool), reverse=True)  # noqa: E731
    last, ys = jax.jit(run)(state)
    assert_equal(last, state)
    assert [leaf.shape for leaf in ys] == [(0, I), (0, 3)]


@pytest.mark.parametrize("name", CELLS)
def test_no_steps_have_a_gradient(name):
    _, _, gradient = without_steps(name)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.usefixtures("as_it_comes")
def test_a_traced_unsigned_length_is_clamped_to_all_steps():
    """Where integers have 32 bits, a cast would make the largest ones negative."""
    last = jax.jit(lambda length: unroll(built("gru"), None, XS, length=length)[0].h)
    np.testing.assert_array_equal(last(np.uint32(2**31 + 5)), last(np.uint32(T)))
