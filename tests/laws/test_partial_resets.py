"""Resets of parts of a state: as a loop in which the state is changed by hand, on every engine that runs the cell."""

from functools import lru_cache

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Stack, unroll
from rnnjax.cells import LSTMState
from rnnjax.networks import PartialResets

T, STEPS = grid.VIEW_T, np.arange(grid.VIEW_T)
EVERY = {
    name: engine
    for name, engine in grid.ENGINES.items()
    if name in ("scan", "unrolled", "checkpointed", "newton", "newton_diagonal")
}
FLAGS = LSTMState(h=(STEPS == 2) | (STEPS == 4), c=(STEPS == 0) | (STEPS == 4))
BOTH = LSTMState(h=True, c=True)


@grid.once
def lstm(inputs=grid.I):
    """An LSTM that starts from a learned state."""
    cell = rnnjax.LSTM(inputs, grid.H, key=grid.KEY, learn_initial=True, dtype="float64")
    initial = LSTMState(*(grid.place(np.linspace(start, 1, grid.H)) for start in (-1, 0)))
    return eqx.tree_at(lambda cell: cell.initial_state, cell, initial)


def by_hand(cell, state, xs, flags):
    """The cell in a loop that sets h and c to their initial values by flags; no flags reset nothing."""
    h, c = (np.zeros(len(xs), bool) if flag is None else flag for flag in flags)
    initial = cell.initial()

    def step(state, inputs):
        u, h, c = inputs
        state = LSTMState(jnp.where(h, initial.h, state.h), jnp.where(c, initial.c, state.c))
        state = cell.step(state, u)
        return state, state.h

    return jax.lax.scan(step, state, (cell.project(xs), h, c))


@eqx.filter_jit
def values_and_gradients(run, part, state, xs, *others):
    """What `run(part, state, xs, *others)` gives, and the gradients of a loss on all of it."""
    weights, static = eqx.partition(part, eqx.is_inexact_array)

    def loss(weights, state, xs):
        made = run(eqx.combine(weights, static), state, xs, *others)
        return grid.contract(made), made

    return jax.grad(loss, (0, 1, 2), has_aux=True)(weights, state, xs)


def assert_same(got, expected, tolerance=1e-11):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@lru_cache
def expected():
    cell = lstm()
    return values_and_gradients(by_hand, cell, grid.random_state(cell), grid.inputs(T), FLAGS)


@pytest.mark.parametrize(
    "engine", [name if name == "scan" else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_each_flag_resets_its_array(engine):
    cell = lstm()
    run = lambda cell, state, xs: unroll(PartialResets(cell, BOTH), state, (xs, FLAGS), engine=EVERY[engine])  # noqa: E731
    assert_same(values_and_gradients(run, cell, grid.random_state(cell), grid.inputs(T)), expected(), 1e-10)


@pytest.mark.parametrize("engine", [rnnjax.Fused(), rnnjax.Associative()])
def test_an_engine_that_cannot_reset_one_array_refuses(engine):
    network = PartialResets(lstm(), LSTMState(h=True, c=False))
    with pytest.raises(ValueError, match=r"PartialResets of LSTM.*Use Scan\(\)"):
        unroll(network, None, (grid.inputs(T), LSTMState(STEPS == 3, None)), engine=engine)


def test_a_reset_of_everything_is_one_of_unroll_and_nan_before_it_is_gone():
    """By `resets`, by one flag of the whole, by the flags of all arrays, or by these and `resets` together."""
    cell, t = lstm(), 4
    at, never, xs = t == STEPS, np.zeros(T, bool), np.array(grid.inputs(T))
    xs[2, 0] = np.nan
    given = {
        "resets": (cell, lambda xs: xs, at),
        "one flag": (PartialResets(cell, True), lambda xs: (xs, at), None),
        "all flags": (PartialResets(cell, BOTH), lambda xs: (xs, LSTMState(at, at)), None),
        "resets and flags": (PartialResets(cell, BOTH), lambda xs: (xs, LSTMState(never, at)), at),
    }

    def slope(part, inputs, resets, xs):
        weights, static = eqx.partition(part, eqx.is_inexact_array)

        def loss(weights, xs):
            last, ys = unroll(eqx.combine(weights, static), None, inputs(xs), resets=resets)
            return grid.contract((last, ys[t:])), (ys[:t], (last, ys[t:]))

        gradient, (before, after) = jax.grad(loss, (0, 1), has_aux=True)(weights, xs)
        return before, jax.tree.leaves((after, gradient))

    run = jax.jit(lambda xs: {name: slope(*one, xs) for name, one in given.items()})
    clean = run(np.where(np.isnan(xs), 0.0, xs))["resets"]
    for before, after in run(xs).values():
        assert_same(before[:2], clean[0][:2])
        assert np.isnan(before[2:]).all()
        assert_same(after, clean[1])


def test_a_reset_of_one_array_leaves_nan_in_the_other():
    """c is NaN from the step whose input is; a new h hides nothing of it, and a new c all of it, with h new as well."""
    network = PartialResets(lstm(), BOTH)
    xs = np.array(grid.inputs(T))
    xs[1] = np.nan
    run = eqx.filter_jit(lambda flags: unroll(network, None, (xs, flags))[1])
    never = np.zeros(T, bool)
    assert np.isnan(run(LSTMState(STEPS == 3, never))[1:]).all()
    assert np.isnan(run(LSTMState(never, STEPS == 3))[1:]).all()
    ys = np.asarray(run(LSTMState(STEPS == 3, STEPS == 3)))
    assert np.isnan(ys[1:3]).all()
    assert np.isfinite(ys[3:]).all()


def test_one_layer_of_a_stack():
    """Of three layers: h of the first, nothing of the second, all of the third, which still runs on any engine."""
    layers = [lstm(), rnnjax.GRU(grid.H, grid.H, key=grid.KEY, dtype="float64"), lstm(grid.H)]
    network = PartialResets(Stack(layers), (LSTMState(h=True, c=False), False, True))
    flags = (LSTMState(h=STEPS == 2, c=None), None, STEPS == 4)
    xs = grid.inputs(T)

    @jax.jit
    def both(xs):
        first, ys = by_hand(layers[0], layers[0].initial(), xs, flags[0])
        second, ys = unroll(layers[1], None, ys)
        third, ys = unroll(layers[2], None, ys, resets=flags[2])
        return unroll(network, None, (xs, flags)), ((first, second, third), ys)

    assert_same(*both(xs))
    plans = rnnjax.explain(
        network, (xs, flags), engine=rnnjax.Auto((rnnjax.Associative(), rnnjax.Checkpointed()))
    ).cells
    assert [plan.name for plan in plans] == ["PartialResets of LSTM", "GRU", "LSTM"]


def test_a_flag_at_an_ignored_step_has_no_effect():
    """At a masked one, and in the padding, where `fill` puts the first step's flag."""
    network, xs = PartialResets(lstm(), BOTH), grid.inputs(T)
    flags = LSTMState(*(np.isin(STEPS, [0, 2, 6]) for _ in BOTH))

    @jax.jit
    def run(xs, flags):
        mask, length = STEPS != 2, np.asarray(5)
        kept = unroll(network, None, (xs, flags), mask=mask, length=length)
        few = np.asarray([0, 1, 3, 4])
        last, ys = unroll(network, None, jax.tree.map(lambda leaf: leaf[few], (xs, flags)))
        return kept, (last, jnp.zeros_like(kept[1]).at[few].set(ys))

    assert_same(*run(xs, flags))
