"""Files of models: arrays by name in the safetensors format, with a digest, in one file that is whole or not there.

https://github.com/huggingface/safetensors: a header of JSON, and the arrays' bytes. Nothing in it can be executed, and
the package `safetensors` alone reads it. The entry `rnnjax` of its metadata, JSON again, holds the SHA-256 of all data
and the `Description` of the tree.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..arrays import AnyArray, PyTree
from ..checked import Checked
from .atomic import write_atomically
from .description import SOLE, Description, describe, form, is_array, is_key, named_leaves

ENTRY = "rnnjax"  # one entry, since safetensors writes several in an order that differs from process to process
FORMAT = 2
RUN = "rnnjax.training.run.Run"
DTYPES = {  # as NumPy and as safetensors call them
    **{"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"},
    **{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"},
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to something else. Nothing has been changed."""


class Stored(NamedTuple):
    """An array as the file has it: dtype by its NumPy name, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def save(path: str | Path, tree: PyTree) -> None:
    """Write `tree`, a model or any tree of them, to `path`, all or nothing, in the safetensors format.

    Arrays are named by their paths in the tree, such as `cell.input_weight`; complex ones are stored as real ones with
    a last axis of two, and random keys as their bits. Numbers and text of Python that are leaves, as in
    `{"model": model, "epoch": 3}`, are kept in the metadata; of functions and static fields it keeps names, by which
    `load` finds that they differ. Folders that are missing are made.

    Raises TypeError for any other leaf and for dtypes that the format lacks; ValueError where two leaves have one name.
    """
    from safetensors import numpy  # by training alone: a checkout can be imported without it

    description = describe(tree)
    arrays = {name: stored_form(name, leaf) for name, leaf in named_leaves(tree).items() if is_array(leaf)}
    digest = _digest(description, (array.tobytes() for array in arrays.values()))
    entry = {"format": FORMAT, "sha256": digest, **description._asdict()}
    write_atomically(path, numpy.save(arrays, {ENTRY: json.dumps(entry)}))


def load(path: str | Path, like: PyTree) -> PyTree:
    """`like` with its arrays, and the numbers and text among its leaves, replaced by those of the file at `path`.

    like    a model built as the saved one was; or its shapes alone, `eqx.filter_eval_shape(build, ...)`, by which
            nothing is drawn. Arrays of NumPy come back as such, all others as JAX's

    `path` may also be the file `checkpoint` of a run of `fit`, and `like` its model: this gives the model that `fit`
    would have returned after that checkpoint, which is the best by validation, or the last without any.

    Raises FileNotFoundError where there is no file, and CheckpointError where it is cut short, damaged, no checkpoint,
    or of another model, with other arrays, static fields or functions: the message says which differ.
    """
    path = Path(path)
    found, description = _read(path)
    if description.tree == RUN and _is_no_run(like):
        return load_from_run(path, found, description, like)
    return _fill(path, found, description, like)


def load_from_run(path: Path, found: dict[str, Stored], description: Description, like: PyTree) -> PyTree:
    """The model of a run, of which the run holds the floating-point arrays; `like` has the rest."""
    trained, rest = eqx.partition(like, lambda leaf: is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact))
    missing = [name for name, leaf in named_leaves(rest).items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if missing:
        raise CheckpointError(
            f"checkpoint: {path} holds what its run trained, and {missing[0]} is not trained: expected its values in "
            "`like`, got its shape. Pass the model as it was built"
        )
    if description.arrays.get("best_loss") != "float32[]":
        raise _unreadable(path)
    best_loss = np.frombuffer(found["best_loss"].data, np.float32)[0]
    place = "best" if best_loss < np.inf else "weights"
    prefix = f"{place}."
    part = {name.removeprefix(prefix): each for name, each in found.items() if name.startswith(prefix)}
    if place in found:  # the model is an array
        part[SOLE] = found[place]
    return eqx.combine(_fill(path, part, description.below(place), trained), rest)


def _is_no_run(like: PyTree) -> bool:
    return describe(like).tree != RUN


def _fill(path: Path, found: dict[str, Stored], description: Description, like: PyTree) -> PyTree:
    """`like` with its leaves from the file, if that is of the same model."""
    check_same(path, like, description)

    def fill(name: str, leaf: Any) -> Any:
        if is_array(leaf):
            return _restore(path, name, found[name], leaf)
        return description.values.get(name, leaf)

    leaves = [fill(name, leaf) for name, leaf in named_leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_same(path: Path, like: PyTree, description: Description) -> None:
    """Raise CheckpointError, with the names that differ, unless this is the description of `like`."""
    expected, got = describe(like).flat(), description.flat()
    if expected != got:
        raise CheckpointError(
            f"checkpoint: {path} is of another model: {_differences(expected, got)}. "
            "Pass `like` built as the model that was saved"
        )


# Arrays


def stored_form(name: str, leaf: Checked[AnyArray]) -> np.ndarray:
    """An array as the file has it."""
    check_dtype(name, leaf)
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")
    if np.iscomplexobj(array):
        array = np.stack([np.real(array), np.imag(array)], -1)
    return array.astype(array.dtype.newbyteorder("="))


def check_dtype(name: str, leaf: Checked[AnyArray]) -> None:
    """Raise TypeError for an array of a dtype that is not kept."""
    if not is_key(leaf) and leaf.dtype.name not in (*DTYPES, "complex64", "complex128"):
        raise TypeError(
            f"tree: expected arrays of {', '.join(DTYPES)}, complex64 or complex128, got {form(leaf)} at {name}. "
            "Cast it to one of them"
        )


def _restore(path: Path, name: str, stored: Stored, like: Any) -> Any:
    """An array of the file as what `like` is: NumPy's, JAX's, or keys of the same generator."""
    bits = jax.eval_shape(jax.random.key_data, like) if is_key(like) else like
    dtype = np.dtype(bits.dtype).newbyteorder("=")
    one = np.empty((*bits.shape, 0), dtype)
    is_complex = np.iscomplexobj(one)
    if (stored.dtype, stored.shape) != (np.real(one).dtype.name, (*bits.shape, 2) if is_complex else bits.shape):
        raise CheckpointError(
            f"checkpoint: {path} is damaged: {name} is described as {form(like)}, and is not stored as such. "
            "Copy the file again, or load an earlier one"
        )
    array = np.frombuffer(stored.data, dtype).reshape(bits.shape)
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray):
        return array.copy()
    restored = jnp.asarray(array)
    if restored.dtype != dtype:
        raise CheckpointError(
            f"checkpoint: {name} in {path} is {form(like)}, which JAX would cut to {restored.dtype}. "
            'Call jax.config.update("jax_enable_x64", True) before'
        )
    return _wrap(restored, like) if is_key(like) else restored


def _wrap(bits: jax.Array, like: Any) -> jax.Array:
    """Keys of these bits, of the generator of `like`."""
    generators: list[Any] = []
    jax.eval_shape(lambda keys: generators.append(jax.random.key_impl(keys)), like)
    return jax.random.wrap_key_data(bits, impl=generators[0])


# Files


def _read(path: Path) -> tuple[dict[str, Stored], Description]:
    """All arrays of the file, and the description, once they are known to be those that were saved."""
    from safetensors import SafetensorError, deserialize

    if not path.is_file():
        what = "a folder" if path.is_dir() else "none"
        advice = "Pass the path that `save` wrote to"
        if (path / "checkpoint").is_file():
            advice = f"Pass {path / 'checkpoint'}"
        elif path.is_dir():
            advice += "; the model of a run with store=Orbax() is that of rnnjax.training.Orbax().load(folder, model)"
        raise FileNotFoundError(f"checkpoint: expected a file at {path}, found {what}. {advice}")
    content = path.read_bytes()
    try:
        tensors = deserialize(content)
        entry = _entry(content)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    names = {code: name for name, code in DTYPES.items()}
    found = {
        name: Stored(names.get(each["dtype"], ""), tuple(each["shape"]), bytes(each["data"])) for name, each in tensors
    }
    description = read_description(entry)
    if description is None:
        raise _unreadable(path)
    is_complete = found.keys() == description.arrays.keys()
    if not is_complete or entry.get("sha256") != _digest(
        description, (found[name].data for name in description.arrays)
    ):
        raise CheckpointError(
            f"checkpoint: {path} is cut short or damaged: its {len(content)} bytes are not those saved. "
            "Copy the file again, or load an earlier one"
        )
    return found, description


def _entry(content: bytes) -> dict[str, Any]:
    """What `save` wrote into the metadata of a file whose header is known to be right; empty if it did not."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    entry = json.loads((header.get("__metadata__") or {}).get(ENTRY, "{}"))
    return entry if isinstance(entry, dict) else {}


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: {path} is not a checkpoint of this library, or is cut short or damaged. "
        "Pass a file that `save` wrote, or copy it again"
    )


def read_description(entry: Mapping[str, object]) -> Description | None:
    """The description in an entry of the metadata; None if it is not one of this format."""
    tree, values = entry.get("tree"), entry.get("values")
    texts = [part for part in map(entry.get, ("classes", "static", "arrays")) if isinstance(part, dict)]
    if entry.get("format") != FORMAT or not isinstance(tree, str) or not isinstance(values, dict) or len(texts) != 3:
        return None
    if not all(isinstance(text, str) for part in texts for text in part.values()):
        return None
    classes, static, arrays = texts
    return Description(tree, classes, static, arrays, values)


def _digest(description: Description, data: Iterable[bytes]) -> str:
    digest = hashlib.sha256(json.dumps(description).encode())
    for each in data:
        digest.update(each)
    return digest.hexdigest()


def _differences(expected: dict[str, str], found: dict[str, str]) -> str:
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    shown = [f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}" for name in names[:5]]
    return "; ".join(shown) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
