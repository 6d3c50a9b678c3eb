"""Corners of `unroll` that no law of cells meets: plain functions, infinite states, overflow before a reset."""

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

T = 5


def running_maximum(state, x):
    """A function whose state is rightly infinite at first."""
    state = jnp.maximum(state, x)
    return state, state


@pytest.mark.parametrize("engine", [grid.ENGINES[name] for name in ("scan", "unrolled", "checkpointed")])
def test_a_function_is_run_as_scan_would(engine):
    state, xs = jnp.asarray(0.0), jnp.arange(1.0, T + 1)
    step = lambda state, x: (state + x, {"sum": state + x, "input": x})  # noqa: E731
    got = rnnjax.unroll(step, state, xs, engine=engine)
    grid.assert_close(got, jax.lax.scan(step, state, xs))


def test_padding_is_safe_for_a_function_that_has_no_value_at_zero():
    def loss(weight):
        step = lambda state, x: (state + weight * jnp.log(x), state)  # noqa: E731
        return rnnjax.unroll(step, jnp.asarray(0.0), jnp.arange(1.0, T + 1), length=3)[0]

    np.testing.assert_allclose(jax.grad(loss)(1.0), np.log([1, 2, 3]).sum(), rtol=1e-12)


def test_an_infinite_state_is_a_state():
    xs, resets = jnp.asarray([1.0, 3.0, 2.0, 0.0, 1.0]), jnp.arange(T) == 3
    _, ys = rnnjax.unroll(running_maximum, jnp.asarray(-jnp.inf), xs, resets=resets)
    np.testing.assert_array_equal(ys, [1, 3, 3, 0, 1])


def test_no_step_returns_the_state_given_whatever_it_holds():
    state = rnnjax.Hidden(jnp.full(grid.H, jnp.nan).at[0].set(jnp.inf))
    last, _ = rnnjax.unroll(grid.build("gru"), state, grid.inputs(T), length=0, resets=jnp.zeros(T, bool))
    np.testing.assert_array_equal(last.h, state.h)


def test_overflow_before_a_reset_ends_there_under_every_engine():
    """Finite inputs whose product is not: a zero times infinity would carry it over the reset.

    But for Newton, which solves for numbers, and says that there are none.
    """
    cell = jax.tree.map(lambda leaf: 10 * leaf, grid.build("min_gru", "float16"))
    xs = jnp.ones((T, grid.I), "float16").at[0].set(60_000)
    run = lambda engine: rnnjax.unroll(cell, None, xs, resets=jnp.arange(T) == 2, engine=engine)[1]  # noqa: E731
    expected = rnnjax.unroll(cell, None, xs[2:], engine=grid.ORACLE)[1]
    for name, engine in grid.ENGINES.items():
        if "newton" not in name and engine.refusal(cell, xs) is None:
            grid.assert_close(run(engine)[2:], expected, "float16")
    with pytest.raises(Exception, match="Newton did not solve MinGRU"):
        run(rnnjax.Newton())


def test_auto_speaks_of_cells_only():
    with pytest.raises(TypeError, match=r"^cell: expected a cell, got Stack"):
        rnnjax.Auto().select(grid.build("stack"), grid.inputs(T))


def test_dropout_falls_between_layers_and_not_after_the_last():
    """With a key, outputs differ from those without; a network of one layer has nothing between its layers."""
    key, xs = jax.random.key(5), grid.inputs(T)
    stack = grid.build("stack")
    run = eqx.filter_jit(lambda stack, key: rnnjax.unroll(stack, None, xs, key=key)[1])
    assert not np.allclose(run(stack, key), run(stack, None))
    np.testing.assert_array_equal(run(stack, key), run(stack, key))
    assert not np.allclose(run(stack, key), run(stack, jax.random.key(6)))
    single = rnnjax.Stack(stack.layers[:1], dropout=0.5)
    np.testing.assert_array_equal(run(single, key), run(single, None))


@pytest.mark.parametrize("merge", [rnnjax.concatenate, rnnjax.add, rnnjax.average, rnnjax.multiply, rnnjax.pair])
def test_merges(merge):
    forward, backward, xs = grid.build("gru"), grid.build("elman"), grid.inputs(T)
    _, ys = rnnjax.unroll(rnnjax.Bidirectional(forward, backward, merge=merge), None, xs)
    first = rnnjax.unroll(forward, None, xs)[1]
    second = rnnjax.unroll(backward, None, xs[::-1])[1][::-1]
    expected = {
        "concatenate": lambda: jnp.concatenate([first, second], -1),
        "add": lambda: first + second,
        "average": lambda: (first + second) / 2,
        "multiply": lambda: first * second,
        "pair": lambda: rnnjax.Directions(first, second),
    }
    grid.assert_close(ys, expected[merge.__name__]())


def test_nan_in_the_first_step_does_not_reach_the_last_state_through_the_padding():
    """Padding is filled with the first step; a reset ends that step's influence, in the padding too."""
    cell, xs = grid.build("gru"), grid.inputs(T).at[0].set(jnp.nan)
    last, _ = rnnjax.unroll(cell, None, xs, length=3, resets=jnp.arange(T) == 1)
    expected, _ = rnnjax.unroll(cell, None, xs[1:3])
    grid.assert_close(last, expected)
