"""The description of a saved tree in its file: its arrays, its plain values, and the model that they belong to."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..arrays import PyTree, Shaped
from ..checked import Checked

SOLE = "array"  # the name of a leaf that is all of the tree
VALUES = (bool, int, float, str)
MOST = 200  # letters of a static field that are kept; a longer one goes on with the digest of all of it


class Description(NamedTuple):
    """A tree by the paths in it, such as `cell.input_weight`: JSON, by which a file is compared with a model."""

    tree: str  # the class of all of it
    classes: dict[str, str]  # of the modules, where they stand
    static: dict[str, str]  # the fields of modules that are not leaves, and the functions that are
    arrays: dict[str, str]  # such as float32[3,4]
    values: dict[str, bool | int | float | str]  # the leaves that are plain values of Python

    def flat(self) -> dict[str, str]:
        """One line for each path, to be compared. Modules that have moved to another file are still the same."""
        classes = {path or "the whole": name.rpartition(".")[2] for path, name in self.classes.items()}
        return classes | self.arrays | {name: type(value).__name__ for name, value in self.values.items()} | self.static

    def below(self, name: str) -> "Description":
        """The part of it at the path `name`, as the description of that alone."""

        def part(entries: dict[str, Any], whole: str) -> dict[str, Any]:
            inner = {path: entry for path, entry in entries.items() if path.startswith(f"{name}.")}
            part = {path.removeprefix(f"{name}."): entry for path, entry in inner.items()}
            return part | ({whole: entries[name]} if name in entries else {})

        return Description(self.tree, part(self.classes, ""), *(part(entries, SOLE) for entries in self[2:]))


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by their paths in it. Raises ValueError where two have one name."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path) or SOLE
        if name in leaves or name == "__metadata__":
            raise ValueError(
                f"tree: expected leaves of different names, got {name!r} twice or as a reserved name. "
                "Rename the keys of its dictionaries, which may hold dots"
            )
        leaves[name] = leaf
    return leaves


def describe(tree: PyTree) -> Description:
    """The description of `tree`. Raises TypeError for a leaf that is neither array, value nor function."""
    classes: dict[str, str] = {}
    static: dict[str, str] = {}
    arrays: dict[str, str] = {}
    values: dict[str, Any] = {}
    for path, node in _nodes(tree, ""):
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            classes[path] = _class(node)
            static |= {_join(path, name): _text(value) for name, value in _static_fields(node)}
    for name, leaf in named_leaves(tree).items():
        if is_array(leaf):
            arrays[name] = form(leaf)
        elif type(leaf) in VALUES:
            values[name] = leaf
        elif callable(leaf):
            static[name] = _text(leaf)
        else:
            raise TypeError(
                f"tree: expected arrays, numbers, text and functions, got {leaf!r} at {name}. "
                "Write jnp.asarray of it, make it a static field of its module, or leave it out"
            )
    return Description(_class(tree), classes, static, arrays, values)


def is_array(leaf: object) -> bool:
    """Whether it is an array, or the form of one as `eqx.filter_eval_shape` gives it."""
    return eqx.is_array(leaf) or isinstance(leaf, np.generic | jax.ShapeDtypeStruct)


def is_key(leaf: Checked[Shaped | np.ndarray]) -> bool:
    """Whether it is an array of keys of `jax.random`."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def form(leaf: Checked[Shaped | np.ndarray]) -> str:
    """Dtype and shape, as in float32[3,4]."""
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """`node` and all that is in it, leaves too, with their paths."""
    yield path, node
    for keys, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)[0]:
        if keys:
            yield from _nodes(child, _join(path, _name(keys)))


def _static_fields(module: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(module):
        if field.metadata.get("static", False):
            yield field.name, getattr(module, field.name, None)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _class(node: Any) -> str:
    return f"{type(node).__module__}.{type(node).__qualname__}"


def _text(value: Any) -> str:
    """A static value or a function as text that is the same in every process."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return form(value)
    name = getattr(value, "__name__", None) if isinstance(value, type | Callable) else None
    text = re.sub(r" at 0x[0-9a-f]+", "", name if isinstance(name, str) else repr(_in_order(value)))
    return text if len(text) <= MOST else f"{text[:MOST]}... {hashlib.sha256(text.encode()).hexdigest()}"


def _in_order(value: Any) -> Any:
    """`value` with lists in place of the sets in it, whose order is another one in each process."""
    if isinstance(value, set | frozenset):
        return [type(value).__name__, *sorted(map(repr, map(_in_order, value)))]
    if type(value) in (tuple, list):
        return type(value)(map(_in_order, value))
    if type(value) is dict:
        return {key: _in_order(other) for key, other in value.items()}
    return value
