"""The kernels of the matrix-state recurrence on a block of time: step by step, some columns of a head in vector memory.

The blocks are references: [steps, K] and [steps, V] over time, [K, V] of states, [1, 1] of lengths, [steps, 1] of
resets. `carry` is a scratch [K, V] that lasts from block to block.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ....matrix_cell import Transition
from ...pallas import Reference, pallas
from ..contract import Operands
from ..step import Products, advance, look, pull

TIME = 3  # the axis of the grid


def _product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    axes = (((contract[0],), (contract[1],)), ((), ()))
    highest = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(left, right, axes, precision=highest, preferred_element_type=jnp.float32)


def _outer(key: Array, value: Array) -> Array:
    return _product(key, value, (0, 0))


def _scale(decay: Array, S: Array) -> Array:
    return decay * S if decay.shape[1] == 1 else _outer(decay, jnp.ones_like(S[:1])) * S


PRODUCTS = Products(  # of rows [1, K] and [1, V], in the matrix unit: no row has to become a column
    outer=_outer,
    over_keys=lambda key, S: _product(key, S, (1, 0)),
    over_values=lambda S, value: _product(value, S, (1, 1)),
    scale=_scale,
)


class Block:
    """A block of time: its steps, and how it reads them."""

    def __init__(self, operands: Operands, T: int, number: Array):
        steps = operands.steps.value.shape[0]
        self.operands, self.first = operands, number * steps
        end = jnp.int32(T) if operands.length is None else jnp.minimum(jnp.max(operands.length[...]), T)
        self.valid = jnp.clip(end - self.first, 0, steps)  # those of its steps that are not ignored

    def step(self, i: Array) -> Transition:
        return jax.tree.map(lambda each: row(each, i), self.operands.steps)

    def is_reset(self, i: Array, S: Array) -> Array | None:
        """For each number of a state, whether it is reset before step `i` of the block."""
        resets = self.operands.resets
        return None if resets is None else jnp.broadcast_to(row(resets, i), S.shape) != 0

    def before(self, i: Array, S: Array) -> Array:
        """The state that a step starts from, where S is the one after the step before it."""
        reset, start = self.is_reset(i, S), self.operands.start
        return S if reset is None else jnp.where(reset, jnp.zeros_like(S) if start is None else start[...], S)


def row(array: Reference, i: Array) -> Array:
    return array[pallas.ds(i, 1), :]


def forward(reads_before: bool, T: int, operands: Operands, ys: Reference, last: Reference, carry: Reference) -> None:
    """The steps in order."""
    block = Block(operands, T, pallas.program_id(TIME))
    _start((carry, operands.state))
    ys[...] = jnp.zeros_like(ys)  # of ignored steps

    def step(i: Array) -> None:
        before, coefficients = block.before(i, carry[...]), block.step(i)
        after = advance(PRODUCTS, before, coefficients, look(PRODUCTS, before, coefficients))
        carry[...] = after
        ys[pallas.ds(i, 1), :] = PRODUCTS.over_keys(coefficients.query, before if reads_before else after)

    _each(block.valid, step)
    last[...] = carry[...]


def borders(T: int, operands: Operands, border_states: Reference, carry: Reference) -> None:
    """The state before every block."""
    block = Block(operands, T, pallas.program_id(TIME))
    _start((carry, operands.state))
    border_states[...] = carry[...]

    def step(i: Array) -> None:
        before, coefficients = block.before(i, carry[...]), block.step(i)
        carry[...] = advance(PRODUCTS, before, coefficients, look(PRODUCTS, before, coefficients))

    _each(block.valid, step)


def backward(
    reads_before: bool,
    T: int,
    operands: Operands,
    border_state: Reference,
    dys: Reference,
    dlast: Reference,
    gradients: Operands,
    carry: Reference,
    states: Reference,
) -> None:
    """The steps in reverse; `states` is a scratch for those before each step of the block, and after the last."""
    block = Block(operands, T, pallas.num_programs(TIME) - 1 - pallas.program_id(TIME))
    to, dstart = gradients.steps, gradients.start
    _start((carry, dlast), *([] if dstart is None else [(dstart, None)]))
    for array in jax.tree.leaves(to):
        array[...] = jnp.zeros_like(array)  # of ignored steps
    states[0] = border_state[...]

    def replay(i: Array) -> None:
        before, coefficients = block.before(i, states[i]), block.step(i)
        after = advance(PRODUCTS, before, coefficients, look(PRODUCTS, before, coefficients))
        states[i + 1] = after
        to.query[pallas.ds(i, 1), :] = PRODUCTS.over_values(before if reads_before else after, row(dys, i))

    def take_back(back: Array) -> None:
        i = block.valid - 1 - back
        before = block.before(i, states[i])
        of_step, G = pull(PRODUCTS, reads_before, before, block.step(i), row(dys, i), carry[...])
        for array, gradient in zip(to, of_step, strict=True):
            if array is not None and gradient is not None:
                array[pallas.ds(i, 1), :] = gradient
        reset = block.is_reset(i, G)
        if reset is not None and dstart is not None:
            dstart[...] += jnp.where(reset, G, 0.0)
        carry[...] = G if reset is None else jnp.where(reset, 0.0, G)

    _each(block.valid, replay)
    _each(block.valid, take_back)
    gradients.state[...] = carry[...]


def _start(*pairs: tuple[Reference, Reference | None]) -> None:
    """At the first program of a sweep, fill the first of each pair with the second, or with zeros."""

    @pallas.when(pallas.program_id(TIME) == 0)
    def _() -> None:
        for reference, source in pairs:
            reference[...] = jnp.zeros_like(reference) if source is None else source[...]


def _each(count: Array, visit: Callable[[Array], None]) -> None:
    jax.lax.fori_loop(jnp.int32(0), count, lambda i, _: visit(i), None)
