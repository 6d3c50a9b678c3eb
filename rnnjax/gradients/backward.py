"""Backpropagation through time, full and truncated."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check
from ..arrays import IntegerLike, PyTree, State, count_steps, select
from ..cell import describe
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..network import Layer
from ..unroll import unroll
from .estimator import AbstractEstimator, Estimate, Loss, Weights, judge


class Begun(NamedTuple):
    """A state, and whether it is still the cell's initial state, which may be learned."""

    state: State
    is_initial: Bool[Array, ""]


class AbstractBackward(AbstractEstimator):
    """Estimators that run forward and backward by an engine. Any cell or network."""

    engine: eqx.AbstractVar[AbstractEngine]

    def refusal(self, cell: object) -> str | None:
        if isinstance(cell, Layer):
            return None
        return (
            f"{type(self).__name__} cannot train {describe(cell)}: it needs a cell or a network. "
            "Pass one of this library, such as LSTM(...)"
        )

    def start(self, cell: Checked[Layer], state: State | None = None, *, key: PRNGKeyArray | None = None) -> Begun:
        del key
        self._insist(cell)
        if state is None:
            return Begun(cell.initial(), jnp.asarray(True))
        return Begun(check.state(state, jax.eval_shape(cell.initial), describe(cell)), jnp.asarray(False))

    def _window(
        self,
        loss: Loss,
        weights: Weights,
        memory: Begun,
        xs: PyTree[Array],
        targets: PyTree[Array],
        key: PRNGKeyArray | None,
        judged: tuple[Any, Any] = (0, None),
    ) -> Estimate:
        """Full BPTT of one window, whose loss is the sum over the steps that have a target.

        judged   the step of the first target, and how many steps of the window are valid; None: all
        """
        trained, static = eqx.partition(weights, eqx.is_inexact_array)
        first, length = judged

        def total(trained: Weights) -> tuple[Float[Array, ""], State]:
            cell, head = eqx.combine(trained, static)
            state = select(memory.is_initial, cell.initial(), memory.state)
            last, ys = unroll(cell, state, xs, length=length, engine=self.engine, key=key)
            ys = cut(ys, first, count_steps(targets))
            return jax.vmap(lambda y, target: judge(loss, head, y, target))(ys, targets).sum(), last

        (value, last), gradient = jax.value_and_grad(total, has_aux=True)(trained)
        return Estimate(value, gradient, Begun(last, jnp.asarray(False)))


class BPTT(AbstractBackward):
    """Backpropagation through time (Werbos 1990): the exact gradient of a chunk's losses by the weights.

    No gradient passes to the steps before the chunk. Memory grows with the length of the chunk; `engine` may be
    `Checkpointed()`.
    """

    engine: AbstractEngine = Auto()

    def _estimate(
        self, loss: Loss, weights: Weights, memory: Begun, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate:
        return self._window(loss, weights, memory, xs, targets, key)


def cut(tree: PyTree[Array], first: IntegerLike, size: int) -> PyTree[Array]:
    """`size` steps of arrays over time, from the step `first` on."""
    if size == count_steps(tree):
        return tree
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), tree)
