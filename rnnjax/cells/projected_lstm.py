"""Long short-term memory whose hidden state is a projection of its cell."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, RecurrentWeight, carry_dtype, cast
from ..cell import Shapes, carried_copy
from ..gated_cell import AbstractAffineCell, recur
from .lstm import LSTMState, Peepholes, check_clip, draw_peepholes, gate, gate_names


class ProjectedLSTM(AbstractAffineCell):
    """Sak, Senior & Beaufays 2014, arXiv:1402.1128: the LSTM of `LSTM`, and then

        h_t = Q (o * tanh(c_t)),        h: [P], c: [H], usually P < H

    so that R is [P, GH]. There are two matrix products in the loop, so it is a plain cell: engines that run any cell
    run it, and `Fused` does not. Peepholes, the coupled gate and the clipped cell are those of `LSTM`.
    """

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight
    bias: Bias | None
    peepholes: Peepholes | None
    projection: Float[Array, "H P"]
    initial_state: LSTMState | None
    coupled: bool = eqx.field(static=True)
    clip: float | None = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        projected_size: int,
        key: PRNGKeyArray,
        peepholes: bool = False,
        coupled: bool = False,
        clip: float | None = None,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`; `projected_size` is P, the size of h and of the output."""
        check.sizes(input_size=input_size, hidden_size=hidden_size, projected_size=projected_size)
        check.flags(peepholes=peepholes, coupled=coupled, bias=bias, learn_initial=learn_initial)
        check_clip(clip)
        self.coupled, keys = coupled, random.split(key, 5)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.input_weight(
            recurrent_initialiser, keys[1], projected_size, self.gates, hidden_size, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.peepholes = draw_peepholes(keys[3], hidden_size, coupled, dtype) if peepholes else None
        self.projection = initialise.glorot(keys[4], (hidden_size, projected_size), dtype)
        sizes = projected_size, hidden_size
        self.initial_state = LSTMState(*(random.zeros(size, dtype) for size in sizes)) if learn_initial else None
        self.clip = clip

    @property
    def gates(self) -> str:
        return gate_names(self.coupled)

    @property
    def weight_shapes(self) -> Shapes:
        shapes, hidden_size, projected_size = super().weight_shapes, self.hidden_size, self.recurrent_weight.shape[0]
        del shapes["initial_state"]
        if self.initial_state is not None:
            shapes |= {"initial_state.h": (projected_size,), "initial_state.c": (hidden_size,)}
        return shapes | {
            "recurrent_weight": (projected_size, len(self.gates) * hidden_size),
            "projection": (hidden_size, projected_size),
            "peepholes": (hidden_size,),
        }

    def initial(self) -> LSTMState:
        return self._zeros() if self.initial_state is None else carried_copy(self.initial_state, self.projection.dtype)

    def _zeros(self) -> LSTMState:
        hidden_size, projected_size = self.projection.shape
        carried = carry_dtype(self.projection.dtype)
        return LSTMState(jnp.zeros(projected_size, carried), jnp.zeros(hidden_size, carried))

    def step(self, state: LSTMState, u: Gates) -> LSTMState:
        carried = state.h.dtype
        gates = u.astype(carried) + recur(self.recurrent_weight, state.h, len(self.gates))
        unprojected, c = gate(cast(self.peepholes, carried), gates, state.c, self.clip)
        operand = unprojected.astype(self.projection.dtype)
        return LSTMState(jnp.matmul(operand, self.projection, preferred_element_type=carried), c)
