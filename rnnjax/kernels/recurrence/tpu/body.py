"""The TPU kernel on one block of time: both halves, step by step, with the states in a scratch of vector memory.

The blocks are references [steps, C, rows, units], [fields, rows, units] or [rows, 1]; `carry` is the scratch.
"""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import Reference, pallas
from ..pointwise.step import Step

TIME = 3  # the axis of the grid


def forward(step: Step, used_outputs: Sequence[bool], marked: bool, *blocks: Reference) -> None:
    """The steps in order; the states of the fields in `used_outputs` are written; `marked`: there are resets."""
    us, R, unit_parameters, initial, state, length, resets, *states, last, carry = blocks
    _start((carry, state))
    first = pallas.program_id(TIME) * us.shape[0]

    def one(t: Array) -> None:
        old = list(carry[...])
        before = _chosen(_is_reset(resets, t), list(initial[...]), old) if marked else old
        h = before[0].astype(R.dtype)
        vs = [jnp.dot(h, R[gate], preferred_element_type=carry.dtype) for gate in range(R.shape[0])]
        pre_activations = step.sums([us[t, gate].astype(carry.dtype) for gate in range(R.shape[0])], vs)
        after = _chosen(first + t < length[...], step.forward(pre_activations, before, _wide(unit_parameters, h)), old)
        for field, array in enumerate(after):
            carry[field] = array
        for output, array in zip(states, compress(after, used_outputs), strict=True):
            output[t, 0] = array

    def ignored_step() -> None:
        written = [field for field, used in enumerate(used_outputs) if used]
        for output, field in zip(states, written, strict=True):
            output[...] = jnp.broadcast_to(carry[field], output.shape)

    _each(us.shape[0], first, length, one, ignored_step)
    last[...] = carry[...]


def backward(step: Step, given: Sequence[bool], marked: bool, *blocks: Reference) -> None:
    """The steps in reverse; the fields in `given` have cotangents; `marked`: there are resets."""
    pre_activations, previous_states, *dgiven = blocks[: 2 + sum(given)]
    R, unit_parameters, dlast, length, resets, dpre_activations, dunit_parameters, dinitial, dstate, carry = blocks[
        2 + sum(given) :
    ]
    _start((carry, dlast), (dunit_parameters, None), (dinitial, None))
    steps = pre_activations.shape[0]
    first = (pallas.num_programs(TIME) - 1 - pallas.program_id(TIME)) * steps

    def one(k: Array) -> None:
        t = steps - 1 - k
        valid = first + t < length[...]
        arriving = iter(dgiven)
        pairs = zip(list(carry[...]), given, strict=True)
        dafter = [d + next(arriving)[t, 0] if is_given else d for d, is_given in pairs]
        before = list(previous_states[t])
        dgates, dbefore, dparameters = step.backward(
            list(pre_activations[t]), before, dafter, _wide(unit_parameters, before[0])
        )
        dgates = _chosen(valid, dgates, [jnp.zeros_like(each) for each in dgates])
        for pre_activation, array in enumerate(dgates):
            dpre_activations[t, pre_activation] = array.astype(dpre_activations.dtype)
        for row, array in enumerate(dparameters):
            dunit_parameters[row] += jnp.where(valid, array, 0.0)
        through = [
            jax.lax.dot_general(
                dgates[pre_activation].astype(R.dtype), R[gate], (((1,), (1,)), ((), ())), None, carry.dtype
            )
            for gate, pre_activation in enumerate(step.by_state)
        ]
        dbefore = _chosen(valid, [dbefore[0] + sum(through), *dbefore[1:]], dafter)
        if marked:
            reset = valid & _is_reset(resets, t)
            for field, array in enumerate(dbefore):
                dinitial[field] += jnp.where(reset, array, 0.0)
            dbefore = _chosen(reset, [jnp.zeros_like(each) for each in dbefore], dbefore)
        for field, array in enumerate(dbefore):
            carry[field] = array

    def ignored_step() -> None:
        dpre_activations[...] = jnp.zeros_like(dpre_activations)
        arriving = (field for field, is_given in enumerate(given) if is_given)
        for each, field in zip(dgiven, arriving, strict=True):
            carry[field] += each[...].sum((0, 1))

    _each(steps, first, length, one, ignored_step)
    dstate[...] = carry[...]


def _start(*pairs: tuple[Any, Any]) -> None:
    """At the first block of time, fill the first of each pair with the second, or with zeros."""

    @pallas.when(pallas.program_id(TIME) == 0)
    def _() -> None:
        for reference, source in pairs:
            reference[...] = jnp.zeros_like(reference) if source is None else source[...]


def _each(
    steps: int, first: Array, length: Any, one: Callable[[Array], None], ignored_step: Callable[[], None]
) -> None:
    """Each step of this block of time, or `ignored_step` where all sequences are at their end before it."""
    longest = jnp.max(length[...])
    pallas.when(first < longest)(lambda: jax.lax.fori_loop(jnp.int32(0), jnp.int32(steps), lambda t, _: one(t), None))
    pallas.when(first >= longest)(ignored_step)


def _is_reset(resets: Any, t: Array) -> Array:
    """The rows whose state is reset before step `t`."""
    return ((resets[...] >> t) & 1) != 0


def _chosen(condition: Array, one: Sequence[Array], other: Sequence[Array]) -> list[Array]:
    return [jnp.where(condition, *pair) for pair in zip(one, other, strict=True)]


def _wide(vectors: Any, like: Array) -> list[Array]:
    """Vectors, broadcast to all rows."""
    return [jnp.broadcast_to(vector, like.shape) for vector in list(vectors[...])]
