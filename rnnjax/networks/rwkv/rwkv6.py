"""The time mixing of RWKV-6."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check, random
from ...arrays import DType, Inputs, carry_dtype, cast, finite_exp
from ...cells.matrix_recurrence import MatrixRecurrence
from ...matrix_cell import Matrix, Transition
from ...network import AbstractNetwork, Options
from ...unroll import unroll
from ..window import look_back
from .depth import Depth, heads_of, orthogonal, ramp, shift, uniform
from .norm import group_norm
from .parts import LowRank, RWKVState, bonus_read, by_head, mixed, normalised, product, row


class RWKV6Mix(NamedTuple):
    """How much each projection takes from the step before, [I] each; `x` is that of the token shift's own inputs."""

    x: Float[Array, " I"]
    w: Float[Array, " I"]
    k: Float[Array, " I"]
    v: Float[Array, " I"]
    r: Float[Array, " I"]
    g: Float[Array, " I"]


class RWKV6(AbstractNetwork):
    """Peng et al. 2024, "Eagle and Finch: RWKV with matrix-valued states and dynamic recurrence", arXiv:2404.05892.

        z       = x_t + m_x * (x_{t-1} - x_t)
        x_c     = x_t + (m_c + tanh(z A_c) B_c) * (x_{t-1} - x_t)          c one of w, k, v, r, g: the token shift
        r, k, v = W_r x_r, W_k x_k, W_v x_v                                [N, K] each: N heads of K units
        w       = exp(-exp(w_0 + tanh(x_w A) B))                           the decay of each key
        y       = S_{t-1}' r + (r . (u * k)) v         S_t = w * S_{t-1} + k v'
        out     = W_o (norm(y) * SiLU(W_g x_g))                            norm: each head by itself

    That is the time mixing alone, of as many outputs as inputs; `rwkv6_layers` adds normalisations, residuals and the
    `ChannelMixing`. It is a network around a `rnnjax.MatrixRecurrence`, whose docstring says which
    engine `Auto` takes. The state is the last input and the S of each head.

    Paper and released code have the same equations. Initial values are those of the authors' code for training, where
    W_o is zero, so that a new layer puts out zeros. The layer of flash-linear-attention differs: it has half as many
    keys; and its plain recurrence scales r by 1/sqrt(K), which neither paper nor code do.

    It wants the learning rates of the authors: twice the common one for `decay.offset` (w_0), and weight decay only for
    the matrices named `..._weight`, not for those of the token shift and the decay.
    """

    mix: RWKV6Mix
    mix_down: Float[Array, "I 5R"]
    mix_up: Float[Array, "5 R I"]  # of w, k, v, r, g
    receptance_weight: Float[Array, "I H"]
    key_weight: Float[Array, "I H"]
    value_weight: Float[Array, "I H"]
    gate_weight: Float[Array, "I H"]
    output_weight: Float[Array, "H I"]
    decay: LowRank
    bonus: Float[Array, " H"]  # u
    norm: eqx.nn.GroupNorm
    recurrence: MatrixRecurrence

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        head_size: int = 64,
        layer: int = 0,
        layers: int = 1,
        mix_rank: int = 32,
        decay_rank: int = 64,
        learn_initial: bool = False,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights as the authors' code does.

        hidden_size            both I and H, a multiple of head_size
        head_size              K, and the number of values of each head
        layer, layers          the number of this layer, from 0, and of how many: initial values depend on it
        mix_rank, decay_rank   R of the token shift and of the decay
        learn_initial          train the initial S in place of zeros
        dtype                  of weights, inputs and outputs; decays, gates and S are float32 or wider
        """
        check.flags(learn_initial=learn_initial)
        check.dtype(dtype)
        heads, depth = heads_of(hidden_size, head_size), Depth.of(layer, layers)
        check.sizes(mix_rank=mix_rank, decay_rank=decay_rank)
        keys, H = random.split(key, 6), hidden_size
        self.mix = _initial_mix(H, depth, dtype)
        self.mix_down = random.zeros((H, 5 * mix_rank), dtype)
        self.mix_up = uniform(keys[0], (5, mix_rank, H), 0.01, dtype)
        self.receptance_weight = orthogonal(keys[1], H, H, 1.0, dtype)
        self.key_weight = orthogonal(keys[2], H, H, 0.1, dtype)
        self.value_weight = orthogonal(keys[3], H, H, 1.0, dtype)
        self.gate_weight = orthogonal(keys[4], H, H, 0.1, dtype)
        self.output_weight = random.zeros((H, H), dtype)
        w_0 = -6 + 5 * ramp(H) ** (0.7 + 1.3 * depth.below)
        up = uniform(keys[5], (decay_rank, H), 0.01, dtype)
        self.decay = LowRank(random.zeros((H, decay_rank), dtype), up, random.array(w_0, dtype))
        zigzag = ((np.arange(H) + 1) % 3 - 1) * 0.1
        self.bonus = random.array(depth.below * (1 - ramp(H)) + zigzag, dtype)
        self.norm = group_norm(heads, H, depth.norm_weight, dtype)
        self.recurrence = MatrixRecurrence(
            heads, head_size, head_size, reads_before=True, learn_initial=learn_initial, dtype=carry_dtype(dtype)
        )

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.bonus.shape, self.bonus.dtype)

    def initial(self) -> RWKVState:
        return RWKVState(jnp.zeros((1, *self.bonus.shape), self.bonus.dtype), self.recurrence.initial().S)

    def run(self, state: RWKVState, xs: Inputs, options: Options) -> tuple[RWKVState, Inputs]:
        last, (xs, before) = look_back(state.inputs, xs, options)
        steps, gates = options.over_time(self._steps, xs, before)
        after, reads = unroll(self.recurrence, Matrix(state.S), steps, **options._asdict())
        return RWKVState(last, after.S), options.over_time(self._outputs, reads, steps, gates)

    def _steps(self, xs: Inputs, before: Inputs) -> tuple[Transition, Float[Array, "T H"]]:
        """The coefficients of the recurrence and the gate, over time."""
        xs, before = cast((xs, before), carry_dtype(xs.dtype))
        w, k, v, r, g = self._shifted(xs, before)
        heads = partial(by_head, heads=self.recurrence.heads)
        decay = jnp.exp(-finite_exp(self.decay(w, jnp.tanh)))
        projected = product(k, self.key_weight), product(v, self.value_weight), product(r, self.receptance_weight)
        return Transition(*map(heads, (decay, *projected))), jax.nn.silu(product(g, self.gate_weight))

    def _shifted(self, xs: Inputs, before: Inputs) -> list[Inputs]:
        """The inputs of w, k, v, r and g."""
        rank = self.mix_up.shape[1]
        low = jnp.tanh(product(mixed(xs, before, self.mix.x), self.mix_down)).reshape(-1, 5, rank)
        moved = jnp.einsum("tcr,cri->cti", low.astype(self.mix_up.dtype), self.mix_up).astype(xs.dtype)
        shares = (row(share, xs) + more for share, more in zip(self.mix[1:], moved, strict=True))
        return [xs + share * (before - xs) for share in shares]

    def _outputs(self, reads: Float[Array, "T N V"], steps: Transition, gates: Float[Array, "T H"]) -> Inputs:
        reads = reads + bonus_read(self.bonus, steps.query, steps.key, steps.value)
        return product(normalised(self.norm, reads) * gates, self.output_weight).astype(self.bonus.dtype)


def _initial_mix(size: int, depth: Depth, dtype: DType) -> RWKV6Mix:
    full, half = shift(size, depth.above), shift(size, 0.5 * depth.above)
    return RWKV6Mix(*(random.array(share, dtype) for share in (full, full, full, full - 0.3 * depth.below, half, half)))
