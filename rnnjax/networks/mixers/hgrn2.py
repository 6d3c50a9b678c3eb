"""HGRN2: a gated linear recurrence whose keys are its input gates."""

from functools import partial

import jax.numpy as jnp
from jax.nn import sigmoid, silu
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check, initialise
from ...arrays import DType
from ...checked import Checked
from .decays import rest_of_key
from .maps import unchanged
from .matrix_mixer import MatrixMixer
from .norms import GroupedNorm
from .rows import divided


class HGRN2(MatrixMixer):
    """Qin et al. 2024, "HGRN2: gated linear RNNs with state expansion", arXiv:2404.07904.

        f     = l + (1 - l) sigmoid(W x)           q = silu(W x)        v = W x
        S_t   = f * S_{t-1} + (1 - f) v'           S: [K, V] for each of N heads
        y_t   = W_o norm(S_t' q / sqrt(K))         x, y: [I]; the norm is over all heads together

    The lower bound l of the forget gates is a constant. In the paper the bounds are learned: a cumulative softmax over
    the layers, which starts at l = i / L for layer i = 0, 1, .. of L. As in the released code (flash-linear-attention)
    there is no output gate.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        key_size: int = 128,
        heads: int | None = None,
        lower_bound: Checked[float] = 0.0,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights; V is I / N.

        key_size       K, keys of each head; the state has K numbers for each unit
        heads          N; None: I / K
        lower_bound    l, 0 <= l < 1
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, key_size=key_size)
        check.flags(learn_initial=learn_initial)
        check.dtype(dtype)
        bound = check.number("lower_bound", lower_bound)
        if not 0 <= bound < 1:
            raise ValueError(f"lower_bound: expected 0 <= lower_bound < 1, got {lower_bound!r}. Pass 0 for no bound")
        if heads is None and input_size % key_size:
            raise ValueError(
                f"key_size: expected a divisor of input_size={input_size} where heads is not given, got {key_size}. "
                "Pass heads, or another key_size"
            )
        heads = input_size // key_size if heads is None else heads
        check.sizes(heads=heads)
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=divided(None, input_size, 1.0, heads),
            key=key,
            query_map=silu,
            key_map=partial(input_gate, lower_bound=bound),
            value_map=unchanged,
            decay=rest_of_key,
            norm=GroupedNorm(input_size, dtype=dtype),
            learn_initial=learn_initial,
            input_initialiser=input_initialiser,
            dtype=dtype,
        )


def input_gate(values: Float[Array, "*T K"], lower_bound: float) -> Float[Array, "*T K"]:
    """1 - f, for forget gates f of at least `lower_bound`."""
    return (1 - lower_bound) * sigmoid(-values)
