"""The channel mixing of RWKV: the layer between two time mixings."""

import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check, random
from ...arrays import DType, Inputs, carry_dtype, cast
from ...network import AbstractNetwork, Options
from ..window import Window, look_back
from .depth import Depth, orthogonal, shift
from .parts import mixed, product


class ChannelMixing(AbstractNetwork):
    """The channel mixing of RWKV-7 (Peng et al. 2025, arXiv:2503.14456) and, gated, of RWKV-6 (arXiv:2404.05892).

        k   = relu(W_k (x_t + m_k * (x_{t-1} - x_t)))^2                       [inner_size]
        out = W_v k,  or with `gated`  sigmoid(W_r (x_t + m_r * (x_{t-1} - x_t))) * W_v k

    The state is the last input, a `Window`. Initial values are those of the authors' code for training, for RWKV-7
    RWKV-v7/train_temp and for RWKV-6 RWKV-v5/src/model.py: 1 - (i / I)^p for m_k and m_r of feature i, where p is
    (1 - layer / layers)^4, or with `gated` the third power (the first, in early versions). W_v and W_r are zero, so
    that a new layer puts out zeros.
    """

    key_mix: Float[Array, " I"]
    receptance_mix: Float[Array, " I"] | None
    key_weight: Float[Array, "I J"]
    value_weight: Float[Array, "J I"]
    receptance_weight: Float[Array, "I I"] | None

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        inner_size: int | None = None,
        gated: bool = False,
        layer: int = 0,
        layers: int = 1,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        hidden_size     I, of inputs and outputs
        inner_size      J; None: 4 I, or gated 3.5 I, rounded down to a multiple of 32, and at least 32
        gated           the form of RWKV-6
        layer, layers   the number of this layer, from 0, and of how many: initial values depend on it
        dtype           of weights, inputs and outputs
        """
        check.sizes(hidden_size=hidden_size)
        check.flags(gated=gated)
        check.dtype(dtype)
        depth, I = Depth.of(layer, layers), hidden_size  # noqa: E741
        if inner_size is None:
            inner_size = max(32, 7 * I // 64 * 32) if gated else 4 * I
        check.sizes(inner_size=inner_size)
        share = shift(I, depth.above ** (3 if gated else 4))
        self.key_mix = random.array(share, dtype)
        self.receptance_mix = random.array(share, dtype) if gated else None
        self.key_weight = orthogonal(key, I, inner_size, 1.0, dtype)
        self.value_weight = random.zeros((inner_size, I), dtype)
        self.receptance_weight = random.zeros((I, I), dtype) if gated else None

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.key_mix.shape, self.key_mix.dtype)

    def initial(self) -> Window:
        return Window(jnp.zeros((1, *self.key_mix.shape), self.key_mix.dtype))

    def run(self, state: Window, xs: Inputs, options: Options) -> tuple[Window, Inputs]:
        last, (xs, before) = look_back(state.inputs, xs, options)
        return Window(last), options.over_time(self._outputs, xs, before)

    def _outputs(self, xs: Inputs, before: Inputs) -> Inputs:
        xs, before = cast((xs, before), carry_dtype(xs.dtype))
        inner = relu(product(mixed(xs, before, self.key_mix), self.key_weight)) ** 2
        ys = product(inner, self.value_weight)
        if self.receptance_mix is not None and self.receptance_weight is not None:
            ys = sigmoid(product(mixed(xs, before, self.receptance_mix), self.receptance_weight)) * ys
        return ys.astype(self.key_mix.dtype)
