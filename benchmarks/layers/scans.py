"""rnnjax's layers, one for each engine, prepared ones, and the scan that one would write without it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import CELLS, GATES, Case, draw, why_not
from benchmarks.layers.layer import FORWARD, GRADIENT, STEP, AbstractJaxLayer, Pure, Work, carried
from benchmarks.measure import Contestant
from rnnjax import AbstractEngine, AbstractGatedCell, Auto, prepare, unroll
from rnnjax.arrays import cast


class Ours(AbstractJaxLayer):
    """`vmap` of `unroll`, on one engine; a step is `unroll` of a sequence of one."""

    peer = None
    package = "rnnjax"
    directions = (FORWARD, GRADIENT, STEP)
    dtypes = ("float32", "bfloat16", "float16")

    def __init__(self, name: str, engine: AbstractEngine):
        self.name, self.engine = name, engine

    def names(self) -> Mapping[str, str]:
        return dict.fromkeys(CELLS, self.name)

    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        def function(cell, state, xs):
            last, ys = jax.vmap(lambda state, xs: unroll(cell, state, xs, engine=self.engine))(state, xs)
            return ys, last

        cell = draw_gated(case)
        return Pure(function, cell, cell.state_type(*state))

    def prepare(self, work: Work) -> Contestant:
        if work.direction != STEP:
            return super().prepare(work)
        cell, x = self.cell(work.case), jnp.asarray(work.xs[0])
        run = jax.jit(lambda cell, state, x: unroll(cell, state, x, engine=self.engine))
        return Contestant(self.name, carried(lambda state: run(cell, state, x)[0], cell.initial()))

    def cell(self, case: Case) -> Any:
        """What makes the steps."""
        return draw_gated(case)

    def refusal(self, case: Case, direction: str) -> str | None:
        cell, xs = draw(case)
        return super().refusal(case, direction) or why_not(self.engine, cell, xs[0])


class Prepared(Ours):
    """A cell whose weights are packed ahead of all calls, and stored in `dtype`; None: as they are."""

    directions = (STEP,)
    dtypes = ("float32",)

    def __init__(self, dtype: Any = None):
        super().__init__(prepared(dtype), Auto())
        self.dtype = dtype

    def cell(self, case: Case) -> Any:
        return prepare(draw_gated(case), self.dtype)


def prepared(dtype: Any) -> str:
    """The name of a prepared cell of float32, by the dtype that its weights are stored in."""
    return f"prepared {jnp.dtype(dtype or jnp.float32).name}"


class PlainScan(AbstractJaxLayer):
    """`lax.scan` by hand, both products inside the loop. (`Scan` is the other form: W x hoisted out of it.)"""

    peer = "jax"
    package = "jax"
    dtypes = ("float32", "bfloat16")

    def names(self) -> Mapping[str, str]:
        return dict.fromkeys(GATES, "lax.scan")

    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        def function(cell, state, xs):
            W, R, b = cell.input_weight, cell.recurrent_weight, cell.bias
            by_gate = (case.B, -1, case.H)

            def step(state, x):
                u, v = (x @ W + b).reshape(by_gate), (state.h.astype(R.dtype) @ R).reshape(by_gate)
                parameters, u, v = cast((cell.unit_parameters, u, v), state.h.dtype)
                state = jax.vmap(cell.pointwise, (None, 0, 0, 0))(parameters, u, v, state)
                return state, state.h.astype(x.dtype)

            last, ys = jax.lax.scan(step, state, xs.swapaxes(0, 1))
            return ys.swapaxes(0, 1), last

        cell = draw_gated(case)
        return Pure(function, cell, cell.state_type(*state))


def draw_gated(case: Case) -> AbstractGatedCell:
    """The case's cell with its weights."""
    cell, _ = draw(case)
    assert isinstance(cell, AbstractGatedCell)
    return cell
