"""Blocks of RWKV, and stacks of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ... import check, random
from ...arrays import DType, Inputs
from ...exporting import exportable
from ...network import AbstractNetwork, Options
from ...unroll import unroll
from ..layer import check_layer
from ..stack import Stack
from ..time_distributed import TimeDistributed
from ..window import Window
from .channel_mixing import ChannelMixing
from .norm import layer_norm
from .parts import RWKVState
from .rwkv6 import RWKV6
from .rwkv7 import RWKV7, Valued


@exportable
class RWKVBlockState(NamedTuple):
    """The states of the two layers of a block."""

    time: RWKVState
    channel: Window


class RWKVBlock(AbstractNetwork):
    """x <- x + time_mixing(norm(x)), and then x + channel_mixing(norm(x)), the norms being layer normalisations.

    If the inputs of the time mixing are pairs with the values of the first layer, those of the block are, too; the
    values are not normalised. If the outputs of the time mixing are such pairs, those of the block are, too.
    """

    time_norm: eqx.nn.LayerNorm
    time_mixing: RWKV6 | RWKV7
    channel_norm: eqx.nn.LayerNorm
    channel_mixing: ChannelMixing

    def __init__(self, time_mixing: RWKV6 | RWKV7, channel_mixing: ChannelMixing):
        """Two layers of one size and one dtype; the norms are new."""
        check_layer("time_mixing", time_mixing)
        check_layer("channel_mixing", channel_mixing)
        one = channel_mixing.input_type()
        if jax.tree.leaves(time_mixing.input_type())[0] != one:
            raise ValueError(
                f"channel_mixing: expected inputs {check.show(jax.tree.leaves(time_mixing.input_type())[0])}, those of "
                f"time_mixing, got {check.show(one)}. Give the two layers one size and one dtype"
            )
        self.time_mixing, self.channel_mixing = time_mixing, channel_mixing
        self.time_norm, self.channel_norm = (layer_norm(one.shape[0], one.dtype) for _ in range(2))

    def input_type(self) -> Any:
        return self.time_mixing.input_type()

    def initial(self) -> RWKVBlockState:
        return RWKVBlockState(self.time_mixing.initial(), self.channel_mixing.initial())

    def run(
        self, state: RWKVBlockState, xs: Inputs | Valued, options: Options
    ) -> tuple[RWKVBlockState, Inputs | Valued]:
        own, first = (xs, None) if isinstance(xs, Array) else xs
        inner = options.over_time(jax.vmap(self.time_norm), own)
        given = inner if first is None else (inner, first)
        time, made = unroll(self.time_mixing, state.time, given, **options._asdict())
        added, first = (made, None) if isinstance(made, Array) else made
        ys = options.over_time(jnp.add, own, added)
        inner = options.over_time(jax.vmap(self.channel_norm), ys)
        channel, added = unroll(self.channel_mixing, state.channel, inner, **options._asdict())
        ys = options.over_time(jnp.add, ys, added)
        return RWKVBlockState(time, channel), ys if first is None else (ys, first)


def rwkv6_layers(
    hidden_size: int,
    layers: int,
    *,
    key: PRNGKeyArray,
    head_size: int = 64,
    inner_size: int | None = None,
    mix_rank: int = 32,
    decay_rank: int = 64,
    learn_initial: bool = False,
    dtype: DType = jnp.float32,
) -> Stack:
    """The network of RWKV-6: a layer normalisation, blocks of `RWKV6` and gated `ChannelMixing`, a normalisation.

    The arguments are as in `rwkv7_layers` and `RWKV6`.
    """
    make = partial(
        RWKV6, head_size=head_size, mix_rank=mix_rank, decay_rank=decay_rank, learn_initial=learn_initial, dtype=dtype
    )
    channel = partial(ChannelMixing, inner_size=inner_size, gated=True, dtype=dtype)
    return _layers(make, channel, hidden_size, layers, key, dtype)


def rwkv7_layers(
    hidden_size: int,
    layers: int,
    *,
    key: PRNGKeyArray,
    head_size: int = 64,
    inner_size: int | None = None,
    decay_rank: int | None = None,
    rate_rank: int | None = None,
    value_rank: int | None = None,
    gate_rank: int | None = None,
    learn_initial: bool = False,
    dtype: DType = jnp.float32,
) -> Stack:
    """The network of RWKV-7: a layer normalisation, blocks of `RWKV7` and `ChannelMixing`, a normalisation.

        network = rnnjax.networks.rwkv7_layers(512, 6, key=key)
        model = rnnjax.models.LanguageModel(vocabulary_size, network, key=key)

    The values of the first layer are handed on to all others: see `RWKV7`, which also says how to train it. Its weight
    decay is for these leaves:

        def decays(path, leaf):
            return path[-1].name.endswith("weight") and leaf.ndim > 1

        mask = jax.tree_util.tree_map_with_path(decays, model)  # of optax.adamw(..., mask=mask)

    The author draws the embedding uniform within 1e-4; and the output weight [V, I] orthogonal, with a gain of
    0.5 sqrt(max(1, V / I)). A `LanguageModel` draws its own; `eqx.tree_at` replaces them.

    hidden_size   of inputs and outputs, a multiple of `head_size`
    layers        how many blocks
    inner_size    of the channel mixing; None: as in `ChannelMixing`
    dtype         of weights, inputs and outputs
    The other arguments are as in `RWKV7`.
    """
    ranks = {"decay_rank": decay_rank, "rate_rank": rate_rank, "value_rank": value_rank, "gate_rank": gate_rank}
    of_all = partial(RWKV7, head_size=head_size, learn_initial=learn_initial, dtype=dtype, **ranks)

    def make(size: int, *, key: PRNGKeyArray, layer: int, layers: int) -> RWKV7:
        takes, gives = layer > 0, layer + 1 < layers
        return of_all(size, key=key, layer=layer, layers=layers, takes_value=takes, gives_value=gives)

    return _layers(make, partial(ChannelMixing, inner_size=inner_size, dtype=dtype), hidden_size, layers, key, dtype)


def _layers(
    make: Callable[..., RWKV6 | RWKV7],
    make_channel: Callable[..., ChannelMixing],
    size: int,
    layers: int,
    key: PRNGKeyArray,
    dtype: DType,
) -> Stack:
    check.sizes(layers=layers)
    norms = [TimeDistributed(layer_norm(size, dtype), size, dtype=dtype) for _ in range(2)]
    blocks = []
    for layer, layer_key in enumerate(random.split(key, layers)):
        keys, place = random.split(layer_key, 2), {"layer": layer, "layers": layers}
        time_mixing = make(size, key=keys[0], **place)
        blocks.append(RWKVBlock(time_mixing, make_channel(size, key=keys[1], **place)))
    return Stack([norms[0], *blocks, norms[1]])
