"""The noun *tree cell*: the recursion of a recursive network, as pure functions of one node.

    xs --project--> us, all nodes at once;        v = combine(children);        state = pointwise(u, v, children)

All nodes of all trees share the same weights. `recurse` runs a tree cell on a batch of trees.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..arrays import Bias, GatesOverTime, Inputs, InputWeight, PyTree, State, States, by_gate, carry_dtype
from ..cell import Hidden
from ..gated_cell import affine


class AbstractTreeCell(eqx.Module):
    """Any recursion from the children of a node to the node.

    Subclass requirements: the methods below. `combine` does the matrix products, and `pointwise` the operations that
    are cheap to recompute: `v` is stored for the gradient, and everything else is recomputed. A state is a pytree of
    arrays with the same shapes and dtypes at every node; `children` are K states, a leading axis on every leaf, where
    missing children are `absent()`.
    """

    @property
    @abc.abstractmethod
    def arity(self) -> int | None:
        """K, the number of children that a node can have, in order; None: any number."""

    @abc.abstractmethod
    def input_type(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input of one node."""

    @abc.abstractmethod
    def absent(self) -> State:
        """The state that stands for a missing child: a constant, through which no gradient passes."""

    @abc.abstractmethod
    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        """`xs` of many nodes to their `us`. A node without an input has an input of zeros."""

    @abc.abstractmethod
    def combine(self, children: States, present: Bool[Array, " K"]) -> PyTree[Array]:
        """`v` of a node, from its children; `present` is false for missing ones."""

    @abc.abstractmethod
    def pointwise(self, u: PyTree[Array], v: PyTree[Array], children: States) -> State:
        """The state of a node."""


class AbstractAffineTreeCell(AbstractTreeCell):
    """A tree cell that takes its input by `u = W x + b`, [G, H]; W is [I, GH] and b [GH], one gate after the other.

    Subclass requirements: the fields below, `gates`, and `arity`, `combine` and `pointwise`. The state is a
    `state_type`, whose fields are vectors [H]; those of an absent child are zeros. A dtype below float32 is that of
    weights and inputs; states stay in float32.
    """

    state_type: ClassVar[type] = Hidden

    gates: eqx.AbstractVar[str]  # a letter for each gate of W, in order
    input_weight: eqx.AbstractVar[InputWeight]
    bias: eqx.AbstractVar[Bias | None]

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden units."""
        return self.input_weight.shape[1] // len(self.gates)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.dtype)

    def absent(self) -> State:
        dtype = carry_dtype(self.input_weight.dtype)
        return self.state_type(*(jnp.zeros(self.hidden_size, dtype) for _ in self.state_type._fields))

    def project(self, xs: Inputs) -> GatesOverTime:
        return by_gate(affine(self.input_weight, self.bias, xs), len(self.gates))


def product(operand: Array, weight: Array) -> Array:
    """`operand` [P] times `weight` [P, ...], summed in the dtype of `operand`, which may be the wider one."""
    flat = weight.reshape(weight.shape[0], -1)
    return jnp.matmul(operand.astype(weight.dtype), flat, preferred_element_type=operand.dtype).reshape(
        weight.shape[1:]
    )
