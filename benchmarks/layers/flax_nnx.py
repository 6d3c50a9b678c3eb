"""Flax: `nnx.RNN`, a scan over one of its cells."""
# pyright: reportMissingImports=false

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from benchmarks.cases import Case
from benchmarks.layers.layer import AbstractJaxLayer, Pure


class Flax(AbstractJaxLayer):
    """Of its two LSTM cells, the one with one product for all gates."""

    peer = "flax"
    package = "flax"

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "Elman": "SimpleCell"}

    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        cell = getattr(nnx, self.names()[case.cell])(case.I, case.H, rngs=nnx.Rngs(0))
        structure, weights, rest = nnx.split(nnx.RNN(cell, return_carry=True), nnx.Param, ...)

        def function(weights, state, xs) -> Any:
            last, ys = nnx.merge(structure, weights, rest)(xs, initial_carry=state)
            return ys, last

        return Pure(function, weights, state[::-1] if case.cell == "LSTM" else state[0])  # Flax has (c, h)
