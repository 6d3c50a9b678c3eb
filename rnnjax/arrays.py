"""The notation: one letter per axis, one name per array type.

Axes
    T  time, always first         B  batch (only where a kernel sees one)
    I  input features             H  hidden units
    G  gates, in the cell's order N  heads, D units each: N * D = H

Arrays
    x  input        u  what a step gets from the input      h  hidden state   c  cell state
    y  output       v  what a step gets from the state      a, b  linear coefficients
A plural runs over time: `xs`, `us`, `states`, `ys`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

Input = Inexact[Array, " I"]
Inputs = Inexact[Array, "T I"]
Units = Inexact[Array, " H"]
UnitsOverTime = Inexact[Array, "T H"]
Gates = Float[Array, "G H"]
GatesOverTime = Float[Array, "T G H"]

InputWeight = Float[Array, "I G H"]
RecurrentWeight = Float[Array, "N P G D"]  # P = D, but for a projected state
Bias = Float[Array, "G H"]

Length = Int[Array, ""]
Flags = Bool[Array, " T"]
Index = Int[Array, " T"]

Shaped = Array | jax.ShapeDtypeStruct  # what is asked of its form alone

State = PyTree[Any]  # what the next step needs, nothing else
States = PyTree[Any]  # a state over time: a leading axis T on every leaf


def carry_dtype(dtype: Any) -> jnp.dtype:
    """The dtype a state is carried in: float32 for anything narrower, else `dtype` itself."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """`tree` with every array in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def select(condition: Bool[Array, "..."], chosen: PyTree, other: PyTree) -> PyTree:
    """`chosen` where `condition`, else `other`; `condition` spans the leading axes of every leaf."""

    def leaf(chosen, other):
        trailing = (1,) * (jnp.ndim(other) - condition.ndim)
        return jnp.where(condition.reshape(condition.shape + trailing), chosen, other)

    return jax.tree.map(leaf, chosen, other)
