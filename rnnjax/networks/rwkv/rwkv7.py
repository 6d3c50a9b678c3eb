"""The time mixing of RWKV-7."""

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check, random
from ...arrays import DType, Inputs, carry_dtype, cast
from ...cells.elman import linear
from ...cells.matrix_recurrence import MatrixRecurrence
from ...matrix_cell import Matrix, Transition
from ...network import AbstractNetwork, Options
from ...unroll import unroll
from ..window import look_back
from .depth import Depth, heads_of, low_rank, orthogonal, ramp, shift, zigzag_of
from .norm import group_norm
from .parts import LowRank, RWKVState, bonus_read, by_head, mixed, normalised, product, row

Valued: TypeAlias = tuple[Inputs, Inputs]  # inputs or outputs, and the values of the first layer

DECAY = math.exp(-0.5)  # the logarithm of the smallest decay, exp(-0.607) = 0.545, without its sign


class RWKV7Mix(NamedTuple):
    """How much each projection takes from the step before, [I] each."""

    r: Float[Array, " I"]
    w: Float[Array, " I"]
    k: Float[Array, " I"]
    v: Float[Array, " I"]
    a: Float[Array, " I"]
    g: Float[Array, " I"]


class Steps(NamedTuple):
    """What all steps are made of."""

    transition: Transition
    gates: Float[Array, "T H"]
    values: Float[Array, "T H"]  # before the value residual


