"""Backpropagation through time, full and truncated."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check
from ..arrays import IntegerLike, PyTree, State, select
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..network import AbstractNetwork, Layer
from ..unroll import unroll
from .estimator import AbstractEstimator, Estimate, Loss, Weights, judge


class Begun(NamedTuple):
    """A state, and whether it is still the cell's own initial one, which may be learned."""

    state: State
    is_initial: Bool[Array, ""]


class AbstractBackward(AbstractEstimator):
    """Estimators that run forward by an engine, and back. Any cell or network."""

    engine: eqx.AbstractVar[AbstractEngine]

    def refusal(self, cell: object) -> str | None:
        if isinstance(cell, AbstractCell | AbstractNetwork):
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
        """Full BPTT of one window; of its losses count those of all targets, from the step `judged[0]` on.

        judged   the step of the window that the first target is of, and how many steps of the window count; None: all
        """
        trained, static = eqx.partition(weights, eqx.is_inexact_array)
        first, length = judged

        def total(trained: Weights) -> tuple[Float[Array, ""], State]:
            cell, head = eqx.combine(trained, static)
            state = select(memory.is_initial, cell.initial(), memory.state)
            last, ys = unroll(cell, state, xs, length=length, engine=self.engine, key=key)
            ys = cut(ys, first, steps(targets))
            return jax.vmap(lambda y, target: judge(loss, head, y, target))(ys, targets).sum(), last

        (value, last), gradient = jax.value_and_grad(total, has_aux=True)(trained)
        return Estimate(value, gradient, Begun(last, jnp.asarray(False)))


class BPTT(AbstractBackward):
    """Backpropagation through time (Werbos 1990): the exact gradient of a chunk's losses by the weights.

    What came before the chunk is a given state: no gradient goes there. Memory grows with the chunk; `engine` may be
    `Checkpointed()`.
    """

    engine: AbstractEngine = Auto()

    def _estimate(
        self, loss: Loss, weights: Weights, memory: Begun, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate:
        return self._window(loss, weights, memory, xs, targets, key)


def steps(tree: PyTree[Array]) -> int:
    """T of arrays over time."""
    return jax.tree.leaves(tree)[0].shape[0]


def cut(tree: PyTree[Array], first: IntegerLike, size: int) -> PyTree[Array]:
    """`size` steps of arrays over time, from the step `first` on."""
    if size == steps(tree):
        return tree
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), tree)
