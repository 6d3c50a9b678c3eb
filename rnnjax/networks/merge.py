"""Ways to merge two outputs: those of both directions, or the inputs and the outputs of a layer."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import PyTree
from ..exporting import exportable


@exportable
class Directions(NamedTuple):
    """One thing for each direction of a `Bidirectional`: layers, states, or outputs of the merge `pair`."""

    forward: PyTree
    backward: PyTree


def concatenate(first: Array, second: Array) -> Array:
    """Both, along the features."""
    return jnp.concatenate([first, second], axis=-1)


def add(first: Array, second: Array) -> Array:
    """The sum."""
    return first + second


def average(first: Array, second: Array) -> Array:
    """The mean."""
    return (first + second) / 2


def multiply(first: Array, second: Array) -> Array:
    """The product."""
    return first * second


def pair(first: Array, second: Array) -> Directions:
    """Both, apart."""
    return Directions(first, second)
