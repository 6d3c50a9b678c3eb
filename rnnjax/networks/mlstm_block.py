"""The xLSTM block around a matrix LSTM: a residual block that projects up before it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import silu
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, Inputs, UnitsOverTime, carry_dtype, cast
from ..exporting import exportable
from ..gated_cell import recur
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .depthwise_convolution import DepthwiseConvolution
from .head_norm import head_norm, layer_norm
from .mlstm import draw_gate_bias, gates
from .mlstm_recurrence import MLSTMInputs, MLSTMRecurrence, MLSTMState
from .window import Window


@exportable
class MLSTMBlockState(NamedTuple):
    """The states of the convolution and of the recurrence."""

    window: Window
    recurrence: MLSTMState


class Projected(NamedTuple):
    """The outputs of the up-projection: what the mLSTM sees, and the output gate before its nonlinearity."""

    inner: UnitsOverTime
    gate: UnitsOverTime


class MLSTMBlock(AbstractNetwork):
    """Beck et al. 2024, "xLSTM", arXiv:2405.04517, figure 11: the residual block with projection up before the mLSTM.

        a, z   = U norm(x_t)                   a, z: [E], E = 2 I
        c      = silu(convolution(a))          causal, feature by feature, over `window` steps
        q, k   = Q c, K c      v = V a         Q, K and V block-diagonal, of blocks of 4 features
        i~, f~ = P [q, k, v] + p               of each head
        y_t    = x_t + D ((norm of each head(mlstm(q, k, v, i~, f~)) + skip * c) * silu(z))

    Inputs and outputs have I features. `MLSTMRecurrence` has the equations of the mLSTM, and says how states differ
    from those of the authors' program. That program rounds E up to a multiple of 64, and stores the scales of the norms
    less one. `models.xlstm_layers` makes a stack of blocks.

    Shapes:
        input_scale       [I], of the layer norm of x
        up_weight         U [I, 2 E], the columns of a, then of z
        convolution       of E features, with bias
        query_key_weight  [E / 4, 4, 8], for each block the columns of q, then of k
        value_weight      [E / 4, 4, 4]
        gate_weight       P [3 E, 2 N], the columns of i, then of f
        gate_bias         p [2 N]
        norm_scale, skip  [E], the first of the norm of each head
        down_weight       D [E, I]
    """

    input_scale: Float[Array, " I"]
    up_weight: Float[Array, "I EE"]
    convolution: DepthwiseConvolution
    query_key_weight: Float[Array, "M b bb"]
    value_weight: Float[Array, "M b b"]
    gate_weight: Float[Array, "EEE NN"]
    gate_bias: Float[Array, " NN"]
    norm_scale: Float[Array, " E"]
    skip: Float[Array, " E"]
    down_weight: Float[Array, "E I"]
    recurrence: MLSTMRecurrence

    def __init__(
        self,
        input_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 4,
        window: int = 4,
        inner_size: int | None = None,
        projection_block: int = 4,
        blocks: int = 1,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights as in the authors' program.

        input_size         I
        heads              N; it must divide E
        window             the number of steps that the convolution sees
        inner_size         E; None: 2 I
        projection_block   the size of the blocks of Q, K and V; it must divide E
        blocks             the number of blocks in the network: D is smaller in a deep one
        dtype              of weights, inputs and outputs; below float32 gates and states stay in float32

        U, Q, K and V are normal with a variance of 2 / (5 I), D with a deviation of 2 / (blocks sqrt(I)); P is zero, p
        of f goes from 3 to 6, head by head, p of i is normal times 0.1; the convolution is uniform within
        1 / sqrt(window), its bias zero (there uniform, too); scales and skip are one.
        """
        inner = 2 * input_size if inner_size is None else inner_size
        check.sizes(input_size=input_size, heads=heads, window=window, inner_size=inner)
        check.sizes(projection_block=projection_block, blocks=blocks)
        check.dtype(dtype)
        for name, divisor in (("heads", heads), ("projection_block", projection_block)):
            check_divisor(name, divisor, inner)
        keys = random.split(key, 6)
        small = (2 / (5 * input_size)) ** 0.5
        by_block = (inner // projection_block, projection_block)
        self.input_scale = random.array(np.ones(input_size), dtype)
        self.up_weight = draw(keys[0], (input_size, 2 * inner), small, dtype)
        self.convolution = short_convolution(keys[1], inner, window, dtype)
        self.query_key_weight = draw(keys[2], (*by_block, 2 * projection_block), small, dtype)
        self.value_weight = draw(keys[3], (*by_block, projection_block), small, dtype)
        self.gate_weight = random.zeros((3 * inner, 2 * heads), dtype)
        self.gate_bias = draw_gate_bias(keys[4], heads, dtype)
        self.norm_scale = random.array(np.ones(inner), dtype)
        self.skip = random.array(np.ones(inner), dtype)
        self.down_weight = draw(keys[5], (inner, input_size), 2 / (blocks * input_size**0.5), dtype)
        self.recurrence = MLSTMRecurrence(heads, inner // heads, inner // heads, dtype=dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.up_weight.shape[:1], self.up_weight.dtype)

    def initial(self) -> MLSTMBlockState:
        return MLSTMBlockState(self.convolution.initial(), self.recurrence.initial())

    def run(self, state: MLSTMBlockState, xs: Inputs, options: Options) -> tuple[MLSTMBlockState, Inputs]:
        projected = options.over_time(self._project, xs)
        window, convolved = unroll(self.convolution, state.window, projected.inner, **options._asdict())
        active, inputs = options.over_time(self._inputs, projected.inner, convolved)
        after, hs = unroll(self.recurrence, state.recurrence, inputs, **options._asdict())
        ys = options.over_time(self._readout, xs, hs, active, projected.gate)
        return MLSTMBlockState(window, after), ys

    def _project(self, xs: Inputs) -> Projected:
        return Projected(*jnp.split(layer_norm(xs, self.input_scale) @ self.up_weight, 2, axis=1))

    def _inputs(self, inner: UnitsOverTime, convolved: UnitsOverTime) -> tuple[UnitsOverTime, MLSTMInputs]:
        """The convolution after its nonlinearity, and the inputs of the recurrence."""
        active = silu(convolved)
        qk = by_blocks(self.query_key_weight, active, 2)
        q, k, v = qk[:, 0], qk[:, 1], by_blocks(self.value_weight, inner, 1)[:, 0]
        i, f = gates(jnp.concatenate([q, k, v], axis=1), self.gate_weight, self.gate_bias)
        heads = lambda rows: rows.reshape(len(rows), self.recurrence.heads, -1)  # noqa: E731
        return active, MLSTMInputs(heads(q), heads(k), heads(v), i, f)

    def _readout(self, xs: Inputs, hs: Float[Array, "T N V"], active: UnitsOverTime, gate: UnitsOverTime) -> Inputs:
        hs, active, gate, skip = cast((hs, active, gate, self.skip), carry_dtype(xs.dtype))
        gated = (head_norm(hs, self.norm_scale) + skip[None] * active) * silu(gate)
        return xs + gated.astype(xs.dtype) @ self.down_weight


def by_blocks(weight: Float[Array, "M b gb"], xs: Inputs, maps: int) -> Float[Array, "T g I"]:
    """The products with block-diagonal matrices, `maps` of them side by side in each block."""
    return jax.vmap(recur, (None, 0, None))(weight, xs, maps)


def draw(key: PRNGKeyArray, shape: tuple[int, ...], deviation: float, dtype: DType) -> Array:
    """Normal weights of this standard deviation."""
    return random.array(random.normal(key, shape, dtype) * deviation, dtype)


def short_convolution(key: PRNGKeyArray, features: int, window: int, dtype: DType) -> DepthwiseConvolution:
    """A depthwise convolution with weights uniform within 1 / sqrt(window)."""
    bound = window**-0.5
    initialiser = initialise.interval(-bound, bound)
    return DepthwiseConvolution(features, window=window, key=key, input_initialiser=initialiser, dtype=dtype)


def check_divisor(name: str, divisor: int, size: int) -> None:
    """Raise unless it divides the features within the block."""
    if size % divisor:
        raise ValueError(
            f"{name}: expected a divisor of the {size} features within the block, got {divisor}. "
            f"Take {name}={next(each for each in range(min(size, divisor), 0, -1) if size % each == 0)}, say"
        )
