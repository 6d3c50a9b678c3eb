"""Checks of arguments. Each error names the argument, the expected value and the given one."""

from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .arrays import DType, Flags, Length, PyTree, Sizes, State
from .checked import Checked

BATCH_HINT = "unroll takes one sequence, time first. Write jax.vmap(lambda xs: unroll(cell, None, xs))(xs)"


def inputs(xs: object, expected: PyTree[jax.ShapeDtypeStruct], name: str) -> PyTree[Array]:
    """`xs` as arrays over time, each step like `expected`; `name` is the cell's."""
    xs = sequence(xs)
    if jax.tree.structure(xs) != jax.tree.structure(expected):
        raise ValueError(
            f"xs: expected {show(expected)} at each step for {name}, got {show(xs)}. "
            "Pass one array for each of these, with time on axis 0"
        )
    jax.tree.map(lambda leaf, step: _input_leaf(leaf, step, name), xs, expected)
    return xs


def sequence(xs: object) -> PyTree[Array]:
    """`xs` as arrays whose first axis is time, of one length."""
    leaves = jax.tree.leaves(xs)
    if not leaves:
        raise TypeError(
            f"xs: expected an array [T, ...], got {xs!r}. "
            "Pass an array, such as jnp.arange(T) for a function that needs no input"
        )
    for leaf in leaves:
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise TypeError(f"xs: expected an array [T, ...], got {type(leaf).__name__}. Write jnp.asarray(xs)")
        if leaf.ndim == 0:
            raise ValueError(
                "xs: expected an array [T, ...] with time first, got a scalar. Write xs[None] for one step"
            )
    lengths = {leaf.shape[0] for leaf in leaves}
    if len(lengths) != 1:
        raise ValueError(
            f"xs: expected arrays of one length T on their first axis, got lengths {sorted(lengths)}. "
            f"Cut them to {min(lengths)} steps, or pad them to {max(lengths)}"
        )
    return jax.tree.map(jnp.asarray, xs)


def _input_leaf(leaf: Array, step: jax.ShapeDtypeStruct, name: str) -> None:
    expected = f"[T, {', '.join(map(str, step.shape))}]" if step.shape else "[T]"
    got = list(leaf.shape)
    if leaf.ndim == len(step.shape) + 2:
        raise ValueError(f"xs: expected {expected} for {name}, got the batch {got}. {BATCH_HINT}")
    if leaf.ndim != len(step.shape) + 1:
        raise ValueError(
            f"xs: expected rank {len(step.shape) + 1}, {expected}, for {name}, got {got}. "
            "Reshape xs, with time on axis 0 and one step on the others"
        )
    if leaf.shape[1:] != step.shape:
        raise ValueError(
            f"xs: expected {expected} for {name}, got {got}: the feature sizes differ. "
            f"Build {name} for steps of shape {got[1:]}, or pass xs of shape {expected}"
        )
    if leaf.dtype != step.dtype:
        raise TypeError(
            f"xs: expected {step.dtype} for {name}, got {leaf.dtype}. "
            f"Cast the inputs, xs.astype({step.dtype}), or build the cell with their dtype"
        )


def state(state: object, expected: State, name: str) -> State:
    """`state` as arrays of the structure, shapes and dtypes of `expected`."""
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError(_other_state(state, expected, name))
    arrays = jax.tree.map(jnp.asarray, state)
    if jax.tree.map(jnp.shape, arrays) != jax.tree.map(jnp.shape, expected):
        raise ValueError(_other_state(state, expected, name))
    if not alike(arrays, expected):
        raise TypeError(_other_state(state, expected, name))
    return arrays


def _other_state(state: Any, expected: State, name: str) -> str:
    return f"state: expected {show(expected)} for {name}, got {show(state)}. Pass None to start from cell.initial()"


def alike(tree: PyTree, expected: PyTree) -> bool:
    """Whether both have the same structure, and their arrays the same shapes and dtypes."""
    if jax.tree.structure(tree) != jax.tree.structure(expected):
        return False
    same = jax.tree.map(lambda leaf, like: leaf.shape == like.shape and leaf.dtype == like.dtype, tree, expected)
    return all(jax.tree.leaves(same))


def length(length: object, T: int) -> Length | None:
    """`length` as a scalar in [0, T]; a traced value is clamped, a known one must be in range."""
    if length is None:
        return None
    if isinstance(length, (bool, np.bool_)) or not isinstance(length, (int, np.integer, np.ndarray, jax.Array)):
        raise TypeError(
            f"length: expected an integer scalar, got {length!r}. "
            "Pass the number of steps to run, a Python int or an integer array of shape ()"
        )
    dtype = jnp.result_type(length)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"length: expected an integer scalar, got {dtype}. Write length.astype(int)")
    if jnp.shape(length):
        raise ValueError(
            f"length: expected a scalar, one sequence's length, got {list(jnp.shape(length))}. "
            "Write jax.vmap(lambda xs, length: unroll(cell, None, xs, length=length))(xs, length)"
        )
    is_known = not isinstance(length, Tracer) and isinstance(T, int)  # under `jax.export` T may be a symbol
    if is_known and not 0 <= int(length) <= T:
        raise ValueError(
            f"length: expected a value from 0 to T={T}, got {int(length)}. "
            f"Pass how many of the {T} steps to run, or pad xs"
        )
    if jnp.issubdtype(dtype, jnp.unsignedinteger):  # the cast would make the largest ones negative
        length = jnp.minimum(length, min(jnp.iinfo(dtype).max, jnp.iinfo(jnp.int32).max))
    return jnp.clip(jnp.asarray(length).astype(int), 0, T)  # cast first: T may be too large for the dtype of `length`


