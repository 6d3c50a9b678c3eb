"""The linear recurrence for TPU, in Pallas for Mosaic: blocks of time one after the other, the state in VMEM."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..pallas import Interpret, output, pallas, tpu
from .numbers import Number, References, advance, join, split

ROWS, LANES = 8, 128  # of a tile
WIDEST = 1024  # lanes of a block: eight tiles, enough to hide the latency of each operation of a step
BLOCK = 2**18  # numbers in a block of one operand, all its parts together: three operands, twice, fit in 16 MiB of VMEM


def scan(
    a: Inexact[Array, "A T H"],
    b: Inexact[Array, "B T H"],
    initial: Inexact[Array, "B H"],
    *,
    reverse: bool,
    late: bool,
    interpret: Interpret = False,
) -> Inexact[Array, "B T H"]:
    """All states; A is B, or 1 for one `a` of all rows."""
    B, T, H = b.shape
    # A step fills tiles of 8 rows: those of the batch or, if that is smaller, pieces of its units.
    pieces = max(1, min(ROWS // B, pallas.cdiv(H, LANES)))
    operands = jnp.broadcast_to(a, b.shape), b, initial[:, None]
    numbers = [split(_tiled(each, pieces)) for each in operands]
    h = join(_call(numbers, reverse, late, interpret))
    return jnp.moveaxis(h.reshape(T, B, -1), 1, 0)[:, :, :H]


def _tiled(x: Inexact[Array, "B T H"], pieces: int) -> Inexact[Array, "T R W"]:
    """Time first, and the pieces of each row as rows of their own."""
    B, T, H = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, -H % pieces)))
    return jnp.moveaxis(padded, 1, 0).reshape(T, B * pieces, -1)


def _call(numbers: list[Number], reverse: bool, late: bool, interpret: Any) -> Number:
    a, b, initial = numbers
    T, R, W = b[0].shape
    rows, lanes = min(R, ROWS), min(W, WIDEST)
    steps = min(T, BLOCK // (len(b) * rows * pallas.cdiv(lanes, LANES) * LANES))
    blocks = pallas.cdiv(T, steps)

    over_time = pallas.BlockSpec(
        (steps, rows, lanes), lambda row, lane, block: (blocks - 1 - block if reverse else block, row, lane)
    )
    at_start = pallas.BlockSpec((None, rows, lanes), lambda row, lane, _: (0, row, lane))
    return tuple(
        pallas.pallas_call(
            partial(_kernel, T, reverse, late),
            out_shape=[output(part.shape, part.dtype) for part in b],
            grid=(pallas.cdiv(R, rows), pallas.cdiv(W, lanes), blocks),
            in_specs=[*(over_time for _ in (*a, *b)), *(at_start for _ in initial)],
            out_specs=[over_time for _ in b],
            scratch_shapes=[tpu.VMEM((rows, lanes), part.dtype) for part in b],
            compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
            name="rnnjax_linear_scan" + "_reverse" * reverse,
            interpret=interpret,
        )(*a, *b, *initial)
    )


def _kernel(T: int, reverse: bool, late: bool, *references: Any) -> None:
    """The steps of one block, from the state in `carry`."""
    parts = len(references) // 5
    a, b, initial, h, carry = (references[first * parts : (first + 1) * parts] for first in range(5))
    number, blocks = pallas.program_id(2), pallas.num_programs(2)
    steps = h[0].shape[0]
    block = blocks - 1 - number if reverse else number
    valid = jnp.minimum(steps, T - block * steps)  # the last block of time may extend beyond T

    @pallas.when(number == 0)
    def _start() -> None:
        _write(carry, ..., _read(initial, ...))

    def step(number: Any, before: Number) -> Number:
        time = valid - 1 - number if reverse else number
        after, before = advance(_read(a, time), _read(b, time), before, late)
        _write(h, time, after)
        return before

    _write(carry, ..., jax.lax.fori_loop(0, valid, step, _read(carry, ...)))


def _read(references: References, where: Any) -> Number:
    return tuple(reference[where] for reference in references)


def _write(references: References, where: Any, values: Number) -> None:
    for reference, value in zip(references, values, strict=True):
        reference[where] = value
