"""Training: what a batch is, what a step does, and that a run survives whatever interrupts it, to the bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grid
import jax
import jax.numpy as jnp
import killed_run
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import load, save
from rnnjax.training import Buckets, CheckpointError, minibatches, read_metrics, streams
from rnnjax.training.plot import draw_curve

KEY = grid.KEY
TEXT = np.random.default_rng(0).integers(0, 5, 47)  # three streams of 15 and the last target, one step too many


# A model small enough to know: three weights, pulled towards each batch


def pull(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    """A loss whose gradient is `w - batch`."""
    del key
    return 0.5 * jnp.sum((model["w"] - batch) ** 2), carry


def ramp(size: int, slope: float = 1.0) -> jax.Array:
    return grid.place(slope * np.arange(size))


def noise(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(3)


def train(
    loss: Callable = pull, batches: Callable = noise, optimiser: Any = None, *, steps: int = 4, **options: Any
) -> rnnjax.training.Fitted:
    """Fit three weights, from zero."""
    model, optimiser = {"w": ramp(3, 0.0)}, optimiser or optax.sgd(0.1, momentum=0.9)
    return rnnjax.training.fit(model, loss, batches, optimiser, steps=steps, key=KEY, **{"progress": False, **options})


def weights(fitted: rnnjax.training.Fitted) -> np.ndarray:
    return np.asarray(fitted.model["w"])


def total(model: Any) -> float:
    """A validation that sees the weights."""
    return float(np.asarray(model["w"]).sum())


def one(model: Any) -> float:
    """A validation that stands still."""
    del model
    return 1.0


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of the run in `folder`, without the times."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: number for name, number in line.items() if name != "seconds"} for line in lines]


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "checkpoint").read_bytes() == (other / "checkpoint").read_bytes()
    assert metrics_of(folder) == metrics_of(other)


def no_batches(step: int) -> np.ndarray:
    raise AssertionError(f"batch {step} was asked for")


# Killed


class Straight(NamedTuple):
    """A run that nothing disturbed, and its folder as it was at each moment."""

    fitted: rnnjax.training.Fitted
    folder: Path
    moments: list[Path]

    def copy(self, to: Path, moment: int = -1) -> Path:
        """The folder that a kill at this moment leaves; the last one is after the end."""
        return shutil.copytree(self.moments[moment], to)


def photographing(patch: pytest.MonkeyPatch, folder: Path, to: Path) -> list[Path]:
    """Copies of `folder` as it is before each sync and rename, which a kill at that moment would leave."""
    copies: list[Path] = []

    def first(function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            copies.append(shutil.copytree(folder, to / str(len(copies))))
            return function(*arguments)

        return call

    for name in ("fsync", "replace"):
        patch.setattr(os, name, first(getattr(os, name)))
    return copies


OPTIONS = {"every": 2, "validate": total}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Straight:
    """Four steps, with a checkpoint before the first and after the second and the last."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        copies = photographing(patch, folder / "run", folder)
        fitted = train(folder=folder / "run", **OPTIONS)
    return Straight(fitted, folder / "run", [*copies, folder / "run"])


AFTER_TWO = 8  # the moment at which the checkpoint of step 2 is in its place


@pytest.mark.parametrize("moment", range(5, 12))  # each write syncs, renames, syncs; the second is of a checkpoint
def test_killed_at_any_moment_of_a_write_resumes(moment, straight, tmp_path):
    assert len(straight.moments) == 13
    folder = straight.copy(tmp_path / "killed", moment)
    train(folder=folder, resume=True, **OPTIONS)
    assert_same_run(folder, straight.folder)


def run_here(folder: Path, *, resume: bool = False) -> Path:
    """`killed_run` in this process, with the settings of one of its own."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        killed_run.train(folder, killed_run.batches(), resume=resume)
    return folder


def run_and_kill(folder: Path, lines: int, *, before: int, resume: bool = False) -> None:
    """`killed_run` in a process of its own; kill -9, a random moment after it has written so many lines of metrics."""
    command = [sys.executable, killed_run.__file__, str(folder), str(before), *["resume"] * resume]
    process, metrics = subprocess.Popen(command), folder / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    time.sleep(random.SystemRandom().uniform(0, 0.02))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    print(f"killed after {len(metrics_of(folder))} of {killed_run.STEPS} steps")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a whole run of `killed_run`."""
    return run_here(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of a run of `killed_run` that was killed in its first half."""
    folder, half = tmp_path_factory.mktemp("killed") / "run", killed_run.STEPS // 2
    run_and_kill(folder, random.SystemRandom().randrange(1, half), before=half)
    return folder


def test_killed_and_resumed_ends_in_the_same_bits(killed, undisturbed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "killed")
    run_here(folder, resume=True)
    assert [line["step"] for line in metrics_of(undisturbed)] == list(range(1, killed_run.STEPS + 1))
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_killed_twice_and_resumed_ends_in_the_same_bits(killed, undisturbed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "killed")
    lines = random.SystemRandom().randrange(len(metrics_of(folder)) + 1, killed_run.STEPS)
    run_and_kill(folder, lines, before=killed_run.STEPS - 1, resume=True)
    run_here(folder, resume=True)
    assert_same_run(folder, undisturbed)


class Killed(BaseException):
    """Stands in for the kill."""


class KilledAt:
    """`os` with its syncs and renames counted, and the process killed in place of number `moment`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, moment: int):
        self.left = moment
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return function(*arguments)

        return call


