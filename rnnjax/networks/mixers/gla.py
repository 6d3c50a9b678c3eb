"""Gated linear attention: a decay for each key, of low rank in the input."""

from functools import partial

import jax.numpy as jnp
from jax.nn import silu
from jaxtyping import PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType
from .maps import root_of_sigmoid
from .matrix_mixer import MatrixMixer
from .norms import HeadNorm
from .projected import Gate, Linear, LowRank
from .rows import divided


class GLA(MatrixMixer):
    """Yang et al. 2023, "Gated linear attention transformers with hardware-efficient training", arXiv:2312.06635.

        a     = sigmoid(P W x + b)^(1/16)                       a decay for each key, of rank 16
        S_t   = a * S_{t-1} + k v'                              q, k, v = W x; S: [K, V] for each of N heads
        y_t   = W_o (norm(S_t' q / sqrt(K)) * silu(W x))        x, y: [I]

    As in the released code (flash-linear-attention), the norm is an RMSNorm and the output gate has no bias, where the
    paper has a LayerNorm and a bias.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 4,
        key_size: int | None = None,
        value_size: int | None = None,
        rank: int = 16,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights; b is zero.

        key_size, value_size    K and V; None: I / 2 N and I / N
        rank                    of the decay's projection
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, heads=heads, rank=rank)
        check.flags(learn_initial=learn_initial)
        check.dtype(dtype)
        key_size = divided("key_size", input_size, 0.5, heads) if key_size is None else key_size
        value_size = divided("value_size", input_size, 1.0, heads) if value_size is None else value_size
        own, decays, gates = random.split(key, 3)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        bias = random.zeros(heads * key_size, dtype)
        logits = LowRank(input_size, rank, heads * key_size, key=decays, bias=bias, **options)
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            key=own,
            decay=Gate(logits, partial(root_of_sigmoid, root=16.0), heads),
            gate=Gate(Linear(input_size, heads * value_size, key=gates, **options), silu, heads),
            norm=HeadNorm(value_size, dtype=dtype),
            learn_initial=learn_initial,
            **options,
        )
