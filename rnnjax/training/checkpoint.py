"""Checkpoints: arrays in one file that is either whole or not there.

A file is a line of JSON, which names every array with its shape and dtype and carries the digest of all of it, and
then the arrays' bytes one after the other. It is written beside its place, forced to disk, and moved into place at
once, so that a kill at any moment leaves the last good one.
"""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..arrays import PyTree

FORMAT = "rnnjax checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to something else. Nothing has been changed."""


def save(path: str | Path, tree: PyTree) -> None:
    """Write the arrays of `tree` to `path`, all or nothing."""
    leaves = _named_arrays(tree)
    payload = b"".join(np.asarray(leaf).tobytes() for leaf in leaves.values())
    described = {name: _describe(leaf) for name, leaf in leaves.items()}
    header = {"format": FORMAT, "arrays": described, "sha256": _digest(described, payload)}
    write_atomically(path, json.dumps(header).encode() + b"\n" + payload)


def load(path: str | Path, like: PyTree) -> PyTree:
    """`like` with its arrays replaced by those of the file at `path`.

    Raises FileNotFoundError where there is no file, and CheckpointError where it is cut short, damaged, no checkpoint,
    or holds other arrays than `like`: the message says which differ.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint: expected a file at {path}, found none. Pass the path that `save` wrote to"
        )
    line, _, payload = path.read_bytes().partition(b"\n")
    header = _read_header(path, line)
    if _digest(header["arrays"], payload) != header["sha256"]:
        raise CheckpointError(
            f"checkpoint: {path} is cut short or damaged: its {len(payload)} bytes are not those saved. "
            "Copy the file again, or load an earlier one"
        )
    expected = {name: _describe(leaf) for name, leaf in _named_arrays(like).items()}
    if expected != header["arrays"]:
        raise CheckpointError(
            f"checkpoint: {path} is of another model: {_differences(expected, header['arrays'])}. "
            "Pass `like` built as the model that was saved"
        )
    if len(payload) != sum(leaf.nbytes for leaf in _named_arrays(like).values()):
        raise CheckpointError(
            f"checkpoint: {path} is damaged: its {len(payload)} bytes are not those of its arrays. "
            "Copy the file again, or load an earlier one"
        )
    arrays, rest = eqx.partition(like, eqx.is_array)
    found = _read_arrays(header["arrays"], payload)
    named = jax.tree.unflatten(jax.tree.structure(arrays), [found[name] for name in expected])
    return eqx.combine(jax.tree.map(_like, named, arrays), rest)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that `path` holds the old content or the new, whatever happens in between."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")  # two may write at once
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a new name to disk before anyone relies on it. Not every file system can, and the file itself is safe."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _named_arrays(tree: PyTree) -> dict[str, jax.Array]:
    leaves = jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in leaves}


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _like(array: np.ndarray, like: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """`array` as what it was: NumPy's, JAX's, or a key of the same generator."""
    if isinstance(like, np.ndarray):
        return array.copy()
    return (
        jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
        if _is_key(like)
        else jnp.asarray(array)
    )


def _digest(described: dict[str, str], payload: bytes) -> str:
    digest = hashlib.sha256(json.dumps(described).encode())
    digest.update(payload)
    return digest.hexdigest()


def _describe(leaf: jax.Array) -> str:
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def _read_header(path: Path, line: bytes) -> dict:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    fields = header if isinstance(header, dict) else {}
    arrays = fields.get("arrays")
    is_description = isinstance(arrays, dict) and all(isinstance(each, str) for each in arrays.values())
    if fields.get("format") != FORMAT or not is_description or "sha256" not in fields:
        raise CheckpointError(
            f"checkpoint: {path} is not a checkpoint of this library, or is cut short. Pass a file that `save` wrote"
        )
    return fields


def _read_arrays(described: dict[str, str], payload: bytes) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for place, description in described.items():
        name, _, shape = description.rstrip("]").partition("[")
        sizes = tuple(int(size) for size in shape.split(",") if size)
        dtype = jnp.dtype(name)
        stop = start + dtype.itemsize * int(np.prod(sizes, dtype=int))
        arrays[place] = np.frombuffer(payload[start:stop], dtype).reshape(sizes)
        start = stop
    return arrays


def _differences(expected: dict[str, str], found: dict[str, str]) -> str:
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    shown = [f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}" for name in names[:5]]
    return "; ".join(shown) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
