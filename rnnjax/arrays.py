"""The notation: one letter per axis, one name per array type.

Axes
    T  time, always first         B  batch (only where a kernel sees one)
    I  input features             H  hidden units
    G  gates, in the cell's order N  heads, D units each: N * D = H
    GH, GD  the columns of all gates, one gate after the other: G * H or G * D of them

Arrays
    x  input        u  the input projected, W x + b         h  hidden state   c  cell state
    y  output       v  the state multiplied by R, R h       a, b  linear coefficients
    W  weight of x [I, GH]          R  weight of h [H, GH], or [N, D, GD] with heads      b  bias [GH]
A plural runs over time: `xs`, `us`, `states`, `ys`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Inexact, Int

from .checked import Checked

if TYPE_CHECKING:  # type checkers do not understand jaxtyping's own
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
Unit = Float[Array, ""]  # of one hidden unit, in `pointwise`
UnitGates = Float[Array, " G"]
GatesOverTime = Float[Array, "T G H"]

InputWeight = Float[Array, "I GH"]
RecurrentWeight = Float[Array, "P GH"] | Float[Array, "N D GD"]  # P = H, but for a projected state
Bias = Float[Array, " GH"]

Length = Int[Array, ""]
Flags = Bool[Array, " T"]
Index = Int[Array, " T"]

Shaped = Array | jax.ShapeDtypeStruct  # an array of which only shape and dtype are used
AnyArray: TypeAlias = Array | np.ndarray  # JAX's or NumPy's
IntegerLike: TypeAlias = int | np.integer[Any] | np.ndarray | Array  # one integer, traced or not
DType: TypeAlias = Checked[DTypeLike]  # `jnp.float32`, "float32", ...
Sizes: TypeAlias = Checked[int | tuple[int, ...]]  # of one axis, or of several

State: TypeAlias = PyTree[Any]  # all that the next step needs
States: TypeAlias = PyTree[Any]  # a state over time: a leading axis T on every leaf


def count_steps(tree: PyTree[Shaped]) -> int:
    """T of arrays over time."""
    return jax.tree.leaves(tree)[0].shape[0]


def carry_dtype(dtype: DType) -> jnp.dtype:
    """The dtype of a state: float32 for any narrower dtype, else `dtype` itself."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def cast(tree: PyTree, dtype: DType) -> PyTree:
    """`tree` with every array in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def finite_exp(exponents: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(x), but never infinite: in exp(-exp(x)) an infinity would make the derivative 0 * inf, which is NaN."""
    return jnp.exp(jnp.minimum(exponents, math.log(jnp.finfo(exponents.dtype).max) - 1))


def widen(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """`tree` with its narrow floating arrays in float32, and the function that casts such a tree back.

    The transpose of a loop sums the cotangent of each array that the loop closes over, step by step, in the array's
    dtype, and with 8 bits of mantissa such a sum soon stops growing. So a loop closes over the wide tree, and casts it
    back inside.
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
    """`array` with axes of size one in front, up to this rank: users may make broadcasting by rank an error."""
    return jnp.expand_dims(array, tuple(range(rank - array.ndim)))


def by_gate(array: Float[Array, "*leading GH"], gates: int) -> Float[Array, "*leading G H"]:
    """A view of a weight, a bias or a pre-activation, in which each gate has a row of its own."""
    *leading, columns = array.shape
    return array.reshape(*leading, gates, columns // gates)


def by_head(weight: RecurrentWeight) -> Float[Array, "N D GD"]:
    """R as the blocks of its heads; a dense R is one head."""
    return weight[None] if weight.ndim == 2 else weight


def look_up(table: Float[Array, "V ..."], rows: Int[Array, "..."]) -> Float[Array, "..."]:
    """The rows of `table` at these indices; the cotangents of each row are summed in float32 or wider.

    An index outside of the table, such as a negative one, gives NaN.
    """
    wide = table.astype(carry_dtype(table.dtype))
    return wide.at[rows].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(table.dtype)


def sole_vector(state: State) -> Array | None:
    """The array of a state as a vector, if the state is one array of real numbers; else None."""
    leaves = jax.tree.leaves(state)
    if len(leaves) != 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        return None
    return jnp.ravel(leaves[0])


def largest(values: Array) -> Array:
    """The maximum along the first axis; NaN, in the gradient too, if there is one.

    XLA's own maximum along an axis ignores NaN on a CPU: `xla_cpu_enable_fast_min_max`.
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
