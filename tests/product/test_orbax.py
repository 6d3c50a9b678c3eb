"""Runs that Orbax keeps: resumed to the bit after kills, over processes, the last ones kept, damage and bad input."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax_run
import processes_run
import pytest
from safetensors.numpy import load_file

import rnnjax
from rnnjax.training import CheckpointError, Fitted, Orbax, read_metrics
from rnnjax.training.checksum import checksums
from rnnjax.training.orbax_folder import OrbaxFolder

pytest.importorskip("orbax.checkpoint")
# What TensorStore still does after an error finds the loop of Orbax closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


SIZE = 400  # numbers, more than Orbax keeps within its index


def model(size: int = SIZE) -> dict[str, Any]:
    """Weights with an empty array, and a name that is no name of a file."""
    arrays = {"w": np.zeros(size), "a/b": np.zeros(2), "none": np.zeros((0, 2))}
    return {name: grid.place(array) for name, array in arrays.items()} | {"text": "left alone"}


def pull(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    del key
    gap = model["w"] - batch
    return 0.5 * jnp.sum(gap**2), carry | {"sum": carry["sum"] + gap}


def noise(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(SIZE)


def total(model: Any) -> float:
    return float(np.asarray(model["w"]).sum())


def train(folder: Path | None, **options: Any) -> Fitted:
    keys = jax.random.wrap_key_data(np.arange(4, dtype=np.uint32), impl="rbg")
    carry = {"keys": keys, "sum": grid.place(np.zeros(SIZE)), "half": grid.place(np.ones(2, jnp.bfloat16))}
    settings = {"steps": 6, "every": 2, "validate": total, "progress": False, "carry": carry, "key": grid.KEY}
    settings |= {"store": Orbax(keep=2)} | options
    start, batches = settings.pop("model", None) or model(), settings.pop("batches", noise)
    return rnnjax.training.fit(start, pull, batches, optax.sgd(0.1, momentum=0.9), folder=folder, **settings)


def kept(folder: Path) -> list[int]:
    return sorted(int(each.name) for each in (folder / "checkpoint").iterdir())


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of the run in `folder`, without the times."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: number for name, number in line.items() if name != "seconds"} for line in lines]


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, by Orbax or in one file."""
    if (folder / "checkpoint").is_file():
        return load_file(folder / "checkpoint")
    files = OrbaxFolder(folder / "checkpoint", None)
    step = files.steps()[-1]
    description, sums = files.describe(step)
    arrays = files.read_here(step, list(sums), sums)
    files.close()
    empty = {name: np.empty((0, 2)) for name in description.arrays if name not in sums}
    return arrays | empty


def assert_same_arrays(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name].dtype, first[name].shape) == (second[name].dtype, second[name].shape), name
        assert first[name].tobytes() == second[name].tobytes(), name


def assert_same_run(folder: Path, other: Path) -> None:
    assert_same_arrays(arrays_of(folder), arrays_of(other))
    assert metrics_of(folder) == metrics_of(other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of six steps, with checkpoints of 0, 2, 4 and 6, of which two are kept."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(folder)
    return folder


@pytest.fixture
def after_four(straight, tmp_path) -> Path:
    """The folder as a kill leaves it while the checkpoint of step 6 is written."""
    folder = shutil.copytree(straight, tmp_path / "killed")
    (folder / "checkpoint" / "6").rename(folder / "checkpoint" / "6.orbax-checkpoint-tmp")
    (folder / "checkpoint" / "6.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").unlink()
    (folder / "checkpoint" / "5.orbax-checkpoint-tmp").mkdir()  # of a kill before that
    return folder


def test_it_is_the_run_of_one_file_and_the_last_are_kept(straight, tmp_path):
    fitted = train(tmp_path, store=rnnjax.training.one_file.OneFile())
    assert_same_run(straight, tmp_path)
    assert kept(straight) == [4, 6]
    assert eqx.tree_equal(Orbax().load(straight, model()), fitted.model)
    shapes = eqx.filter_eval_shape(lambda: {name: leaf for name, leaf in model().items() if name != "text"})
    assert eqx.tree_equal(Orbax().load(straight, shapes | {"text": "left alone"}), fitted.model)


def test_an_earlier_one_is_the_run_of_fewer_steps(straight, tmp_path):
    fitted = train(tmp_path, steps=4, store=rnnjax.training.one_file.OneFile())
    assert eqx.tree_equal(Orbax().load(straight, model(), step=4), fitted.model)


def test_killed_while_one_is_written_resumes(after_four, straight):
    """The partial folders are removed, and the line of the step that is taken again is written once."""
    assert [line["step"] for line in metrics_of(after_four)] == [2, 4, 6]
    train(after_four, resume=True)
    assert_same_run(after_four, straight)
    assert kept(after_four) == [4, 6]


def test_killed_before_the_first_one_begins_again(straight, tmp_path):
    partial = tmp_path / "checkpoint" / "0.orbax-checkpoint-tmp"
    partial.mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, straight)
    assert kept(tmp_path) == [4, 6]


