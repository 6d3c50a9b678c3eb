"""DeltaNet: linear attention whose writes first erase what their key stood for."""

import jax.numpy as jnp
from jax.nn import sigmoid, silu
from jaxtyping import PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType
from .maps import normalised_silu, twice_sigmoid
from .matrix_mixer import MatrixMixer
from .norms import HeadNorm
from .projected import Gate, Linear, written
from .rows import divided


class DeltaNet(MatrixMixer):
    """Yang et al. 2024, "Parallelizing linear transformers with the delta rule", arXiv:2406.06484.

        q, k  = normalised(silu(c(W x)))     v = silu(c(W x))     c: a depthwise convolution of 4 steps
        b     = sigmoid(W x)                                      a number for each head
        S_t   = (I - b k k') S_{t-1} + b k v'                     S: [K, V] for each of N heads
        y_t   = W_o norm(S_t' q / sqrt(K))                        x, y: [I]

    The eigenvalues of I - b k k' are in [0, 1]; with `negative_eigenvalues`, b is 2 sigmoid(W x) and they are in
    [-1, 1], which tracking states such as parity needs (Grazzi et al. 2024, arXiv:2411.12537). The rule is that of
    Schlag et al. 2021, arXiv:2102.11174, whose keys are normalised by their sum. As in the released code
    (flash-linear-attention), the normalisation is v / sqrt(|v|^2 + 1e-6), and there is no output gate.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 4,
        key_size: int | None = None,
        value_size: int | None = None,
        negative_eigenvalues: bool = False,
        convolution: int | None = 4,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        key_size, value_size    K and V; None: I / N
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, heads=heads)
        check.flags(negative_eigenvalues=negative_eigenvalues, learn_initial=learn_initial)
        check.dtype(dtype)
        key_size = divided("key_size", input_size, 1.0, heads) if key_size is None else key_size
        value_size = divided("value_size", input_size, 1.0, heads) if value_size is None else value_size
        own, strengths = random.split(key, 2)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        strength = Linear(input_size, heads, key=strengths, **options)
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            key=own,
            query_map=normalised_silu,
            key_map=normalised_silu,
            value_map=silu,
            write=Gate(strength, twice_sigmoid if negative_eigenvalues else sigmoid, heads),
            erase=written,
            norm=HeadNorm(value_size, dtype=dtype),
            convolution=convolution,
            learn_initial=learn_initial,
            **options,
        )
