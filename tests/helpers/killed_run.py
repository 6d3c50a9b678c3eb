"""A small training run in a process of its own, for `test_training` to kill: `python killed_run.py FOLDER [resume]`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax

STEPS = 150  # three epochs of fifty chunks, so that the streams wrap
TEXT = "the quick brown fox jumps over the lazy dog, and back; " * 37
SYMBOLS = sorted(set(TEXT))
TOKENS = np.array([SYMBOLS.index(symbol) for symbol in TEXT])


@jax.jit
def language_model(key: jax.Array) -> rnnjax.LanguageModel:
    keys = jax.random.split(key, 3)
    layers = [rnnjax.LSTM(6, 8, key=keys[0]), rnnjax.GRU(8, 8, key=keys[1])]
    return rnnjax.LanguageModel(len(SYMBOLS), rnnjax.Stack(layers, dropout=0.3), key=keys[2])


@jax.jit
def held_out(model: rnnjax.LanguageModel) -> jax.Array:
    """The loss on the text's last steps, nothing dropped."""
    chunk = rnnjax.streams(TOKENS[-41:], 4, 10)(0)
    return rnnjax.language_loss(model, rnnjax.batch_of_states(model, 4), jax.tree.map(jnp.asarray, chunk), None)[0]


def train(folder: str, resume: bool) -> rnnjax.Fitted:
    model = language_model(jax.random.key(3))
    return rnnjax.fit(
        model,
        rnnjax.language_loss,
        rnnjax.streams(TOKENS[:-40], 4, 10),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
        steps=STEPS,
        key=jax.random.key(4),
        carry=rnnjax.batch_of_states(model, 4),
        validate=held_out,
        every=1,
        folder=folder,
        resume=resume,
        progress=False,
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    train(sys.argv[1], sys.argv[2:] == ["resume"])
