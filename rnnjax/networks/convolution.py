"""The causal convolution along time, and the base class of all such convolutions."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, Inputs, carry_dtype, shift
from ..network import AbstractNetwork, Options
from .window import Window, look_back


class AbstractConvolution(AbstractNetwork):
    """A function of the last few inputs, the same at every step; the state is the inputs that later steps need.

    Subclass requirements: the fields below, and `combine`, which treats each step by itself.
    """

    weight: eqx.AbstractVar[Float[Array, "W I ..."]]  # weight[age] multiplies x_{t - age}
    bias: eqx.AbstractVar[Float[Array, " O"] | None]

    @abc.abstractmethod
    def combine(self, *windows: Inputs) -> Inexact[Array, "T O"]:
        """The outputs without the bias, from x_t, x_{t-1}, ... over time."""

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.weight.shape[1:2], self.weight.dtype)

    def initial(self) -> Window:
        window, inputs = self.weight.shape[:2]
        return Window(jnp.zeros((window - 1, inputs), self.weight.dtype))

    def run(self, state: Window, xs: Inputs, options: Options) -> tuple[Window, Inexact[Array, "T O"]]:
        last, windows = look_back(state.inputs, xs, options)
        ys = options.over_time(self.combine, *windows)
        return Window(last), ys if self.bias is None else shift(ys, self.bias)


class CausalConvolution(AbstractConvolution):
    """y_t = W_0 x_t + W_1 x_{t-1} + ... + b, over a window of `window` steps; the weight is [window, I, O].

    Before the start, and before a reset, x is zero. It is one matrix product for all of time, with any engine. Feeding
    a sequence in chunks, passing the state along, gives the same result as feeding it whole.
    """

    weight: Float[Array, "W I O"]
    bias: Float[Array, " O"] | None

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        window: int,
        key: PRNGKeyArray,
        bias: bool = True,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights, [window * I, O] by `input_initialiser`; the bias is zero. `window` is 1 or more steps."""
        check.sizes(input_size=input_size, output_size=output_size, window=window)
        check.flags(bias=bias)
        check.dtype(dtype)
        drawn = random.known(input_initialiser(key, (window * input_size, output_size), carry_dtype(dtype)))
        self.weight = random.array(drawn.reshape(window, input_size, output_size), dtype)
        self.bias = random.zeros(output_size, dtype) if bias else None

    def combine(self, *windows: Inputs) -> Inexact[Array, "T O"]:
        return jnp.concatenate(windows, axis=-1) @ self.weight.reshape(-1, self.weight.shape[-1])
