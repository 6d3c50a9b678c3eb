"""Ways to merge two outputs: those of both directions, or the inputs and the outputs of a layer."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import PyTree
from ..exporting import exportable


@exportable
class Directions(NamedTuple):
    """A pair with one element for each direction of a `Bidirectional`: states, or outputs merged by `pair`."""

    forward: PyTree
    backward: PyTree


def concatenate(first: Array, second: Array) -> Array:
    """Both, concatenated along the features."""
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
    """Both, as a pair."""
    return Directions(first, second)