@pytest.mark.parametrize("moment", [0, 1])
def test_a_save_cut_short_leaves_the_old_checkpoint(moment, tmp_path, monkeypatch):
    path, old, new = tmp_path / "checkpoint", {"w": ramp(3)}, {"w": ramp(3, -1.0)}
    save(path, old)
    with monkeypatch.context() as patch:
        KilledAt(patch, moment)
        with pytest.raises(Killed):
            save(path, new)
    assert_equal(load(path, new), old)
    save(path, new)
    assert_equal(load(path, old), new)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_lines_after_the_checkpoint_are_forgotten_on_resume(straight, tmp_path):
    folder = straight.copy(tmp_path / "killed", AFTER_TWO)
    assert [line["step"] for line in metrics_of(folder)] == [2]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 77.0, "gradient_norm": 1.0, "seconds": 1.0}\n{"step": 6, "lo')
    assert [line["step"] for line in metrics_of(folder)] == [2, 4]
    train(folder=folder, resume=True, **OPTIONS)
    assert_same_run(folder, straight.folder)


def test_a_partial_file_is_no_hindrance(straight, tmp_path):
    folder = straight.copy(tmp_path / "killed", AFTER_TWO)
    (folder / "checkpoint.partial").write_bytes(b"{")
    (folder / "metrics.jsonl.partial").write_bytes(b"{")
    train(folder=folder, resume=True, **OPTIONS)
    assert_same_run(folder, straight.folder)


def test_a_finished_run_takes_no_further_step(straight, tmp_path):
    folder = straight.copy(tmp_path / "finished")
    before = contents(folder)
    again = train(batches=no_batches, folder=folder, resume=True, **OPTIONS)
    assert (contents(folder), again.steps) == (before, 4)
    assert_equal(again.model, straight.fitted.model)


def test_a_finished_run_goes_on_when_asked_for_more_steps(straight, tmp_path):
    train(folder=tmp_path / "run", steps=2, **OPTIONS)
    train(folder=tmp_path / "run", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "run", straight.folder)


def test_a_run_stopped_early_stays_stopped(tmp_path):
    options = {"steps": 6, "validate": one, "every": 1, "patience": 2, "folder": tmp_path}
    fitted = train(**options)
    again = train(batches=no_batches, resume=True, **options)
    assert (fitted.steps, again.steps) == (3, 3)
    assert_equal(again.model, fitted.model)


KEYS_AND_OPTIMISERS: dict[str, tuple[Callable[[], jax.Array], Callable[[], Any]]] = {
    "legacy_key": (lambda: jax.random.PRNGKey(3), lambda: optax.sgd(0.1)),
    "key_of_another_generator": (lambda: jax.random.key(3, impl="rbg"), lambda: optax.sgd(0.1)),
    "key_in_the_optimiser": (lambda: KEY, lambda: optax.chain(optax.add_noise(0.1, 0.5, KEY), optax.sgd(0.1))),
    "multi_steps": (lambda: KEY, lambda: optax.MultiSteps(optax.adam(0.1), 4)),
}


@pytest.mark.parametrize("name", KEYS_AND_OPTIMISERS)
@pytest.mark.usefixtures("promoting")
def test_any_key_and_any_optimiser_resume(name, tmp_path):
    key, optimiser = (make() for make in KEYS_AND_OPTIMISERS[name])

    def loss(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return pull(model, carry, batch + jax.random.normal(key, (3,)), key)

    def run(folder: Path, batches: Callable, resume: bool) -> None:
        options = {"steps": 6, "every": 2, "progress": False, "folder": folder, "resume": resume}
        rnnjax.training.fit({"w": ramp(3, 0.0)}, loss, batches, optimiser, key=key, **options)

    def copying(step: int) -> np.ndarray:
        """The batch of a step; before that of step 4, the folder is copied as a kill would leave it."""
        if step == 4:
            shutil.copytree(tmp_path / "straight", tmp_path / "killed")
        return noise(step)

    run(tmp_path / "straight", copying, resume=False)
    assert [line["step"] for line in metrics_of(tmp_path / "killed")] == [2, 4]
    run(tmp_path / "killed", noise, resume=True)
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


# Checkpoints


DTYPES = ("float64", "float32", "float16", "bfloat16", "int32", "uint8", "bool", "complex64")
SHAPES = ((), (0,), (2, 0, 3), (5,), (2, 3))


def forms() -> list[Any]:
    """Every dtype with every shape; all are slow but for each dtype with one shape, and each shape with one dtype."""
    quick = lambda dtype, shape: dtype == "float32" or shape == (2, 3)  # noqa: E731
    marks = lambda *form: () if quick(*form) else pytest.mark.slow  # noqa: E731
    return [pytest.param(dtype, shape, marks=marks(dtype, shape)) for shape in SHAPES for dtype in DTYPES]


@pytest.mark.parametrize(("dtype", "shape"), forms(), ids=str)
def test_round_trip_is_exact(dtype, shape, tmp_path):
    first, second = (10 * np.random.default_rng(4).standard_normal((2, *shape))).astype(jnp.dtype(dtype))
    tree = {"first": grid.place(first), "rest": (grid.place(second), "text", None)}
    like = {"first": grid.place(np.zeros_like(first)), "rest": (grid.place(np.zeros_like(first)), "text", None)}
    save(tmp_path / "checkpoint", tree)
    loaded = load(tmp_path / "checkpoint", like)
    assert isinstance(loaded["first"], jax.Array)
    assert_equal(loaded, tree)


@pytest.mark.usefixtures("annotations_unchecked")
def test_numpy_arrays_come_back_as_such(tmp_path):
    save(tmp_path / "checkpoint", np.arange(3.0))
    loaded = load(tmp_path / "checkpoint", np.zeros(3))
    assert isinstance(loaded, np.ndarray)
    assert loaded.flags.writeable
    assert_equal(loaded, np.arange(3.0))


def test_round_trip_keeps_what_no_sum_would(tmp_path):
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, 1.7976931348623157e308])
    save(tmp_path / "checkpoint", grid.place(special))
    loaded = load(tmp_path / "checkpoint", ramp(7, 0.0))
    assert np.asarray(loaded).tobytes() == special.tobytes()


