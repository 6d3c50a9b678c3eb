"""Checks of what the modules of a matrix mixer return."""

import jax.numpy as jnp
from jaxtyping import Array

from ... import check
from .projected import Coefficient, Projected


def check_rows(
    name: str, coefficient: Coefficient | None, projected: Projected, rows: int, *sizes: int
) -> Array | None:
    """What a module returns. Raise unless it is [T, rows, size] in one of these sizes; None if there is no module."""
    if coefficient is None:
        return None
    made = coefficient(projected)
    steps = projected.x.shape[0]
    if made.ndim != 3 or made.shape[:2] != (steps, rows) or made.shape[2] not in sizes:
        allowed = " or ".join(f"[T, {rows}, {size}]" for size in sorted({*sizes}))
        raise ValueError(
            f"{name}: expected a module that returns {allowed}, got {check.show(made)} of T={steps}. "
            "Return a row for each head, of each micro-step if there are several"
        )
    return made


def check_maps(projected: Projected, rows: tuple[int, int, int]) -> Projected:
    """What the maps return. Raise unless it has the rows of its argument, and queries have the size of keys."""
    steps, size = projected.x.shape[0], projected.key.shape[-1:]
    for name, made, count in zip(("query", "key", "value"), projected[1:4], rows, strict=True):
        if made.ndim != 3 or made.shape[:2] != (steps, count):
            raise ValueError(
                f"{name}_map: expected a function that returns [T, {count}, size], got {check.show(made)} of "
                f"T={steps}. Return a vector for each vector, on the last axis"
            )
    if projected.query.shape[-1:] != size:
        raise ValueError(
            f"query_map: expected a function that returns [T, {rows[0]}, {size[0]}], as key_map does, "
            f"got {check.show(projected.query)} of T={steps}. Give both one size"
        )
    return projected


def check_learned(learn_initial: bool, dtype: jnp.dtype) -> bool:
    """Whether a state is complex. Raise if it is to be learned: optimisers do not treat complex weights rightly."""
    is_complex = bool(jnp.issubdtype(dtype, jnp.complexfloating))
    if learn_initial and is_complex:
        raise ValueError(
            f"learn_initial: expected False for a state of {dtype}, got True. Pass False, or maps that return real keys"
        )
    return is_complex


def check_reads(reads: Array, heads: int, value_size: int) -> None:
    """Raise unless the norm has returned [T, N, V]."""
    if reads.shape[1:] != (heads, value_size):
        raise ValueError(
            f"norm: expected a module that returns [{heads}, {value_size}] at each step, got {list(reads.shape[1:])}. "
            "Return value_size numbers for each head, whatever the size that value_map makes"
        )


def divided(name: str | None, input_size: int, part: float, heads: int) -> int:
    """The size of one head if all heads together have `part` of the input's size. Raise unless it is an integer.

    `name` is the argument that would give the size, None if there is none.
    """
    width = part * input_size
    share = f"{part:g} * input_size={width:g}" if part != 1 else f"input_size={width:g}"
    if width % heads:
        divisors = [each for each in range(min(input_size, heads), 0, -1) if width % each == 0]
        ways = [*(f"heads={each}" for each in divisors[:1]), *([] if name is None else [f"{name} itself"])]
        missing = "" if name is None else f", as {name} is not given"
        raise ValueError(f"heads: expected a divisor of {share}{missing}, got {heads}. Pass {', or '.join(ways)}")
    return int(width) // heads


MODULES = {  # an example of each kind
    **dict.fromkeys(("query_map", "key_map", "value_map"), "jax.nn.silu"),
    "decay": "mixers.FixedDecay((0.9,) * heads)",
    **dict.fromkeys(
        ("write", "erase"), "mixers.Gate(mixers.Linear(input_size, heads, key=key), jax.nn.sigmoid, heads)"
    ),
    **dict.fromkeys(
        ("skip", "gate"), "mixers.Gate(mixers.Linear(input_size, heads * value_size, key=key), ..., heads)"
    ),
    "norm": "mixers.HeadNorm(value_size, dtype=dtype)",
}


def check_callable(**modules: object) -> None:
    """Raise unless these parts of a mixer are functions, where they are given."""
    for name, module in modules.items():
        if isinstance(module, type) or not (callable(module) or module is None):
            raise TypeError(f"{name}: expected a function or a module, got {module!r}. Pass {MODULES[name]}, say")
