"""Equinox: a scan over one of its cells, as in its documentation, and `vmap`."""

from collections.abc import Mapping

import equinox as eqx
import jax

from benchmarks.cases import Case
from benchmarks.layers.layer import AbstractJaxLayer, Pure


class Equinox(AbstractJaxLayer):
    """Cells of one step of one sequence: the user writes the loop and the batch."""

    peer = "equinox"
    package = "equinox"

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "LSTMCell", "GRU": "GRUCell"}

    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        cell = getattr(eqx.nn, self.names()[case.cell])(case.I, case.H, key=jax.random.key(0))

        def unroll(cell, state, xs):
            def step(state, x):
                state = cell(x, state)
                return state, jax.tree.leaves(state)[0]  # h

            last, ys = jax.lax.scan(step, state, xs)
            return ys, last

        return Pure(jax.vmap(unroll, (None, 0, 0)), cell, state if case.cell == "LSTM" else state[0])
