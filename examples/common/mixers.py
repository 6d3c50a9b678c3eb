"""Recurrent layers by name, and language models that stack them in blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

import rnnjax
from rnnjax import networks

Mixer = Callable[[int, int, PRNGKeyArray], Any]  # of width, heads and key: a layer from a width to the same


def with_heads(layer: Callable[..., Any], **options: Any) -> Mixer:
    """A layer whose heads have keys of width / heads."""
    return lambda width, heads, key: layer(width, heads=heads, key=key, **options)


def gated_deltanet(width: int, heads: int, key: PRNGKeyArray, **options: Any) -> Any:
    """Keys of width / heads and values of twice that, as `mamba2` has: states of the same size."""
    return networks.GatedDeltaNet(width, heads=heads, key_size=width // heads, key=key, **options)


def mamba2(width: int, heads: int, key: PRNGKeyArray) -> Any:
    """Keys of width / heads, which the heads share, and values of twice that."""
    return networks.Mamba2(width, head_size=2 * width // heads, states=width // heads, key=key)


def with_units(layer: Callable[..., Any]) -> Mixer:
    """A layer of heads with as many units as the width."""
    return lambda width, heads, key: layer(width, width, heads=heads, key=key)


def rwkv7(width: int, heads: int, key: PRNGKeyArray) -> Any:
    """The time mixing without value residual."""
    return networks.RWKV7(width, head_size=width // heads, key=key)


def without_heads(cell: Callable[..., rnnjax.AbstractCell]) -> Mixer:
    """A cell of as many units as the width."""
    return lambda width, _, key: cell(width, width, key=key)


MIXERS: dict[str, Mixer] = {
    "deltanet": with_heads(networks.DeltaNet),
    "deltanet_signed": with_heads(networks.DeltaNet, negative_eigenvalues=True),
    "gated_deltanet": gated_deltanet,
    "gated_deltanet_signed": partial(gated_deltanet, negative_eigenvalues=True),
    "mamba2": mamba2,
    "mlstm": with_units(networks.MLSTM),
    "rwkv7": rwkv7,
    "lstm": without_heads(rnnjax.LSTM),
    "gru": without_heads(rnnjax.GRU),
    "elman": without_heads(rnnjax.Elman),
    "min_gru": without_heads(rnnjax.MinGRU),
}
ENGINE = rnnjax.Auto((rnnjax.engines.Chunked(8), *rnnjax.Auto().candidates))


def beside(width: int, layer: Any) -> rnnjax.AbstractNetwork:
    """A layer with a normalisation before it and a residual connection around both."""
    norm = rnnjax.TimeDistributed(eqx.nn.RMSNorm(width), width)
    return rnnjax.residual(rnnjax.Stack([norm, layer]))


def perceptron(width: int, key: PRNGKeyArray) -> rnnjax.AbstractNetwork:
    """Twice the width inside."""
    keys = jax.random.split(key)
    up, down = eqx.nn.Linear(width, 2 * width, key=keys[0]), eqx.nn.Linear(2 * width, width, key=keys[1])
    return rnnjax.TimeDistributed(eqx.nn.Sequential([up, eqx.nn.Lambda(jax.nn.gelu), down]), width)


def build_language_model(
    vocabulary: int, width: int, heads: int, mixers: list[str], key: PRNGKeyArray, *, perceptrons: bool
) -> rnnjax.models.LanguageModel:
    """A block for each of the mixers: the mixer and, with `perceptrons`, a perceptron after it."""
    keys = jax.random.split(key, 2 * len(mixers) + 1)
    layers = []
    for number, name in enumerate(mixers):
        layers.append(beside(width, MIXERS[name](width, heads, keys[2 * number + 1])))
        if perceptrons:
            layers.append(beside(width, perceptron(width, keys[2 * number + 2])))
    norm = rnnjax.TimeDistributed(eqx.nn.RMSNorm(width), width)
    return rnnjax.models.LanguageModel(vocabulary, rnnjax.Stack([*layers, norm]), key=keys[0])
