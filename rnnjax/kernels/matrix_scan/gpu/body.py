"""The kernels of the matrix-state recurrence in Triton: all of time, for some columns of a head in registers."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ....matrix_cell import Transition
from ...pallas import Reference, triton
from ..contract import Operands
from ..step import Products, advance, look, pull
from .place import Form, Place

PRODUCTS = Products(
    outer=lambda key, value: key[:, None] * value[None, :],
    over_keys=lambda key, S: jnp.sum(key[:, None] * S, 0),
    over_values=lambda S, value: jnp.sum(S * value[None, :], 1),
    scale=lambda decay, S: decay[:, None] * S,
)


def forward(form: Form, operands: Operands, ys: Reference, last: Reference) -> None:
    """All steps, in order."""
    place = Place(form, operands)

    def step(t: Array, S: Array) -> Array:
        before, row = place.before(t, S), place.step(t)
        after = advance(PRODUCTS, before, row, look(PRODUCTS, before, row))
        place.write_by_column(ys, t, PRODUCTS.over_keys(row.query, before if form.reads_before else after))
        return after

    def ignored_step(t: Array, S: Array) -> Array:
        place.write_by_column(ys, t, jnp.zeros(form.columns, jnp.float32))
        return S

    steps = place.valid_steps()
    S = jax.lax.fori_loop(jnp.int32(0), steps, step, place.state(operands.state))
    place.write_state(last, jax.lax.fori_loop(steps, jnp.int32(form.T), ignored_step, S))


def borders(form: Form, operands: Operands, border_states: Reference) -> None:
    """The state before the first step of every chunk; that of ignored chunks is not read."""
    place = Place(form, operands)
    steps = place.valid_steps()

    def step(t: Array, S: Array) -> Array:
        before, row = place.before(t, S), place.step(t)
        return advance(PRODUCTS, before, row, look(PRODUCTS, before, row))

    def chunk(number: Array, S: Array) -> Array:
        place.write_state(border_states, S, number)
        first = number * form.chunk
        return jax.lax.fori_loop(first, jnp.minimum(first + form.chunk, steps), step, S)

    chunks = (steps + form.chunk - 1) // form.chunk
    jax.lax.fori_loop(jnp.int32(0), chunks, chunk, place.state(operands.state))


def backward(
    synchronises: bool,
    form: Form,
    operands: Operands,
    border_states: Reference,
    dys: Reference,
    dlast: Reference,
    gradients: Operands,
    states: Reference,
) -> None:
    """All steps in reverse, chunk by chunk; `states` holds those before the steps of a chunk.

    `synchronises`: threads wait for one another before they read what others wrote, for which the emulator has no
    instruction.
    """
    place, to = Place(form, operands), gradients.steps
    steps, none = place.valid_steps(), jnp.zeros_like(place.state(dlast))

    def write(t: Array, of_step: Transition) -> None:
        for array, row in zip(to._replace(value=None), of_step._replace(value=None), strict=True):
            place.write_by_key(array, t, row)

    def ignored_step(t: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(place.keys, jnp.float32)
        write(t, Transition(*(zeros,) * 6))
        place.write_by_column(to.value, t, jnp.zeros(form.columns, jnp.float32))
        return carry

    def replay(first: Array, i: Array, S: Array) -> Array:
        t = first + i
        place.write_state(states, S, i)
        before, row = place.before(t, S), place.step(t)
        after = advance(PRODUCTS, before, row, look(PRODUCTS, before, row))
        read = before if form.reads_before else after
        place.write_by_key(to.query, t, PRODUCTS.over_values(read, place.by_column(dys, t)))
        return after

    def take_back(last: Array, i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        G, dstart = carry
        t = last - i
        before = place.before(t, place.state(states, t % form.chunk))
        of_step, G = pull(PRODUCTS, form.reads_before, before, place.step(t), place.by_column(dys, t), G)
        write(t, of_step)
        place.write_by_column(to.value, t, of_step.value)
        reset = place.is_reset(t)
        if reset is None:
            return G, dstart
        return jnp.where(reset, none, G), dstart + jnp.where(reset, G, none)

    def synchronise() -> None:
        if synchronises:
            triton.debug_barrier()

    chunks = (steps + form.chunk - 1) // form.chunk

    def chunk(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        index = chunks - 1 - number
        first = index * form.chunk
        count = jnp.minimum(form.chunk, steps - first)
        jax.lax.fori_loop(jnp.int32(0), count, partial(replay, first), place.state(border_states, index))
        synchronise()
        carry = jax.lax.fori_loop(jnp.int32(0), count, partial(take_back, first + count - 1), carry)
        synchronise()
        return carry

    carry = jax.lax.fori_loop(steps, jnp.int32(form.T), ignored_step, (place.state(dlast), none))
    G, dstart = jax.lax.fori_loop(jnp.int32(0), chunks, chunk, carry)
    place.write_state(gradients.state, G)
    if gradients.start is not None:
        place.write_state(gradients.start, dstart)
