"""Engines equal float64 `Scan`, on cells of each kind, under every view and in every dtype."""

from functools import partial

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax.engines.auto import AutoPlan

# Where one engine is enough: the one that a cell is most its own under.
OWN = {"own": rnnjax.Auto((rnnjax.Associative(), rnnjax.Fused(), rnnjax.Scan()))}
# Damping changes how Newton gets to its solution, not what is then derived from it.
DAMPED = {"newton_damped": rnnjax.Newton(rnnjax.engines.Diagonal(), damping=1.0)}
ENGINES = grid.ENGINES | OWN | DAMPED

# The quick tier runs these: a cell for each engine, and every cell that has an engine of its own on that.
QUICK = {
    "scan": ("lstm_options",),
    "unrolled": ("gru",),
    "checkpointed": ("projected_lstm",),
    "associative": grid.LINEAR,
    "associative_blocks": ("s5",),
    "newton": ("gru",),
    "newton_diagonal": ("diagonal_lstm",),
    "fused": grid.GATED,
    "fused_tpu": ("lstm_options",),
    "fused_gpu": ("gru",),
}


def case(cell, engine, *others, quick=None):
    """A case of a cell, all of which one worker sees; in the quick tier if the table says so."""
    quick = cell in QUICK.get(engine, ()) if quick is None else quick
    return pytest.param(
        cell, engine, *others, marks=[pytest.mark.xdist_group(cell), *([] if quick else [pytest.mark.slow])]
    )


def test_engines_admit_the_cells_of_the_table():
    """Where an engine refuses a cell it says so in a sentence that names both and what to use instead."""
    wrong = []
    for engine, named in grid.ENGINES.items():
        for cell in grid.CELLS:
            built = grid.build(cell)
            reason = grid.refusal(named, built, jax.ShapeDtypeStruct((grid.T, grid.I), "float64"))
            admitted = reason is None
            said = reason or ""
            sentence = type(built).__name__ in said and said.startswith(type(named).__name__) and "Use" in said
            if admitted != grid.admits(engine, cell) or not (admitted or sentence):
                wrong.append((engine, cell, reason))
    assert wrong == []


# The cells of an engine that is not seen with every cell that it admits. `Scan`, `Unrolled` and `Checkpointed` call the
# same `step`, so that a cell for each way to be different will do; blocks see arrays, real or complex. What Newton does
# depends on the numbers of a nonlinear cell, and its `Diagonal` on whether the cell is diagonal. `test_pallas`
# sees the kernels of Pallas with the other cells, and `Fused` passes all cells on in the same way.
FEW = {
    **dict.fromkeys(("scan", "unrolled", "checkpointed"), grid.REPRESENTATIVES),
    "associative_blocks": ("min_gru", "s5"),
    "newton": [cell for cell in grid.CELLS if cell not in grid.LINEAR or cell in grid.REPRESENTATIVES],
    "newton_diagonal": ("gru", "lstm_options", "lem", "ind_rnn", "diagonal_gru", "diagonal_lstm", "lru"),
    "newton_damped": ("ind_rnn",),
    "fused_tpu": ("lstm_options", "slstm"),
    "fused_gpu": ("gru", "slstm"),
}
EQUAL = [
    case(cell, engine)
    for engine in grid.ENGINES | DAMPED
    for cell in FEW.get(engine, grid.CELLS)
    if grid.admits(engine, cell)
]


@pytest.mark.parametrize(("cell", "engine"), EQUAL)
def test_engine_equals_scan(cell, engine):
    """States and outputs of a batch, and the gradient of all of it by weights, states and inputs."""
    grid.assert_close(grid.view("batch", cell, ENGINES[engine]), grid.view("batch", cell))


# The cells on which an engine is seen under all views, which reach a cell through the engine alone. An engine that goes
# step by step sees a pytree, of fields of one size or several, real or complex; `Associative` sees coefficients, real
# or complex, and `Newton` Jacobians. The other engines add nothing: the primitives under `Fused` and `Associative` fold
# a batch before any kernel or block sees it (`test_fused`, `test_linear_scan`), `Unrolled` is a loop of Python, and
# The oracle is `Scan`.
STAND_FOR_OTHERS = {
    "checkpointed": ("projected_lstm", "lru"),
    "associative": ("min_gru", "lru"),
    "newton": ("gru",),
    "newton_diagonal": ("diagonal_lstm",),
    "fused": ("lstm_options", "gru"),
}
OTHER_VIEWS = [view for view in grid.VIEWS if view != "batch"]
IN_TURN = ("fused", "associative", "checkpointed", "newton_diagonal")  # a view each, for the quick tier


def is_quick(engine, view, number):
    """Batches of batches are folded and unfolded by rules that `Fused` alone has."""
    return engine == IN_TURN[number % len(IN_TURN)] or (engine, view) == ("fused", "vmap_vmap")


VIEWED = [
    case(cell, engine, view, quick=is_quick(engine, view, number) and cell == cells[0])
    for engine, cells in STAND_FOR_OTHERS.items()
    for cell in cells
    for number, view in enumerate(OTHER_VIEWS)
    if engine != "newton_diagonal" or is_quick(engine, view, number)  # the rules of `newton`, on other Jacobians
]


@pytest.mark.parametrize(("cell", "engine", "view"), VIEWED)
def test_view_equals_scan(cell, engine, view):
    grid.assert_close(grid.view(view, cell, ENGINES[engine]), grid.view(view, cell))