def test_metrics_never_stand_without_a_checkpoint(tmp_path):
    """The first checkpoint is on disk before the first step is taken."""

    def looking(step: int) -> np.ndarray:
        assert step or kept(tmp_path) == [0]
        return noise(step)

    train(tmp_path, batches=looking, steps=1)


def test_a_failed_run_has_its_last_checkpoint_and_names_the_call(tmp_path):
    """It is on disk although the run failed while it was written."""
    spoilt = lambda step: noise(step) if step < 4 else np.full(SIZE, np.nan)  # noqa: E731
    with pytest.raises(FloatingPointError, match=rf"Call rnnjax\.training\.Orbax\(\)\.load\('{tmp_path}', model\)"):
        train(tmp_path, batches=spoilt)
    assert kept(tmp_path) == [2, 4]
    with pytest.raises(FileExistsError, match=r"resume=True.*Call rnnjax\.training\.Orbax\(\)\.load"):
        train(tmp_path)


def test_one_that_cannot_be_written_is_an_error_that_names_the_call(tmp_path):
    """When step 4 is written, a file is in the place of the folder."""

    def losing(model: Any) -> float:
        if len(read_metrics(tmp_path / "metrics.jsonl")) == 1:
            while not (tmp_path / "checkpoint" / "2").exists():
                time.sleep(0.01)
            (tmp_path / "checkpoint").rename(tmp_path / "moved")
            (tmp_path / "checkpoint").write_bytes(b"in its way")
        return total(model)

    with pytest.raises(
        OSError, match=r"Not a directory.* while a checkpoint up to step 4 was written .*resume=True.*Orbax\(\)\.load"
    ):
        train(tmp_path, validate=losing)


def test_a_model_of_numpy_arrays_is_resumed(tmp_path):
    arrays = {name: np.asarray(leaf) if eqx.is_array(leaf) else leaf for name, leaf in model().items()}
    train(tmp_path, model=arrays, steps=4)
    resumed = train(tmp_path, model=arrays, resume=True)
    expected = train(None, model=arrays, store=rnnjax.training.one_file.OneFile())
    np.testing.assert_array_equal(resumed.model["w"], expected.model["w"])


def test_the_loader_of_files_names_the_loader_of_its_runs(straight):
    with pytest.raises(
        FileNotFoundError, match=r"^checkpoint: expected a file .* a folder. .*training.Orbax\(\)\.load"
    ):
        rnnjax.load(straight / "checkpoint", model())


# Damage


def damage(file: Path) -> bytes:
    """Flip a bit in the middle of a file; its content before."""
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    return content


def is_noticed(folder: Path, file: Path, expected: dict[str, np.ndarray]) -> bool:
    """Whether a changed bit in a file is an error for who reads all arrays, which else are the same."""
    content = damage(file)
    with suppress(CheckpointError):
        assert_same_arrays(arrays_of(folder), expected)
        file.write_bytes(content)
        return False
    file.write_bytes(content)
    return True


def test_a_changed_bit_in_any_file_never_gives_other_arrays(straight, tmp_path):
    """Orbax lets a change of an array pass; the checksum does not."""
    folder = shutil.copytree(straight, tmp_path / "damaged")
    expected = arrays_of(folder)
    files = [file for file in (folder / "checkpoint" / "6").rglob("*") if file.is_file()]
    noticed = [file for file in files if is_noticed(folder, file, expected)]
    assert folder / "checkpoint" / "6" / "run" / "manifest.ocdbt" in noticed
    largest = max((file for file in files if file.parent.name == "d"), key=lambda file: file.stat().st_size)
    assert largest in noticed


def test_a_damaged_one_is_refused_and_the_one_before_it_is_still_good(straight, tmp_path):
    folder = shutil.copytree(straight, tmp_path / "damaged")
    files = (folder / "checkpoint" / "6" / "run").rglob("d/*")
    damage(max(files, key=lambda file: file.stat().st_size))
    with pytest.raises(CheckpointError, match=r"6 is not a checkpoint.*damaged.*or remove it to go on from step 4$"):
        train(folder, resume=True)
    assert metrics_of(folder) == metrics_of(straight)
    shutil.rmtree(folder / "checkpoint" / "6")
    train(folder, resume=True)
    assert_same_run(folder, straight)


FORMS = ("bool", "uint8", "int16", "bfloat16", "int32", "float64", "complex64", "complex128")


def test_a_checksum_is_that_of_the_bits_and_of_their_order():
    rows = np.random.default_rng(1).integers(0, 2, (len(FORMS), 3, 4))
    arrays = {form: row.astype(jnp.dtype(form)) for form, row in zip(FORMS, rows, strict=True)}
    sums = checksums(arrays)
    assert checksums(jax.tree.map(grid.place, arrays)) == sums
    flipped = {form: array.copy() for form, array in arrays.items()}
    for array in flipped.values():
        array.view(np.uint8).reshape(-1)[7] ^= 1
    swapped = {form: array[::-1] for form, array in arrays.items()}
    for others in (checksums(flipped), checksums(jax.tree.map(np.ascontiguousarray, swapped))):
        assert [form for form in FORMS if others[form] == sums[form]] == []
    assert len(set(checksums({"scalar": np.ones((), np.float32), "row": np.ones(1, np.float32)}).values())) == 1
    assert checksums({}) == {}


