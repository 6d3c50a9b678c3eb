"""The N-ary Tree-LSTM: up to N children, each with its own weights."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, by_gate
from ..cells.lstm import LSTMState
from .cell import AbstractAffineTreeCell, product
from .child_sum_tree_lstm import ChildGates, join


class NaryTreeLSTM(AbstractAffineTreeCell):
    """Tai, Socher & Manning 2015, arXiv:1503.00075, equations 9 to 14, of K = `arity` children in order.

        i, o = sigmoid(W x + sum_l R_l h_l + b)        g = tanh(W x + sum_l R_l h_l + b)
        f_k  = sigmoid(W x + sum_l R_kl h_l + b)
        c    = sum_k f_k * c_k + i * g
        h    = o * tanh(c)

    The forget gate of each child depends on all children, through R_kl, also where k is not l. The gate order of W and
    b is i, f, g, o, where all forget gates share one W and one b; that of R is i, f_1 ... f_K, g, o. On a chain, with
    an arity of one, it is the `LSTM` of the same weights; on binary trees, with an arity of two, it is the constituency
    Tree-LSTM.
    """

    state_type: ClassVar[type] = LSTMState
    gates: ClassVar[str] = "ifgo"

    input_weight: InputWeight
    recurrent_weight: Float[Array, "KH RH"]  # R = K + 3 gates
    bias: Bias | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        arity: int = 2,
        key: PRNGKeyArray,
        bias: bool = True,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`; `arity` is the number of children a node can have."""
        check.sizes(input_size=input_size, hidden_size=hidden_size, arity=arity)
        check.flags(bias=bias)
        keys = random.split(key, 3)
        places = "i" + "f" * arity + "go"
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = draw_places(recurrent_initialiser, keys[1], arity, places, hidden_size, dtype)
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None

    @property
    def arity(self) -> int:
        return self.recurrent_weight.shape[0] // self.hidden_size

    def combine(self, children: LSTMState, present: Bool[Array, " K"]) -> ChildGates:
        del present  # missing children are zeros
        v = by_gate(product(children.h.reshape(-1), self.recurrent_weight), self.arity + 3)
        return ChildGates(v[1:-2], jnp.concatenate([v[:1], v[-2:]]))

    def pointwise(self, u: Gates, v: ChildGates, children: LSTMState) -> LSTMState:
        return join(u.astype(children.h.dtype), v, children.c)


def draw_places(
    initialiser: initialise.Initialiser, key: PRNGKeyArray, arity: int, gates: str, hidden_size: int, dtype: DType
) -> Float[Array, "KH RH"]:
    """R, which multiplies the concatenated states of all children; one draw for each child and gate."""
    draw = lambda key: initialise.input_weight(initialiser, key, hidden_size, gates, hidden_size, dtype)  # noqa: E731
    return random.array(random.each(key, arity, draw).reshape(arity * hidden_size, len(gates) * hidden_size), dtype)
