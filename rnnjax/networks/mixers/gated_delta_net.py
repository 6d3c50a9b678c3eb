"""Gated DeltaNet: the delta rule with a decay for each head."""

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
from .projected import Gate, Linear, written
from .rows import divided


class GatedDeltaNet(MatrixMixer):
    """Yang et al. 2024, "Gated delta networks", arXiv:2412.06464.

        q, k  = normalised(silu(c(W x)))           v = silu(c(W x))        c: a depthwise convolution of 4 steps
        a     = exp(-exp(L) softplus(W x + d))     b = sigmoid(W x)        numbers for each head
        S_t   = a (I - b k k') S_{t-1} + b k v'                            S: [K, V] for each of N heads
        y_t   = W_o (norm(S_t' q / sqrt(K)) * silu(W x))                   x, y: [I]

    With `negative_eigenvalues`, b is 2 sigmoid(W x), so that a (I - b k k') has eigenvalues down to -1 (Grazzi et al.
    2024, arXiv:2411.12537). As in the released code (flash-linear-attention), SiLU comes before the normalisation,
    v / sqrt(|v|^2 + 1e-6), and the norm before the gate. There exp(L) is drawn uniform from 0 to 16, whose logarithm
    may be infinite; here it is from 0.001. Its weights are normal with a deviation of 0.02.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 6,
        key_size: int | None = None,
        value_size: int | None = None,
        key_heads: int | None = None,
        negative_eigenvalues: bool = False,
        convolution: int | None = 4,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: exp(L) is uniform from 0.001 to 16, softplus(d) log-uniform from 0.001 to 0.1.

        key_size, value_size    K and V; None: K = 3/4 I / N, V = 2 K
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, heads=heads)
        check.flags(negative_eigenvalues=negative_eigenvalues, learn_initial=learn_initial)
        check.dtype(dtype)
        key_size = divided("key_size", input_size, 0.75, heads) if key_size is None else key_size
        value_size = 2 * key_size if value_size is None else value_size
        own, steps, rates, biases, strengths, gates = random.split(key, 6)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        step_bias = draw_step_bias(biases, heads, dtype)
        strength = Linear(input_size, heads, key=strengths, **options)
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
            decay=StepSizeDecay(
                Linear(input_size, heads, key=steps, bias=step_bias, **options),
                draw_log_rate(rates, heads, 1e-3, dtype),
            ),
            write=Gate(strength, twice_sigmoid if negative_eigenvalues else sigmoid, heads),
            erase=written,
            gate=Gate(Linear(input_size, heads * value_size, key=gates, **options), silu, heads),
            norm=HeadNorm(value_size, dtype=dtype),
            convolution=convolution,
            learn_initial=learn_initial,
            **options,
        )
