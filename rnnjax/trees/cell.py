"""The noun *tree cell*: what a recursive network is, as pure functions of one node.

    xs --project--> us, all nodes at once;        v = combine(children);        state = pointwise(u, v, children)

The same weights serve every node of every tree. `recurse` runs it; a node is one node's worth, as a cell is one
sequence's worth.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..arrays import Bias, GatesOverTime, Inputs, InputWeight, PyTree, State, States, by_gate, carry_dtype
from ..cell import affine


class AbstractTreeCell(eqx.Module):
    """Any recursion from the children of a node to the node.

    Subclass requirements: the methods below. `combine` holds the matrix products, `pointwise` what is cheap to compute
    again: for the gradient `v` is kept, and all else is rebuilt. A state is a pytree of arrays of shapes and dtypes
    that are the same for every node; `children` are K states, a leading axis on every leaf, of which those that are
    not there are `absent()`.
    """

    @property
    @abc.abstractmethod
    def arity(self) -> int | None:
        """K, the number of children a node can have, each in a place of its own; None: any number."""

    @abc.abstractmethod
    def input_type(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input of one node."""

    @abc.abstractmethod
    def absent(self) -> State:
        """The state of a child that is not there: a constant, through which no gradient passes."""

    @abc.abstractmethod
    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        """`xs` of many nodes to `us` of those nodes. A node without an input has an input of zeros."""

    @abc.abstractmethod
    def combine(self, children: States, present: Bool[Array, " K"]) -> PyTree[Array]:
        """`v`, what a node gets from its children; `present` says which are there."""

    @abc.abstractmethod
    def pointwise(self, u: PyTree[Array], v: PyTree[Array], children: States) -> State:
        """The state of a node."""


class AbstractAffineTreeCell(AbstractTreeCell):
    """A tree cell that takes its input by `u = W x + b`, [G, H]; W is [I, GH] and b [GH], one gate after the other.

    Subclass requirements: the fields below, `gates`, and what is left of `AbstractTreeCell`. A dtype below float32 is
    the dtype of weights and inputs; states stay in float32.
    """

    gates: eqx.AbstractVar[str]  # a letter for each gate of W, in order
    input_weight: eqx.AbstractVar[InputWeight]
    bias: eqx.AbstractVar[Bias | None]

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden units."""
        return self.input_weight.shape[1] // len(self.gates)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.dtype)

    def zeros(self) -> Array:
        """A field of a state that is not there."""
        return jnp.zeros(self.hidden_size, carry_dtype(self.input_weight.dtype))

    def project(self, xs: Inputs) -> GatesOverTime:
        return by_gate(affine(self.input_weight, self.bias, xs), len(self.gates))


def product(operand: Array, weight: Array) -> Array:
    """`operand` [P] times `weight` [P, ...], summed in the dtype of `operand`, which may be wider."""
    flat = weight.reshape(weight.shape[0], -1)
    return jnp.matmul(operand.astype(weight.dtype), flat, preferred_element_type=operand.dtype).reshape(
        weight.shape[1:]
    )