class RWKV7(AbstractNetwork):
    """Peng et al. 2025, "RWKV-7 Goose with expressive dynamic state evolution", arXiv:2503.14456: the time mixing.

        x_c     = x_t + m_c * (x_{t-1} - x_t)                            c one of r, w, k, v, a, g: the token shift
        r, k, v = W_r x_r, W_k x_k, W_v x_v                              [N, K] each: N heads of K units
        w       = exp(-exp(-1/2) sigmoid(w_0 + tanh(x_w A_w) B_w))       the decay of each key, above 0.545
        a       = sigmoid(a_0 + x_a A_a B_a)                             the rate of learning in context
        v      <- v + sigmoid(v_0 + x_v A_v B_v) * (v_first - v)         the value residual, with `takes_value`
        n       = k * c, of norm 1 in each head;   k <- k * (1 + (a - 1) * d)
        S_t     = w * S_{t-1} - (n * a) (n' S_{t-1}) + k v'              y = S_t' r
        out     = W_o ((norm(y) + (r . (u * k)) v) * (sigmoid(x_g A_g) B_g))

    That is one layer, of as many outputs as inputs. It is a network around a `rnnjax.MatrixRecurrence`, whose
    docstring says which engine `Auto` takes. The state is the last input and the S of each head.

    The value residual moves the values of all layers towards those of the first one, v_first. So the first layer has
    `gives_value`, and its outputs are pairs (out, v_first); the others have `takes_value`, and their inputs are pairs
    (x, v_first). Without both, inputs and outputs are arrays, and the layer stacks like any other, but without the
    value residual. Use `rwkv7_layers`, which makes the whole network.

    The author warns that RWKV-7 is a whole model, and that a layer that is drawn or trained in another way is not
    RWKV-7. Initial values are those with which his code begins to train (RWKV-v7/train_temp, `generate_init_weight`);
    W_o is zero, so that a new layer puts out zeros. He trains by Adam, with betas 0.9 and 0.99 and an epsilon of 1e-18.
    The learning rate falls from 6e-4 (12 layers of 768; 3e-4 for 24 of 2048) to a tenth of that; it is twice as high
    for `decay.offset` (w_0). Weight decay, of 0.001, is for the matrices named `..._weight`, the embedding and the
    output layer alone; on the others it makes the model much worse.

    Paper and released code have the same equations. The code computes the ranks from the size: s sqrt(I), rounded to a
    multiple of 32 and at least 32, where s is 2.5 for w and a, 1.7 for v and 5 for the gate. (The released model of
    2048 features has 96, 96, 64 and 256.) The constructors of its layers draw uniform W; `generate_init_weight`
    replaces them by orthogonal ones, which are drawn here.
    """

    mix: RWKV7Mix
    receptance_weight: Float[Array, "I H"]
    key_weight: Float[Array, "I H"]
    value_weight: Float[Array, "I H"]
    output_weight: Float[Array, "H I"]
    decay: LowRank  # of w
    rate: LowRank  # of a
    value_gate: LowRank | None
    gate: LowRank
    removal_scale: Float[Array, " H"]  # c
    rate_share: Float[Array, " H"]  # d
    bonus: Float[Array, " H"]  # u
    norm: eqx.nn.GroupNorm
    recurrence: MatrixRecurrence
    gives_value: bool = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        head_size: int = 64,
        layer: int = 0,
        layers: int = 1,
        takes_value: bool = False,
        gives_value: bool = False,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        value_rank: int | None = None,
        gate_rank: int | None = None,
        learn_initial: bool = False,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights as the author's code does.

        hidden_size               both I and H, a multiple of head_size
        head_size                 K, and the number of values of each head
        layer, layers             the number of this layer, from 0, and of how many: initial values depend on it
        takes_value, gives_value  whether inputs, and outputs, are pairs with the values of the first layer
        decay_rank, rate_rank, value_rank, gate_rank    of the products A B; None: see above
        learn_initial             train the initial S in place of zeros
        dtype                     of weights, inputs and outputs; decays, gates and S are float32 or wider
        """
        check.flags(takes_value=takes_value, gives_value=gives_value, learn_initial=learn_initial)
        check.dtype(dtype)
        heads, depth, H = heads_of(hidden_size, head_size), Depth.of(layer, layers), hidden_size
        vector = lambda values: random.array(np.broadcast_to(values, (H,)), dtype)  # noqa: E731
        keys, middle, zigzag = random.split(key, 7), ramp(H) - 0.5, zigzag_of(H, head_size)
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        self.mix = RWKV7Mix(**{name: vector(shift(H, power * depth.above)) for name, power in powers.items()})
        self.receptance_weight = orthogonal(keys[0], H, H, 1.0, dtype)
        self.key_weight = orthogonal(keys[1], H, H, 0.1, dtype)
        self.value_weight = orthogonal(keys[2], H, H, 1.0, dtype)
        self.output_weight = random.zeros((H, H), dtype)
        w_0 = -6 + 6 * ramp(H) ** (1 + depth.below**0.3) + 0.5 + 2.5 * zigzag
        self.decay = low_rank(keys[3], "decay_rank", decay_rank, 2.5, vector(w_0))
        self.rate = low_rank(keys[4], "rate_rank", rate_rank, 2.5, vector(-0.19 + 0.3 * zigzag + 0.4 * middle))
        self.value_gate = None
        if takes_value:
            self.value_gate = low_rank(keys[5], "value_rank", value_rank, 1.7, vector(0.73 - 0.4 * middle))
        self.gate = low_rank(keys[6], "gate_rank", gate_rank, 5.0, vector(0.0), has_offset=False)
        self.removal_scale, self.rate_share = vector(0.71 - 0.1 * middle), vector(1.02)
        self.bonus, self.norm = vector(-0.04), group_norm(heads, H, depth.norm_weight, dtype)
        options: Any = {"erases": True, "has_erase_key": True, "learn_initial": learn_initial}
        self.recurrence = MatrixRecurrence(heads, head_size, head_size, **options, dtype=carry_dtype(dtype))
        self.gives_value = gives_value

    def input_type(self) -> jax.ShapeDtypeStruct | tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        x = jax.ShapeDtypeStruct(self.bonus.shape, self.bonus.dtype)
        return x if self.value_gate is None else (x, x)

    def initial(self) -> RWKVState:
        return RWKVState(jnp.zeros((1, *self.bonus.shape), self.bonus.dtype), self.recurrence.initial().S)

    def run(self, state: RWKVState, xs: Inputs | Valued, options: Options) -> tuple[RWKVState, Inputs | Valued]:
        xs, first = (xs, None) if isinstance(xs, Array) else xs
        last, (xs, before) = look_back(state.inputs, xs, options)
        steps = options.over_time(self._steps, xs, before, first)
        after, reads = unroll(self.recurrence, Matrix(state.S), steps.transition, **options._asdict())
        ys = options.over_time(self._outputs, reads, steps)
        if self.gives_value:
            ys = ys, steps.values.astype(ys.dtype) if first is None else first
        return RWKVState(last, after.S), ys

    def _steps(self, xs: Inputs, before: Inputs, first: Inputs | None) -> Steps:
        """The coefficients of the recurrence, the gates and the values, over time."""
        xs, before = cast((xs, before), carry_dtype(xs.dtype))
        shifted = RWKV7Mix(*(mixed(xs, before, share) for share in self.mix))
        heads = partial(by_head, heads=self.recurrence.heads)
        r = product(shifted.r, self.receptance_weight)
        decay = jnp.exp(-DECAY * sigmoid(self.decay(shifted.w, jnp.tanh)))
        k, v = product(shifted.k, self.key_weight), product(shifted.v, self.value_weight)
        values = v
        if first is not None and self.value_gate is not None:
            v = v + sigmoid(self.value_gate(shifted.v, linear)) * (first.astype(v.dtype) - v)
        a = sigmoid(self.rate(shifted.a, linear))
        removed = _unit(heads(k * row(self.removal_scale, k)))
        k = k * (1 + (a - 1) * row(self.rate_share, k))
        transition = Transition(heads(decay), heads(k), heads(v), heads(r), removed, removed * heads(a))
        return Steps(transition, self.gate(shifted.g, sigmoid), values)

    def _outputs(self, reads: Float[Array, "T N V"], steps: Steps) -> Inputs:
        _, key, value, query, *_ = steps.transition
        extra = bonus_read(self.bonus, query, key, value)
        ys = normalised(self.norm, reads) + extra.reshape(extra.shape[0], -1)
        return product(ys * steps.gates, self.output_weight).astype(self.bonus.dtype)


def _unit(vectors: Float[Array, "T N K"]) -> Float[Array, "T N K"]:
    """Vectors of norm 1; a vector shorter than 1e-12 stays short, with a finite gradient."""
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
