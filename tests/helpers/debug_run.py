"""Calls outside of `jit`, in which nothing is NaN, under a debugging option of JAX: `debug_run.py OPTION VALUE`."""

import ast
import sys

import equinox as eqx
import grid
import jax
import numpy as np

import rnnjax

PARTS = ("lstm_options", "lru", "sru", "diagonal_gru", "bidirectional", "qrnn", "rg_lru", "depthwise_convolution")


def main() -> None:
    option, value = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    parts = [grid.build(name) for name in PARTS]  # the grid's own noise is not under test
    jax.config.update(option, ast.literal_eval(value))
    xs, resets = grid.inputs(9), np.arange(9) == 4

    def loss(part: rnnjax.AbstractCell, xs: jax.Array) -> jax.Array:
        return rnnjax.unroll(part, None, xs, length=8, resets=resets, reverse=True)[1].sum()

    for part in parts:
        eqx.filter_value_and_grad(loss)(part, xs)
        rnnjax.unroll(part, None, xs, resets=resets, engine=rnnjax.Scan())
    logits = np.ones((2, 4))
    rnnjax.cross_entropy(logits, np.arange(2))
    rnnjax.binary_cross_entropy(logits, np.ones((2, 4)))
    model = rnnjax.LanguageModel(7, rnnjax.GRU(4, 5, key=grid.KEY), key=grid.KEY)
    model.logits(None, np.arange(5))
    print("done")


if __name__ == "__main__":
    main()
