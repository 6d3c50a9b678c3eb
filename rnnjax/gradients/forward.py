"""Forward estimators: they carry the derivative of the state by the weights, and store no past steps."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, flat
from ..arrays import PyTree, State, carry_dtype, count_steps
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..network import Layer
from .composite import as_cell, as_layer, is_part, parts_of, step
from .estimator import AbstractEstimator, Estimate, Loss, Weights, accumulate, add, judge

Vector = Float[Array, "..."]  # a state as the estimator sees it: real
Trained = PyTree[Any]  # the floating arrays of a cell, None elsewhere


class Traced(NamedTuple):
    """A state, and the trace of how the weights of all steps so far influence it."""

    state: State
    trace: Any


class AbstractForward(AbstractEstimator):
    """Estimators of a gradient that run forward in time: memory and work per step do not grow with T.

        gradient = sum_t  dL_t/ds_t . trace_t + (the direct derivative of L_t by the weights, through the readout)

    The trace stands for ds_t/dweights, with the weights of all steps up to t. If the weights change from chunk to
    chunk, as in online learning, each step's part of the trace is of the weights used at that step. States are packed
    into real vectors.

    They take a cell, or a `Stack`, `residual` or `skip` of cells and `TimeDistributed` layers at any depth, which is a
    cell whose state is that of all layers. With a key such a network drops outputs between its layers, with a new mask
    at every step, as `unroll` of one step with `jax.random.fold_in(key, t)` does for step t of a chunk.

    Subclass requirements: `_begin`, `_advance`, `_pull`; `needs` and `_serves` if it does not take every cell; `pack`
    and `unpack` if a state is not to be one vector.
    """

    needs: ClassVar[str] = "a cell"  # the cells that it takes, for messages

    def _serves(self, cell: AbstractCell) -> bool:
        """Whether `cell` is what `needs` says."""
        del cell
        return True

    def pack(self, state: State) -> Vector:
        """A state as the estimator sees it."""
        return flat.pack(state)

    def unpack(self, vector: Vector, like: State) -> State:
        """The inverse of `pack`."""
        return flat.unpack(vector, like)

    @abc.abstractmethod
    def _begin(self, cell: AbstractCell, start: State | None, key: PRNGKeyArray | None) -> Any:
        """The trace of the state before the first step: `cell.initial()`, by its weights, where `start` is None."""

    @abc.abstractmethod
    def _advance(self, cell: AbstractCell, state: State, x: PyTree[Array], trace: Any, key: Any) -> Any:
        """The trace after the step from `state` with input `x`."""

    @abc.abstractmethod
    def _pull(self, cell: AbstractCell, trace: Any, cotangent: Vector) -> Trained:
        """`cotangent . trace`: the part of the gradient that goes through the state."""

    def refusal(self, cell: object) -> str | None:
        parts = parts_of(cell)
        reasons = (self._refusal_of_part(part, _place(part, cell)) for part in parts)
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None and not any(isinstance(part, AbstractCell) for part in parts):
            return f"{type(self).__name__} cannot train {describe(cell)}: it has no cell. Use BPTT()"
        return reason

    def _refusal_of_part(self, part: object, place: str) -> str | None:
        """Why a layer cannot be trained; `place` says which one it is."""
        name = type(self).__name__
        if not is_part(part):
            return (
                f"{name} cannot train {place}: it needs {self.needs}, or a Stack, residual or skip of such cells and "
                "TimeDistributed layers. Use BPTT() or TruncatedBPTT"
            )
        if isinstance(part, AbstractCell) and not part.emits_states:
            reason = "its steps emit something else than its state"
            return f"{name} cannot train {place}: {reason}. Use BPTT() or TruncatedBPTT"
        if isinstance(part, AbstractCell) and not self._serves(part):
            return f"{name} cannot train {place}: it needs {self.needs}. Use RTRL(), BPTT() or TruncatedBPTT"
        narrow = [leaf.dtype for leaf in jax.tree.leaves(split(part)[0]) if carry_dtype(leaf.dtype) != leaf.dtype]
        if narrow:
            return f"{name} cannot train {place} in {narrow[0]}: it needs float32 or wider. Use BPTT()"
        return None

    def start(self, cell: Checked[Layer], state: State | None = None, *, key: PRNGKeyArray | None = None) -> Traced:
        self._insist(cell)
        if state is not None:
            state = check.state(state, jax.eval_shape(cell.initial), describe(cell))
        return Traced(cell.initial() if state is None else state, self._begin(as_cell(cell), state, key))

    def _estimate(
        self, loss: Loss, weights: Weights, memory: Traced, xs: PyTree[Array], targets: PyTree[Array], key: Any
    ) -> Estimate:
        layer, head = weights
        check.inputs(xs, layer.input_type(), describe(layer))

        def one(memory: Traced, t: Any) -> Estimate:
            x, target = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), (xs, targets))
            step_key = None if key is None else jax.random.fold_in(key, t)
            estimate = self._step(loss, (as_cell(layer, step_key), head), memory, x, target, step_key)
            by_cell, by_head = estimate.gradient
            return estimate._replace(gradient=(as_layer(by_cell), by_head))

        return accumulate(one, memory, count_steps(xs))

    def _initial(self, cell: AbstractCell, start: State | None) -> Callable[[Trained], Vector]:
        """The state before the first step by the trained weights, on which a given `start` does not depend."""
        static = split(cell)[1]
        return lambda trained: self.pack(eqx.combine(trained, static).initial() if start is None else start)

    def _after(self, cell: AbstractCell, like: State, x: PyTree[Array]) -> Callable[[Trained, Vector], Vector]:
        """The state after a step with input `x` by the trained weights and the state before, which is like `like`."""
        static = split(cell)[1]
        return lambda trained, before: self.pack(step(eqx.combine(trained, static), self.unpack(before, like), x))

    def _step(
        self, loss: Loss, weights: Weights, memory: Traced, x: PyTree[Array], target: PyTree[Array], key: Any
    ) -> Estimate:
        cell = weights[0]
        state = step(cell, memory.state, x)
        trace = self._advance(cell, memory.state, x, memory.trace, key)
        trained, static = eqx.partition(weights, eqx.is_inexact_array)

        def judged(trained: Weights, vector: Vector) -> Float[Array, ""]:
            cell, head = eqx.combine(trained, static)
            states, xs = jax.tree.map(lambda leaf: leaf[None], (self.unpack(vector, state), x))
            y = jax.tree.map(lambda leaf: leaf[0], cell.readout(states, xs))
            return judge(loss, head, y, target)

        value, (direct, cotangent) = jax.value_and_grad(judged, (0, 1))(trained, self.pack(state))
        by_state = self._pull(cell, trace, cotangent)
        return Estimate(value, (add(direct[0], by_state), direct[1]), Traced(state, trace))


def split(cell: PyTree) -> tuple[Trained, PyTree]:
    """The floating arrays of a cell, and the rest of it."""
    return eqx.partition(cell, eqx.is_inexact_array)


def _place(part: object, cell: object) -> str:
    """The name of a layer, and of the network that it is in."""
    return describe(part) if part is cell else f"{describe(part)} in {describe(cell)}"
