"""Files of models: their format, which models they fit, what they refuse, and that a kill leaves a whole one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
import saving_run

import rnnjax
from rnnjax import load, save
from rnnjax.training import CheckpointError
from rnnjax.training.description import describe

KEY = grid.KEY


def build(seed: int = 0, **options: Any) -> rnnjax.models.Classifier:
    """A model with functions, static fields, complex arrays, and layers in a tuple."""
    keys = jax.random.split(jax.random.key(seed), 3)
    layers = [rnnjax.Elman(2, 3, key=keys[0], **options), rnnjax.LRU(3, 4, key=keys[1])]
    return rnnjax.models.Classifier(rnnjax.Stack(layers), eqx.nn.Linear(3, 2, key=keys[2]))


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        assert np.array_equal(one, other) if eqx.is_array(one) else one == other


def test_safetensors_alone_reads_it(tmp_path):
    """By the paths in the model; folders are made."""
    path, model = tmp_path / "new" / "folder" / "model", build()
    save(path, model)
    found = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(found["network.layers.0.input_weight"], model.network.layers[0].input_weight)
    np.testing.assert_array_equal(found["head.bias"], model.head.bias)
    with safetensors.safe_open(path, "np") as file:
        described = json.loads(file.metadata()["rnnjax"])
    assert described["arrays"]["network.layers.0.input_weight"] == "float32[2,3]"
    assert described["classes"]["network.layers.0"] == "rnnjax.cells.elman.Elman"
    assert described["static"]["network.layers.0.activation"] == "tanh"


@pytest.mark.usefixtures("as_it_comes")
def test_load_into_a_model_or_into_its_shapes(tmp_path):
    save(tmp_path / "model", build())
    assert_equal(load(tmp_path / "model", build(1)), build())
    assert_equal(load(tmp_path / "model", eqx.filter_eval_shape(build, 1)), build())


DTYPES = ("int8", "uint16", "bool", "bfloat16", "float16", "complex64", "complex128", "int64")


def all_kinds(fill: int) -> dict[str, Any]:
    """Each dtype, as arrays of three, as scalars and as empty ones; keys; and plain values."""
    arrays = {
        f"{dtype}_{len(shape)}_{size}": grid.place(np.full(shape, fill).astype(jnp.dtype(dtype)))
        for dtype in DTYPES
        for size, shape in enumerate([(3,), (), (0, 2)])
    }
    keys = {"key": jax.random.key(fill), "keys": jax.random.split(jax.random.key(fill, impl="rbg"), 2)}
    return arrays | keys | {"epoch": fill, "rate": fill / 3, "name": str(fill), "big": np.full(2, fill, ">f4")}


def test_every_kind_of_leaf_comes_back(tmp_path):
    save(tmp_path / "all", all_kinds(1))
    found = load(tmp_path / "all", all_kinds(0))
    assert jax.tree.map(kind, found) == jax.tree.map(kind, all_kinds(1))
    bits = lambda leaf: jax.random.key_data(leaf) if "key" in str(getattr(leaf, "dtype", "")) else leaf  # noqa: E731
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(all_kinds(1)), strict=True):
        np.testing.assert_array_equal(bits(got), bits(expected))
    shapes = load(tmp_path / "all", jax.tree.map(shape_of, all_kinds(0)))
    np.testing.assert_array_equal(bits(shapes["keys"]), bits(all_kinds(1)["keys"]))


def kind(leaf: Any) -> Any:
    return jax.typeof(leaf) if isinstance(leaf, jax.Array) else type(leaf)


def shape_of(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


class Opaque:
    """What no file can hold."""


REFUSED = {
    "object": (lambda: {"a": Opaque()}, TypeError, r"got <.*Opaque.*> at a\. Write jnp\.asarray"),
    "complex_value": (lambda: {"a": 1 + 2j}, TypeError, r"got \(1\+2j\) at a\. Write jnp\.asarray"),
    "dtype": (lambda: {"a": np.array(["text"])}, TypeError, r"got str.* at a\. Cast it"),
    "names": (lambda: {"a.b": np.zeros(1), "a": {"b": np.ones(1)}}, ValueError, r"'a\.b' twice.*Rename the keys"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_refused(name, tmp_path):
    tree, error, message = REFUSED[name]
    with pytest.raises(error, match=rf"^tree: expected .*{message}"):
        save(tmp_path / "model", tree())
    assert list(tmp_path.iterdir()) == []


class Marked(eqx.Module):
    """A model with a static field of its own."""

    marks: Any = eqx.field(static=True)


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "function": (lambda: build(activation=jnp.sin), "network.layers.0.activation: expected sin, found tanh"),
    "class": (lambda: {"cell": rnnjax.ResetBeforeGRU(2, 3, key=KEY)}, "cell: expected ResetBeforeGRU, found GRU"),
    "value": (lambda: {"epoch": 1.0}, "epoch: expected float, found int"),
    "key": (lambda: {"key": jax.random.key(0, impl="rbg")}, r"key: expected key<rbg>[], found key<fry>[]"),
    "long": (lambda: Marked((*range(99), 7)), "(0, 1, 2"),
}
SAVED = {
    "function": build,
    "class": lambda: {"cell": rnnjax.GRU(2, 3, key=KEY)},
    "value": lambda: {"epoch": 1},
    "key": lambda: {"key": jax.random.key(0)},
    "long": lambda: Marked(tuple(range(100))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_computes_something_else_is_refused(name, tmp_path):
    """Though its arrays would fit."""
    save(tmp_path / "model", SAVED[name]())
    like, difference = OTHERS[name]
    with pytest.raises(CheckpointError, match=r"is of another model: .* Pass `like` built as") as caught:
        load(tmp_path / "model", like())
    assert difference in str(caught.value)


def test_a_set_is_described_alike_in_every_process():
    """Its order is another one in each."""
    assert describe(Marked((frozenset("hgfedcba"), 1))).static["marks"].count("'a'\", \"'b'\", \"'c'") == 1


# A run's checkpoint


class Scaled(eqx.Module):
    """A model of which one array is not trained."""

    weight: jax.Array
    order: jax.Array
    function: Callable = jnp.tanh


def scaled(start: float) -> Scaled:
    return Scaled(grid.place(np.full(3, start)), grid.place(np.arange(3)))


def pull(model: Scaled, carry: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
    del key
    return jnp.sum((model.weight - batch) ** 2), carry


def train(folder: Path, **options: Any) -> Any:
    arguments = {"steps": 4, "every": 1, "progress": False, "key": KEY, "folder": folder} | options
    return rnnjax.training.fit(scaled(0.0), pull, lambda _: np.ones(3), optax.sgd(0.1), **arguments).model


@pytest.mark.parametrize("judged", [[np.inf] * 4, [-np.inf, 1.0, 1.0, 1.0]])
def test_so_it_is_if_validation_is_infinite(judged, tmp_path):
    """Without a best model it is the last one, and not the one that `fit` was given."""
    answers = iter(judged)
    fitted = train(tmp_path, validate=lambda _: next(answers))
    assert_equal(load(tmp_path / "checkpoint", scaled(7.0)), fitted)
    assert (float(fitted.weight[0]) > 0.5) is (judged[0] > 0)


@pytest.mark.parametrize("best", [False, True])
def test_the_model_of_a_run_is_the_one_that_fit_returns(best, tmp_path):
    """The last, or the best by validation."""
    options = {"validate": lambda model: abs(float(model.weight[0]) - 0.3)} if best else {}
    fitted = train(tmp_path, **options)
    assert (float(fitted.weight[0]) < 0.5) is best
    assert_equal(load(tmp_path / "checkpoint", scaled(7.0)), fitted)
    with pytest.raises(CheckpointError, match=r"order is not trained: .* Pass the model as it was built"):
        load(tmp_path / "checkpoint", eqx.filter_eval_shape(scaled, 0.0))
    with pytest.raises(CheckpointError, match=r"weight: expected float64.4., found float64.3."):
        load(tmp_path / "checkpoint", eqx.tree_at(lambda model: model.weight, scaled(0.0), jnp.zeros(4)))
    with pytest.raises(FileNotFoundError, match=rf"found a folder\. Pass {tmp_path}/checkpoint"):
        load(tmp_path, scaled(0.0))


# Hostile files, and kills


def forged(arrays: dict[str, np.ndarray], entry: Any) -> bytes:
    return safetensors.numpy.save(arrays, {"rnnjax": entry if isinstance(entry, str) else json.dumps(entry)})


def saved(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """A file, and its entry in the metadata."""
    save(folder / "whole", {"w": np.zeros(3)})
    with safetensors.safe_open(folder / "whole", "np") as file:
        return (folder / "whole").read_bytes(), json.loads(file.metadata()["rnnjax"])


W = {"w": np.zeros(3)}
HOSTILE: dict[str, Callable[[bytes, dict[str, Any]], bytes]] = {
    "cut": lambda whole, _: whole[:-8],
    "longer": lambda whole, _: whole + bytes(8),
    "huge_header": lambda whole, _: (2**62).to_bytes(8, "little") + whole[8:],
    "no_entry": lambda *_: safetensors.numpy.save(W),
    "no_metadata": lambda *_: b'\x18\0\0\0\0\0\0\0{"__metadata__":null}   ',
    "entry_is_text": lambda *_: forged(W, "text"),
    "entry_is_nested": lambda *_: forged(W, "[" * 100_000 + "]" * 100_000),
    "entry_is_a_list": lambda *_: forged(W, []),
    "other_format": lambda _, entry: forged(W, entry | {"format": 1}),
    "no_texts": lambda _, entry: forged(W, entry | {"arrays": {"w": 3}}),
    "digest": lambda _, entry: forged(W, entry | {"sha256": [7]}),
    "other_data": lambda _, entry: forged({"w": np.ones(3)}, entry),
    "other_name": lambda _, entry: forged({"v": np.zeros(3)}, entry),
    "other_shape": lambda _, entry: forged({"w": np.zeros((3, 1))}, entry),
    "other_dtype": lambda _, entry: forged({"w": np.zeros(6, "float32")}, entry),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(name, tmp_path):
    (tmp_path / "file").write_bytes(HOSTILE[name](*saved(tmp_path)))
    with pytest.raises(CheckpointError, match=rf"^checkpoint: {tmp_path}/file .*(Pass a file|Copy the file)"):
        load(tmp_path / "file", {"w": np.zeros(3)})


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    """Fifty times, each of them after another model was saved."""
    command = [sys.executable, saving_run.__file__, str(tmp_path / "model"), "50"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout.split()
    assert len(found) == 50
    assert list(map(int, found)) == sorted(set(map(int, found)))
