"""Prepared cells of random shapes, against `Scan` on the weights stored: `python prepared_shapes.py COUNT [FIRST]`."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import rnnjax
from rnnjax.kernels import CPU, InstructionSet

MOST, FEW = 70, 5  # of B, T, I and H
WIDE = 200  # units of some cells, whose steps several cores share
TOGETHER = 20  # cases of one program
STORED = {None: None, "bfloat16": jnp.bfloat16, "int8": jnp.int8}
BARS = {"float64": 1e-11, "float32": 3e-6}  # relative to the largest state, or to 1
CELLS: dict[str, Callable[..., rnnjax.AbstractGatedCell]] = {
    "lstm": rnnjax.LSTM,
    "lstm_options": partial(rnnjax.LSTM, peepholes=True, coupled=True, learn_initial=True),
    "gru": partial(rnnjax.GRU, learn_initial=True),
    "gru_without_bias": partial(rnnjax.GRU, bias=False),
    "elman": rnnjax.Elman,
}


class Case(NamedTuple):
    """Groups of sequences [S B T I], each group with a cell of its own."""

    title: str
    dtype: str
    stored: str | None
    cells: Any  # all arrays lead with S
    state: Any  # fields [S B H]
    xs: np.ndarray
    length: np.ndarray | None  # steps from there on are NaN
    resets: np.ndarray | None
    reverse: bool
    engine: rnnjax.Fused


def draw(seed: int) -> Case:
    """Case number `seed`: weight types, dtypes and instruction sets in turn, all else at random."""
    generator = np.random.default_rng(seed)
    stored, dtype = list(STORED)[seed % 3], list(BARS)[seed // 3 % 2]
    instructions, name = InstructionSet(seed // 6 % 4), str(generator.choice(list(CELLS)))
    most = np.where(generator.random(4) < 0.3, FEW, MOST)
    B, T, inputs, H = generator.integers(1, most, endpoint=True).tolist()
    S, heads = int(generator.choice([1, 1, 2])), int(generator.choice([1, 1, 3])) if "lstm" in name else 1
    units = heads * max(1, (WIDE if generator.random() < 0.1 else H) // heads)
    cells, state = draw_cells(generator, name, (S, B), (inputs, units, heads), dtype)
    xs = generator.normal(size=(S, B, T, inputs)).astype(dtype)
    length = generator.integers(0, T, (S, B), np.int32, endpoint=True) if generator.integers(2) else None
    resets = generator.random((S, B, T)) < 0.3 if generator.integers(2) else None
    reverse = bool(generator.integers(2))
    if length is not None:
        xs[np.arange(T) >= length[..., None]] = np.nan
    marks = [mark for mark, there in (("length", length is not None), ("resets", resets is not None)) if there]
    sizes = f"{S=} {B=} {T=} I={inputs} H={units} {heads=}"
    title = f"{seed}: {name} {dtype} in {stored} {instructions.name} {sizes} {marks} {reverse=}"
    engine = rnnjax.Fused(cpu=CPU(instructions))
    return Case(title, dtype, stored, cells, state, xs, length, resets, reverse, engine)


def draw_cells(
    generator: np.random.Generator, name: str, axes: tuple[int, int], sizes: tuple[int, int, int], dtype: str
) -> tuple[Any, Any]:
    """S cells as one, and the states of B sequences of each: nothing is built, which would be compiled."""
    (S, B), (inputs, units, heads) = axes, sizes
    options: dict[str, Any] = {"heads": heads} if heads > 1 else {}

    def build() -> tuple[Any, Any]:
        cell = CELLS[name](inputs, units, key=jax.random.key(0), dtype=dtype, **options)
        return cell, cell.initial()

    def normal(leaf: Any, *axes: int) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        scale = 2 * math.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 1)  # so that no error grows from step to step
        return (generator.normal(size=(*axes, *leaf.shape)) / scale).astype(leaf.dtype)

    cell, state = eqx.filter_eval_shape(build)
    cells, states = (
        jax.tree.map(lambda leaf: normal(leaf, S), cell),
        jax.tree.map(lambda leaf: normal(leaf, S, B), state),
    )
    return eqx.tree_at(matrices, cells, [away_from_halves(matrix) for matrix in matrices(cells)]), states


def matrices(cell: Any) -> tuple[Any, Any]:
    return cell.input_weight, cell.recurrent_weight


def away_from_halves(matrix: np.ndarray) -> np.ndarray:
    """Without weights halfway between two integers of int8: XLA's division by 127 may round them to the other one."""
    scale = np.abs(matrix).max(-2, keepdims=True) / 127
    integers = np.rint(matrix / scale)
    rest = matrix / scale - integers
    return np.where(np.abs(rest) > 0.49, (integers + 0.9 * rest) * scale, matrix).astype(matrix.dtype)


