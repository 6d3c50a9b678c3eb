"""`jax.experimental.rnn`: JAX's binding of cuDNN's LSTM."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import rnn

from benchmarks.cases import Case
from benchmarks.layers.layer import AbstractJaxLayer, Pure


class CuDNN(AbstractJaxLayer):
    """An LSTM in float32, with the algorithm that cuDNN calls standard; each call waits for the device."""

    peer = "jax.experimental.rnn"
    package = "jax"

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "lstm"}

    def refusal(self, case: Case, direction: str) -> str | None:
        if case.heads > 1:
            return "jax.experimental.rnn has no heads"
        return super().refusal(case, direction)

    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        sizes = case.I, case.H, 1  # layers
        lstm: Any = rnn.lstm  # its annotation has fewer results than it returns
        weights = rnn.init_lstm_weight(jax.random.key(0), *sizes, bidirectional=False)
        lengths = jax.numpy.full(case.B, case.T, jax.numpy.int32)

        def function(weights, state, xs):
            h, c = (field[None] for field in state)
            ys, h, c = lstm(xs, h, c, weights, lengths, *sizes, dropout=0.0, bidirectional=False)
            return ys, (h, c)

        return Pure(function, weights, state)