def test_round_trip_of_random_keys(tmp_path):
    def keys(seed: int) -> dict[str, jax.Array]:
        words = np.arange(seed, seed + 12, dtype=np.uint32).reshape(3, 4)
        return {"one": jax.random.key(seed), "many": jax.random.wrap_key_data(words, impl="rbg")}

    tree = keys(3)
    save(tmp_path / "checkpoint", tree)
    loaded = load(tmp_path / "checkpoint", keys(0))
    assert jax.tree.map(jax.random.key_impl, loaded) == jax.tree.map(jax.random.key_impl, tree)
    assert_equal(jax.tree.map(jax.random.key_data, loaded), jax.tree.map(jax.random.key_data, tree))


class ThisWay(NamedTuple):
    weight: jax.Array
    bias: jax.Array


class ThatWay(NamedTuple):
    bias: jax.Array
    weight: jax.Array


@pytest.mark.parametrize("size", [2, 3])
def test_arrays_are_found_by_name_not_by_place(size, tmp_path):
    saved = ThisWay(weight=ramp(3), bias=ramp(size, -1.0))
    save(tmp_path / "checkpoint", saved)
    loaded = load(tmp_path / "checkpoint", ThatWay(bias=ramp(size, 0.0), weight=ramp(3, 0.0)))
    assert_equal(loaded, ThatWay(bias=saved.bias, weight=saved.weight))


def small() -> dict[str, jax.Array]:
    return {"w": ramp(3), "n": grid.place(np.asarray(2))}


def content_of(tree: Any, folder: Path) -> bytes:
    save(folder / "whole", tree)
    return (folder / "whole").read_bytes()


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^checkpoint: expected a file at .*nowhere, found none\. Pass .*$"):
        load(tmp_path / "nowhere", small())


def test_checkpoint_cut_short_at_every_length(tmp_path):
    whole, path = content_of(small(), tmp_path), tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"^checkpoint: .*cut is .*cut short"):
            load(path, small())


@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_checkpoint_with_any_byte_flipped(flip, tmp_path):
    whole, path = content_of(small(), tmp_path), tmp_path / "flipped"
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"^checkpoint: .*flipped is (cut short or damaged|not a checkpoint)"):
            load(path, small())


def test_checkpoint_with_more_behind_it(tmp_path):
    (tmp_path / "longer").write_bytes(content_of(small(), tmp_path) + b"\n")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "longer", small())


@pytest.mark.parametrize(
    "content",
    [b"\n", b"hello\n", b"\x89PNG\r\n\x1a\n\x00", b"[]\n", b"3\n", b'{"format": "other"}\n'],
    ids=["newline", "text", "png", "list", "number", "format"],
)
def test_not_a_checkpoint(content, tmp_path):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^checkpoint: .*other is not a checkpoint of this library"):
        load(tmp_path / "other", small())


def gru(hidden_size: int, **options: Any) -> rnnjax.GRU:
    return rnnjax.GRU(3, hidden_size, key=KEY, **options)


