"""Every engine equals float64 `Scan` on every cell, under every view and in every dtype."""

from functools import lru_cache, partial

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import pytest

import rnnjax

# Where one engine is enough: the one that a cell is most its own under.
OWN = {"own": rnnjax.Auto((rnnjax.Associative(), rnnjax.Fused(), rnnjax.Scan()))}
# Damping changes how Newton gets to its solution, not what is then derived from it.
DAMPED = {"newton_damped": rnnjax.Newton(rnnjax.Diagonal(), damping=1.0)}


def skip_if_refused(engine: str, cell: rnnjax.AbstractCell) -> rnnjax.AbstractEngine:
    """The engine of that name; a refusal skips the test, with its sentence."""
    named = (grid.ENGINES | OWN | DAMPED)[engine]
    reason = named.refusal(cell, grid.inputs(grid.T))
    if reason is not None:
        pytest.skip(reason)
    return named


@lru_cache
def expected(view: str, cell: str):
    """What `Scan` gives."""
    return eqx.filter_jit(partial(grid.VIEWS[view], partial(rnnjax.unroll, engine=grid.ORACLE)))(grid.build(cell))


def views(cell: str, engine: str) -> tuple[str, ...]:
    """The views that an engine is tested under on a cell: all on two that stand for the others, a few on those.

    A view reaches a cell through the engine alone. One that goes step by step sees a pytree, of fields of one size or
    of several, real or complex; `Associative` sees coefficients, real or complex, and `Newton` Jacobians. Each gated
    cell is a program of its own to a kernel, so the fused engines meet each under every view that reaches the kernel in
    its own way.
    """
    kind = engine.partition("_")[0]
    stand_for_others = {
        "fused": ("lstm_options", "gru"),
        "associative": ("min_gru", "lru"),
        "newton": ("gru",) if engine == "newton" else ("diagonal_lstm",),
    }
    if cell in stand_for_others.get(kind, ("projected_lstm", "lru")):
        return tuple(view for view in grid.VIEWS if kind != "newton" or view != "plain")  # `jit` is plain enough for it
    if kind == "fused":
        return "plain", "vmap", "weights_vmapped", "grad_of_vmap", "vmap_of_grad"
    return ("grad_of_vmap",) if kind == "newton" else ("vmap", "grad_of_vmap")


CASES = [
    grid.grouped(cell, engine, view) for cell in grid.CELLS for engine in grid.ENGINES for view in views(cell, engine)
] + [grid.grouped("ind_rnn", engine, view) for engine in DAMPED for view in ("vmap", "vmap_of_grad")]


@pytest.mark.parametrize(("cell", "engine", "view"), CASES)
def test_engine_equals_scan(cell, engine, view):
    built = grid.build(cell)
    run = partial(rnnjax.unroll, engine=skip_if_refused(engine, built))
    compiled = (lambda function: function) if view == "plain" else eqx.filter_jit
    got = compiled(partial(grid.VIEWS[view], run))(built)
    grid.assert_close(got, expected(view, cell))


NARROW = [
    grid.grouped(cell, engine)
    for cell in grid.CELLS  # the engines left out take the steps of `scan`
    for engine in (("scan", "associative", "fused") if cell in grid.REPRESENTATIVES else OWN)
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("cell", "engine"), NARROW)
def test_narrow_dtypes(cell, engine, dtype):
    built = grid.build(cell, dtype)
    xs, run_by = grid.inputs(grid.T, dtype=dtype), skip_if_refused(engine, built)
    state, ys = eqx.filter_eval_shape(rnnjax.unroll, built, None, xs, engine=run_by)
    assert ys.dtype == jnp.dtype(dtype)
    assert {leaf.real.dtype for leaf in jax.tree.leaves(jax.tree.map(jnp.zeros_like, state))} == {jnp.dtype("float32")}
    got = eqx.filter_jit(grid.values_and_gradients)(built, xs, run_by)
    grid.assert_close(got, grid.expected_rounded(cell, dtype), dtype)


@pytest.mark.parametrize("steps", [1, 2, 12, 13])
@pytest.mark.parametrize("segment", [None, 1, 20])
def test_checkpointed_takes_any_segment_and_any_length(segment, steps):
    cell, xs = grid.build("lstm"), grid.inputs(steps)
    got = eqx.filter_jit(grid.values_and_gradients)(cell, xs, rnnjax.Checkpointed(segment))
    grid.assert_close(got, eqx.filter_jit(grid.values_and_gradients)(cell, xs, grid.ORACLE))


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
    assert auto.select(min_gru, xs) == (rnnjax.Associative(), ())
    engine, (reason,) = auto.select(lstm, xs)
    assert engine == rnnjax.Scan()
    assert reason == "Associative cannot run LSTM: it needs an AbstractLinearCell. Use Scan()."
