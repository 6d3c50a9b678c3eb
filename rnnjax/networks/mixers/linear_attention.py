"""Linear attention: a matrix state that forgets nothing."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ... import check, initialise
from ...arrays import DType
from ...checked import Checked
from .maps import positive_elu, with_one
from .matrix_mixer import MatrixMixer
from .norms import weighted_mean
from .rows import divided


class LinearAttention(MatrixMixer):
    """Katharopoulos et al. 2020, "Transformers are RNNs", arXiv:2006.16236.

        q, k  = phi(W x)        v = W x
        S_t   = S_{t-1} + k v'                      z_t = z_{t-1} + k         S: [K, V] for each of N heads
        y_t   = W_o (S_t' q / (z_t' q + 1e-6))                                x, y: [I]

    phi is 1 + ELU by default, and has to be positive, or the quotient may be large; z is one more column of S. For
    feature maps of any sign, `MatrixMixer` with a norm in place of the quotient is what the released code of
    flash-linear-attention has by default. Sums grow with T, so use a finite context or a layer with a decay.
    """

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 4,
        key_size: int | None = None,
        value_size: int | None = None,
        feature_map: Checked[Callable[[Array], Array]] = positive_elu,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        key_size, value_size    K before the feature map, and V; None: I / N
        feature_map             phi, a function without weights of vectors on the last axis; it may change the size
        The other arguments are as in `MatrixMixer`.
        """
        check.sizes(input_size=input_size, heads=heads)
        check.flags(learn_initial=learn_initial)
        check.dtype(dtype)
        check.activations(feature_map=feature_map)
        if any(map(eqx.is_array, jax.tree.leaves(feature_map))):
            raise ValueError(
                f"feature_map: expected a function without weights, as queries and keys share it, got {feature_map!r}. "
                "Use MatrixMixer with a query_map and a key_map"
            )
        key_size = divided("key_size", input_size, 1.0, heads) if key_size is None else key_size
        value_size = divided("value_size", input_size, 1.0, heads) if value_size is None else value_size
        super().__init__(
            input_size,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            key=key,
            query_map=feature_map,
            key_map=feature_map,
            value_map=with_one,
            scale=1.0,
            norm=weighted_mean,
            learn_initial=learn_initial,
            input_initialiser=input_initialiser,
            dtype=dtype,
        )
