"""A small training run in a process of its own, for `test_training` to kill.

`python killed_run.py FOLDER STEP [resume]` waits before the step, so that it cannot end before the kill.
"""

import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import rnnjax

STEPS = 90  # three epochs of thirty chunks, so that the streams wrap
B, T, H = 2, 40, 6
SHARED = 200  # units of a sequence that `Fused` shares among its threads, where B is 2
TEXT = "the quick brown fox jumps over the lazy dog, and back; " * 48
SYMBOLS = sorted(set(TEXT))
TOKENS = np.array([SYMBOLS.index(symbol) for symbol in TEXT])

Batches = Callable[[int], rnnjax.training.Chunk]


def language_model(key: jax.Array) -> rnnjax.models.LanguageModel:
    keys = jax.random.split(key)
    layers = [rnnjax.Elman(H, H, key=keys[0]), rnnjax.LSTM(H, SHARED, key=keys[1])]
    return rnnjax.models.LanguageModel(len(SYMBOLS), rnnjax.Stack(layers, dropout=0.3), key=key)


@lru_cache
def held_out() -> Any:
    """The loss on the text's last steps, nothing dropped, as a function of the model."""
    chunk = rnnjax.training.streams(TOKENS[-B * T - 1 :], B, T)(0)
    return jax.jit(
        lambda model: rnnjax.models.language_loss(model, rnnjax.models.batch_of_states(model, B), chunk, None)[0]
    )


def batches() -> Batches:
    return rnnjax.training.streams(TOKENS[: 30 * B * T + 1], B, T)


def waiting(batches: Batches, last: int) -> Batches:
    """The same, but before one step the process waits for ten minutes, and then gives up."""

    def batch(step: int) -> rnnjax.training.Chunk:
        if step == last:
            time.sleep(600)
            sys.exit(f"nobody killed this process before step {step}")
        return batches(step)

    return batch


def train(folder: str | Path, batches: Batches, *, resume: bool) -> rnnjax.training.Fitted:
    model = language_model(jax.random.key(3))
    return rnnjax.training.fit(
        model,
        rnnjax.models.language_loss,
        batches,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
        steps=STEPS,
        key=jax.random.key(4),
        carry=rnnjax.models.batch_of_states(model, B),
        validate=held_out(),
        every=1,
        folder=folder,
        resume=resume,
        progress=False,
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    train(sys.argv[1], waiting(batches(), int(sys.argv[2])), resume=sys.argv[3:] == ["resume"])
