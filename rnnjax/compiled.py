"""Programs that are compiled once even outside of `jax.jit`, where JAX would compile each loop again at every call."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast

import jax
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function`, of pytrees, compiled once for each combination of static arguments, shapes and dtypes.

    Arrays are operands of the program, and everything else is static. With static arguments that cannot be hashed,
    `function` is called as it is.
    """

    @partial(jax.jit, static_argnums=0)
    @wraps(function)
    def program(static: tuple, arrays: list[Any]) -> Any:
        structure, others = static
        given = iter(arrays)
        return function(*jax.tree.unflatten(structure, [next(given) if leaf is ARRAY else leaf for leaf in others]))

    @wraps(function)
    def run(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        static = structure, tuple(ARRAY if _is_array(leaf) else leaf for leaf in leaves)
        try:
            hash(static)
        except TypeError:
            return function(*arguments)
        return program(static, list(filter(_is_array, leaves)))

    return cast("Function", run)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


ARRAY = object()  # stands for an array among the static arguments