@pytest.mark.parametrize(
    ("like", "differences"),
    [
        pytest.param(
            lambda: gru(6), ["recurrent_weight: expected float32[6,18], found float32[4,12]"], id="hidden_size"
        ),
        pytest.param(
            lambda: gru(4, dtype=jnp.float64), ["candidate_bias: expected float64[4], found float32[4]"], id="dtype"
        ),
        pytest.param(
            lambda: rnnjax.LSTM(3, 4, key=KEY),
            ["the whole: expected LSTM, found GRU", "bias: expected float32[16], found float32[12]"],
            id="cell",
        ),
        pytest.param(lambda: gru(4, bias=False), ["bias: expected none, found float32[12]"], id="fewer_arrays"),
        pytest.param(
            lambda: gru(4, learn_initial=True), ["initial_state.h: expected float32[4], found none"], id="more_arrays"
        ),
        pytest.param(lambda: [ramp(3)] * 7, ["0: expected float64[3], found none", " more."], id="seven_and_four"),
    ],
)
def test_checkpoint_of_another_model(like, differences, tmp_path):
    save(tmp_path / "gru", gru(4))
    with pytest.raises(CheckpointError, match=r"^checkpoint: .*gru is of another model: ") as caught:
        load(tmp_path / "gru", like())
    assert [difference for difference in differences if difference not in str(caught.value)] == []


def test_load_leaves_what_it_is_given(tmp_path):
    save(tmp_path / "checkpoint", gru(4))
    like = rnnjax.GRU(3, 4, key=jax.random.key(99))
    loaded = load(tmp_path / "checkpoint", like)
    assert_equal(like, rnnjax.GRU(3, 4, key=jax.random.key(99)))
    assert_equal(loaded, gru(4))


# What a folder holds


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_not_overwritten(straight):
    before = contents(straight.folder)
    with pytest.raises(FileExistsError, match=r"^folder: .*resume=True.*nothing was overwritten"):
        train(folder=straight.folder, batches=no_batches)
    assert contents(straight.folder) == before


@pytest.mark.parametrize(
    ("optimiser", "size", "difference"),
    [
        pytest.param(
            optax.sgd(0.1, momentum=0.9), 4, r"weights\.w: expected float64\[4\], found float64\[3\]", id="size"
        ),
        pytest.param(optax.sgd(0.1), 3, r"optimiser.*expected none, found float64\[3\]", id="optimiser"),
    ],
)
def test_another_run_is_not_resumed(optimiser, size, difference, straight):
    before, options = contents(straight.folder), {"steps": 6, "key": KEY, "folder": straight.folder, "resume": True}
    with pytest.raises(CheckpointError, match=rf"is of another model: .*{difference}"):
        rnnjax.training.fit({"w": ramp(size, 0.0)}, pull, no_batches, optimiser, **options)
    assert contents(straight.folder) == before


def test_a_run_that_never_was_begins_when_resumed(straight, tmp_path, caplog):
    train(folder=tmp_path / "none", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "none", straight.folder)
    assert "none holds no run yet, so this one begins at step 0" in caplog.text


def test_a_run_that_lost_its_checkpoint_is_not_begun_anew(straight, tmp_path):
    folder = straight.copy(tmp_path / "lost")
    (folder / "checkpoint").unlink()
    before = contents(folder)
    with pytest.raises(FileNotFoundError, match=r"^resume: expected a checkpoint beside the metrics .*Copy it back"):
        train(folder=folder, resume=True, **OPTIONS)
    with pytest.raises(FileExistsError, match=r"^folder: .* metrics and no checkpoint\. Pass another folder"):
        train(folder=folder, **OPTIONS)
    assert contents(folder) == before


def test_metrics_say_what_happened(tmp_path):
    train(optimiser=optax.sgd(0.5), steps=5, every=2, folder=tmp_path / "a" / "b", validate=total)
    path, losses, norms, sums = [np.zeros(3)], [], [], []
    for step in range(5):
        gradient = path[-1] - noise(step)
        losses.append(0.5 * np.sum(gradient**2))
        norms.append(np.sqrt(np.sum(gradient**2)))
        path.append(path[-1] - 0.5 * gradient)
        sums.append(path[-1].sum())
    lines = read_metrics(tmp_path / "a" / "b" / "metrics.jsonl")
    assert [list(line) for line in lines] == [["step", "loss", "gradient_norm", "validation", "seconds"]] * 3
    for line, begin, end in zip(lines, (0, 2, 4), (2, 4, 5), strict=True):
        assert line["step"] == end
        assert line["loss"] == pytest.approx(np.mean(losses[begin:end]), rel=1e-12)
        assert line["gradient_norm"] == pytest.approx(np.mean(norms[begin:end]), rel=1e-12)
        assert line["validation"] == pytest.approx(sums[end - 1], rel=1e-12)
    assert sorted(line["seconds"] for line in lines) == [line["seconds"] for line in lines]