STEPS = {"resets": "True marks a step to reset before", "mask": "False marks a step to leave out"}


def steps(name: str, flags: object, T: int) -> Flags | None:
    """`flags`, the argument of this name in `STEPS`, as booleans [T]."""
    if flags is None:
        return None
    if not isinstance(flags, (jax.Array, np.ndarray)):
        raise TypeError(
            f"{name}: expected booleans [T={T}], got {type(flags).__name__}. "
            f"Write jnp.asarray({name}), one flag for each step"
        )
    if flags.dtype != np.bool_:
        raise TypeError(
            f"{name}: expected booleans [T={T}], got {flags.dtype}. Write {name}.astype(bool); {STEPS[name]}"
        )
    if flags.shape != (T,):
        raise ValueError(
            f"{name}: expected shape [{T}], one flag per step of xs, got {list(flags.shape)}. "
            f"Cut or pad it to {T} steps, and map over a batch of {name} with jax.vmap"
        )
    return jnp.asarray(flags)


def show(tree: object) -> str:
    """A tree by its structure, shapes and dtypes, on one line."""
    return eqx.tree_pformat(tree, width=10_000, struct_as_array=True)


def sizes(**values: Checked[int]) -> None:
    """Raise unless every value is a positive integer and `heads`, where given, divides `hidden_size`."""
    for name, value in values.items():
        if not _is_size(value):
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if {"heads", "hidden_size"} <= values.keys() and values["hidden_size"] % values["heads"]:
        size, heads = values["hidden_size"], values["heads"]
        divisor = next(each for each in range(min(size, heads), 0, -1) if size % each == 0)
        raise ValueError(
            f"heads: expected a divisor of hidden_size={size}, got {heads}. "
            f"Take heads={divisor}, or hidden_size={-(-size // heads) * heads}"
        )


def shape(name: str, value: Sizes, least: int = 1) -> tuple[int, ...]:
    """`value` as a tuple; an integer is that of one axis. Raise unless all are integers of at least `least`, 0 or 1."""
    axes = value if isinstance(value, tuple) else (value,)
    if not all(_is_size(axis, least) for axis in axes):
        raise ValueError(
            f"{name}: expected a {'positive' if least else 'non-negative'} integer or a tuple of them, got {value!r}. "
            "Write a tuple for several axes, such as (1, 28)"
        )
    return tuple(map(int, axes))


def _is_size(value: Any, least: int = 1) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def dtype(value: DType) -> None:
    """Raise unless weights can be of this dtype."""
    if not jnp.issubdtype(value, jnp.floating):
        raise TypeError(
            f"dtype: expected a floating one, such as jnp.float32, got {jnp.dtype(value)}. "
            "Pass a floating dtype, and cast integer inputs to it"
        )


def flags(**values: object) -> None:
    """Raise unless every value is True or False: the string "False" is truthy."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {_got(value)}")


def positive(name: str, value: object, means: str, remedy: str) -> None:
    """Raise unless `value` is a positive Python integer; `means` and `remedy` complete the message."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected {means}, got {value!r}. {remedy}")


def activations(**values: object) -> None:
    """Raise unless every value is a function."""
    for name, value in values.items():
        if isinstance(value, type) or not callable(value):
            raise TypeError(
                f"{name}: expected a function of an array, unit by unit, got {value!r}. "
                "Pass the function itself, such as jnp.tanh or jax.nn.relu"
            )


def count(name: str, value: object, least: int = 1) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {_got(value)}")
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, got {value!r}")


DROPPING = "dropping (to keep a share p of the values, pass 1 - p)"


def number(name: str, value: object, means: str = "a number") -> float:
    """`value` as a float: unlike a scalar of NumPy, it widens no dtype. Raises unless it is known before tracing."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"{name}: expected {means}, a Python number known before tracing, got {_got(value)}. "
            f"Write float({name}) outside of jax.jit"
        )
    return float(value)


def probability(name: str, value: object, of: str = DROPPING) -> float:
    """`value` as a float. Raises unless it is a probability below 1."""
    rate = number(name, value, f"the probability of {of}")
    if not 0 <= rate < 1:
        raise ValueError(
            f"{name}: expected the probability of {of}, 0 <= p < 1, got {value!r}. Pass 0 to switch it off"
        )
    return rate


def nonnegative(name: str, value: object, means: str, of: str) -> float:
    """`value` as a float. Raises unless it is finite and 0 or more."""
    amount = number(name, value, means)
    if not 0 <= amount < float("inf"):
        raise ValueError(f"{name}: expected {means}, 0 or more and finite, got {value!r}. Pass 0 for no {of}")
    return amount


def _got(value: Any) -> str:
    """A value as a message shows it: an array by its dtype and shape, on one line."""
    return show(value) if eqx.is_array_like(value) and np.ndim(value) else repr(value)
