"""The normalisations of RWKV, layers of Equinox that are made without compiling anything."""

from functools import partial
from typing import Any

import equinox as eqx
import numpy as np

from ... import random
from ...arrays import DType


def layer_norm(size: int, dtype: DType) -> eqx.nn.LayerNorm:
    """Of all features together."""
    return _with_weights(partial(eqx.nn.LayerNorm, size, dtype=dtype), 1.0, size, dtype)


def group_norm(heads: int, size: int, weight: float, dtype: DType) -> eqx.nn.GroupNorm:
    """Of the features of each head, with an epsilon of 64e-5."""
    return _with_weights(partial(eqx.nn.GroupNorm, heads, size, eps=64e-5, dtype=dtype), weight, size, dtype)


def _with_weights(make: Any, weight: float, size: int, dtype: DType) -> Any:
    """What `make` makes, with this weight and a bias of zero."""
    arrays = random.array(np.full(size, weight), dtype), random.zeros(size, dtype)
    return eqx.tree_at(lambda norm: (norm.weight, norm.bias), eqx.filter_eval_shape(make), arrays)
