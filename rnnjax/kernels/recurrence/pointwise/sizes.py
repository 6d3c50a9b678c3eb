"""Whether a function is the same at one number of units as at another: what was traced at a few holds for many."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from .primitives import TranslationError
from .trace import jaxpr_of

Sizes = tuple[int, int]  # the two numbers of units


def check_sizes(function: Callable[..., Any], inputs: dict[str, int], dtype: Any, sizes: Sizes) -> None:
    """Raise `TranslationError` unless the jaxprs of `function` at both sizes differ in shapes alone."""
    one, other = (jaxpr_of(function, inputs, dtype, units)[0] for units in sizes)
    _check_jaxprs(one, other, sizes)


def _check_jaxprs(one: Any, other: Any, sizes: Sizes) -> None:
    constants = getattr(one, "consts", ()), getattr(other, "consts", ())
    one, other = getattr(one, "jaxpr", one), getattr(other, "jaxpr", other)
    if _wiring(one) != _wiring(other) or len(constants[0]) != len(constants[1]):
        raise TranslationError(f"pointwise is not the same at {sizes[0]} and at {sizes[1]} units")
    for a, b in zip(*constants, strict=True):
        _check_constants(a, b, sizes)
    for a, b in zip(one.outvars, other.outvars, strict=True):
        if isinstance(a, Literal):
            _check_constants(a.val, b.val, sizes)
    for a, b in zip(one.eqns, other.eqns, strict=True):
        if a.primitive.name == "iota" and a.outvars[0].aval != b.outvars[0].aval:
            raise TranslationError("pointwise numbers its units (`iota`)")
        for left, right in zip(a.invars, b.invars, strict=True):
            if isinstance(left, Literal):
                _check_constants(left.val, right.val, sizes)
        for name in a.params:
            _check_parameters(a.params[name], b.params[name], sizes, f"{name} of `{a.primitive.name}`")


def _wiring(jaxpr: Jaxpr) -> list[Any]:
    """What is computed of what: primitives and the numbers of their operands, in the order in which these are made."""
    numbers = {variable: number for number, variable in enumerate((*jaxpr.constvars, *jaxpr.invars))}
    wiring: list[Any] = [len(numbers)]
    for equation in jaxpr.eqns:
        operands = [None if isinstance(atom, Literal) else numbers[atom] for atom in equation.invars]
        wiring.append((equation.primitive, operands, len(equation.outvars), sorted(equation.params)))
        numbers |= {variable: len(numbers) + place for place, variable in enumerate(equation.outvars)}
    return [*wiring, [None if isinstance(atom, Literal) else numbers[atom] for atom in jaxpr.outvars]]


def _check_constants(one: Any, other: Any, sizes: Sizes) -> None:
    """Equal, or of shapes that follow the units, and then of one value alone."""
    if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    values = np.concatenate([np.ravel(one), np.ravel(other)])
    if np.shape(one) == np.shape(other) and np.array_equal(one, other, equal_nan=values.dtype.kind == "f"):
        return
    if np.shape(one) == np.shape(other) or (values != values[0]).any():
        raise TranslationError(f"pointwise has other constants at {sizes[0]} and at {sizes[1]} units")


def _check_parameters(one: Any, other: Any, sizes: Sizes, what: str) -> None:
    """Equal but for sizes; functions are not looked at: what they compute is in a jaxpr of their own."""
    if isinstance(one, (Jaxpr, ClosedJaxpr)):
        _check_jaxprs(one, other, sizes)
    elif isinstance(one, Sequence) and not isinstance(one, str) and isinstance(other, Sequence):
        if len(one) != len(other):
            raise TranslationError(f"pointwise has another {what} at {sizes[0]} and at {sizes[1]} units")
        for a, b in zip(one, other, strict=True):
            _check_parameters(a, b, sizes, what)
    elif isinstance(one, int) and isinstance(other, int) and one * sizes[1] == other * sizes[0]:
        return
    elif isinstance(one, (int, float, str, np.dtype)) and one != other and one == one:  # nan is itself
        raise TranslationError(f"pointwise has another {what} at {sizes[0]} and at {sizes[1]} units")
