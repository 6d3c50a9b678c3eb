"""A block of threads runs all steps of a head and a tile (Triton): R in shared memory, the state in registers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import Reference
from ..pointwise.step import Step
from .coordinates import (
    BackwardOperands,
    BackwardResults,
    BlockCoordinates,
    ForwardOperands,
    ForwardResults,
    Shared,
    Tile,
)


def forward(step: Step, tile: Tile, shared: Shared, read: ForwardOperands, *written: Reference) -> None:
    """All steps, in order."""
    write = ForwardResults(*written)
    _, batch, steps, gates, _ = read.us.shape
    coordinates, fields = BlockCoordinates(tile, shared, batch), len(write.states)
    R, unit_parameters = (
        [coordinates.matrix(gate) for gate in range(gates)],
        coordinates.vectors(shared.unit_parameters, len(step.dunit_parameters)),
    )
    initial = None if shared.resets is None else coordinates.vectors(shared.initial, fields)
    us = lambda t: [coordinates.timed(read.us, t, gate) for gate in range(gates)]  # noqa: E731

    def store(t: Array, carry: list[Array]) -> list[Array]:
        for states, array in zip(write.states, carry, strict=True):
            if states is not None:
                coordinates.write_timed(states, t, None, array)
        return carry

    def one(t: Array, carry: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        old, u = carry
        ahead = us(jnp.minimum(t + 1, steps - 1))  # fetched while this step is computed
        valid = coordinates.valid(t)
        before = old if initial is None else _chosen(coordinates.is_reset(t, valid), initial, old)
        h = before[0].astype(R[0].dtype)
        vs = [jnp.dot(h, matrix, preferred_element_type=step.graph.dtype) for matrix in R]
        after = step.forward(step.sums([each.astype(step.graph.dtype) for each in u], vs), before, unit_parameters)
        return store(t, _chosen(valid, after, old)), ahead

    start = [coordinates.state(read.state, field) for field in range(fields)]
    longest = coordinates.longest(steps)
    last, _ = jax.lax.fori_loop(jnp.int32(0), longest, one, (start, us(jnp.int32(0))))
    if shared.length is not None:
        jax.lax.fori_loop(longest, jnp.int32(steps), store, last)
    for field, array in enumerate(last):
        coordinates.write_state(write.last, field, array)


def backward(step: Step, tile: Tile, shared: Shared, read: BackwardOperands, *written: Reference) -> None:
    """All steps in reverse."""
    marked = shared.resets is not None
    write = BackwardResults(written[0], written[1], written[2] if marked else None, written[-1])
    _, batch, steps, _, _ = read.pre_activations.shape
    coordinates, fields = BlockCoordinates(tile, shared, batch), len(read.dstates)
    R = [coordinates.matrix(gate) for gate in range(shared.R.shape[3])]
    unit_parameters = coordinates.vectors(shared.unit_parameters, len(step.dunit_parameters))
    none = jnp.zeros((tile.rows, tile.units), step.graph.dtype)

    def inputs(t: Array) -> tuple[list[Array], list[Array], list[Array]]:
        pre_activations = [
            coordinates.timed(read.pre_activations, t, pre_activation)
            for pre_activation in range(len(step.pre_activations))
        ]
        before = [coordinates.timed(read.previous_states, t, field) for field in range(fields)]
        return pre_activations, before, [none if each is None else coordinates.states(each, t) for each in read.dstates]

    def ignored_step(k: Array, carry: list[Array]) -> list[Array]:
        t = steps - 1 - k
        for pre_activation in range(len(step.pre_activations)):
            coordinates.write_timed(write.dpre_activations, t, pre_activation, none)
        return [
            d if each is None else d + coordinates.states(each, t) for d, each in zip(carry, read.dstates, strict=True)
        ]

    def one(k: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        t = steps - 1 - k
        (dstate, dunit_parameters, dinitial), (pre_activations, before, arriving) = carry
        ahead = inputs(jnp.maximum(t - 1, 0))  # fetched while this step is computed
        dafter = [d + more for d, more in zip(dstate, arriving, strict=True)]
        dgates, dbefore, dparameters = step.backward(pre_activations, before, dafter, unit_parameters)
        valid = coordinates.valid(t)
        dgates, dparameters = (_chosen(valid, each, [none] * len(each)) for each in (dgates, dparameters))
        for pre_activation, array in enumerate(dgates):
            coordinates.write_timed(write.dpre_activations, t, pre_activation, array)
        through = [
            jnp.dot(dgates[pre_activation].astype(matrix.dtype), matrix.T, preferred_element_type=step.graph.dtype)
            for pre_activation, matrix in zip(step.by_state, R, strict=True)
        ]
        dbefore = _chosen(valid, [dbefore[0] + sum(through), *dbefore[1:]], dafter)
        reset = coordinates.is_reset(t, valid)
        if reset is not None:
            dinitial = [total + jnp.where(reset, d, 0.0) for total, d in zip(dinitial, dbefore, strict=True)]
            dbefore = _chosen(reset, [none] * fields, dbefore)
        return (dbefore, [total + d for total, d in zip(dunit_parameters, dparameters, strict=True)], dinitial), ahead

    dlast = [coordinates.of_real(coordinates.state(read.dlast, field)) for field in range(fields)]
    ignored = steps - coordinates.longest(steps)
    if shared.length is not None:
        dlast = jax.lax.fori_loop(jnp.int32(0), ignored, ignored_step, dlast)
    start = dlast, [none] * len(unit_parameters), [none] * fields if marked else []
    first = inputs(jnp.maximum(steps - 1 - ignored, 0))
    (dstate, dunit_parameters, dinitial), _ = jax.lax.fori_loop(ignored, jnp.int32(steps), one, (start, first))
    for array, values in (
        (write.dstate, dstate),
        (write.dunit_parameters, dunit_parameters),
        (write.dinitial, dinitial),
    ):
        for field, value in enumerate(values):
            coordinates.write_state(array, field, value)


def _chosen(condition: Array | None, one: Sequence[Array], other: Sequence[Array]) -> list[Array]:
    """`one` where `condition`, else `other`; where that is None, it is true everywhere."""
    return list(one) if condition is None else [jnp.where(condition, *pair) for pair in zip(one, other, strict=True)]
