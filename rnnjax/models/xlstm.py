"""xLSTM: a stack of blocks around matrix LSTMs and sLSTMs."""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .. import check, random
from ..arrays import DType
from ..checked import Checked
from ..network import AbstractNetwork
from ..networks.mlstm_block import MLSTMBlock
from ..networks.slstm_block import SLSTMBlock
from ..networks.stack import Stack
from ..networks.time_distributed import TimeDistributed


def xlstm_layers(
    input_size: int,
    blocks: int,
    *,
    key: PRNGKeyArray,
    slstm_at: Checked[Sequence[int]] = (),
    heads: int = 4,
    window: int = 4,
    dtype: DType = jnp.float32,
) -> Stack:
    """Beck et al. 2024, "xLSTM: extended long short-term memory", arXiv:2405.04517: residual blocks, and a layer norm.

        network = models.xlstm_layers(128, 8, slstm_at=[1], key=key)     # xLSTM[7:1]
        model = models.LanguageModel(256, network, key=key)

    `networks.MLSTMBlock` everywhere but at the places `slstm_at`, which have `networks.SLSTMBlock`. xLSTM[a:b] of the
    paper has a blocks of the first kind to b of the second; xLSTM[7:1] with 48 blocks has those at 3, 5, 7, 40, 42, 44.
    `Auto` runs each kind by the engine made for it, from the number of steps on from which that is faster.

    input_size   the features of inputs, of outputs and between the blocks
    blocks       how many there are
    slstm_at     the places of the sLSTM blocks, from 0 for the lowest; all others are mLSTM blocks
    heads        of each block
    window       the steps that the convolution of each block sees
    dtype        of weights, inputs and outputs
    """
    check.sizes(input_size=input_size, blocks=blocks)
    places = _places(slstm_at, blocks)
    made: list[AbstractNetwork] = []
    for place, block_key in enumerate(random.split(key, blocks)):
        options = {"key": block_key, "heads": heads, "window": window, "blocks": blocks, "dtype": dtype}
        depth = place / max(blocks - 1, 1)
        made.append(
            SLSTMBlock(input_size, depth=depth, **options) if place in places else MLSTMBlock(input_size, **options)
        )
    norm = eqx.nn.LayerNorm(input_size, use_bias=False, dtype=dtype)
    return Stack([*made, TimeDistributed(norm, input_size, dtype=dtype)])


def _places(slstm_at: object, blocks: int) -> set[int]:
    """Raise unless they are places of blocks."""
    if not isinstance(slstm_at, Iterable):
        raise TypeError(f"slstm_at: expected places of blocks, got {slstm_at!r}. Write slstm_at=[1]")
    places = list(slstm_at)
    for place in places:
        if not isinstance(place, int | np.integer) or not 0 <= place < blocks:
            raise ValueError(
                f"slstm_at: expected integers from 0 to {blocks - 1}, got {place!r}. Count blocks from 0, the lowest"
            )
    return set(places)
