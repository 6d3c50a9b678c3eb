"""Recurrent layers by name, and language models that stack them in blocks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

import rnnjax
from rnnjax import networks

Mixer = Callable[[int, int, PRNGKeyArray], Any]  # of width, heads and key: a layer of that width


def of_heads(layer: Callable[..., Any], **options: Any) -> Mixer:
    """A layer whose heads have width / heads keys and values."""
    return lambda width, heads, key: layer(width, heads=heads, key=key, **options)


def of_wide_heads(layer: Callable[..., Any], **options: Any) -> Mixer:
    """A layer whose heads have width / heads keys and twice as many values, which is what Mamba-2 has."""
    return lambda width, heads, key: layer(width, heads=heads, key_size=width // heads, key=key, **options)


def of_units(layer: Callable[..., Any]) -> Mixer:
    """A layer of as many units as the width, in heads."""
    return lambda width, heads, key: layer(width, width, heads=heads, key=key)


def without_heads(cell: Callable[..., rnnjax.AbstractCell]) -> Mixer:
    """A cell of as many units as the width."""
    return lambda width, _, key: cell(width, width, key=key)


MIXERS: dict[str, Mixer] = {
    "linear_attention": of_heads(networks.LinearAttention),
    "retnet": of_heads(networks.RetNet),
    "gla": of_heads(networks.GLA),
    "hgrn2": lambda width, heads, key: networks.HGRN2(width, key_size=width // heads, key=key),
    "mamba": lambda width, _, key: networks.Mamba(width, key=key),
    "mamba2": lambda width, heads, key: networks.Mamba2(
        width, head_size=2 * width // heads, states=width // heads, key=key
    ),
    "deltanet": of_heads(networks.DeltaNet),
    "deltanet_signed": of_heads(networks.DeltaNet, negative_eigenvalues=True),
    "deltaproduct": of_wide_heads(networks.DeltaProduct, forget_gate=False, negative_eigenvalues=False),
    "deltaproduct_signed": of_wide_heads(networks.DeltaProduct, forget_gate=False),
    "gated_deltanet": of_wide_heads(networks.GatedDeltaNet),
    "gated_deltanet_signed": of_wide_heads(networks.GatedDeltaNet, negative_eigenvalues=True),
    "kda": of_heads(networks.KDA),
    "mlstm": of_units(networks.MLSTM),
    "slstm": of_units(rnnjax.cells.SLSTM),
    "rwkv6": lambda width, heads, key: networks.RWKV6(width, head_size=width // heads, key=key),
    "rwkv7": lambda width, heads, key: networks.RWKV7(width, head_size=width // heads, key=key),
    "lstm": without_heads(rnnjax.LSTM),
    "gru": without_heads(rnnjax.GRU),
    "elman": without_heads(rnnjax.Elman),
    "min_gru": without_heads(rnnjax.MinGRU),
}


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
