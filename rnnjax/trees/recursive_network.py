"""The plain recursive network."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units
from ..cell import Hidden
from ..named import named
from .cell import AbstractAffineTreeCell, product
from .nary_tree_lstm import draw_places


class RecursiveNetwork(AbstractAffineTreeCell):
    """Goller & Küchler 1996; Socher et al. 2011, "Parsing natural scenes and natural language with recursive neural
    networks", of K = `arity` children in order.

        h = activation(W x + R [h_1; ...; h_K] + b)

    A leaf is activation(W x + b); in the papers it is the word's vector itself. On a chain, with an arity of one, it is
    the `Elman` network of the same weights.
    """

    gates: ClassVar[str] = "n"

    input_weight: InputWeight
    recurrent_weight: Float[Array, "KH H"]
    bias: Bias | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        arity: int = 2,
        key: PRNGKeyArray,
        activation: Callable[[Array], Array] = jnp.tanh,
        bias: bool = True,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `NaryTreeLSTM` and `Elman`."""
        check.sizes(input_size=input_size, hidden_size=hidden_size, arity=arity)
        check.flags(bias=bias)
        keys = random.split(key, 3)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = draw_places(recurrent_initialiser, keys[1], arity, self.gates, hidden_size, dtype)
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.activation = activation

    @property
    def arity(self) -> int:
        return self.recurrent_weight.shape[0] // self.hidden_size

    def combine(self, children: Hidden, present: Bool[Array, " K"]) -> Units:
        del present  # missing children are zeros
        return product(children.h.reshape(-1), self.recurrent_weight)

    def pointwise(self, u: Gates, v: Units, children: Hidden) -> Hidden:
        return Hidden(self.activation(u[0].astype(children.h.dtype) + v))
