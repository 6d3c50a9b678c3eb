"""Eligibility traces, one per weight, of its influence on its own unit: SnAp-1 and e-prop."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import flat
from ..arrays import Gates, PyTree, State, by_gate
from ..cell import AbstractAffineCell, AbstractCell, AbstractGatedCell, describe, recur
from ..engines.newton.diagonal import own_past
from .estimator import add
from .forward import AbstractForward, Trained, split, step

Rows = Float[Array, "F H"]
Traces = tuple[Trained, ...]  # for each of the F fields, the influence of each weight on that field of its unit


class AbstractEligibility(AbstractForward):
    """Estimators that neglect how units influence each other over time.

        e_t = D_t e_{t-1} + ds_t/dweights |_{s_{t-1}}

    Within a step every weight acts on one unit alone: its last axis counts the units, once for each gate. So a trace
    has as many numbers as there are weights, times the F fields of a state, and D_t is a block F x F for each unit.
    Memory and work are those of a step. Only shapes are checked: if a cell's `project` mixes units (a normalisation, a
    layer before W), the influence through other units is neglected there, too.

    Subclass requirements: `_own_step`.
    """

    @abc.abstractmethod
    def _own_step(self, cell: AbstractCell, state: State, u: PyTree[Array]) -> State:
        """A step whose derivative by `state` has no terms between units; its value is not used."""

    def refusal(self, cell: object) -> str | None:
        reason = super().refusal(cell)
        if reason is not None:
            return reason
        assert isinstance(cell, AbstractCell)
        units = jax.tree.leaves(cell.initial())[0].shape[-1]
        strange = [leaf.shape for leaf in jax.tree.leaves(_acting(cell)) if not _is_by_unit(cell, leaf, units)]
        if strange:
            return (
                f"{type(self).__name__} cannot train {describe(cell)}: it needs weights whose last axis counts the "
                f"{units} units, not {list(strange[0])}. Use RTRL(), BPTT() or TruncatedBPTT"
            )
        return None

    def pack(self, state: State) -> Rows:
        return flat.pack_units(state)

    def unpack(self, vector: Rows, like: State) -> State:
        return flat.unpack_units(vector, like)

    def _begin(self, cell: AbstractCell, start: State | None, key: PRNGKeyArray | None) -> Traces:
        del key
        return _by_field(lambda cell: self.pack(cell.initial() if start is None else start), cell)

    def _advance(self, cell: AbstractCell, state: State, x: PyTree[Array], trace: Traces, key: Any) -> Traces:
        del key
        us = cell.project(jax.tree.map(lambda leaf: leaf[None], x))
        u = jax.tree.map(lambda leaf: leaf[0], us)
        own = lambda rows: self.pack(self._own_step(cell, self.unpack(rows, state), u))  # noqa: E731
        immediate = _by_field(lambda cell: self.pack(step(cell, state, x)), cell)
        blocks = _blocks(own, self.pack(state))
        return tuple(add(_mix(cell, row, trace), new) for row, new in zip(blocks, immediate, strict=True))

    def _pull(self, cell: AbstractCell, trace: Traces, cotangent: Rows) -> Trained:
        silent = jax.tree.map(jnp.zeros_like, split(cell)[0])
        return eqx.combine(_mix(cell, cotangent, trace), silent)


class SnAp1(AbstractEligibility):
    """Sparse n-step approximation, n = 1: Menick et al. 2021, arXiv:2006.07232.

    RTRL's influence matrix, of which only the entries that a weight reaches within one step are kept. D_t is the
    diagonal of J_t, including a unit's influence on itself through R. It is exact for an `AbstractDiagonalCell`, which
    the linear cells are, if `project` does not mix units. For an `AbstractGatedCell` it is biased; the bias is smaller
    the weaker R is beside its diagonal.
    """

    needs: ClassVar[str] = "an AbstractDiagonalCell or an AbstractGatedCell"

    def _serves(self, cell: AbstractCell) -> bool:
        return own_past(cell)[1]

    def _own_step(self, cell: AbstractCell, state: State, u: PyTree[Array]) -> State:
        return own_past(cell)[0](state, u)


class EProp(AbstractEligibility):
    """Eligibility propagation: Bellec et al. 2020, Nature Communications 11:3625. For gated cells.

    As `SnAp1`, but without any influence through R, not even of a unit on itself: D_t is the derivative of `pointwise`
    by the state, with v = R h constant. The learning signal is dL_t/dh_t through the head: with the head's own weights
    it is symmetric e-prop, with a `RandomFeedback` head random e-prop. For `Elman` with a `leak` the latter is RFLO
    (random feedback local online learning, Murray 2019, eLife 8:e43299): p_t = (1 - leak) p_{t-1} + leak
    activation'(n_t) h_{t-1}.
    """

    needs: ClassVar[str] = "an AbstractGatedCell"

    def _serves(self, cell: AbstractCell) -> bool:
        return isinstance(cell, AbstractGatedCell) and own_past(cell)[1]

    def _own_step(self, cell: Any, state: State, u: Gates) -> State:
        h = state.h
        v = jax.lax.stop_gradient(recur(cell.recurrent_weight, h, len(cell.gates)))
        return cell.advance(u, v, state)


def _acting(cell: AbstractCell) -> Trained:
    """The weights that a step or the initial state depends on; None for those that only the readout uses."""
    trained, static = split(cell)
    leaves, structure = jax.tree.flatten(trained)
    x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cell.input_type())

    def depend(trained: Trained) -> Any:
        cell = eqx.combine(trained, static)
        return step(cell, cell.initial(), x), cell.initial()

    program = jax.make_jaxpr(depend)(trained).jaxpr
    used = {id(variable) for equation in program.eqns for variable in equation.invars}
    used |= {id(variable) for variable in program.outvars}
    acting = [leaf if id(variable) in used else None for leaf, variable in zip(leaves, program.invars, strict=True)]
    return jax.tree.unflatten(structure, acting)


def _is_by_unit(cell: AbstractCell, leaf: Array, units: int) -> bool:
    """Whether the last axis of a weight counts the units: once for each gate, or for each part of complex numbers."""
    if isinstance(cell, AbstractGatedCell) and leaf is cell.recurrent_weight:
        return True
    times = len(cell.gates) if isinstance(cell, AbstractAffineCell) else 2
    return leaf.shape[-1:] in [(units * count,) for count in range(1, times + 1)]


def _by_field(function: Callable[[Any], Rows], cell: AbstractCell) -> Traces:
    """The derivative of each field, summed over units, by the weights: each weight acts on one unit only."""
    acting = _acting(cell)
    rows, pull = jax.vjp(lambda acting: function(eqx.combine(acting, cell)), acting)
    return tuple(pull(jnp.zeros_like(rows).at[field].set(1))[0] for field in range(len(rows)))


def _blocks(function: Callable[[Rows], Rows], rows: Rows) -> Float[Array, "F F H"]:
    """The derivative of each field by each, of a function that does not mix units."""
    derivative = jax.linearize(function, rows)[1]
    fields = jnp.broadcast_to(jnp.eye(len(rows), dtype=rows.dtype)[..., None], (len(rows), *rows.shape))
    return jnp.moveaxis(jax.vmap(derivative)(fields), 0, 1)


def _mix(cell: AbstractCell, shares: Rows, traces: Traces) -> Trained:
    """The sum of the fields' traces, each times the share of its field in the weight's unit."""

    def leaf(like: Array, *traces: Array) -> Array:
        fields, units = shares.shape
        spread = shares
        if like.ndim == 3 and isinstance(cell, AbstractGatedCell) and like is cell.recurrent_weight:
            units //= len(like)
            spread = shares.reshape(fields, len(like), 1, 1, units)
        gates = like.shape[-1] // units
        mixed = [share * by_gate(trace, gates) for share, trace in zip(spread, traces, strict=True)]
        return jnp.stack(mixed).sum(0).reshape(like.shape)

    return jax.tree.map(leaf, _acting(cell), *traces)
