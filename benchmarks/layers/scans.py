"""rnnjax's layers, one for each engine, and the scan that one would write without it."""

from collections.abc import Mapping

import jax

from benchmarks.cases import CELLS, GATES, Case, draw, why_not
from benchmarks.layers.layer import AbstractJaxLayer, Pure
from rnnjax import AbstractEngine, AbstractGatedCell, unroll
from rnnjax.arrays import cast


class Ours(AbstractJaxLayer):
    """`vmap` of `unroll`, on one engine."""

    peer = None
    package = "rnnjax"
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

    def refusal(self, case: Case, direction: str) -> str | None:
        cell, xs = draw(case)
        return super().refusal(case, direction) or why_not(self.engine, cell, xs[0])


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