# Bad input


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "keep": (lambda _: Orbax(keep=0), ValueError, "^keep: expected 1 or more, got 0"),
    "no_store": (lambda folder: train(folder, store="orbax"), TypeError, r"^store: expected .*Orbax\(\), got 'orbax'"),
    "no_folder": (lambda _: train(None), ValueError, r"^store: expected a `folder` .*got none with Orbax\(keep=2\)"),
    "address": (
        lambda _: train("gs://bucket/run"),
        ValueError,
        "^folder: expected a path .*got the address 'gs://buck",
    ),
    "another_model": (
        lambda folder: train(folder, model=model(3), resume=True),
        CheckpointError,
        r"6 is of another model: .*weights\.w: expected float64\[3\], found float64\[400\]",
    ),
    "another_optimiser": (
        lambda folder: train(folder, carry=None, resume=True),
        CheckpointError,
        r"6 is of another model: .*carry\.keys: expected none",
    ),
    "one_file": (
        lambda folder: train(folder, store=rnnjax.training.one_file.OneFile(), resume=True),
        CheckpointError,
        r"^checkpoint: expected a file at .*Pass store=rnnjax\.training\.Orbax\(\)",
    ),
    "step": (lambda folder: Orbax().load(folder, model(), step=2), ValueError, r"^step: expected .*\[4, 6\], got 2"),
    "nothing": (
        lambda folder: Orbax().load(folder / "none", model()),
        FileNotFoundError,
        "^folder: expected a run with",
    ),
    "load_another": (lambda folder: Orbax().load(folder, model(3)), CheckpointError, r"w: expected float64\[3\]"),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_overwritten(name, straight, tmp_path):
    call, error, message = BAD[name]
    folder = shutil.copytree(straight, tmp_path / "copy")
    with pytest.raises(error, match=message):
        call(folder)
    assert_same_run(folder, straight)
    assert kept(folder) == [4, 6]


def test_a_file_is_not_resumed_as_a_folder(tmp_path):
    train(tmp_path, steps=2, store=rnnjax.training.one_file.OneFile())
    with pytest.raises(CheckpointError, match=r"^checkpoint: expected a folder at .*Leave store out"):
        train(tmp_path, resume=True)


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"^store: expected .*Install it: pip install 'rnnjax\[orbax\]'$"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_run_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"^store: expected a mesh over all 2 processes, .*Pass mesh="):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Processes of their own


def run(*words: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=600)


@pytest.fixture
def compiled(tmp_path) -> dict[str, str]:
    """Settings by which the processes of a test share the programs that they compile."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.mark.slow
def test_killed_at_twenty_moments_and_resumed_ends_in_the_same_bits(tmp_path, compiled):
    ended = run(orbax_run.__file__, tmp_path, "20", **compiled)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    kills = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(kills) == 20
    assert any(kill["partial"] for kill in kills)  # a checkpoint was being written
    assert max(len(kill["kept"]) for kill in kills) <= orbax_run.KEEP + 1  # one more until an old one is removed
    assert_same_run(tmp_path / "killed", tmp_path / "straight")
    assert [line["step"] for line in metrics_of(tmp_path / "killed")] == [*range(1, 21 * orbax_run.STEPS_EACH + 1)]
    assert len(kept(tmp_path / "killed")) == orbax_run.KEEP


@pytest.mark.slow
def test_two_processes_write_their_parts_and_a_killed_one_is_resumed(tmp_path, compiled):
    """By two processes, and by one with two devices: the bits of a run that nothing disturbed."""
    script, launch = processes_run.__file__, ("-m", "rnnjax.training.launch", "--processes", "2")
    killed = run(*launch, script, tmp_path / "two", "kill", "orbax", **compiled)
    assert "launch: process 1 of 2 was killed by SIGKILL; the others were stopped" in killed.stderr
    assert [line["step"] for line in metrics_of(tmp_path / "two")] == [2, 4]
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    resumed = run(*launch, script, tmp_path / "two", "resume", "orbax", **compiled)
    assert resumed.returncode == 0, resumed.stderr
    alone = run(script, tmp_path / "straight", "--", tmp_path / "one", "resume", "orbax", **compiled)
    assert alone.returncode == 0, alone.stderr
    for name in ("one", "two"):
        assert_same_run(tmp_path / name, tmp_path / "straight")
        assert kept(tmp_path / name) == [6, 8]
    parts = [tmp_path / "two" / "checkpoint" / "8" / "run" / f"ocdbt.process_{number}" / "d" for number in (0, 1)]
    assert all(any(part.iterdir()) for part in parts)
