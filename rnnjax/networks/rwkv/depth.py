"""Initial values of RWKV that depend on a layer's depth and on the place of a unit."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType, carry_dtype
from ...checked import Checked
from .parts import LowRank


class Depth(NamedTuple):
    """The number of a layer, from 0, among so many layers."""

    layer: int
    layers: int

    @staticmethod
    def of(layer: Checked[int], layers: Checked[int]) -> "Depth":
        """Raises unless `layer` is one of the `layers`."""
        check.sizes(layers=layers)
        check.count("layer", layer, 0)
        if layer >= layers:
            raise ValueError(
                f"layer: expected a number from 0 to {layers - 1}, below layers={layers}, got {layer}. "
                "Number the layers from 0"
            )
        return Depth(int(layer), int(layers))

    @property
    def below(self) -> float:
        """The share of the other layers that is below this one, from 0 to 1."""
        return self.layer / max(1, self.layers - 1)

    @property
    def above(self) -> float:
        """The share of the layers that is not below this one: from 1 to almost 0."""
        return 1 - self.layer / self.layers

    @property
    def norm_weight(self) -> float:
        """The initial weight of the normalisation of what the heads read."""
        return ((self.layer + 1) / self.layers) ** 0.7


def shift(size: int, exponent: float) -> np.ndarray:
    """How much each feature takes from the step before: all of the first one, and less and less of the others."""
    return 1 - (np.arange(size) / size) ** exponent


def ramp(size: int) -> np.ndarray:
    """From 0 to 1, linear in the number of the unit."""
    return np.arange(size) / max(1, size - 1)


def heads_of(hidden_size: Checked[int], head_size: Checked[int]) -> int:
    """The number of heads. Raises unless `head_size` divides `hidden_size`."""
    check.sizes(hidden_size=hidden_size, head_size=head_size)
    if hidden_size % head_size:
        larger = -(-hidden_size // head_size) * head_size
        raise ValueError(
            f"head_size: expected a divisor of hidden_size={hidden_size}, got {head_size}. "
            f"Take hidden_size={larger}, or another head_size"
        )
    return hidden_size // head_size


def orthogonal(key: PRNGKeyArray, inputs: int, outputs: int, gain: float, dtype: DType) -> Array:
    """A matrix of `gain` times orthonormal rows or columns."""
    drawn = random.known(initialise.orthogonal(key, (inputs, outputs), carry_dtype(dtype)))
    return random.array(gain * drawn, dtype)


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], bound: float, dtype: DType) -> Array:
    """Weights uniform within `bound`."""
    return random.array(random.uniform(key, shape, dtype, -bound, bound), dtype)


def zigzag_of(size: int, head_size: int) -> np.ndarray:
    """From -1 to 1 within each head, flat in the middle."""
    place = 2 * ramp(head_size) - 1
    return np.tile(place * np.abs(place), size // head_size)


def low_rank(
    key: PRNGKeyArray, name: str, rank: Checked[int | None], scale: float, offset: Array, has_offset: bool = True
) -> LowRank:
    """Of `rank`, or of the one that `scale` gives; A is zero and B orthogonal."""
    (size,), dtype = offset.shape, offset.dtype
    rank = max(32, round(scale * math.sqrt(size) / 32) * 32) if rank is None else rank
    check.sizes(**{name: rank})
    up = orthogonal(key, rank, size, 0.1 * math.sqrt(max(1.0, rank / size)), dtype)
    return LowRank(random.zeros((size, rank), dtype), up, offset if has_offset else None)
