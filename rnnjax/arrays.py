"""The notation: one letter per axis, one name per array type.

Axes
    T  time, always first         B  batch (only where a kernel sees one)
    I  input features             H  hidden units
    G  gates, in the cell's order N  heads, D units each: N * D = H
    GH, GD  the G * H, or G * D, columns of all gates, one gate after the other

Arrays
    x  input        u  what a step gets from the input      h  hidden state   c  cell state
    y  output       v  what a step gets from the state      a, b  linear coefficients
    W  weight of x [I, GH]          R  weight of h [H, GH], or [N, D, GD] with heads      b  bias [GH]
A plural runs over time: `xs`, `us`, `states`, `ys`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Inexact, Int

from .checked import Checked

if TYPE_CHECKING:  # jaxtyping's own is no type that a checker knows
    from typing_extensions import TypeAliasType, TypeVar

    Leaf = TypeVar("Leaf", default=Any)
    PyTree = TypeAliasType("PyTree", Any, type_params=(Leaf,))
else:
    from jaxtyping import PyTree as PyTree

Input = Inexact[Array, " I"]
Inputs = Inexact[Array, "T I"]
Units = Inexact[Array, " H"]
UnitsOverTime = Inexact[Array, "T H"]
Gates = Float[Array, "G H"]
Unit = Float[Array, ""]  # of one hidden unit, as `pointwise` sees it
UnitGates = Float[Array, " G"]
GatesOverTime = Float[Array, "T G H"]

InputWeight = Float[Array, "I GH"]
RecurrentWeight = Float[Array, "P GH"] | Float[Array, "N D GD"]  # P = H, but for a projected state
Bias = Float[Array, " GH"]

Length = Int[Array, ""]
Flags = Bool[Array, " T"]
Index = Int[Array, " T"]

Shaped = Array | jax.ShapeDtypeStruct  # what is asked of its form alone
AnyArray: TypeAlias = Array | np.ndarray  # of JAX or of NumPy
IntegerLike: TypeAlias = int | np.integer[Any] | np.ndarray | Array  # one integer, traced or not
DType: TypeAlias = Checked[DTypeLike]  # `jnp.float32`, "float32", ...
Sizes: TypeAlias = Checked[int | tuple[int, ...]]  # of one axis, or of each

State: TypeAlias = PyTree[Any]  # what the next step needs, nothing else
States: TypeAlias = PyTree[Any]  # a state over time: a leading axis T on every leaf


def carry_dtype(dtype: DType) -> jnp.dtype:
    """The dtype a state is carried in: float32 for anything narrower, else `dtype` itself."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def cast(tree: PyTree, dtype: DType) -> PyTree:
    """`tree` with every array in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def widen(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """`tree` with its narrow floating arrays in float32, and the function that casts such a tree back.

    The transpose of a loop sums the cotangent of each array that the loop closes over, step by step, in the array's own
    dtype, and 8 bits soon add nothing more. So a loop closes over the wide tree, and casts it back inside.
    """
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if _is_narrow(leaf) else leaf, tree)

    def narrow(wide: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, of: leaf.astype(of.dtype) if _is_narrow(of) else leaf, wide, tree)

    return wide, narrow


def shift(values: Array, bias: Array) -> Array:
    """`values + bias` over time, in the dtype of `values`. Its transpose, a sum over time, is float32 or wider."""
    wide = carry_dtype(values.dtype)
    return (values.astype(wide) + leading(bias, values.ndim).astype(wide)).astype(values.dtype)


def leading(array: Array, rank: int) -> Array:
    """`array` with axes of one in front, up to this rank: broadcasting by rank is an error where a user has it so."""
    return jnp.expand_dims(array, tuple(range(rank - array.ndim)))


def by_gate(array: Float[Array, "*leading GH"], gates: int) -> Float[Array, "*leading G H"]:
    """The view of a weight, a bias or a product with one in which each gate has a row of its own."""
    *leading, columns = array.shape
    return array.reshape(*leading, gates, columns // gates)


def by_head(weight: RecurrentWeight) -> Float[Array, "N D GD"]:
    """R as the blocks of its heads, of which a dense one has one."""
    return weight[None] if weight.ndim == 2 else weight


def look_up(table: Float[Array, "V ..."], rows: Int[Array, "..."]) -> Float[Array, "..."]:
    """The rows of `table` at these indices; the cotangents that meet in one row are summed in float32 or wider.

    A row that there is not, as one of a negative index, is NaN.
    """
    wide = table.astype(carry_dtype(table.dtype))
    return wide.at[rows].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(table.dtype)


def sole_vector(state: State) -> Array | None:
    """The only array of a state as a vector, if it has one array, of real numbers; else None."""
    leaves = jax.tree.leaves(state)
    if len(leaves) != 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        return None
    return jnp.ravel(leaves[0])


def largest(values: Array) -> Array:
    """The largest along the first axis, and NaN, in the gradient too, where there is one.

    XLA's own maximum of an axis drops NaN on a CPU: `xla_cpu_enable_fast_min_max`.
    """
    poison = jnp.where(jnp.isnan(values).any(0), jnp.nan, 1.0).astype(values.dtype)
    return values.max(0) * poison


def _is_narrow(leaf: Any) -> bool:
    return eqx.is_inexact_array(leaf) and carry_dtype(leaf.dtype) != leaf.dtype


def select(condition: Bool[Array, "..."], chosen: PyTree, other: PyTree) -> PyTree:
    """`chosen` where `condition`, else `other`; `condition` spans the leading axes of every leaf."""

    def leaf(chosen, other):
        trailing = (1,) * (jnp.ndim(other) - condition.ndim)
        return jnp.where(condition.reshape(condition.shape + trailing), chosen, other)

    return jax.tree.map(leaf, chosen, other)
