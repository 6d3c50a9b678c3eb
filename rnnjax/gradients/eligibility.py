"""Eligibility traces, one per weight, of its influence on its own unit: the base of SnAp-1 and e-prop."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import flat
from ..arrays import PyTree, State, by_gate
from ..cell import AbstractCell
from ..gated_cell import AbstractAffineCell, AbstractGatedCell
from .composite import Composite, Part, is_part, step
from .estimator import Estimate, Loss, Weights, add
from .forward import AbstractForward, Traced, Trained, split

Rows = Float[Array, "F H"]
Traces = tuple[Trained, ...]  # for each of the F fields, the influence of each weight on that field of its unit


class AbstractEligibility(AbstractForward):
    """Estimators that neglect how units influence each other over time.

        e_t = D_t e_{t-1} + ds_t/dweights |_{s_{t-1}}

    Within a step every weight acts on one unit alone: its last axis counts the units, once for each gate. So a trace
    has as many numbers as there are weights, times the F fields of a state, and D_t is a block F x F for each unit.
    Memory and work are those of a step. Only shapes are checked: if a cell's `project` mixes units (a normalisation, a
    layer before W), the influence through other units is neglected there, too.

    Subclass requirements: `_own_step`, and `_step_of_network`, where each cell of a network has such traces.
    """

    @abc.abstractmethod
    def _own_step(self, cell: AbstractCell, state: State, u: PyTree[Array]) -> State:
        """A step whose derivative by `state` has no terms between units; its value is not used."""

    @abc.abstractmethod
    def _step_of_network(
        self, loss: Loss, weights: Weights, memory: Traced, x: PyTree[Array], target: PyTree[Array]
    ) -> Estimate:
        """`_step` of a `Composite` and a head."""

    def _refusal_of_part(self, part: object, place: str) -> str | None:
        reason = super()._refusal_of_part(part, place)
        if reason is not None or not isinstance(part, AbstractCell):
            return reason
        units = jax.tree.leaves(part.initial())[0].shape[-1]
        strange = [leaf.shape for leaf in jax.tree.leaves(_acting(part)) if not _is_by_unit(part, leaf, units)]
        if strange:
            return (
                f"{type(self).__name__} cannot train {place}: it needs weights whose last axis counts the "
                f"{units} units, not {list(strange[0])}. Use RTRL(), BPTT() or TruncatedBPTT"
            )
        return None

    def pack(self, state: State) -> Rows:
        return flat.pack_units(state)

    def unpack(self, vector: Rows, like: State) -> State:
        return flat.unpack_units(vector, like)

    def _begin(self, cell: AbstractCell, start: State | None, key: PRNGKeyArray | None) -> Any:
        del key
        if isinstance(cell, Composite):
            return self._begin_network(cell, start)
        return _by_field(lambda cell: self.pack(cell.initial() if start is None else start), cell)

    def _begin_network(self, network: Composite, start: State | None) -> list[Any]:
        """For each part of a network, the traces of its weights; () for one without a state."""
        parts = network.parts
        starts = [None] * len(parts) if start is None else network.states(start)
        return [
            self._begin(part, own, None) if isinstance(part, AbstractCell) else ()
            for part, own in zip(parts, starts, strict=True)
        ]

    def _step(
        self, loss: Loss, weights: Weights, memory: Traced, x: PyTree[Array], target: PyTree[Array], key: Any
    ) -> Estimate:
        if isinstance(weights[0], Composite):
            return self._step_of_network(loss, weights, memory, x, target)
        return super()._step(loss, weights, memory, x, target, key)

    def _rows(self, part: Part, state: State) -> Rows | tuple[()]:
        """The state of a part of a network as the estimator sees it; () for one without a state."""
        return self.pack(state) if isinstance(part, AbstractCell) else ()

    def _state(self, part: Part, rows: PyTree, like: State) -> State:
        """The inverse of `_rows`."""
        return self.unpack(rows, like) if isinstance(part, AbstractCell) else like

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


def add_to_parts(direct: Composite, by_state: list[Trained]) -> Composite:
    """The gradient of a network: the direct one, and for each part the one through states; None if it has no state."""
    parts = jax.tree.leaves(direct.network, is_leaf=is_part)
    sums = [one if other is None else add(one, other) for one, other in zip(parts, by_state, strict=True)]
    return direct.replace(sums)


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

    def leaf(like: Array, *by_field: Array) -> Array:
        fields, units = shares.shape
        spread = shares
        if like.ndim == 3 and isinstance(cell, AbstractGatedCell) and like is traces[0].recurrent_weight:
            units //= len(like)
            spread = shares.reshape(fields, len(like), 1, 1, units)
        gates = like.shape[-1] // units
        mixed = [share * by_gate(trace, gates) for share, trace in zip(spread, by_field, strict=True)]
        return jnp.stack(mixed).sum(0).reshape(like.shape)

    return jax.tree.map(leaf, traces[0], *traces)
