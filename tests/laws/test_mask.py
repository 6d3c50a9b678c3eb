"""Masks with holes: the same as the valid steps alone, in values and gradients, on every engine and network."""

from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

T, VALID = grid.T, 7
MASKS = np.zeros((4, T), bool)  # of one number of valid steps: a prefix, left padding, and two with holes
for row, chosen in enumerate(
    ([0, 1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 10, 11], [0, 2, 3, 6, 7, 8, 11], [1, 2, 4, 5, 8, 9, 10])
):
    MASKS[row, chosen] = True
RESETS = np.random.default_rng(5).random((4, T)) < 0.3
B = len(MASKS)


def moved(resets: np.ndarray, mask: np.ndarray, reverse: bool) -> np.ndarray:
    """The resets of the valid steps, each at the first valid step from it on, in running order."""
    flags, pending = [], False
    for t in reversed(range(T)) if reverse else range(T):
        pending |= bool(resets[t])
        if mask[t]:
            flags.append(pending)
            pending = False
    return np.asarray(flags[::-1] if reverse else flags)


@eqx.filter_jit
def outcome(part: Any, engine: Any, state: Any, xs: Any, resets: Any, mask: Any, reverse: bool, steps: Any) -> Any:
    """Values and gradients of a batch; the loss weighs each output by its step among all."""
    weights, static = eqx.partition(part, eqx.is_inexact_array)

    def loss(weights: Any, state: Any, xs: Any, resets: Any, mask: Any, steps: Any) -> Any:
        options = {"resets": resets, "reverse": reverse, "engine": engine, **({} if mask is None else {"mask": mask})}
        last, ys = rnnjax.unroll(eqx.combine(weights, static), state, xs, **options)
        whole = ys if mask is not None else jnp.zeros((T, *ys.shape[1:]), ys.dtype).at[steps].set(ys)
        return grid.contract((last, whole)), (last, whole)

    one = jax.grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
    return jax.vmap(one, (None, 0, 0, 0, None if mask is None else 0, 0))(weights, state, xs, resets, mask, steps)


def check(name: str, engine: str, *, reverse: bool = False) -> None:
    part, xs, state = grid.build(name), np.asarray(grid.inputs(B, T)), grid.random_state(grid.build(name), B)
    steps = np.asarray([np.flatnonzero(mask) for mask in MASKS])
    poisoned = np.where(MASKS[:, :, None], xs, np.nan)
    got = outcome(part, grid.ENGINES[engine], state, poisoned, RESETS, MASKS, reverse, steps)
    alone = np.take_along_axis(xs, steps[:, :, None], 1)
    resets = np.asarray([moved(*each, reverse) for each in zip(RESETS, MASKS, strict=True)])
    (dweights, dstate, dxs), values = outcome(part, grid.ORACLE, state, alone, resets, None, reverse, steps)
    spread = np.zeros_like(xs)
    np.put_along_axis(spread, steps[:, :, None], np.asarray(dxs), 1)
    numbers = partial(eqx.filter, filter_spec=eqx.is_inexact_array)
    grid.assert_close(numbers(got), numbers(((dweights, dstate, spread), values)))


QUICK = [("gru", "fused", False), ("min_gru", "associative", True), ("stack_of_bidirectional", "scan", False)]
WIDE = [
    *((name, "scan", False) for name in ("convolution", "qrnn", "residual_and_skip", "conv_lstm")),
    *(("gru", engine, True) for engine in ("checkpointed", "newton", "fused")),
]


@pytest.mark.parametrize(
    ("name", "engine", "reverse"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in WIDE)],
)
def test_masked_steps_are_left_out(name, engine, reverse):
    check(name, engine, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_mask_that_is_true_everywhere_changes_nothing(reverse):
    """With resets before and after `length`, too, where they are ignored, and a state that is not the initial one."""
    cell, xs = grid.build("gru"), grid.inputs(6)
    state = jax.tree.map(jnp.ones_like, cell.initial())
    run = jax.jit(partial(rnnjax.unroll, reverse=reverse))
    resets = np.asarray([False, True, False, False, True, True])
    for length in (0, 2, 4):
        given = {"length": length, "resets": resets}
        grid.assert_close(run(cell, state, xs, mask=np.ones(6, bool), **given), run(cell, state, xs, **given))


def test_a_function_with_mask_and_length_and_no_valid_step():
    """A step must be valid by both; a masked sequence returns the state and zeros."""
    xs, flags = np.arange(1.0, 7.0), np.asarray([True, False, True, True, False, True])
    run = jax.jit(partial(rnnjax.unroll, lambda state, x: (state + x, state)))
    last, ys = run(0.5, xs, mask=flags, length=5)
    np.testing.assert_array_equal(ys, [0.5, 0, 1.5, 4.5, 0, 0])
    assert last == 8.5
    last, ys = run(0.5, np.full(6, np.nan), mask=np.zeros(6, bool), length=5)
    np.testing.assert_array_equal(ys, np.zeros(6))
    assert last == 0.5


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True], TypeError, r"mask: expected booleans \[T=3\], got list. Write jnp.asarray\(mask\)"),
        (np.ones(3), TypeError, r"mask: expected booleans \[T=3\], got float64. Write mask.astype\(bool\)"),
        (np.ones(4, bool), ValueError, r"mask: expected shape \[3\], one flag per step of xs, got \[4\]. Cut or pad"),
    ],
)
def test_a_bad_mask_is_refused(mask, error, message):
    with pytest.raises(error, match=message):
        rnnjax.unroll(lambda state, x: (state, x), 0.0, np.ones(3), mask=mask)
