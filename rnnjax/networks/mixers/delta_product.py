"""DeltaProduct: several delta rules for each input, one after the other."""

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


class DeltaProduct(MatrixMixer):
    """Siems et al. 2025, "DeltaProduct: improving state-tracking in linear RNNs via Householder products",
    arXiv:2502.10297.

        q, k_j  = normalised(silu(c(W x)))          v_j = silu(c(W x))      b_j = 2 sigmoid(W x)      j = 1, .., n
        S       = exp(-exp(L) softplus(W x + d)) S_{t-1}                    S: [K, V] for each of N heads
        S       = (I - b_j k_j k_j') S + b_j k_j v_j'                       for each j in turn, and then S_t = S
        y_t     = W_o (norm(S_t' q / sqrt(K)) * silu(W x))                  x, y: [I]

    One Householder matrix reflects along one vector, and so can exchange two things; a product of n can permute n + 1.
    It runs as n steps of the recurrence for each input. Without `forget_gate` there is no decay, and S is the paper's
    DeltaProduct; with it, its gated form. Without `negative_eigenvalues`, b is sigmoid(W x). As in the released code
    (flash-linear-attention), the layer is otherwise that of `GatedDeltaNet`.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        householders: int = 2,
        heads: int = 6,
        key_size: int | None = None,
        value_size: int | None = None,
        forget_gate: bool = True,
        negative_eigenvalues: bool = True,
        convolution: int | None = 4,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: exp(L) is uniform from 0.001 to 16, softplus(d) log-uniform from 0.001 to 0.1.

        householders            n
        key_size, value_size    K and V; None: K = 3/4 I / N, V = 2 K
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, householders=householders, heads=heads)
        check.flags(forget_gate=forget_gate, negative_eigenvalues=negative_eigenvalues, learn_initial=learn_initial)
        check.dtype(dtype)
        key_size = divided("key_size", input_size, 0.75, heads) if key_size is None else key_size
        value_size = 2 * key_size if value_size is None else value_size
        own, steps, rates, biases, strengths, gates = random.split(key, 6)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        rows = householders * heads
        decay = StepSizeDecay(
            Linear(input_size, heads, key=steps, bias=draw_step_bias(biases, heads, dtype), **options),
            draw_log_rate(rates, heads, 1e-3, dtype),
        )
        strength = Linear(input_size, rows, key=strengths, **options)
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            key=own,
            query_map=normalised_silu,
            key_map=normalised_silu,
            value_map=silu,
            decay=decay if forget_gate else None,
            write=Gate(strength, twice_sigmoid if negative_eigenvalues else sigmoid, rows),
            erase=written,
            gate=Gate(Linear(input_size, heads * value_size, key=gates, **options), silu, heads),
            norm=HeadNorm(value_size, dtype=dtype),
            convolution=convolution,
            micro_steps=householders,
            learn_initial=learn_initial,
            **options,
        )
