"""Eligibility propagation."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arrays import Gates, PyTree, State
from ..cell import AbstractCell
from ..engines.newton.diagonal import own_past
from ..gated_cell import AbstractGatedCell, recur
from .composite import Composite, Part, keep, step
from .eligibility import AbstractEligibility, add_to_parts
from .estimator import Estimate, Loss, Weights, judge
from .forward import Traced


class EProp(AbstractEligibility):
    """Eligibility propagation: Bellec et al. 2020, Nature Communications 11:3625. For gated cells.

    As `SnAp1`, but without any influence through R, not even of a unit on itself: D_t is the derivative of `pointwise`
    by the state, with v = R h constant. The learning signal is dL_t/dh_t through the head: with the head's own weights
    it is symmetric e-prop, with a `RandomFeedback` head random e-prop. For `Elman` with a `leak` the latter is RFLO
    (random feedback local online learning, Murray 2019, eLife 8:e43299): p_t = (1 - leak) p_{t-1} + leak
    activation'(n_t) h_{t-1}.

    In a network every cell has the traces of its own weights, as it would have alone. Its learning signal comes down
    through the layers above within the step, by their own weights, as in OSTL (online spatio-temporal learning,
    Bohnstingl et al. 2022, arXiv:2007.12723); the influence of a layer on later steps of the layers above is neglected.
    So memory and work are those of a step at any depth, and `TimeDistributed` layers learn from the current step alone.
    """

    needs: ClassVar[str] = "an AbstractGatedCell"

    def _serves(self, cell: AbstractCell) -> bool:
        return isinstance(cell, AbstractGatedCell) and own_past(cell)[1]

    def _own_step(self, cell: Any, state: State, u: Gates) -> State:
        h = state.h
        v = jax.lax.stop_gradient(recur(cell.recurrent_weight, h, len(cell.gates)))
        return cell.advance(u, v, state)

    def _step_of_network(
        self, loss: Loss, weights: Weights, memory: Traced, x: PyTree[Array], target: PyTree[Array]
    ) -> Estimate:
        network: Composite = weights[0]
        parts, befores = network.parts, network.states(memory.state)
        state, inputs = network.record(memory.state, x)
        trained, static = eqx.partition(weights, eqx.is_inexact_array)

        def judged(trained: Weights, shifts: list[PyTree]) -> Float[Array, ""]:
            """The loss where states are shifted and cells keep their weights within a step, which the traces are of."""
            (network, head), fixed = eqx.combine(trained, static), iter(zip(parts, shifts, strict=True))

            def visit(part: Part, before: State, x: PyTree[Array]) -> tuple[State, PyTree[Array]]:
                cell, shift = next(fixed)
                if not isinstance(cell, AbstractCell):
                    return keep(part, before, x)
                after = step(cell, before, x)
                return keep(part, self.unpack(self.pack(after) + shift, after), x)

            return judge(loss, head, network.through(memory.state, x, visit)[1], target)

        still = [jax.tree.map(jnp.zeros_like, self._rows(*pair)) for pair in zip(parts, befores, strict=True)]
        value, (direct, signals) = jax.value_and_grad(judged, (0, 1))(trained, still)
        traces, by_state = [], []
        for part, before, own_x, trace, signal in zip(parts, befores, inputs, memory.trace, signals, strict=True):
            is_cell = isinstance(part, AbstractCell)
            traces.append(self._advance(part, before, own_x, trace, None) if is_cell else ())
            by_state.append(self._pull(part, traces[-1], signal) if is_cell else None)
        return Estimate(value, (add_to_parts(direct[0], by_state), direct[1]), Traced(state, traces))
