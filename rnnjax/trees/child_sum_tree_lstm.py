"""The child-sum Tree-LSTM: any number of children, in no order."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units, by_gate
from ..cells.lstm import LSTMState
from .cell import AbstractAffineTreeCell, product


class ChildGates(NamedTuple):
    """`v` of a node: a forget gate for each child, and the other gates, which all children share."""

    f: Float[Array, "K H"]
    igo: Gates


class ChildSumTreeLSTM(AbstractAffineTreeCell):
    """Tai, Socher & Manning 2015, "Improved semantic representations from tree-structured long short-term memory
    networks", arXiv:1503.00075, equations 2 to 8; gate order i, f, g, o, as in `LSTM`.

        s = sum_k h_k
        i, o = sigmoid(W x + R s + b)        g = tanh(W x + R s + b)        f_k = sigmoid(W x + R h_k + b)
        c = sum_k f_k * c_k + i * g
        h = o * tanh(c)

    On a chain, where every node has one child, it is the `LSTM` of the same weights. The order of the children has no
    effect; if it matters, use `NaryTreeLSTM`.
    """

    state_type: ClassVar[type] = LSTMState
    gates: ClassVar[str] = "ifgo"

    input_weight: InputWeight
    recurrent_weight: Float[Array, "H GH"]
    bias: Bias | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        bias: bool = True,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias)
        keys = random.split(key, 3)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.input_weight(
            recurrent_initialiser, keys[1], hidden_size, self.gates, hidden_size, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None

    @property
    def arity(self) -> None:
        return None

    def combine(self, children: LSTMState, present: Bool[Array, " K"]) -> ChildGates:
        del present  # missing children are zeros, which add nothing to the sum
        of_i, of_f, of_go = jnp.split(self.recurrent_weight, (self.hidden_size, 2 * self.hidden_size), axis=1)
        forget = jax.vmap(product, (0, None))(children.h, of_f)
        igo = product(children.h.sum(0), jnp.concatenate([of_i, of_go], axis=1))
        return ChildGates(forget, by_gate(igo, 3))

    def pointwise(self, u: Gates, v: ChildGates, children: LSTMState) -> LSTMState:
        return join(u.astype(children.h.dtype), v, children.c)


def join(u: Gates, v: ChildGates, c: Float[Array, "K H"]) -> LSTMState:
    """The elementwise half of a Tree-LSTM, with a forget gate for each child."""
    i, f, g, o = u
    i, g, o = jnp.stack([i, g, o]) + v.igo
    memory: Units = jnp.sum(sigmoid(f + v.f) * c, 0) + sigmoid(i) * jnp.tanh(g)
    return LSTMState(sigmoid(o) * jnp.tanh(memory), memory)
