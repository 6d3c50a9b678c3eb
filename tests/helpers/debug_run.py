"""Ordinary calls, in which nothing is NaN, under debugging options of JAX: `debug_run.py OPTION=VALUE ...`."""

import ast
import sys

import equinox as eqx
import grid
import jax
import numpy as np

import rnnjax

PARTS = ("lstm_options", "lru", "sru", "diagonal_gru", "bidirectional", "qrnn", "rg_lru", "depthwise_convolution")


def main() -> None:
    options = dict(argument.split("=") for argument in sys.argv[1:])
    jax.config.update("jax_enable_x64", True)
    parts = [grid.build(name) for name in PARTS]  # the grid's own noise is not under test
    xs, resets = grid.inputs(9), grid.place(np.arange(9) == 4)
    for option, value in options.items():
        jax.config.update(option, ast.literal_eval(value))
    # Outside of `jit` a guard of transfers forbids JAX's own operations; inside, constants are none.
    run = eqx.filter_jit if "jax_transfer_guard" in options else lambda function: function

    def loss(part: rnnjax.AbstractCell, xs: jax.Array, engine: rnnjax.AbstractEngine) -> jax.Array:
        return rnnjax.unroll(part, None, xs, length=8, resets=resets, reverse=True, engine=engine)[1].sum()

    for part in parts:
        for engine in (rnnjax.Auto(), rnnjax.Checkpointed(3)):
            run(eqx.filter_value_and_grad(loss))(part, xs, engine)
        run(rnnjax.unroll)(part, None, xs, resets=resets, engine=rnnjax.Scan())
    run(rnnjax.unroll)(parts[0], None, xs, engine=rnnjax.Fused(min_steps=1, min_units=1))
    if "jax_transfer_guard" in options:
        print("done")
        return
    logits = np.ones((2, 4))
    rnnjax.models.cross_entropy(logits, np.arange(2))
    rnnjax.models.binary_cross_entropy(logits, np.ones((2, 4)))
    model = rnnjax.models.LanguageModel(7, rnnjax.GRU(4, 5, key=grid.KEY), key=grid.KEY)
    model.logits(None, np.arange(5))
    print("done")


if __name__ == "__main__":
    main()
