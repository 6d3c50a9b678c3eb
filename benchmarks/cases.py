"""What is measured: cells, shapes and engines, once, for the benchmarks and for the tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnjax import (
    GRU,
    LSTM,
    AbstractCell,
    AbstractEngine,
    Associative,
    Checkpointed,
    Elman,
    Fused,
    MinGRU,
    Scan,
    Unrolled,
)
from rnnjax.engines import Refusal


class Case(NamedTuple):
    """A cell by its name, batch, steps, the sizes of input and state, the dtype of weights and inputs, and heads."""

    cell: str
    B: int
    T: int
    I: int  # noqa: E741  an axis of the notation in rnnjax/arrays.py
    H: int
    dtype: str = "float32"
    heads: int = 1


CELLS: dict[str, Callable[..., AbstractCell]] = {"LSTM": LSTM, "GRU": GRU, "Elman": Elman, "MinGRU": MinGRU}

SHAPES = ((1, 256, 128, 128), (16, 256, 128, 128), (32, 128, 256, 256), (64, 35, 200, 200))
CASES = tuple(Case(cell, *shape) for cell in CELLS for shape in SHAPES)

GATES = {"LSTM": 4, "GRU": 3, "Elman": 1}  # the cells that other libraries have too, and their gates
PEER_SHAPES = (
    *SHAPES,
    (20, 35, 200, 200),
    (32, 512, 512, 512),
    (128, 784, 1, 128),
    (1, 256, 32, 32),
    (8, 1000, 64, 64),
)
STEP_SIZES = 64, 256, 1024  # inputs and units, as many of each, of one step of one sequence
QUICK_STEP_SIZES = (16,)

QUICK_SHAPES = ((4, 8, 16, 16), (2, 128, 16, 16))
QUICK_CASES = tuple(Case(cell, *shape) for cell in CELLS for shape in QUICK_SHAPES)

ENGINES: dict[str, AbstractEngine] = {
    "Scan": Scan(),
    "Fused": Fused(),
    "Unrolled": Unrolled(),
    "Checkpointed": Checkpointed(),
    "Associative": Associative(),
}

UNROLLED_STEPS = 64  # a gradient of so many steps takes the better part of a minute to compile


def draw(case: Case) -> tuple[AbstractCell, Float[Array, "B T I"]]:
    """The case's cell, and a batch of random sequences for it."""
    (weights, inputs), dtype = jax.random.split(jax.random.key(0)), jnp.dtype(case.dtype)
    heads = {} if case.heads == 1 else {"heads": case.heads}  # some cells have none
    cell = CELLS[case.cell](case.I, case.H, key=weights, dtype=dtype, **heads)
    return cell, jax.random.normal(inputs, (case.B, case.T, case.I), dtype)


def refusal(engine: AbstractEngine, cell: AbstractCell, case: Case) -> str | None:
    """Why `engine` is not measured on this case; None if it is."""
    if isinstance(engine, Unrolled) and case.T > UNROLLED_STEPS:
        return f"Unrolled is not compiled for T = {case.T}: minutes, beyond {UNROLLED_STEPS} steps."
    return why_not(engine, cell, jax.ShapeDtypeStruct((case.T, case.I), jnp.dtype(case.dtype)))


def why_not(engine: AbstractEngine, cell: AbstractCell, xs: Any) -> str | None:
    """Why `engine` cannot run `cell`; None if it can."""
    plan = engine.plan(cell, xs)
    return str(plan) if isinstance(plan, Refusal) else None
