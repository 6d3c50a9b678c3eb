"""The sparse one-step approximation of the influence matrix."""

from collections.abc import Callable
from itertools import count
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import flat
from ..arrays import PyTree, State
from ..cell import AbstractCell
from ..engines.newton.diagonal import own_past
from .composite import Composite, Part, forward, keep
from .eligibility import AbstractEligibility, Traces, add_to_parts
from .estimator import Estimate, Loss, Weights, add, judge
from .forward import Traced, Trained, Vector, split


class Reach(NamedTuple):
    """What the weights of one layer of a network influence: the layer's own units, and the states of those above it."""

    own: Traces  # () for a layer without a state
    above: Trained  # [D, ...] for each weight; None for the topmost states


class SnAp1(AbstractEligibility):
    """Sparse n-step approximation, n = 1: Menick et al. 2021, arXiv:2006.07232.

    RTRL's influence matrix, of which only the entries that a weight reaches within one step are kept. D_t is the
    diagonal of J_t, including a unit's influence on itself through R. It is exact for an `AbstractDiagonalCell`, which
    the linear cells are, if `project` does not mix units. For an `AbstractGatedCell` it is biased; the bias is smaller
    the weaker R is beside its diagonal.

    Within one step of a network a weight reaches its own unit and, since the layers above see the output of that step,
    all of their units: these entries are kept, too. So a layer of P weights below states of D numbers takes D P numbers
    more, and D^2 P products a step: RTRL's order, but for the topmost cell, which is as cheap as a cell alone. For a
    stack of diagonal cells the gradient is exact, which takes these entries (Irie et al. 2024, arXiv:2305.19044, on
    several layers). `EProp` leaves them out.
    """

    needs: ClassVar[str] = "an AbstractDiagonalCell or an AbstractGatedCell"

    def _serves(self, cell: AbstractCell) -> bool:
        return own_past(cell)[1]

    def _own_step(self, cell: AbstractCell, state: State, u: PyTree[Array]) -> State:
        return own_past(cell)[0](state, u)

    def _begin_network(self, network: Composite, start: State | None) -> list[Reach]:
        own, states = super()._begin_network(network, start), network.states(network.initial())
        return [
            Reach(traces, _uninfluenced(part, _above(network, states, number)))
            for number, (part, traces) in enumerate(zip(network.parts, own, strict=True))
        ]

    def _step_of_network(
        self, loss: Loss, weights: Weights, memory: Traced, x: PyTree[Array], target: PyTree[Array]
    ) -> Estimate:
        network: Composite = weights[0]
        parts, (state, inputs) = network.parts, network.record(memory.state, x)
        reaches = [
            self._advance_reach(network, memory, x, number, inputs[number]) for number in range(len(memory.trace))
        ]
        rows = [self._rows(part, own) for part, own in zip(parts, network.states(state), strict=True)]
        trained, static = eqx.partition(weights, eqx.is_inexact_array)

        def judged(trained: Weights, rows: list[PyTree]) -> Float[Array, ""]:
            (network, head), own = eqx.combine(trained, static), iter(rows)

            def read(part: Part, after: State, x: PyTree[Array]) -> tuple[State, PyTree[Array]]:
                return keep(part, self._state(part, next(own), after), x)

            return judge(loss, head, network.through(state, x, read)[1], target)

        value, (direct, shares) = jax.value_and_grad(judged, (0, 1))(trained, rows)
        by_state = [
            self._pull_reach(part, reach, shares[number:])
            for number, (part, reach) in enumerate(zip(parts, reaches, strict=True))
        ]
        return Estimate(value, (add_to_parts(direct[0], by_state), direct[1]), Traced(state, reaches))

    def _advance_reach(
        self, network: Composite, memory: Traced, x: PyTree[Array], number: int, own_x: PyTree[Array]
    ) -> Reach:
        """The influence of one layer's weights after the step from `memory`, whose input of that layer is `own_x`."""
        part, (own, above) = network.parts[number], memory.trace[number]
        befores = network.states(memory.state)
        if above is not None:
            higher = flat.pack(_above(network, befores, number))
            derivatives = jax.jacrev(self._after_above(network, memory.state, x, number), (0, 1, 2))
            immediate, by_own, by_above = derivatives(split(part)[0], self._rows(part, befores[number]), higher)
            above = add(jax.tree.map(lambda influence: jnp.tensordot(by_above, influence, 1), above), immediate)
            if isinstance(part, AbstractCell):
                above = add(above, jax.vmap(lambda shares: self._pull(part, own, shares))(by_own))
        if isinstance(part, AbstractCell):
            own = self._advance(part, befores[number], own_x, own, None)
        return Reach(own, above)

    def _after_above(
        self, network: Composite, state: State, x: PyTree[Array], number: int
    ) -> Callable[[Trained, PyTree, Vector], Vector]:
        """The states above a layer after a step, by its weights, its state before, and the states above before."""
        likes = _above(network, network.states(state), number)

        def after(trained: Trained, rows: PyTree, above: Vector) -> Vector:
            places, befores, afters = count(), iter(flat.unpack(above, likes)), []

            def visit(part: Part, before: State, x: PyTree[Array]) -> tuple[State, PyTree[Array]]:
                place = next(places)
                if place == number:
                    return forward(eqx.combine(trained, part), self._state(part, rows, before), x)
                if place < number or not isinstance(part, AbstractCell):
                    return forward(part, before, x)
                after, y = forward(part, next(befores), x)
                afters.append(after)
                return after, y

            network.through(state, x, visit)
            return flat.pack(afters)

        return after

    def _pull_reach(self, part: Part, reach: Reach, shares: list[PyTree]) -> Trained:
        """The part of the gradient through states, from the cotangents of this layer's state and of those above."""
        own = self._pull(part, reach.own, shares[0]) if isinstance(part, AbstractCell) else None
        if reach.above is None:
            return own
        cotangent = flat.pack(shares[1:])
        by_above = jax.tree.map(lambda influence: jnp.tensordot(cotangent, influence, 1), reach.above)
        return by_above if own is None else add(own, by_above)


def _above(network: Composite, states: list[State], number: int) -> list[State]:
    """The states of the cells above a layer."""
    layers = zip(network.parts, states, strict=True)
    return [state for part, state in list(layers)[number + 1 :] if isinstance(part, AbstractCell)]


def _uninfluenced(part: Part, above: list[State]) -> Trained:
    """No influence of a layer's weights on the states above; None where there are none."""
    if not above:
        return None
    size = flat.pack(above)
    return jax.tree.map(lambda leaf: jnp.zeros((size.shape[0], *leaf.shape), size.dtype), split(part)[0])
