"""The noun *estimator*: how the gradient of a per-step loss is computed or estimated."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check
from ..arrays import PyTree, State, carry_dtype, count_steps
from ..cell import describe
from ..checked import Checked
from ..network import Layer

Loss = Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]  # (head, y, target) -> the loss of one step
Weights = tuple[PyTree, PyTree]  # (cell, head)


class Estimate(NamedTuple):
    """The results of an estimator for one chunk."""

    loss: Float[Array, ""]  # the sum over its steps
    gradient: Weights  # by every floating array of `(cell, head)`, None elsewhere, as optax takes it
    memory: PyTree  # to be passed to the estimate of the next chunk


class AbstractEstimator(eqx.Module):
    """A way to compute the gradient of sum_t loss(head, y_t, target_t) by the weights of a cell, or network, and head.

        memory = estimator.start(cell)
        loss, gradient, memory = estimator.estimate(loss, (cell, head), memory, xs, targets)

    A chunk has any number of steps: one for online learning, all of them for a whole sequence. `head` is any pytree,
    None if the loss has no weights of its own. It takes one sequence at a time: use `jax.vmap` over memory, xs and
    targets for a batch, and average the gradients.

    Subclass requirements: `refusal`, `start`, and `_estimate`, whose arguments are checked.
    """

    @abc.abstractmethod
    def refusal(self, cell: object) -> str | None:
        """Why this estimator cannot train `cell`, and which one can; None if it can."""

    @abc.abstractmethod
    def start(self, cell: Checked[Layer], state: State | None = None, *, key: PRNGKeyArray | None = None) -> PyTree:
        """The memory before the first step of a sequence; each sequence has its own.

        state   None: `cell.initial()`, which is trained if it is learned. A forward estimator computes it from the
                current weights
        key     for an estimator that draws random numbers
        """

    @abc.abstractmethod
    def _estimate(
        self, loss: Loss, weights: Weights, memory: Any, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate: ...

    def estimate(
        self,
        loss: Checked[Loss],
        weights: Checked[Weights],
        memory: PyTree,
        xs: Checked[PyTree[ArrayLike]],
        targets: Checked[PyTree[ArrayLike]],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Estimate:
        """Loss and gradient, summed over a chunk, and the memory for the next one.

        loss      `(head, y, target) -> scalar`, of one step
        weights   `(cell, head)`
        memory    from `start`, or from the estimate before
        xs        [T, ...], the inputs of the chunk, time first
        targets   [T, ...], the third argument of the loss; any pytree over time
        key       for an estimator, or a network, that draws random numbers

        Raises at trace time, naming the argument: ValueError for shapes and for an estimator that refuses the cell,
        TypeError for types.
        """
        _check_loss(loss)
        if not (isinstance(weights, tuple) and len(weights) == 2):
            raise TypeError(
                f"weights: expected a pair (cell, head), got {check.show(weights)}. "
                "Pass (cell, None) if the loss has no weights of its own"
            )
        self._insist(weights[0])
        xs = check.sequence(xs)
        T = count_steps(xs)
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(targets)}
        if lengths != {(T,)}:
            raise ValueError(
                f"targets: expected arrays [T={T}, ...] as long as xs, got {check.show(targets)}. "
                "Pass one target for each step"
            )
        if T == 0:
            raise ValueError("xs: expected at least one step, got none. Pass a longer sequence")
        self._check_memory(weights[0], memory)
        estimate = self._estimate(loss, weights, memory, xs, jax.tree.map(jnp.asarray, targets), key)
        trained = eqx.filter(weights, eqx.is_inexact_array)
        return estimate._replace(
            gradient=jax.tree.map(lambda leaf, of: leaf.astype(of.dtype), estimate.gradient, trained)
        )

    def _insist(self, cell: Any) -> None:
        reason = self.refusal(cell)
        if reason is not None:
            raise ValueError(f"estimator: {reason}")

    def _check_memory(self, cell: Any, memory: Any) -> None:
        expected = eqx.filter_eval_shape(self.start, cell, key=jax.random.key(0))
        if not (all(map(eqx.is_array, jax.tree.leaves(memory))) and check.alike(memory, expected)):
            raise ValueError(
                f"memory: expected what {type(self).__name__}'s start(cell) gives for {describe(cell)}, or the memory "
                f"of the estimate before, {check.show(expected)}, got {check.show(memory)}. "
                "Call start(cell) before the first chunk, and pass the memory of each estimate to the next"
            )


def _check_loss(loss: object) -> None:
    if not callable(loss):
        raise TypeError(
            f"loss: expected a function (head, y, target) -> scalar, got {loss!r}. "
            "Write one, such as lambda head, y, target: jnp.sum((head @ y - target) ** 2)"
        )


def judge(loss: Loss, head: PyTree, y: PyTree, target: PyTree) -> Float[Array, ""]:
    """The loss of one step. Raises unless it is a real scalar."""
    value = loss(head, y, target)
    if (
        not jax.tree_util.all_leaves([value])
        or jnp.shape(value)
        or not jnp.issubdtype(jnp.result_type(value), jnp.floating)
    ):
        raise ValueError(
            f"loss: expected a real scalar for one step's (head, y, target), got {check.show(value)}. "
            "Reduce it with jnp.sum or jnp.mean, and take the real part of complex values"
        )
    return value


def accumulate(run: Callable[[PyTree, Any], Estimate], memory: PyTree, count: int) -> Estimate:
    """The sum of `run(memory, index)` for every index below `count`, each with the memory that the one before returned.

    Summed in float32 or wider: over thousands of steps, a sum in 16 bits stops growing.
    """
    shapes = jax.eval_shape(run, memory, 0)
    zeros = lambda leaf: jnp.zeros(leaf.shape, carry_dtype(leaf.dtype))  # noqa: E731
    loss, gradient = jax.tree.map(zeros, (shapes.loss, shapes.gradient))
    total = Estimate(loss, gradient, memory)
    return jax.lax.fori_loop(0, count, lambda index, total: plus(total, run(total.memory, index)), total)


def plus(total: Estimate, estimate: Estimate) -> Estimate:
    """The sums of losses and of gradients, in the dtypes of `total`, and the later memory."""
    sums = (total.loss, total.gradient), (estimate.loss, estimate.gradient)
    loss, gradient = jax.tree.map(lambda one, other: one + other.astype(one.dtype), *sums)
    return Estimate(loss, gradient, estimate.memory)


def add(one: PyTree[Array], other: PyTree[Array]) -> PyTree[Array]:
    """The sum of two gradients."""
    return jax.tree.map(jnp.add, one, other)
