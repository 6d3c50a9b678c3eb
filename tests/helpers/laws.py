"""The laws: what must hold for every cell and network, run by every engine. To be in `LAWS` is to be tested.

A law is a function of (run, part): `run` is `unroll` with an engine, `part` a cell or a network in float64.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import rnnjax

T = grid.T
Unroll = Callable[..., tuple[PyTree, Array]]


def gradients(run: Unroll, part: Any, state: PyTree, xs: Array, seen: slice = slice(None), **options: Any) -> PyTree:
    """Loss on the outputs `seen` and (if all are seen) the last state, and its gradient by weights, state and xs."""
    weights, static = eqx.partition(part, eqx.is_inexact_array)
    numbers, truths = eqx.partition(state, eqx.is_inexact_array)

    def loss(weights: PyTree, numbers: PyTree, xs: Array) -> Array:
        last, ys = run(eqx.combine(weights, static), eqx.combine(numbers, truths), xs, **options)
        return grid.contract((last, ys) if seen == slice(None) else ys[seen])

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(weights, numbers, xs)


def law_length_zero_is_identity(run: Unroll, part: Any) -> None:
    """No step, no change: the initial state comes back, even where the inputs are NaN, with a gradient of one."""
    state, xs = grid.random_state(part), jnp.full((T, grid.I), jnp.nan)
    last, ys = run(part, state, xs, length=0, resets=jnp.ones(T, bool))
    grid.assert_close((last, ys), (state, jnp.zeros_like(ys)))
    _, (dweights, dstate, dxs) = gradients(run, part, state, xs, length=0)
    expected = eqx.filter_grad(grid.contract)((state, jnp.zeros_like(ys)))[0]
    grid.assert_close(dstate, expected)
    grid.assert_close((dweights, dxs), jax.tree.map(jnp.zeros_like, (dweights, dxs)))


def law_length_is_a_shorter_sequence(run: Unroll, part: Any) -> None:
    """The steps from `length` on might as well not be there, and their outputs are zero."""
    xs, state = grid.inputs(T), grid.random_state(part)
    last, ys = run(part, state, xs, length=7)
    expected_last, expected = run(part, state, xs[:7])
    grid.assert_close((last, ys[:7], ys[7:]), (expected_last, expected, jnp.zeros_like(ys[7:])))


def law_padding_is_ignored(run: Unroll, part: Any) -> None:
    """NaN and inf in padding change no value and no gradient, in a batch of lengths, forward or in reverse."""
    lengths = jnp.asarray([0, 1, 7, T])
    clean = grid.inputs(4, T)
    padding = jnp.arange(T)[None, :] >= lengths[:, None]
    poisoned = jnp.where(padding[:, :, None], jnp.asarray([jnp.nan, jnp.inf, -jnp.inf]), clean)
    state = grid.random_state(part, 4)

    def batch(xs: Array, reverse: bool) -> PyTree:
        one = lambda state, xs, length: gradients(run, part, state, xs, length=length, reverse=reverse)  # noqa: E731
        return jax.vmap(one)(state, xs, lengths)

    compiled = jax.jit(batch, static_argnums=1)
    for reverse in (False, True):
        got = compiled(poisoned, reverse)
        assert np.all([np.isfinite(leaf).all() for leaf in jax.tree.leaves(got)])
        grid.assert_close(got, compiled(clean, reverse))


def law_reset_is_two_sequences(run: Unroll, part: Any) -> None:
    """A reset at t: what follows is a sequence of its own, and what came before does not know of it."""
    xs, t = grid.inputs(T), 5
    _, ys = run(part, None, xs, resets=jnp.arange(T) == t)
    _, before = run(part, None, xs[:t])
    _, after = run(part, None, xs[t:])
    grid.assert_close(ys, jnp.concatenate([before, after]))


def law_nan_before_a_reset_is_gone(run: Unroll, part: Any) -> None:
    """NaN before a reset is seen where it is, and changes neither value nor gradient after it."""
    clean, state, t = grid.inputs(T), grid.random_state(part), 5
    poisoned = clean.at[3].set(jnp.asarray([jnp.nan, 1.0, jnp.inf]))
    resets = jnp.arange(T) == t
    _, ys = run(part, state, poisoned, resets=resets)
    assert not np.isfinite(ys[3]).any()
    _, (dweights, _, dxs) = got = gradients(run, part, state, poisoned, slice(t, None), resets=resets)
    assert np.all([np.isfinite(leaf).all() for leaf in jax.tree.leaves((dweights, dxs))])
    grid.assert_close(got, gradients(run, part, state, clean, slice(t, None), resets=resets))


def law_reverse_flips_the_valid_part(run: Unroll, part: Any) -> None:
    """Run in reverse is flip, run, flip back, of the valid part alone; resets are met in running order."""
    xs, resets, state, length = grid.inputs(T), jnp.arange(T) % 5 == 3, grid.random_state(part), 9
    last, ys = run(part, state, xs, length=length, resets=resets, reverse=True)
    flipped_last, flipped = run(part, state, xs[:length][::-1], resets=resets[:length][::-1])
    grid.assert_close((last, ys[:length], ys[length:]), (flipped_last, flipped[::-1], jnp.zeros_like(ys[length:])))


def law_everything_composes(run: Unroll, part: Any) -> None:
    """Length, resets and reverse together, by gradient and by jvp, equal `Scan`."""
    options = {"length": jnp.asarray(7), "resets": jnp.arange(8) % 4 == 3, "reverse": True}
    xs, state = grid.inputs(8), grid.random_state(part)

    @eqx.filter_jit
    def both(run: Unroll, part: Any) -> PyTree:
        tangent = jax.jvp(lambda xs: run(part, state, xs, **options), (xs,), (jnp.sin(xs),))
        return eqx.filter(tangent, eqx.is_inexact_array), gradients(run, part, state, xs, **options)

    grid.assert_close(both(run, part), both(partial(rnnjax.unroll, engine=grid.ORACLE), part))


def causal_law_chunks_are_one_pass(run: Unroll, part: Any) -> None:
    """A sequence fed in chunks, the state handed on, gives what it gives whole; resets and lengths included."""
    xs, resets = grid.inputs(T), jnp.arange(T) % 4 == 2
    state = whole_state = grid.random_state(part)
    whole_state, whole = run(part, whole_state, xs, resets=resets, length=10)
    pieces = []
    for start, stop in [(0, 1), (1, 8), (8, T)]:
        length = min(max(10 - start, 0), stop - start)
        state, ys = run(part, state, xs[start:stop], resets=resets[start:stop], length=length)
        pieces.append(ys)
    grid.assert_close((state, jnp.concatenate(pieces)), (whole_state, whole))


def causal_law_nan_in_a_replaced_state_is_gone(run: Unroll, part: Any) -> None:
    """A reset before the first step hides the state it replaces, NaN or not, from value and gradient."""
    xs, resets = grid.inputs(T), jnp.arange(T) == 0
    invalid = lambda leaf: jnp.full_like(leaf, jnp.nan) if eqx.is_inexact_array(leaf) else ~leaf  # noqa: E731
    got = gradients(run, part, jax.tree.map(invalid, part.initial()), xs, resets=resets)
    grid.assert_close(got, gradients(run, part, grid.random_state(part), xs, resets=resets))


def causal_law_reset_hands_on_no_state(run: Unroll, part: Any) -> None:
    """After a reset the state given is forgotten: the last state is that of the second sequence alone."""
    xs, t = grid.inputs(T), 5
    last, _ = run(part, grid.random_state(part), xs, resets=jnp.arange(T) == t)
    expected, _ = run(part, None, xs[t:])
    grid.assert_close(last, expected)


def _named(prefix: str) -> dict[str, Callable[[Unroll, Any], None]]:
    return {name.removeprefix(prefix): law for name, law in globals().items() if name.startswith(prefix)}


LAWS = _named("law_")
CAUSAL_LAWS = _named("causal_law_")  # for parts that read their sequence from the left alone
