"""Functions that cells and models hold, such as activations, as values that survive `copy.deepcopy` and `pickle`.

JAX's own functions do not: a copy of `jnp.tanh` or `jax.nn.relu` is another function, so that the copied cell would be
another kind of pytree, and compile anew.
"""

from functools import partial
from importlib import import_module
from operator import attrgetter
from types import FunctionType
from typing import Any

import equinox as eqx
import jax


class Named:
    """A function that equals itself, that a copy shares, and that `pickle` finds again by its module and its name."""

    def __init__(self, function: Any):
        self.function = function
        self.identity = _identity(function)
        self.__name__ = getattr(function, "__name__", repr(function))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    def __eq__(self, other: object) -> bool:
        return self.identity == (other.identity if isinstance(other, Named) else other)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return self.__name__

    def __deepcopy__(self, memo: Any) -> "Named":
        return self

    def __reduce__(self) -> Any:
        module, name = getattr(self.function, "__module__", None), _name(self.function)
        if module and name and _find(module, name) is self.function:
            return _load, (module, name)
        if isinstance(self.function, partial):
            inner, arguments, options = self.function.func, self.function.args, self.function.keywords
            return _load_partial, (named(inner), arguments, options)
        return Named, (self.function,)


def named(function: Any) -> Any:
    """`function`, such that a deep copy of it is equal to it; a layer with weights, or a plain function, as it is."""
    if isinstance(function, FunctionType | Named | type) or not callable(function):
        return function
    return Named(function) if jax.tree_util.all_leaves([function]) else function


class Function(eqx.Module):
    """A function without weights as a module without leaves, which `jax.jit`, `jax.grad` and optax need not see."""

    function: Any = eqx.field(static=True, converter=named)

    def __call__(self, *arguments: object, **options: object) -> Any:
        return self.function(*arguments, **options)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def as_module(function: Any) -> Any:
    """`function` as a pytree of arrays alone: a layer with weights as it is, any other function as a `Function`."""
    return Function(function) if callable(function) and jax.tree_util.all_leaves([function]) else function


def _identity(function: Any) -> Any:
    """What tells a function from others: of a partial application, what it applies to what."""
    if not isinstance(function, partial):
        return function
    return _identity(function.func), function.args, tuple(sorted(function.keywords.items()))


def _name(function: Any) -> str | None:
    return getattr(function, "__qualname__", None) or getattr(function, "__name__", None)


def _find(module: str, name: str) -> Any:
    """What stands at that name; None if nothing does."""
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError):
        return None


def _load(module: str, name: str) -> Named:
    return Named(attrgetter(name)(import_module(module)))


def _load_partial(function: Any, arguments: tuple, options: dict[str, Any]) -> Named:
    return Named(partial(function, *arguments, **options))
