"""Keras on JAX: `LSTM`, `GRU` and `SimpleRNN`, called without side effects."""
# pyright: reportMissingImports=false

import os
from collections.abc import Mapping

import jax

os.environ["KERAS_BACKEND"] = "jax"  # read once, when Keras is imported

import keras

from benchmarks.cases import Case
from benchmarks.layers.layer import AbstractJaxLayer, Pure


class Keras(AbstractJaxLayer):
    """The layers with their default options, but returning all outputs and the last state."""

    peer = "keras"
    package = "keras"

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "LSTM", "GRU": "GRU", "Elman": "SimpleRNN"}

    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        layer = getattr(keras.layers, self.names()[case.cell])(case.H, return_sequences=True, return_state=True)
        layer.build((case.B, case.T, case.I))
        others = [variable.value for variable in layer.non_trainable_variables]

        def function(weights, state, xs):
            (ys, *last), _ = layer.stateless_call(weights, others, xs, initial_state=list(state))
            return ys, last

        return Pure(function, [variable.value for variable in layer.trainable_variables], state)
