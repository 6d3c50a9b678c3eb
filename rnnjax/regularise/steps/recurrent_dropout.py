"""Recurrent dropout: drops candidates before they are written to the memory, and never the memory itself."""

from functools import partial

import equinox as eqx
import jax
from jaxtyping import Array, Bool

from ... import check
from ...arrays import Gates, PyTree, State, UnitGates, cast, count_steps
from ...checked import Checked
from ...gated_cell import AbstractCandidateCell, AbstractGatedCell, recur
from ...network import Options
from ...networks.layer import AbstractWrapper
from ...unroll import unroll
from ..masks import keep, scale
from .checks import check_inherits, check_kind
from .masked import run_masked


class RecurrentDropout(AbstractWrapper):
    """Semeniuta et al. 2016, "Recurrent dropout without memory loss", arXiv:1603.05118.

        LSTM   c_t = f * c_{t-1} + i * (m_t * g)                    GRU   h_t = z * h_{t-1} + (1 - z) * (m_t * n)

    A new mask m_t is drawn at every step and scaled by 1 / (1 - rate); the memory itself loses nothing. Without a key
    nothing is dropped; with one, the layer runs as a plain cell, which `Fused` refuses. The layer must be an
    `AbstractCandidateCell`: `LSTM` or `GRU`.
    """

    layer: AbstractCandidateCell
    rate: float = eqx.field(static=True)

    def __init__(self, layer: Checked[AbstractCandidateCell], rate: Checked[float]):
        """The rate is the probability of dropping, 0 <= rate < 1."""
        check_kind(layer, AbstractCandidateCell, "an AbstractCandidateCell, such as LSTM or GRU")
        check_inherits(layer, AbstractCandidateCell, "pointwise")
        check_inherits(layer, AbstractGatedCell, "step")
        self.layer = layer
        self.rate = check.probability("rate", rate)

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        if options.key is None or self.rate == 0:
            return unroll(self.layer, state, xs, **options._asdict())
        check_kind(self.layer, AbstractCandidateCell, "an AbstractCandidateCell, which a prepared cell is not")
        masks = keep(options.key, self.rate, (count_steps(xs), self.layer.hidden_size))
        return run_masked(self, RecurrentDropout._step, state, xs, masks, options)

    def _step(self, state: State, u: Gates, mask: Bool[Array, " H"]) -> State:
        cell, carried = self.layer, state.h.dtype
        v = recur(cell.recurrent_weight, state.h, len(cell.gates))

        def write(parameters: PyTree, u: UnitGates, v: UnitGates, state: State, kept: Bool[Array, ""]) -> State:
            return cell.write(parameters, u, v, state, partial(scale, kept, self.rate))

        return jax.vmap(write, -1, -1)(cast(cell.unit_parameters, carried), u.astype(carried), v, state, mask)
