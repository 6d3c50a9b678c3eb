"""RetNet: linear attention with a fixed decay and a rotation of each head."""

import jax.numpy as jnp
from jax.nn import silu
from jaxtyping import PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType
from .decays import FixedDecay
from .maps import as_complex, as_conjugate
from .matrix_mixer import MatrixMixer
from .norms import HeadNorm
from .projected import Gate, Linear
from .rows import divided


class RetNet(MatrixMixer):
    """Sun et al. 2023, "Retentive network", arXiv:2307.08621: multi-scale retention.

        g_h   = 1 - 2^(-5-h)                                    the decay of head h = 0, 1, ..
        S_t   = g_h R S_{t-1} + k v'                            S: [K, V] for each of N heads; q, k, v = W x
        y_t   = W_o (norm(S_t' q / sqrt(K)) * silu(W x))        x, y: [I]

    R turns each of K / 2 pairs of keys by an angle of its own, 10000^(-2i/K): it is the rotary position embedding of
    queries and keys, as a part of the recurrence, so that the state needs no position. Pair i is the keys i and
    i + K / 2, and the state is complex, [K / 2, V].

    As in the released code (flash-linear-attention), the norm is an RMSNorm of each head. The paper divides scores by
    the sums of their sizes, which the norm nearly undoes.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 8,
        key_size: int | None = None,
        value_size: int | None = None,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        key_size, value_size    K, an even number, and V; None: I / N and 2 I / N
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, heads=heads)
        check.dtype(dtype)
        key_size = divided("key_size", input_size, 1.0, heads) if key_size is None else key_size
        value_size = divided("value_size", input_size, 2.0, heads) if value_size is None else value_size
        check.sizes(key_size=key_size, value_size=value_size)
        if key_size % 2:
            raise ValueError(f"key_size: expected an even number, got {key_size}. Pass key_size={key_size + 1}, say")
        own, gates = random.split(key, 2)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            key=own,
            query_map=as_conjugate,
            key_map=as_complex,
            decay=FixedDecay(
                tuple(1 - 2.0 ** (-5 - head) for head in range(heads)),
                tuple(10000 ** (-2 * pair / key_size) for pair in range(key_size // 2)),
            ),
            gate=Gate(Linear(input_size, heads * value_size, key=gates, **options), silu, heads),
            norm=HeadNorm(value_size, dtype=dtype),
            **options,
        )
