"""Kimi delta attention: the delta rule with a decay for each key."""

import jax.numpy as jnp
from jax.nn import sigmoid, silu
from jaxtyping import PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType
from ...cells.s6 import draw_step_bias
from .decays import StepSizeDecay, draw_log_rate
from .maps import normalised_silu, twice_sigmoid
from .matrix_mixer import MatrixMixer
from .norms import HeadNorm
from .projected import Gate, Linear, LowRank, written
from .rows import divided


class KDA(MatrixMixer):
    """Kimi Team 2025, "Kimi Linear: an expressive, efficient attention architecture", arXiv:2510.26692.

        q, k  = normalised(silu(c(W x)))           v = silu(c(W x))     c: a depthwise convolution of 4 steps
        a     = exp(-exp(L) softplus(P W x + d))   b = sigmoid(W x)     a: a number for each key, of rank V
        S_t   = (I - b k k') (a * S_{t-1}) + b k v'                     S: [K, V] for each of N heads; L: [N]
        y_t   = W_o (norm(S_t' q / sqrt(K)) * sigmoid(P W x + e))       x, y: [I]; the gate is of rank V, too

    With `negative_eigenvalues`, b is 2 sigmoid(W x). As in the released code (flash-linear-attention), SiLU comes
    before the normalisation, v / sqrt(|v|^2 + 1e-6). Its bounded gate, for kernels that divide by decays, is not here.
    With `key_heads`, each head has a decay and a strength of its own. That and the draw of d are those of its newest
    version; earlier ones have decays and strengths for key heads alone, and d is zero at first.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 16,
        key_size: int | None = None,
        value_size: int | None = None,
        key_heads: int | None = None,
        negative_eigenvalues: bool = False,
        convolution: int | None = 4,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: exp(L) is uniform from 1 to 16, softplus(d) log-uniform from 0.001 to 0.1, e is zero.

        key_size, value_size    K and V; None: I / N and K
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, heads=heads)
        check.flags(negative_eigenvalues=negative_eigenvalues, learn_initial=learn_initial)
        check.dtype(dtype)
        key_size = divided("key_size", input_size, 1.0, heads) if key_size is None else key_size
        value_size = key_size if value_size is None else value_size
        own, steps, rates, biases, strengths, gates = random.split(key, 6)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        step_bias = draw_step_bias(biases, heads * key_size, dtype)
        step_size = LowRank(input_size, value_size, heads * key_size, key=steps, bias=step_bias, **options)
        strength = Linear(input_size, heads, key=strengths, **options)
        gate_bias = random.zeros(heads * value_size, dtype)
        gate = LowRank(input_size, value_size, heads * value_size, key=gates, bias=gate_bias, **options)
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            key=own,
            key_heads=key_heads,
            query_map=normalised_silu,
            key_map=normalised_silu,
            value_map=silu,
            decay=StepSizeDecay(step_size, draw_log_rate(rates, heads, 1.0, dtype)),
            write=Gate(strength, twice_sigmoid if negative_eigenvalues else sigmoid, heads),
            erase=written,
            gate=Gate(gate, sigmoid, heads),
            norm=HeadNorm(value_size, dtype=dtype),
            convolution=convolution,
            learn_initial=learn_initial,
            **options,
        )
