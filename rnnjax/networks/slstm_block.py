"""The xLSTM block around an sLSTM: a residual block whose projection up comes after it."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import gelu, silu
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Inputs, InputWeight, RecurrentWeight, UnitsOverTime, by_gate
from ..cells.slstm import AbstractSLSTM, SLSTMState
from ..exporting import exportable
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .depthwise_convolution import DepthwiseConvolution
from .head_norm import head_norm, layer_norm
from .mlstm_block import check_divisor, draw, short_convolution
from .window import Window


class HeadOfSLSTM(AbstractSLSTM):
    """One head of an sLSTM: the fields of `SLSTM`, given."""

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight
    bias: Bias | None
    exponential_forget_gate: bool = eqx.field(static=True, default=False)


@exportable
class SLSTMBlockState(NamedTuple):
    """The states of the convolution and of the sLSTM, whose arrays are [N, D]: N heads of D units."""

    window: Window
    slstm: SLSTMState


class SLSTMBlock(AbstractNetwork):
    """Beck et al. 2024, "xLSTM", arXiv:2405.04517, figure 10: the residual block with projection up after the sLSTM.

        a    = norm(x_t)                             c = silu(convolution(a))    causal, over `window` steps
        i~, f~ from W c, g~, o~ from W a, + R h_{t-1} + b                        W and R block-diagonal over N heads
        x'   = x_t + norm of each head(slstm(i~, f~, g~, o~))                    `cells.SLSTM`
        z, w = U norm(x')          y_t = x' + D (gelu(z) * w)                    z, w: [E], E = 4 I / 3

    Inputs and outputs have I features, which are N heads of D units. Each head is an sLSTM of its own: `Fused` runs all
    of them in one call. The authors' program has E = 1.3 I, rounded up to a multiple of 64, and stores the scales of
    the norms less one. `models.xlstm_layers` makes a stack of blocks.

    Shapes:
        input_scale       [I], of the layer norm of x; up_scale is that of x'
        convolution       of I features, with bias
        input_weight      W [N, D, 4 D], for each head the columns of i, then of f, g and o
        recurrent_weight  R [N, D, 4 D], likewise
        bias              b [4 I], the 4 D of each head one after the other
        norm_scale        [I], of the norm of each head
        up_weight         U [I, 2 E], the columns of z, then of w
        down_weight       D [E, I]
    """

    input_scale: Float[Array, " I"]
    convolution: DepthwiseConvolution
    input_weight: Float[Array, "N D GD"]
    recurrent_weight: Float[Array, "N D GD"]
    bias: Float[Array, " GI"]
    norm_scale: Float[Array, " I"]
    up_scale: Float[Array, " I"]
    up_weight: Float[Array, "I EE"]
    down_weight: Float[Array, "E I"]

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 4,
        window: int = 4,
        inner_size: int | None = None,
        blocks: int = 1,
        depth: float = 0.0,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights as in the authors' program.

        input_size   I
        heads        N; it must divide I
        window       the number of steps that the convolution sees
        inner_size   E; None: 4 I / 3, rounded up
        blocks       the number of blocks in the network: D is smaller in a deep one
        depth        where the block is, from 0 for the lowest to 1 for the highest; see `initialise.power_law`
        dtype        of weights, inputs and outputs; below float32 the states stay in float32

        W and U are normal with a variance of 2 / (5 I), D with a deviation of 2 / (blocks sqrt(I)); R is zero, and b as
        in `SLSTM`; the convolution is as in `MLSTMBlock`; scales are one.
        """
        inner = -(-4 * input_size // 3) if inner_size is None else inner_size
        check.sizes(input_size=input_size, heads=heads, window=window, inner_size=inner, blocks=blocks)
        check.dtype(dtype)
        check_divisor("heads", heads, input_size)
        keys = random.split(key, 4)
        small, units = (2 / (5 * input_size)) ** 0.5, input_size // heads
        self.input_scale = random.array(np.ones(input_size), dtype)
        self.convolution = short_convolution(keys[0], input_size, window, dtype)
        self.input_weight = draw(keys[1], (heads, units, 4 * units), small, dtype)
        self.recurrent_weight = random.zeros((heads, units, 4 * units), dtype)
        of_head = random.known(initialise.power_law(1, depth)(key, HeadOfSLSTM.gates, units, dtype)).reshape(-1)
        self.bias = random.array(np.tile(of_head, heads), dtype)
        self.norm_scale = random.array(np.ones(input_size), dtype)
        self.up_scale = random.array(np.ones(input_size), dtype)
        self.up_weight = draw(keys[2], (input_size, 2 * inner), small, dtype)
        self.down_weight = draw(keys[3], (inner, input_size), 2 / (blocks * input_size**0.5), dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.up_weight.shape[:1], self.up_weight.dtype)

    def initial(self) -> SLSTMBlockState:
        of_head = lambda *weights: HeadOfSLSTM(*weights).initial()  # noqa: E731
        return SLSTMBlockState(self.convolution.initial(), jax.vmap(of_head)(*self._heads()))

    def run(self, state: SLSTMBlockState, xs: Inputs, options: Options) -> tuple[SLSTMBlockState, Inputs]:
        normed = options.over_time(lambda xs: layer_norm(xs, self.input_scale), xs)
        window, convolved = unroll(self.convolution, state.window, normed, **options._asdict())
        inputs = options.over_time(self._inputs, normed, convolved)

        def run_head(
            weights: tuple[Array, Array, Array], state: SLSTMState, xs: Inputs
        ) -> tuple[SLSTMState, UnitsOverTime]:
            return unroll(HeadOfSLSTM(*weights), state, xs, **options._asdict())

        after, hs = jax.vmap(run_head, (0, 0, 1), (0, 1))(self._heads(), state.slstm, inputs)
        return SLSTMBlockState(window, after), options.over_time(self._readout, xs, hs)

    def _heads(self) -> tuple[Float[Array, "N DD GD"], Float[Array, "N D GD"], Float[Array, "N GD"]]:
        """The weights of each head, of inputs that are 2 D features: i and f read the first D, g and o the others."""
        of_gate = by_gate(self.input_weight, 4)
        nothing = jnp.zeros_like(of_gate[:, :, :2])
        of_convolved = jnp.concatenate([of_gate[:, :, :2], nothing], axis=2)
        of_normed = jnp.concatenate([nothing, of_gate[:, :, 2:]], axis=2)
        weight = jnp.concatenate([of_convolved, of_normed], axis=1)
        return weight.reshape(*weight.shape[:2], -1), self.recurrent_weight, self.bias.reshape(len(weight), -1)

    def _inputs(self, normed: UnitsOverTime, convolved: UnitsOverTime) -> Float[Array, "T N DD"]:
        heads = lambda rows: rows.reshape(len(rows), len(self.input_weight), -1)  # noqa: E731
        return jnp.concatenate([heads(silu(convolved)), heads(normed)], axis=-1)

    def _readout(self, xs: Inputs, hs: Float[Array, "T N D"]) -> Inputs:
        xs = xs + head_norm(hs, self.norm_scale)
        z, w = jnp.split(layer_norm(xs, self.up_scale) @ self.up_weight, 2, axis=1)
        return xs + (gelu(z, approximate=False) * w) @ self.down_weight
