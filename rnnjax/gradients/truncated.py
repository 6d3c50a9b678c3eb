"""Truncated backpropagation through time: the state is carried on, the gradient is truncated."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..arrays import PyTree, count_steps, select
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..unroll import unroll
from .backward import AbstractBackward, Begun, cut
from .estimator import Estimate, Loss, Weights, accumulate, plus


class TruncatedBPTT(AbstractBackward):
    """Truncated BPTT(k1, k2) of Williams & Peng 1990: the losses of every k1 steps are propagated back k2 steps.

    `every` is k1; `back` is k2 >= k1, by default k1. The state is carried over all boundaries. The losses of k1 steps,
    from a multiple of k1 on, are propagated back to k2 - k1 steps before the first of them, where the gradient is
    truncated. No gradient passes to the chunk before. With k1 = k2 = T it is `BPTT`.

    Memory is that of one window, whatever T. With k2 > k1 windows overlap, and every step is run k2 / k1 times, and
    once more to carry the state. A network with dropout draws a new mask each time, and one that looks ahead
    (`Bidirectional`) sees no further than its window.
    """

    every: int = eqx.field(static=True)
    back: int = eqx.field(static=True)
    engine: AbstractEngine

    def __init__(self, every: Checked[int], back: Checked[int | None] = None, *, engine: AbstractEngine = Auto()):
        """Raises a ValueError unless 1 <= every <= back."""
        back = every if back is None else back
        if not _is_count(every):
            raise ValueError(
                f"every: expected a number of steps k1, at least 1, got {every!r}. "
                "Pass the number of steps whose losses make one window"
            )
        if not _is_count(back) or back < every:
            raise ValueError(
                f"back: expected a number of steps k2 of at least every={every}, got {back!r}. "
                "With fewer, the first losses of each window would train nothing. "
                f"Pass back={every} or more, or leave it out"
            )
        self.every = int(every)
        self.back = int(back)
        self.engine = engine

    def _estimate(
        self, loss: Loss, weights: Weights, memory: Begun, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate:
        T = count_steps(xs)
        if self.every > T:
            raise ValueError(f"every: expected at most the T={T} steps given, got {self.every}. Use BPTT()")
        if self.every == T:
            return self._window(loss, weights, memory, xs, targets, key)
        run = self._apart if self.back == self.every else self._overlapping
        return run(loss, weights, memory, xs, targets, key)

    def _apart(
        self, loss: Loss, weights: Weights, memory: Begun, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate:
        """Windows that do not overlap, each from the state after the one before."""
        count, rest = divmod(count_steps(xs), self.every)

        def run(memory: Begun, window: Any, size: int = self.every) -> Estimate:
            first = window * self.every
            of_window, sought = cut((xs, targets), first, size)
            return self._window(loss, weights, memory, of_window, sought, _key(key, window))

        estimate = accumulate(run, memory, count)
        return plus(estimate, run(estimate.memory, count, rest)) if rest else estimate

    def _overlapping(
        self, loss: Loss, weights: Weights, memory: Begun, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate:
        """Windows that begin before their first loss; the state before each window is carried."""
        T, overlap = count_steps(xs), self.back - self.every
        count, rest = divmod(T, self.every)

        def begin(first: Any) -> Any:
            return jnp.maximum(first - overlap, 0)

        def run(memory: _Reaching, window: Any, losses: int = self.every) -> Estimate:
            """The window of these many losses, and where the next one begins."""
            first = window * self.every
            start, after = begin(first), begin(first + self.every)
            judged = first - start, first - start + losses
            of_window, sought = cut(xs, start, min(overlap + losses, T)), cut(targets, first, losses)
            estimate = self._window(loss, weights, memory.begun, of_window, sought, _key(key, window), judged)
            ahead, window_key = cut(xs, start, self.every), _key(key, window)
            state = select(memory.begun.is_initial, weights[0].initial(), memory.begun.state)
            state, _ = unroll(weights[0], state, ahead, length=after - start, engine=self.engine, key=window_key)
            begun = Begun(state, memory.begun.is_initial & (after == 0))
            return estimate._replace(memory=_Reaching(begun, estimate.memory))

        estimate = accumulate(run, _Reaching(memory, memory), count)
        if rest:
            estimate = plus(estimate, run(estimate.memory, count, rest))
        return estimate._replace(memory=estimate.memory.last)


class _Reaching(NamedTuple):
    """The memory of overlapping windows: the state before the next one, and the state after the last one."""

    begun: Begun
    last: Begun


def _is_count(steps: Any) -> bool:
    return isinstance(steps, int | np.integer) and not isinstance(steps, bool) and int(steps) >= 1


def _key(key: PRNGKeyArray | None, window: Any) -> PRNGKeyArray | None:
    """A key for one window."""
    return None if key is None else jax.random.fold_in(key, window)