def test_no_validation_no_folder_no_trace(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown(capfd):
    train(steps=3, progress=True)
    assert "3/3" in capfd.readouterr().err


def test_metrics_cut_short_are_read_up_to_the_cut(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    first = len(json.dumps(lines[0]))
    for length in range(len(whole)):
        path.write_text(whole[:length])
        assert read_metrics(path) == lines[: (length >= first) + (length >= len(whole) - 1)]
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("left_out", [{"validation"}, set()], ids=["plain", "validated"])
def test_curve_is_a_picture(left_out, straight, tmp_path):
    lines = read_metrics(straight.folder / "metrics.jsonl")
    kept = [{name: line[name] for name in line.keys() - left_out} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", scale=1 / np.log(2), unit="bits")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_no_curve_of_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"^metrics: expected at least one line in .*none\.jsonl, found none"):
        draw_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []


# Truncated backpropagation through time


def character_model() -> rnnjax.models.LanguageModel:
    cell = rnnjax.Elman(3, 4, key=KEY, dtype=jnp.float64, learn_initial=True)
    return rnnjax.models.LanguageModel(5, cell, key=jax.random.key(12))


def second_loss(model: Any, start: Any, chunks: Any, constant: jax.Array, through: jax.Array) -> jax.Array:
    """The loss on the second chunk, from shares of the state after the first, held constant and not."""
    _, between = rnnjax.models.language_loss(model, start, chunks[0], None)
    between = jax.tree.map(lambda leaf: constant * jax.lax.stop_gradient(leaf) + through * leaf, between)
    return rnnjax.models.language_loss(model, between, chunks[1], None)[0]


def second_step(chunks: Callable[[int], Any]) -> tuple[Any, Any]:
    """What `fit` adds to the model on the second chunk, the first chunk having taught it nothing."""
    model = character_model()
    optimiser = optax.sgd(lambda count: jnp.where(count == 0, 0.0, 1.0))
    carry = rnnjax.models.batch_of_states(model, 3)
    fitted = rnnjax.training.fit(
        model, rnnjax.models.language_loss, chunks, optimiser, steps=2, key=KEY, carry=carry, progress=False
    )
    return model, jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), model, fitted.model)


def test_state_is_carried_and_gradient_is_cut_between_chunks():
    chunks = streams(TEXT, 3, 5)
    model, got = second_step(chunks)
    gradient = jax.jit(jax.grad(second_loss))
    of_share = lambda *shares: gradient(model, rnnjax.models.batch_of_states(model, 3), [chunks(0), chunks(1)], *shares)  # noqa: E731
    assert distance(got, of_share(1.0, 0.0)) < 1e-12
    assert distance(got, of_share(0.0, 1.0)) > 1e-3  # through both chunks
    assert distance(got, of_share(0.0, 0.0)) > 1e-3  # begun anew


def test_streams_wrap_and_begin_anew():
    chunks, model = streams(TEXT, 3, 5), character_model()
    start = rnnjax.models.batch_of_states(model, 3)
    elsewhere = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.7, start)
    assert_equal(chunks(3), chunks(0))
    loss = jax.jit(lambda state, chunk: rnnjax.models.language_loss(model, state, chunk, None)[0])
    assert loss(elsewhere, chunks(3)) == loss(start, chunks(0))
    assert loss(elsewhere, chunks(4)) != loss(start, chunks(1))


