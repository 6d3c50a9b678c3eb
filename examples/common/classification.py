"""How often a classifier of sequences is right."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import rnnjax

AT_A_TIME = 1_000  # sequences


@eqx.filter_jit
def predict(model: Any, xs: Array, lengths: Array | None) -> Array:
    """The most probable class of each sequence."""
    return jax.vmap(lambda xs, length: model(xs, length=length))(xs, lengths).argmax(-1)


def accuracy(model: Any, sequences: rnnjax.models.Sequences) -> float:
    """The share of `sequences` that a `Classifier`, or a model called as one, classifies correctly."""
    xs, targets, lengths = jax.tree.map(jnp.asarray, sequences)
    parts = [slice(at, at + AT_A_TIME) for at in range(0, len(targets), AT_A_TIME)]
    predicted = [predict(model, xs[part], None if lengths is None else lengths[part]) for part in parts]
    return float(np.mean(np.concatenate(predicted) == sequences.targets))
