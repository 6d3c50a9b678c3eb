"""The recursive neural tensor network."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units
from ..cell import Hidden
from .cell import AbstractAffineTreeCell, product
from .nary_tree_lstm import draw_places


class RNTN(AbstractAffineTreeCell):
    """Socher et al. 2013, "Recursive deep models for semantic compositionality over a sentiment treebank", EMNLP.

        p = [h_1; ...; h_K]
        h = tanh(W x + R p + p' V p + b),        p' V p: [H], one bilinear form for each unit

    V has (K H)^2 H numbers, and a node takes as many multiplications, so H is small: 25 to 35 in the paper. A leaf is
    tanh(W x + b); in the paper it is the word's vector itself. With a V of zeros it is `RecursiveNetwork`.
    """

    gates: ClassVar[str] = "n"

    input_weight: InputWeight
    recurrent_weight: Float[Array, "KH H"]
    tensor: Float[Array, "P P H"]  # P = K H
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
        recurrent_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights, V uniform within 1 / (2 K H). Arguments as in `NaryTreeLSTM`."""
        check.sizes(input_size=input_size, hidden_size=hidden_size, arity=arity)
        check.flags(bias=bias)
        keys = random.split(key, 4)
        size = arity * hidden_size
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = draw_places(recurrent_initialiser, keys[1], arity, self.gates, hidden_size, dtype)
        self.tensor = initialise.interval(-0.5 / size, 0.5 / size)(keys[2], (size, size, hidden_size), dtype)
        self.bias = initialise.bias(bias_initialiser, keys[3], self.gates, hidden_size, dtype) if bias else None

    @property
    def arity(self) -> int:
        return self.recurrent_weight.shape[0] // self.hidden_size

    def combine(self, children: Hidden, present: Bool[Array, " K"]) -> Units:
        del present  # missing children are zeros
        p = children.h.reshape(-1)
        linear = product(p, self.recurrent_weight)
        return linear + p @ product(p, self.tensor)

    def pointwise(self, u: Gates, v: Units, children: Hidden) -> Hidden:
        return Hidden(jnp.tanh(u[0].astype(children.h.dtype) + v))