def test_carry_comes_back_and_may_be_handed_on():
    def loss(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return pull(model, None, batch + carry, key)[0], 0.5 * carry + model["w"] * batch

    def run(model: Any, carry: Any, steps: int, batches: Callable) -> rnnjax.training.Fitted:
        options = {"key": KEY, "carry": carry, "progress": False}
        return rnnjax.training.fit(model, loss, batches, optax.sgd(0.1), steps=steps, **options)

    model, start = {"w": ramp(3)}, grid.place(np.ones(3))
    both, one = run(model, start, 2, noise), run(model, start, 1, noise)
    two = run(one.model, one.carry, 1, lambda step: noise(step + 1))
    assert_equal((two.model, two.carry), (both.model, both.carry))
    assert distance(one.carry, start) > 1e-3


# Batches


@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (1, 46), (3, 5), (3, 15), (3, 4), (46, 1)])
@pytest.mark.parametrize("features", [(), (2,)], ids=["tokens", "vectors"])
def test_chunks_tile_the_sequence(size, chunk, features):
    sequence = np.arange(47 * int(np.prod(features))).reshape(47, *features)
    chunks = streams(sequence, size, chunk)
    length = 46 // size
    epoch = [chunks(step) for step in range(length // chunk)]
    inputs, targets, resets = (np.concatenate(parts, 1) for parts in zip(*epoch, strict=True))
    used = length // chunk * chunk
    expected = sequence[: size * length].reshape(size, length, *features)[:, :used]
    np.testing.assert_array_equal(inputs, expected)
    np.testing.assert_array_equal(targets, expected + int(np.prod(features)))
    assert (resets.dtype, resets[:, 0].all(), resets[:, 1:].any()) == (bool, True, False)
    assert_equal(chunks(len(epoch)), epoch[0])
    assert_equal(chunks(7 * len(epoch) + len(epoch) - 1), epoch[-1])


@pytest.mark.parametrize(
    ("length", "size", "chunk", "message"),
    [
        (15, 3, 5, "^sequence: expected at least .* = 16 steps .* got 15"),
        (0, 1, 1, "^sequence: expected at least .* = 2 steps .* got 0"),
        (9, 0, 1, "^size, chunk: expected 1 or more, got 0 and 1"),
        (9, 1, 0, "^size, chunk: expected 1 or more, got 1 and 0"),
        (9, -1, -1, "^size, chunk: expected 1 or more, got -1 and -1"),
    ],
)
def test_streams_too_short(length, size, chunk, message):
    with pytest.raises(ValueError, match=message):
        streams(np.arange(length), size, chunk)
    streams(np.arange(16), 3, 5)


def epoch_of(batch: Callable[[int], Any], epoch: int) -> np.ndarray:
    return np.concatenate([batch(step)["x"] for step in range(3 * epoch, 3 * epoch + 3)])


def test_every_epoch_is_a_permutation_of_its_own():
    data = {"x": np.arange(12), "rest": (np.arange(24).reshape(12, 2),)}
    batch = minibatches(data, 4, seed=1)
    epochs = [epoch_of(batch, epoch) for epoch in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    np.testing.assert_array_equal(batch(5)["rest"][0][:, 0], 2 * batch(5)["x"])


def test_a_batch_depends_on_seed_and_step_alone():
    data = {"x": np.arange(14)}  # two of which are left out of every epoch
    batch, again, other = (minibatches(data, 4, seed=seed) for seed in (1, 1, 2))
    for step in (8, 0, 5, 1, 8):
        assert_equal(batch(step), again(step))
    assert len(set(epoch_of(batch, 1))) == 12
    assert epoch_of(batch, 0).tolist() != epoch_of(other, 0).tolist()
    assert set(epoch_of(batch, 0)) != set(epoch_of(batch, 1)) or set(epoch_of(batch, 0)) != set(epoch_of(batch, 2))


@pytest.mark.parametrize(
    ("arrays", "size", "message"),
    [
        (np.arange(4), 5, "^size: expected a batch from 1 to the 4 examples, got 5"),
        (np.arange(4), 0, "^size: expected a batch from 1 to the 4 examples, got 0"),
        (np.arange(4), -2, "^size: expected a batch from 1 to the 4 examples, got -2"),
        ((np.arange(4), np.arange(5)), 2, r"^arrays: expected one number of examples, got \[4, 5\]"),
        ({}, 2, "^arrays: expected at least one array, got none"),
    ],
)
def test_minibatches_misfit(arrays, size, message):
    with pytest.raises(ValueError, match=message):
        minibatches(arrays, size, seed=0)


LENGTHS = np.array([3, 9, 4, 4, 1, 7, 5, 2, 9, 8, 6])


def test_buckets_hold_like_lengths_and_an_epoch_is_a_permutation():
    buckets = Buckets(LENGTHS, 2, (4, 7, 9), seed=3)  # five, three and three examples
    assert buckets.per_epoch == 4
    epochs = [[buckets(4 * epoch + place) for place in range(4)] for epoch in range(6)]
    for batches in epochs:
        assert sorted(bound for _, bound in batches) == [4, 4, 7, 9]
        assert len(set(np.concatenate([chosen for chosen, _ in batches]))) == 8
        for chosen, bound in batches:
            assert {4: 0, 7: 4, 9: 7}[bound] < LENGTHS[chosen].min() <= LENGTHS[chosen].max() <= bound
    assert len({tuple(bound for _, bound in batches) for batches in epochs}) > 1
    assert set(np.concatenate([chosen for batches in epochs for chosen, _ in batches])) == set(range(11))


def test_a_bucket_depends_on_seed_and_step_alone():
    buckets, again, other = (Buckets(LENGTHS, 2, (4, 7, 9), seed=seed) for seed in (1, 1, 2))
    for step in (9, 0, 6, 1, 9):
        np.testing.assert_array_equal(buckets(step)[0], again(step)[0])
    assert any(buckets(step)[0].tolist() != other(step)[0].tolist() for step in range(4))


@pytest.mark.parametrize(
    ("lengths", "size", "bounds", "message"),
    [
        (LENGTHS, 2, (4, 8), "^bounds: expected a last one of at least the longest example's 9, got 8"),
        (LENGTHS, 2, (4, 4, 9), r"^bounds: expected integers that rise, got \[4, 4, 9\]"),
        (LENGTHS, 2, (4.0, 9.0), r"^bounds: expected integers that rise, got \[4.0, 9.0\]"),
        (LENGTHS, 2, (), r"^bounds: expected integers that rise, got \[\]"),
        (LENGTHS, 4, (4, 7, 9), "^bounds: expected at least a batch of 4 .* got 3 up to 7. Leave out a bound"),
        (LENGTHS - 2, 2, (9,), "^lengths: expected none below zero, got -1"),
        (LENGTHS[:0], 2, (9,), r"^lengths: expected an integer for each example, \[N\], got"),
        (LENGTHS, 0, (9,), "^size: expected a positive number of examples, got 0"),
        (LENGTHS / 2, 2, (9,), r"^lengths: expected an integer for each example, \[N\], got f64\[11\]"),
    ],
)
def test_buckets_misfit(lengths, size, bounds, message):
    with pytest.raises(ValueError, match=message):
        Buckets(lengths, size, bounds, seed=0)


# Optax


def test_gradient_is_clipped_by_global_norm(tmp_path):
    gradient = -noise(0)
    norm = np.linalg.norm(gradient)
    clipped = optax.chain(optax.clip_by_global_norm(0.25 * norm), optax.sgd(1.0))
    got = weights(train(optimiser=clipped, steps=1, folder=tmp_path))
    np.testing.assert_allclose(got, -0.25 * gradient, rtol=1e-12)
    assert metrics_of(tmp_path)[0]["gradient_norm"] == pytest.approx(norm)  # as it was before


def test_gradient_is_clipped_by_value():
    limit = float(np.median(np.abs(noise(0))))
    got = weights(train(optimiser=optax.chain(optax.clip(limit), optax.sgd(1.0)), steps=1))
    np.testing.assert_allclose(got, np.clip(noise(0), -limit, limit), rtol=1e-12)


@pytest.mark.usefixtures("promoting")
def test_accumulated_batches_are_one_step_on_their_mean_gradient():
    seen = []
    keep = lambda model: seen.append(np.asarray(model["w"])) or 0.0  # noqa: E731
    train(optimiser=optax.MultiSteps(optax.sgd(0.5), 3), steps=5, every=1, validate=keep)
    mean = np.mean([noise(step) for step in range(3)], axis=0)
    np.testing.assert_array_equal(seen[:2], np.zeros((2, 3)))
    np.testing.assert_allclose(seen[2], 0.5 * mean, rtol=1e-6)  # optax divides in float32
    np.testing.assert_array_equal(seen[3:], [seen[2]] * 2)


def test_each_step_has_a_key_of_its_own():
    def loss(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del batch
        return jnp.sum(0 * model["w"]), jnp.concatenate([carry[1:], jax.random.key_data(key)[None]])

    got = train(loss, steps=3, carry=np.zeros((3, 2), np.uint32)).carry
    keys = jax.jit(jax.vmap(lambda step: jax.random.key_data(jax.random.fold_in(KEY, step))))(np.arange(3))
    np.testing.assert_array_equal(got, keys)
    assert len({tuple(row) for row in np.asarray(got).tolist()}) == 3


# Stopping


def climb(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    """A loss down which each step of `sgd(1.0)` adds one to every weight."""
    del batch, key
    return -jnp.sum(model["w"]), carry


def test_patience_returns_the_best_model_not_the_last(tmp_path):
    squared = lambda model: np.sum((np.asarray(model["w"]) - 3) ** 2)  # noqa: E731
    options = {"optimiser": optax.sgd(1.0), "every": 1, "validate": squared}
    fitted = train(climb, steps=20, patience=4, folder=tmp_path, **options)
    assert (fitted.steps, weights(fitted).tolist()) == (7, [3.0, 3.0, 3.0])
    assert [line["validation"] for line in metrics_of(tmp_path)] == [12, 3, 0, 3, 12, 27, 48]
    unhurried = train(climb, steps=5, **options)
    assert (unhurried.steps, weights(unhurried).tolist()) == (5, [3.0, 3.0, 3.0])


def test_without_validation_the_last_model_is_returned():
    fitted = train(climb, optimiser=optax.sgd(1.0), steps=5, every=1)
    assert (fitted.steps, weights(fitted).tolist()) == (5, [5.0, 5.0, 5.0])


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-300, float("inf")])
def test_patience_ends_where_validation_stands_still(value):
    def stand_still(model: Any) -> float:
        return 0 * total(model) + value

    fitted = train(climb, optimiser=optax.sgd(1.0), every=1, steps=9, patience=2, validate=stand_still)
    steps, best = (2, 2) if value == float("inf") else (3, 1)  # none is better than infinity: the last one is returned
    assert (fitted.steps, weights(fitted).tolist()) == (steps, [best] * 3)


def spoilt(value: float, at: int) -> Callable[[int], np.ndarray]:
    """`noise`, but for one batch."""
    return lambda step: np.full(3, value) if step == at else noise(step)


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (np.nan, 2),
        (np.inf, 3),
        pytest.param(np.nan, 3, marks=pytest.mark.slow),
        pytest.param(np.inf, 2, marks=pytest.mark.slow),
    ],
)
def test_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(value, at, straight, tmp_path):
    message = rf"^loss: expected a finite value, got {value} of `batches\({at}\)`.*good weights are in .*checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train(batches=spoilt(value, at), folder=tmp_path / "spoilt", **OPTIONS)
    assert [line["step"] for line in metrics_of(tmp_path / "spoilt")] == [2]
    train(folder=tmp_path / "spoilt", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "spoilt", straight.folder)


def test_loss_that_is_not_finite_is_met_at_the_next_step():
    seen, batches = [], spoilt(np.nan, 1)
    with pytest.raises(FloatingPointError, match=r"^loss: .*got nan of `batches\(1\)`.*look at the data\.$"):
        train(batches=lambda step: seen.append(step) or batches(step), steps=50, every=50)
    assert seen == [0, 1, 2]


def test_gradient_that_is_not_finite_spares_the_checkpoint(tmp_path):
    """A finite loss may have a gradient that is not; the weights it leads to are not the last good ones."""

    def loss(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        value, carry = pull(model, carry, batch, key)
        return value + jnp.sqrt(jnp.sum(0 * model["w"]) + jnp.abs(batch).sum()), carry

    with pytest.raises(FloatingPointError, match=r"expected .*finite.*good weights are in .*checkpoint"):
        train(loss, spoilt(0.0, 3), every=2, folder=tmp_path / "spoilt")
    assert [line["step"] for line in metrics_of(tmp_path / "spoilt")] == [2]
    train(loss, every=2, folder=tmp_path / "straight")
    train(loss, every=2, folder=tmp_path / "spoilt", resume=True)
    assert_same_run(tmp_path / "spoilt", tmp_path / "straight")


def test_validation_that_is_not_a_number_ends_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"^validate: .* NaN after step 2\. .*good weights are in"):
        train(validate=lambda model: np.nan * total(model), every=2, folder=tmp_path)
    assert metrics_of(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 2}, "^patience: expected a `validate`"),
        ({"patience": 0, "validate": one}, "^patience: expected 1 or more, got 0"),
        ({"every": 0}, "^every: expected 1 or more, got 0"),
        ({"steps": -1}, "^steps: expected 0 or more, got -1"),
        ({"resume": True}, "^resume: expected a `folder`"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        train(batches=no_batches, **options)


def test_no_steps_at_all(tmp_path):
    fitted = train(batches=no_batches, steps=0, folder=tmp_path, carry=np.ones(2), validate=one)
    assert (fitted.steps, weights(fitted).tolist(), fitted.carry.tolist()) == (0, [0.0, 0.0, 0.0], [1.0, 1.0])
    train(folder=tmp_path, carry=np.ones(2), validate=one, resume=True)
    assert [line["step"] for line in metrics_of(tmp_path)] == [4]


def distance(tree: Any, other: Any) -> float:
    """The largest difference between two trees of arrays."""
    differences = jax.tree.map(lambda one, two: np.max(np.abs(np.asarray(one) - np.asarray(two))), tree, other)
    return max(jax.tree.leaves(differences))


def assert_equal(got: Any, expected: Any) -> None:
    """The same tree, the same dtypes, the same bits."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (getattr(one, "dtype", None), np.shape(one)) == (getattr(other, "dtype", None), np.shape(other))
        np.testing.assert_array_equal(one, other)


def test_a_carry_of_another_form_is_refused():
    grows = lambda model, carry, batch, key: (climb(model, carry, batch, key)[0], (carry, carry))  # noqa: E731
    with pytest.raises(ValueError, match=r"^loss: expected it to return a carry like the one it was given"):
        train(grows, carry=np.zeros(3), steps=1)


def test_a_loss_without_a_carry_is_refused():
    alone = lambda *arguments: climb(*arguments)[0]  # noqa: E731
    with pytest.raises(TypeError, match=r"^loss: expected .*, or \(scalar, None\), got f64"):
        train(alone, steps=1)


def test_a_carry_may_come_back_as_a_number():
    counted = lambda model, carry, batch, key: (climb(model, None, batch, key)[0], 1.0)  # noqa: ARG005, E731
    assert train(counted, carry=np.zeros(()), steps=1).carry == 1.0


def test_carry_that_is_not_finite_spares_the_checkpoint(tmp_path):
    """A step's loss may be finite and the carry it leaves not: the next step would meet it, and any resumed run."""

    def loss(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return pull(model, None, np.ones(3), key)[0], carry + batch.sum()

    with pytest.raises(FloatingPointError, match=r"^carry: expected finite .* after step 4, .*good weights are in"):
        train(loss, spoilt(np.inf, 3), carry=np.zeros(()), every=2, folder=tmp_path)
    assert [line["step"] for line in metrics_of(tmp_path)] == [2]
