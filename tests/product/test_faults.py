"""Faults of disk and of process, and hostile files: a run loses nothing, and says what happened and what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import load, save
from rnnjax.training import CheckpointError, one_file, read_metrics

LAUNCH = (sys.executable, "-m", "rnnjax.training.launch", "--processes", "2")


def pull(model: Any, carry: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
    del key
    return jnp.sum((model - batch) ** 2), carry


def train(folder: Path, **options: Any) -> rnnjax.training.Fitted:
    options = {"steps": 4, "every": 2, "progress": False, "key": grid.KEY} | options
    optimiser = options.pop("optimiser", None) or optax.sgd(0.1)
    return rnnjax.training.fit(grid.place(np.ones(3)), pull, lambda _: np.zeros(3), optimiser, folder=folder, **options)


def zeros() -> jax.Array:
    return grid.place(np.zeros(3))


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


def test_two_runs_do_not_share_a_folder(tmp_path):
    """Neither a new one nor one that is resumed; and the folder is free again when its run has ended."""
    train(tmp_path)
    found = []

    def validate(model: Any) -> float:
        del model
        for options in ({"resume": True}, {}):
            with pytest.raises(FileExistsError) as caught:
                train(tmp_path, **options)
            found.append(str(caught.value))
        return 1.0

    train(tmp_path, steps=6, resume=True, validate=None)
    with pytest.raises(CheckpointError):  # a run that fails lets the folder go, too
        rnnjax.training.fit(
            grid.place(np.ones(4)),
            pull,
            lambda _: np.zeros(4),
            optax.sgd(0.1),
            folder=tmp_path,
            steps=9,
            key=grid.KEY,
            resume=True,
            progress=False,
        )
    train(tmp_path, steps=8, resume=True, validate=validate)
    assert "another run uses" in found[0]
    assert "Pass resume=True" in found[1]
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_two_may_write_one_file_at_once(tmp_path, monkeypatch):
    """Each has a partial file of its own, whole until it is moved into place."""
    other, fsync = {"w": zeros()}, os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        save(tmp_path / "checkpoint", other)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    save(tmp_path / "checkpoint", {"w": grid.place(np.ones(3))})
    np.testing.assert_array_equal(load(tmp_path / "checkpoint", other)["w"], np.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


GARBAGE = [
    *(b"\xff\xfe\x00", b"[1, 2]", b"3", b"null", b'{"step": "4"}', b'{"loss": 1.0}', b'{"step": true}'),
    *(b"{" * 200_000, b"}", b'{"step": 4, "lo', b"[" * 200_000 + b"]" * 200_000, b'{"step": NaN}', b"\x00"),
]


def test_lines_that_are_no_metrics_stop_no_resume(tmp_path):
    train(tmp_path)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\n".join(GARBAGE) + b"\n")
    train(tmp_path, steps=6, resume=True)
    assert steps(tmp_path) == [2, 4, 6]


def test_a_full_disk_is_named_with_what_is_left(tmp_path, monkeypatch):
    train(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")

    def save_nothing(*_: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(one_file, "save", save_nothing)
        with pytest.raises(OSError, match=r"No space left .* step 6 .*resume=True") as caught:
            train(tmp_path, steps=8, resume=True)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "checkpoint") in str(caught.value)
    train(tmp_path, steps=8, resume=True)
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_a_disk_that_is_full_at_the_first_checkpoint_is_named(tmp_path, monkeypatch):
    def save_nothing(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(one_file, "save", save_nothing)
    with pytest.raises(OSError, match=r"No space left .* first checkpoint .* Nothing of this run is kept. Make room"):
        train(tmp_path)


def test_a_file_system_that_syncs_no_folders_will_do(tmp_path, monkeypatch):
    """As on Windows, and on some networks."""

    def refuse(path: Any, *_: Any, **__: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    save(tmp_path / "checkpoint", {"w": grid.place(np.ones(3))})
    np.testing.assert_array_equal(load(tmp_path / "checkpoint", {"w": zeros()})["w"], np.ones(3))


OPTIMISERS = {
    "plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "polyak": optax.polyak_sgd,
    "lbfgs": optax.lbfgs,
    "accumulated_polyak": lambda: optax.MultiSteps(optax.polyak_sgd(), 2),
}


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_is_given_the_loss(name):
    fitted = train(None, steps=20, optimiser=OPTIMISERS[name]())  # type: ignore[arg-type]
    assert np.abs(fitted.model).max() < 0.05


SLEEPY = """
import jax, os, signal, sys, time
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGSTOP) if "stop" in sys.argv else time.sleep(600)
time.sleep(2)
sys.exit(3 if "stop" in sys.argv else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (["--limit", "8"], [], "process 1 of 2 still ran after --limit 8 seconds and was stopped"),
        ([], ["stop"], "process 1 of 2 was stopped by a signal"),
    ],
)
def test_a_process_that_hangs_is_named(options, arguments, message, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLEEPY)
    command = [*LAUNCH, *options, str(script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert message in ended.stderr
