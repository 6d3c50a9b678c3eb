"""One block of threads for a head and a tile of sequences, through all of time (Triton): R in shared memory, the state
in registers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..pointwise.step import Step
from .place import Backward, Forward, Place, Pulled, Shared, Tile, Trajectory


def forward(step: Step, tile: Tile, shared: Shared, read: Forward, *written: Any) -> None:
    """All steps onward."""
    write = Trajectory(*written)
    _, batch, steps, gates, _ = read.us.shape
    place, fields = Place(tile, shared, batch), len(write.states)
    R, gains = [place.matrix(gate) for gate in range(gates)], place.vectors(shared.gains, len(step.dgains))
    initial = None if shared.resets is None else place.vectors(shared.initial, fields)
    us = lambda t: [place.timed(read.us, t, gate) for gate in range(gates)]  # noqa: E731

    def hold(t: Array, carry: list[Array]) -> list[Array]:
        for states, array in zip(write.states, carry, strict=True):
            if states is not None:
                place.write_timed(states, t, None, array)
        return carry

    def one(t: Array, carry: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        old, u = carry
        ahead = us(jnp.minimum(t + 1, steps - 1))  # fetched while this step is computed
        running = place.running(t)
        before = old if initial is None else _chosen(place.fresh(t, running), initial, old)
        h = before[0].astype(R[0].dtype)
        vs = [jnp.dot(h, matrix, preferred_element_type=step.graph.dtype) for matrix in R]
        after = step.forward(step.sums([each.astype(step.graph.dtype) for each in u], vs), before, gains)
        return hold(t, _chosen(running, after, old)), ahead

    start = [place.state(read.state, field) for field in range(fields)]
    longest = place.longest(steps)
    last, _ = jax.lax.fori_loop(jnp.int32(0), longest, one, (start, us(jnp.int32(0))))
    if shared.length is not None:
        jax.lax.fori_loop(longest, jnp.int32(steps), hold, last)
    for field, array in enumerate(last):
        place.write_state(write.last, field, array)


def backward(step: Step, tile: Tile, shared: Shared, read: Backward, *written: Any) -> None:
    """All steps in reverse."""
    marked = shared.resets is not None
    write = Pulled(written[0], written[1], written[2] if marked else None, written[-1])
    _, batch, steps, _, _ = read.columns.shape
    place, fields = Place(tile, shared, batch), len(read.dstates)
    R = [place.matrix(gate) for gate in range(shared.R.shape[3])]
    gains = place.vectors(shared.gains, len(step.dgains))
    none = jnp.zeros((tile.rows, tile.units), step.graph.dtype)

    def inputs(t: Array) -> tuple[list[Array], list[Array], list[Array]]:
        columns = [place.timed(read.columns, t, column) for column in range(len(step.columns))]
        before = [place.timed(read.befores, t, field) for field in range(fields)]
        return columns, before, [none if each is None else place.states(each, t) for each in read.dstates]

    def hold(k: Array, carry: list[Array]) -> list[Array]:
        t = steps - 1 - k
        for column in range(len(step.columns)):
            place.write_timed(write.dcolumns, t, column, none)
        return [d if each is None else d + place.states(each, t) for d, each in zip(carry, read.dstates, strict=True)]

    def one(k: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        t = steps - 1 - k
        (dstate, dgains, dfresh), (columns, before, arriving) = carry
        ahead = inputs(jnp.maximum(t - 1, 0))  # fetched while this step is computed
        dafter = [d + more for d, more in zip(dstate, arriving, strict=True)]
        made, dbefore, moved = step.backward(columns, before, dafter, gains)
        running = place.running(t)
        made, moved = (_chosen(running, each, [none] * len(each)) for each in (made, moved))
        for column, array in enumerate(made):
            place.write_timed(write.dcolumns, t, column, array)
        through = [
            jnp.dot(made[column].astype(matrix.dtype), matrix.T, preferred_element_type=step.graph.dtype)
            for column, matrix in zip(step.by_state, R, strict=True)
        ]
        dbefore = _chosen(running, [dbefore[0] + sum(through), *dbefore[1:]], dafter)
        fresh = place.fresh(t, running)
        if fresh is not None:
            dfresh = [total + jnp.where(fresh, d, 0.0) for total, d in zip(dfresh, dbefore, strict=True)]
            dbefore = _chosen(fresh, [none] * fields, dbefore)
        return (dbefore, [total + d for total, d in zip(dgains, moved, strict=True)], dfresh), ahead

    dlast = [place.of_real(place.state(read.dlast, field)) for field in range(fields)]
    held = steps - place.longest(steps)
    if shared.length is not None:
        dlast = jax.lax.fori_loop(jnp.int32(0), held, hold, dlast)
    start = dlast, [none] * len(gains), [none] * fields if marked else []
    first = inputs(jnp.maximum(steps - 1 - held, 0))
    (dstate, dgains, dfresh), _ = jax.lax.fori_loop(held, jnp.int32(steps), one, (start, first))
    for array, values in ((write.dstate, dstate), (write.dgains, dgains), (write.dfresh, dfresh)):
        for field, value in enumerate(values):
            place.write_state(array, field, value)


def _chosen(condition: Array | None, one: Sequence[Array], other: Sequence[Array]) -> list[Array]:
    """`one` where `condition`, else `other`; where that is None, it is true everywhere."""
    return list(one) if condition is None else [jnp.where(condition, *pair) for pair in zip(one, other, strict=True)]
