"""The selective state space of Mamba: a linear recurrence of several states for each unit, which emits a read."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import softplus
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, Inputs, Units, UnitsOverTime, carry_dtype, cast, finite_exp, shift
from ..cell import AbstractLinearCell, Hidden, Shapes, initial_or_zeros, learnable_zeros


class Selection(NamedTuple):
    """What the states of S6 are moved by: of one step, or over time."""

    step_size: Float[Array, "*T H"]
    x: Float[Array, "*T H"]
    write: Float[Array, "*T N"]  # B of the paper
    read: Float[Array, "*T N"]  # C


class S6(AbstractLinearCell):
    """Gu & Dao 2023, "Mamba: linear-time sequence modeling with selective state spaces", arXiv:2312.00752.

        low, B, C = W x_t                                  low: [R], B, C: [N]
        d         = softplus(P low + p)                    a step size for each unit, [H]
        h_t       = exp(-exp(L) d) h_{t-1} + d x_t B       h: N states for each unit, [H, N]; L: [H, N]
        y_t       = h_t C + D x_t                          x, y: [H]

    The state is stored as one vector [HN]. As in the authors' program, the input is multiplied by d B, where the paper
    has the exact integral. This is the recurrence alone: a Mamba block has a convolution before it and a gate after it.
    A step emits its read h C [H]. `Associative`, which `Auto` takes, and `Checkpointed` store the states of one segment
    only; the gradient by `Scan` stores those of all steps.
    """

    selection_weight: Float[Array, "H R2N"]  # W
    step_weight: Float[Array, "R H"]  # P
    step_bias: Float[Array, " H"]  # p
    log_rate: Float[Array, "H N"]  # L
    skip: Float[Array, " H"]  # D
    initial_state: Hidden | None

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        states: int = 16,
        rank: int | None = None,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: exp(L) is 1 to N, softplus(p) is log-uniform from 0.001 to 0.1, D is one.

        hidden_size         both I and H
        states              N
        rank                R; None: H / 16, rounded up
        input_initialiser   draws W
        The other arguments are as in `LSTM`.
        """
        check.sizes(hidden_size=hidden_size, states=states)
        rank = -(-hidden_size // 16) if rank is None else rank
        check.sizes(rank=rank)
        check.flags(learn_initial=learn_initial)
        check.dtype(dtype)
        keys = random.split(key, 3)
        selection = input_initialiser(keys[0], (hidden_size, rank + 2 * states), carry_dtype(dtype))
        self.selection_weight = random.array(random.known(selection), dtype)
        bound = rank**-0.5
        drawn = random.uniform(keys[1], (rank, hidden_size), dtype, -bound, bound)
        self.step_weight = random.array(drawn, dtype)
        self.step_bias = draw_step_bias(keys[2], hidden_size, dtype)
        self.log_rate = random.array(np.tile(np.log(np.arange(1, states + 1)), (hidden_size, 1)), dtype)
        self.skip = random.array(np.ones(hidden_size), dtype)
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size * states, dtype)

    @property
    def weight_shapes(self) -> Shapes:
        (units, columns), rank = self.selection_weight.shape, self.step_weight.shape[0]
        states = max(1, (columns - rank) // 2)
        return {
            "selection_weight": (units, rank + 2 * states),
            "log_rate": (units, states),
            "step_weight": (rank, units),
            "step_bias": (units,),
            "skip": (units,),
            "initial_state": (units * states,),
        }

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.skip.shape, self.skip.dtype)

    def initial(self) -> Hidden:
        return initial_or_zeros(Hidden, self.initial_state, self.log_rate.size, self.log_rate.dtype)

    def project(self, xs: Inputs) -> Selection:
        rank, states = self.step_weight.shape[0], self.log_rate.shape[1]
        selected = xs @ self.selection_weight
        low, write, read = jnp.split(selected, (rank, rank + states), axis=1)
        wide = shift((low @ self.step_weight).astype(carry_dtype(low.dtype)), self.step_bias)
        return Selection(softplus(wide).astype(low.dtype), xs, write, read)

    def coefficients(self, u: Selection) -> tuple[Units, Units]:
        step_size, x, write, _ = cast(u, carry_dtype(u.x.dtype))
        rate = finite_exp(self.log_rate.astype(step_size.dtype))
        a = jnp.exp(-rate * step_size[:, None])
        return a.reshape(-1), ((step_size * x)[:, None] * write[None]).reshape(-1)

    def emit(self, state: Hidden, before: Hidden, u: Selection) -> Float[Array, " H"]:
        del before
        return state.h.reshape(self.log_rate.shape) @ u.read.astype(state.h.dtype)

    def readout(self, states: Float[Array, "T H"], xs: Inputs) -> UnitsOverTime:
        carried = states.dtype
        return (states + self.skip.astype(carried)[None] * xs.astype(carried)).astype(self.skip.dtype)

    def hidden(self, state: Hidden) -> Units:
        return state.h


def draw_step_bias(key: PRNGKeyArray, size: int, dtype: DType) -> Float[Array, " S"]:
    """Biases b of which softplus(b), the step size, is log-uniform from 0.001 to 0.1."""
    logarithm = random.uniform(key, (size,), dtype, math.log(1e-3), math.log(0.1))
    xp = random.numpy_for(logarithm)
    return random.array(xp.log(xp.expm1(xp.exp(logarithm))), dtype)