WITHOUT_JIT = [
    case(cell, engine, quick=engine == "fused")
    for cell, engine in [("gru", "fused"), ("lru", "associative"), ("lstm", "scan"), ("diagonal_lstm", "newton")]
]


@pytest.mark.parametrize(("cell", "engine"), WITHOUT_JIT)
def test_engine_runs_without_jit(cell, engine):
    """Operation by operation; also the engines of the default, one by one."""
    got = grid.VIEWS["plain"](partial(rnnjax.unroll, engine=ENGINES[engine]), grid.build(cell))
    grid.assert_close(got, grid.view("plain", cell))


NARROW = [
    case(cell, engine, quick=engine == "own" and cell in grid.REPRESENTATIVES)
    for cell in grid.CELLS  # `own` is `Associative`, `Fused` or `Scan`; the engines left out take the steps of `Scan`
    for engine in (("own", "scan") if cell in grid.REPRESENTATIVES and cell != "projected_lstm" else OWN)
]


@pytest.mark.parametrize("dtype", grid.NARROW)
@pytest.mark.parametrize(("cell", "engine"), NARROW)
def test_narrow_dtypes(cell, engine, dtype):
    built, xs = grid.build(cell, dtype), grid.inputs(grid.T, dtype=dtype)
    state, ys = eqx.filter_eval_shape(rnnjax.unroll, built, None, xs, engine=ENGINES[engine])
    assert ys.dtype == jnp.dtype(dtype)
    assert {np_real(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32"}
    grid.assert_close(grid.rounded(cell, ENGINES[engine])[dtype], grid.expected_rounded(cell)[dtype], dtype)


def np_real(dtype):
    """The name of the dtype of a real part."""
    return jnp.finfo(dtype).dtype.name


@pytest.mark.parametrize(
    "steps", [1, pytest.param(2, marks=pytest.mark.slow), 12, pytest.param(13, marks=pytest.mark.slow)]
)
def test_checkpointed_takes_any_segment_and_any_length(steps):
    """By default, one step in each, and one longer than the sequence."""
    cell, xs = grid.build("lstm"), grid.inputs(steps)
    engines = {"scan": grid.ORACLE} | {segment: rnnjax.Checkpointed(segment) for segment in (None, 1, 20)}
    of_all = lambda cell, xs: [grid.values_and_gradients(cell, xs, engine) for engine in engines.values()]  # noqa: E731
    expected, *others = eqx.filter_jit(of_all)(cell, xs)
    for got in others:
        grid.assert_close(got, expected)


def test_no_view_is_traced_twice():
    """The same call with other numbers is not compiled again."""
    traces = []

    @eqx.filter_jit
    def run(cell, xs):
        traces.append(1)
        return rnnjax.unroll(cell, None, xs)

    run(grid.build("lstm"), grid.inputs(grid.T))
    run(grid.build("lstm"), grid.inputs(grid.T, seed=3))
    assert len(traces) == 1


def test_auto_selects_and_explains():
    lstm, min_gru = grid.build("lstm"), grid.build("min_gru")
    xs = grid.inputs(grid.T)
    auto = rnnjax.Auto((rnnjax.Associative(), rnnjax.Scan()))
    assert auto.plan(min_gru, xs) == AutoPlan(rnnjax.Associative().plan(min_gru, xs), ())
    reason = rnnjax.engines.Refusal("Associative cannot run LSTM: it needs an AbstractLinearCell. Use Scan().")
    assert auto.plan(lstm, xs) == AutoPlan(rnnjax.Scan().plan(lstm, xs), (reason,))
    alone = rnnjax.Auto((rnnjax.Associative(),)).plan(lstm, xs)
    assert alone == rnnjax.engines.Refusal(f"Auto has no candidate left. {reason}")


class Heedless(rnnjax.Scan):
    """A user's engine that does not look at `axis`."""

    def plan(self, cell, xs, axis=None):
        del axis
        return super().plan(cell, xs)


def test_a_plan_for_all_of_time_is_not_taken_for_one_of_a_part():
    mesh = jax.make_mesh((1,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
    expected = (
        r"^engine: expected Heedless.plan to plan for parts of time along 'time'.* return plan.over_parts\(axis\)"
    )
    with pytest.raises(TypeError, match=expected):
        rnnjax.Sharded(Heedless(), mesh, "time").plan(grid.build("lstm"), grid.inputs(grid.T))
    plan = rnnjax.Sharded(rnnjax.Scan(), mesh, "time").plan(grid.build("lstm"), grid.inputs(grid.T))
    assert str(plan) == "Sharded over 1 devices: Scan: step by step; one device after the other along 'time'"
    assert hash(plan) == hash(rnnjax.Sharded(rnnjax.Scan(), mesh, "time").plan(grid.build("gru"), grid.inputs(grid.T)))


PLANS = [(cell, engine) for engine in grid.ENGINES for cell in grid.REPRESENTATIVES if grid.admits(engine, cell)]


@pytest.mark.parametrize(("cell", "engine"), PLANS)
def test_a_plan_is_a_static_argument_and_a_line(cell, engine):
    """Equal, with the same hash, where it is made again for other weights; `str` begins with the engine's name."""
    other = jax.tree.map(lambda leaf: 2 * leaf if eqx.is_array(leaf) else leaf, grid.build(cell))
    one, again = (grid.ENGINES[engine].plan(each, grid.inputs(grid.T)) for each in (grid.build(cell), other))
    assert (one, hash(one)) == (again, hash(again))
    assert str(one).startswith(f"{type(grid.ENGINES[engine]).__name__}: ")
    assert "\n" not in str(one)
