"""A small training run in a process of its own, for `test_training` to kill: `python killed_run.py FOLDER [resume]`."""

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import rnnjax

STEPS = 90  # three epochs of thirty chunks, so that the streams wrap
B, T, H = 4, 5, 6
TEXT = "the quick brown fox jumps over the lazy dog, and back; " * 12
SYMBOLS = sorted(set(TEXT))
TOKENS = np.array([SYMBOLS.index(symbol) for symbol in TEXT])


def language_model(key: jax.Array) -> rnnjax.LanguageModel:
    layers = [rnnjax.Elman(H, H, key=jax.random.fold_in(key, layer)) for layer in range(2)]
    return rnnjax.LanguageModel(len(SYMBOLS), rnnjax.Stack(layers, dropout=0.3), key=key)


@lru_cache
def held_out() -> Any:
    """The loss on the text's last steps, nothing dropped, as a function of the model."""
    chunk = rnnjax.streams(TOKENS[-B * T - 1 :], B, T)(0)
    return jax.jit(lambda model: rnnjax.language_loss(model, rnnjax.batch_of_states(model, B), chunk, None)[0])


def train(folder: str | Path, resume: bool) -> rnnjax.Fitted:
    model = language_model(jax.random.key(3))
    return rnnjax.fit(
        model,
        rnnjax.language_loss,
        rnnjax.streams(TOKENS[: 30 * B * T + 1], B, T),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
        steps=STEPS,
        key=jax.random.key(4),
        carry=rnnjax.batch_of_states(model, B),
        validate=held_out(),
        every=1,
        folder=folder,
        resume=resume,
        progress=False,
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    train(sys.argv[1], sys.argv[2:] == ["resume"])
