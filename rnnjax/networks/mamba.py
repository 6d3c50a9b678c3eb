"""The layer of Mamba: a short convolution, a selective state space and a gate."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import silu
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, random
from ..arrays import DType, Inputs, Units, UnitsOverTime, carry_dtype
from ..cell import Hidden
from ..cells.s6 import S6
from ..exporting import exportable
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .depthwise_convolution import DepthwiseConvolution
from .window import Remembered, Window


@exportable
class MambaState(NamedTuple):
    """The last inputs of the convolution, oldest first, and the states of the recurrence, [EN]."""

    inputs: Remembered
    h: Units


class Mamba(AbstractNetwork):
    """Gu & Dao 2023, "Mamba: linear-time sequence modeling with selective state spaces", arXiv:2312.00752.

        a, z = W_in x_t                                        [E] each, E = expand I
        c    = SiLU(the causal convolution of a, feature by feature, over `window` steps)
        y    = S6(c)                                           `states` states for each of the E units, and D c
        out  = W_out (y * SiLU(z))

    As many outputs as inputs. It is a network around `cells.S6`, which the given engine runs; `Auto` takes
    `Associative`. A Mamba model is a stack of

        residual(Stack([TimeDistributed(eqx.nn.RMSNorm(64, use_bias=False), 64), Mamba(64, layers=8, key=key)]))

    and a last RMSNorm. Initial values are those of the released code, and so is the step of the recurrence: the input
    is multiplied by d B, where the paper has the exact integral.
    """

    input_weight: Float[Array, "I 2E"]
    convolution: DepthwiseConvolution
    recurrence: S6
    output_weight: Float[Array, "E I"]

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        expand: int = 2,
        states: int = 16,
        window: int = 4,
        rank: int | None = None,
        layers: int = 1,
        learn_initial: bool = False,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights, each uniform within 1/sqrt(inputs); W_out is divided by sqrt(layers). `S6` says the others.

        hidden_size     I, of inputs and outputs
        expand          E / I
        states          N of `S6`
        window          of the convolution, in steps
        rank            R of `S6`; None: I / 16, rounded up
        layers          how many such layers the model has
        learn_initial   train the initial states of the recurrence in place of zeros
        dtype           of weights, inputs and outputs; the states are float32 or wider
        """
        check.sizes(hidden_size=hidden_size, expand=expand, states=states, window=window, layers=layers)
        check.dtype(dtype)
        rank = -(-hidden_size // 16) if rank is None else rank
        keys, inner = random.split(key, 5), expand * hidden_size
        self.input_weight = _uniform(keys[0], (hidden_size, 2 * inner), dtype)
        convolution = DepthwiseConvolution(inner, window=window, key=keys[1], input_initialiser=_uniform, dtype=dtype)
        bias = random.array(random.uniform(keys[2], (inner,), dtype, -(window**-0.5), window**-0.5), dtype)
        self.convolution = eqx.tree_at(lambda convolution: convolution.bias, convolution, bias)
        options = {"states": states, "rank": rank, "learn_initial": learn_initial}
        self.recurrence = S6(inner, key=keys[3], input_initialiser=_uniform, dtype=dtype, **options)
        drawn = random.known(_uniform(keys[4], (inner, hidden_size), carry_dtype(dtype)))
        self.output_weight = random.array(drawn / layers**0.5, dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.dtype)

    def initial(self) -> MambaState:
        return MambaState(self.convolution.initial().inputs, self.recurrence.initial().h)

    def hidden(self, state: MambaState) -> Units:
        return state.h

    def run(self, state: MambaState, xs: Inputs, options: Options) -> tuple[MambaState, Inputs]:
        inner, gates = options.over_time(self._project, xs)
        window, inner = unroll(self.convolution, Window(state.inputs), inner, **options._asdict())
        selected = options.over_time(_silu, inner)
        after, ys = unroll(self.recurrence, Hidden(state.h), selected, **options._asdict())
        return MambaState(window.inputs, after.h), options.over_time(self._outputs, ys, gates)

    def _project(self, xs: Inputs) -> tuple[UnitsOverTime, UnitsOverTime]:
        inner, gates = jnp.split(xs @ self.input_weight, 2, axis=1)
        return inner, gates

    def _outputs(self, ys: UnitsOverTime, gates: UnitsOverTime) -> Inputs:
        wide = carry_dtype(ys.dtype)
        return (ys.astype(wide) * silu(gates.astype(wide))).astype(ys.dtype) @ self.output_weight


def _silu(xs: UnitsOverTime) -> UnitsOverTime:
    return silu(xs.astype(carry_dtype(xs.dtype))).astype(xs.dtype)


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType) -> Array:
    """Uniform within 1/sqrt(inputs), of a weight [inputs, outputs], as torch draws its layers."""
    bound = shape[0] ** -0.5
    return random.array(random.uniform(key, shape, dtype, -bound, bound), dtype)
