"""Skeleton of a new cell: copy it, change the equation, and every engine runs it. The tests run this file.

A gated cell is defined by its `pointwise`: the computation of each unit, given `u = W x + b` and `v = R h`. The
families, and what each requires, are in rnnjax/cell.py. Put the finished cell into rnnjax/cells/, export it from
rnnjax/__init__.py, and add it to CELLS in tests/helpers/grid.py and its NumPy step to tests/helpers/oracle.py: then the
grid and the laws test it. Until then `rnnjax.diagnose.check_cell` does.
"""

import argparse
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

import rnnjax
from rnnjax import check, initialise


class UpdateGateRNN(rnnjax.AbstractGatedCell):
    """The UGRNN of Collins, Sohl-Dickstein & Sussillo 2017, arXiv:1611.09913.

    z   = sigmoid(W x_t + R h_{t-1} + b)        n = tanh(W x_t + R h_{t-1} + b)
    h_t = z * h_{t-1} + (1 - z) * n
    """

    gates: ClassVar[str] = "zn"

    input_weight: jax.Array
    recurrent_weight: jax.Array
    bias: jax.Array
    initial_state: None

    def __init__(self, input_size: int, hidden_size: int, *, key: jax.Array, dtype=jnp.float32):
        """Draw the weights, [I, 2 H] and [H, 2 H], gate by gate; the letters say which gate keeps."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        keys = jax.random.split(key, 3)
        orthogonal, glorot = initialise.orthogonal, initialise.glorot
        self.input_weight = initialise.input_weight(glorot, keys[0], input_size, self.gates, hidden_size, dtype)
        self.recurrent_weight = initialise.recurrent_weight(orthogonal, keys[1], self.gates, hidden_size, 1, dtype)
        self.bias = initialise.bias(initialise.forget(1.0), keys[2], self.gates, hidden_size, dtype)
        self.initial_state = None

    def pointwise(self, parameters: None, u: jax.Array, v: jax.Array, state: rnnjax.Hidden) -> rnnjax.Hidden:
        del parameters
        z, n = u + v
        z = sigmoid(z)
        return rnnjax.Hidden(z * state.h + (1 - z) * jnp.tanh(n))


def main() -> None:
    """Run it by three engines, differentiate it, and hold it to the laws."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cell = UpdateGateRNN(3, 8, key=jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (100, 3))
    for engine in (rnnjax.Scan(), rnnjax.Checkpointed(), rnnjax.Fused()):
        loss = lambda cell, engine=engine: rnnjax.unroll(cell, None, xs, engine=engine)[1].sum()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(cell)
        print(f"{type(engine).__name__:<14} loss {value:.5f}   |dR| {jnp.linalg.norm(gradient.recurrent_weight):.5f}")
    print(rnnjax.explain(cell, xs))
    print(rnnjax.diagnose.check_cell(cell))


if __name__ == "__main__":
    main()