def rounded(weight: np.ndarray, stored: str | None) -> np.ndarray:
    """What the definition makes of a matrix [..., K, GH], in NumPy."""
    if stored is None:
        return weight
    if stored == "bfloat16":
        return weight.astype(jnp.bfloat16).astype(weight.dtype)
    scale = np.abs(weight).max(-2, keepdims=True) / 127
    return np.rint(weight / scale) * scale


def with_rounded_weights(cell: Any, stored: str | None) -> Any:
    """A plain cell whose matrices are what the prepared one has stored."""
    return eqx.tree_at(matrices, cell, [jnp.asarray(rounded(np.asarray(leaf), stored)) for leaf in matrices(cell)])


def exact(case: Case) -> Case:
    """The case that `Scan` runs: the weights as they are stored, and float64."""
    cells = with_rounded_weights(case.cells, case.stored)
    wide = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if eqx.is_inexact_array(leaf) else leaf, (cells, case.state, case.xs)
    )
    return case._replace(cells=wide[0], state=wide[1], xs=wide[2])


def run(case: Case, cells: Any, engine: rnnjax.AbstractEngine, *given: PyTree) -> PyTree:
    """The last states and the outputs of all groups."""

    def group(cell: Any, *given: PyTree) -> PyTree:
        def one(state: Any, xs: Any, length: Any, resets: Any) -> PyTree:
            return rnnjax.unroll(cell, state, xs, length=length, resets=resets, reverse=case.reverse, engine=engine)

        return jax.vmap(one)(*given)

    return eqx.filter_vmap(group)(cells, *given)


def both(case: Case, prepared: tuple[PyTree, ...], plain: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
    """By prepared cells, which the kernel must take, and by `Scan`."""
    static = eqx.filter(case.cells, eqx.is_array, inverse=True)
    first, second = (eqx.combine(operands[0], static) for operands in (prepared, plain))
    packed = eqx.filter_vmap(partial(rnnjax.prepare, weights=STORED[case.stored]))(first)
    return run(case, packed, case.engine, *prepared[1:]), run(case, second, rnnjax.Scan(), *plain[1:])


def operands(case: Case) -> tuple[PyTree, ...]:
    return eqx.filter(case.cells, eqx.is_array), case.state, case.xs, case.length, case.resets


def errors(seeds: Sequence[int]) -> Iterator[tuple[Case, float]]:
    """Cases by one program, and the largest error of each: relative to the largest number, or to 1."""
    cases = list(map(draw, seeds))
    program = jax.jit(lambda given: [both(case, *each) for case, each in zip(cases, given, strict=True)])
    made = program([(operands(case), operands(exact(case))) for case in cases])
    for case, (got, expected) in zip(cases, jax.tree.map(np.asarray, made), strict=True):
        yield case, max(map(error, jax.tree.leaves(got), jax.tree.leaves(expected)))


def error(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    found = float(np.max(np.abs(got - expected), initial=0)) / max(1.0, float(np.max(np.abs(expected), initial=0)))
    return found if np.isfinite(found) else math.inf


def main(count: int, start: int = 0) -> int:
    """Run so many cases, print those that are outside of the bars, and the largest errors; how many are outside."""
    largest, failed = dict.fromkeys(BARS, 0.0), 0
    for first in range(start, start + count, TOGETHER):
        for case, found in errors(range(first, min(first + TOGETHER, start + count))):
            largest[case.dtype] = max(largest[case.dtype], found)
            if found > BARS[case.dtype]:
                failed += 1
                print(f"{case.title}: {found:.1e}", flush=True)
        jax.clear_caches()
        print(f"up to {first + TOGETHER}: {failed} outside of the bars; largest errors {largest}", flush=True)
    return failed


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
