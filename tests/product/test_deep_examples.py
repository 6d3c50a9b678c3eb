"""The examples of deep networks, and of video: what they make, read and keep is right, and each of them trains."""

import gzip
import shutil
import tempfile
from typing import Any

import addition
import chorales
import common.digits
import common.text
import digit_rows
import equinox as eqx
import fitzhugh_nagumo
import grid
import jax
import long_memory
import mnist1d
import moving_digits
import next_word
import numpy as np
import optax
import pixel_digits
import pytest
import sentiment_sequence
import sentiment_trees
import shakespeare
import speaker_recognition
from common import blocks, memory_tasks, training

import rnnjax

pytestmark = pytest.mark.usefixtures("as_it_comes")


def run(example, *words):
    return list(example.run(example.parse(words)))


def steps_to_take(monkeypatch, example, steps):
    monkeypatch.setattr(example, "count_steps", lambda *_: steps)


def trace_a_step(
    model: Any, loss: Any, batches: Any, optimiser: Any, *, steps: int, key: Any, carry: Any = None, **options: Any
) -> None:
    """Stands in for `fit`: sees to it that a step could be taken, compiles nothing, and goes no further."""
    assert steps > 0
    step = eqx.filter_value_and_grad(loss, has_aux=True)
    (value, after), slope = eqx.filter_eval_shape(step, model, carry, batches(0), key)
    assert (value.shape, value.dtype) == ((), np.float32)
    assert jax.tree.structure(after) == jax.tree.structure(carry)
    weights = eqx.filter(model, eqx.is_inexact_array)
    eqx.filter_eval_shape(
        lambda weights, slope: optimiser.update(slope, optimiser.init(weights), weights), weights, slope
    )
    raise InterruptedError(f"{options.get('picture')}")


def shrink_shakespeare(monkeypatch):
    for name, value in {"T": 8, "B": 4, "BLOCKS": 1, "EVERY": 1, "HEAD": 4}.items():
        monkeypatch.setattr(shakespeare, name, value)
    monkeypatch.setattr(common.text, "read_text", lambda _: "all the world's a stage " * 40)


# What they share


def test_what_turns_and_fades_moves_at_a_tenth_of_the_rate():
    network = blocks.gated_block(rnnjax.LRU(4, 4, key=grid.KEY), 4, grid.KEY)
    weights = eqx.filter(network, eqx.is_inexact_array)
    transform = blocks.optimiser(optax.constant_schedule(0.01))
    slope = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), weights)
    update = eqx.filter_jit(lambda weights, slope: transform.update(slope, transform.init(weights), weights)[0])
    updates = update(weights, slope)
    moved = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    slow = {name for name in moved if name.endswith((".nu", ".theta", ".log_gamma"))}
    assert len(slow) == 3
    for name, leaf in moved.items():
        np.testing.assert_allclose(leaf, -0.001 if name in slow else -0.01, rtol=1e-3)


def test_a_rate_is_level_and_then_goes_down():
    rate = training.constant_then_linear(0.4, 80)
    rates = jax.jit(jax.vmap(rate))(np.array([0, 59, 60, 70, 80]))
    np.testing.assert_allclose(rates, [0.4, 0.4, 0.4, 0.2, 0.0], atol=1e-7)


def square(x, carry, *_):
    return (x**2).sum(), carry


def two(value=1.0):
    """Two numbers to train."""
    return grid.place(np.full(2, value, np.float32))


def test_a_picture_changes_nothing_of_training(tmp_path, monkeypatch):
    kept, picture, draw = [], tmp_path / "new" / "course.png", training.draw
    read = lambda folder: kept.extend(rnnjax.training.read_metrics(folder / "metrics.jsonl"))  # noqa: E731
    monkeypatch.setattr(training, "draw", lambda folder, picture: read(folder) or draw(folder, picture))
    arguments = two(), square, lambda _: np.zeros(1), optax.sgd(0.1)
    options = {"steps": 4, "key": grid.KEY, "every": 2, "validate": lambda x: (np.asarray(x) ** 2).sum()}
    plain, seen = (training.fit(*arguments, **options, picture=asked) for asked in (None, picture))
    np.testing.assert_array_equal(plain.model, seen.model)
    assert picture.stat().st_size > 5_000
    np.testing.assert_allclose([line["validation"] for line in kept], [2 * 0.8**4, 2 * 0.8**8], rtol=1e-6)


def test_the_folder_of_a_run_is_gone_unless_the_run_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    picture, options = tmp_path / "course.png", {"steps": 2, "key": grid.KEY}
    training.fit(two(), square, lambda _: np.zeros(1), optax.sgd(0.1), **options, picture=picture)
    assert list(tmp_path.iterdir()) == [picture]
    with pytest.raises(FloatingPointError, match="loss") as caught:
        training.fit(two(np.nan), square, lambda _: np.zeros(1), optax.sgd(0.1), **options, picture=picture)
    (folder,) = set(tmp_path.iterdir()) - {picture}
    assert f"{folder / 'run' / 'checkpoint'}." in str(caught.value)
    assert (folder / "run" / "checkpoint").exists()


EXAMPLES = [addition, chorales, digit_rows, fitzhugh_nagumo, mnist1d, next_word, sentiment_sequence, sentiment_trees]


@pytest.mark.parametrize("example", [*EXAMPLES, speaker_recognition], ids=lambda example: example.__name__)
def test_the_example_takes_a_step_and_draws_its_course_where_it_is_asked_for(example, monkeypatch):
    monkeypatch.setattr(example, "fit", trace_a_step)
    monkeypatch.setattr(fitzhugh_nagumo, "COUNTS", (16, 1, 1))
    monkeypatch.setattr(addition, "COUNTS", {3: 200})
    with pytest.raises(InterruptedError, match=r"course\.png"):
        run(example, "--picture", "course.png")


# The examples that call `rnnjax.training.fit` themselves, and what tells their models apart.
STEPS = {
    **{f"long_memory {name}": (long_memory, ["--lengths", "20", "--models", name]) for name in long_memory.MODELS},
    **{
        f"shakespeare {name}": (shakespeare, ["--width", "8", "--mixer", name])
        for name in ("min_gru", "min_lstm", "mamba2")
    },
    **{f"pixel_digits {name}": (pixel_digits, ["--model", name]) for name in pixel_digits.MODELS},
    "moving_digits": (moving_digits, []),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_example_takes_a_step(name, monkeypatch, tmp_path):
    example, words = STEPS[name]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rnnjax.training, "fit", trace_a_step)
    monkeypatch.setattr(moving_digits, "JUDGED", 1)
    monkeypatch.setattr(example, "BLOCKS", 1, raising=False)
    shrink_shakespeare(monkeypatch)
    monkeypatch.setattr(example, "count_steps", lambda *_: 2, raising=False)  # where epochs are not counted
    with pytest.raises(InterruptedError):
        run(example, *words)


# Long memory


def test_adding():
    xs, sums = memory_tasks.adding(np.random.default_rng(0), 5, 50)
    assert xs.shape == (5, 50, 2)
    assert (xs[..., 1].sum(1) == 2).all()
    np.testing.assert_allclose([row[row[:, 1] == 1, 0].sum() for row in xs], sums, rtol=1e-6)


def test_copying():
    copied = memory_tasks.COPIED
    xs, symbols = memory_tasks.copying(np.random.default_rng(0), 5, 50)
    read = xs.argmax(-1)
    assert xs.shape[:2] == (5, 50 + 2 * copied)
    np.testing.assert_array_equal(read[:, :copied], symbols)
    assert (read[:, copied : -copied - 1] == memory_tasks.SYMBOLS).all()
    assert (read[:, -copied - 1 :] == memory_tasks.SYMBOLS + 1).all()


@pytest.mark.slow
def test_long_memory_trains(monkeypatch, capsys):
    steps_to_take(monkeypatch, long_memory, 60)
    records = run(long_memory, "--task", "adding", "--lengths", "5", "--models", "min_gru", "lstm_fused")
    assert "adding, T = 5, min_gru" in capsys.readouterr().out
    assert [(record["model"], record["steps"], len(record["curve"])) for record in records] == [
        ("min_gru", 60, 30),
        ("lstm_fused", 60, 30),
    ]
    assert all(record["loss"] < record["curve"][0][1] / 2 for record in records)


# Minimal recurrent networks


def test_pieces_are_the_text_in_order():
    tokens = np.arange((shakespeare.B + 3) * shakespeare.T + 5)
    chunks = shakespeare.pieces(tokens)
    assert [len(chunk.inputs) for chunk in chunks] == [shakespeare.B, 3]
    read = np.concatenate([chunk.inputs.ravel() for chunk in chunks])
    np.testing.assert_array_equal(read, tokens[:-5])
    np.testing.assert_array_equal(np.concatenate([chunk.targets.ravel() for chunk in chunks]), read + 1)


def test_what_is_drawn_is_followed_by_what_is_next():
    chunk = shakespeare.draw(np.arange(1000), 0, 3)
    assert chunk.inputs.shape == (shakespeare.B, shakespeare.T)
    np.testing.assert_array_equal(chunk.targets, chunk.inputs + 1)
    np.testing.assert_array_equal(np.diff(chunk.inputs), 1)
    assert chunk.targets.max() < 1000
    assert (shakespeare.draw(np.arange(1000), 0, 4).inputs != chunk.inputs).any()


@pytest.mark.slow
def test_shakespeare_train_and_go_on(monkeypatch, tmp_path, capsys):
    """Four steps, and two more after a kill on the way to the third, are the same."""
    shrink_shakespeare(monkeypatch)
    steps_to_take(monkeypatch, shakespeare, 4)
    straight, killed, draw = tmp_path / "straight", tmp_path / "killed", shakespeare.draw

    def copying(tokens, seed, step):
        """The batch of a step; before the third, the folder is copied as a kill would leave it."""
        if step == 2 and not killed.exists():
            shutil.copytree(straight, killed)
        return draw(tokens, seed, step)

    monkeypatch.setattr(shakespeare, "draw", copying)
    curves = []
    for folder, more in ((straight, ()), (killed, ("--resume",))):
        (record,) = run(shakespeare, "--width", "4", "--folder", str(folder), *more)
        assert "published" not in record
        curves.append([line[:3] for line in record["curve"]])
        assert len(rnnjax.training.read_metrics(killed / "metrics.jsonl")) == (2 if folder == straight else 4)
    assert curves[0] == curves[1]
    assert curves[0][-1][1] < curves[0][0][1]
    assert "min_gru-4 on the manual of Python: " in capsys.readouterr().out


def test_a_run_that_is_there_or_is_not(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(shakespeare, "--resume")
    assert "--resume: expected a run in --folder" in capsys.readouterr().err
    (tmp_path / "checkpoint").touch()
    with pytest.raises(SystemExit):
        run(shakespeare, "--folder", str(tmp_path))
    assert "holds a run. Add --resume" in capsys.readouterr().err


def test_a_text_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"RNNJAX_DATA: expected tinyshakespeare/input.txt"):
        common.text.read_corpus()


# Digits


@pytest.fixture
def tiny_mnist(tmp_path):
    """Images of which the label is the brightness, in MNIST's files."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, count in (("train", 120), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.repeat(labels * 25, 784).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    return tmp_path


def test_digits_are_read(monkeypatch, tiny_mnist):
    monkeypatch.setenv("RNNJAX_DATA", str(tiny_mnist))
    learned_from, test, name = common.digits.read_digits()
    assert (learned_from.xs.shape, test.xs.shape, name) == ((120, 784, 1), (10, 784, 1), "sequential MNIST")
    np.testing.assert_allclose(test.xs.mean((1, 2)), np.arange(10) * 25 / 255, rtol=1e-6)
    np.testing.assert_array_equal(test.labels, np.arange(10))


def test_digits_are_trained_on(monkeypatch, tiny_mnist, capsys):
    monkeypatch.setenv("RNNJAX_DATA", str(tiny_mnist))
    for name, value in {"BLOCKS": 1, "WIDTH": 8, "UNITS": 8}.items():
        monkeypatch.setattr(pixel_digits, name, value)
    (record,) = run(pixel_digits, "--epochs", "10")
    assert "12 held-out digits" in capsys.readouterr().out
    assert [line[0] for line in record["curve"]] == list(range(1, 11))
    assert record["test"] >= 0.3


def test_none_is_trained_on_and_held_out():
    digits = common.digits.Digits(np.arange(70_000), np.arange(70_000))
    learned_from, held_out = pixel_digits.hold_out(digits)
    assert len(held_out.labels) == pixel_digits.HELD_OUT
    np.testing.assert_array_equal(np.sort(np.concatenate([learned_from.xs, held_out.xs])), digits.xs)


def test_small_digits_stand_in():
    learned_from, test, _ = common.digits.read_digits()
    assert (learned_from.xs.shape, test.xs.shape) == ((1437, 64, 1), (360, 64, 1))
    assert learned_from.xs.max() == 1
    assert set(test.labels.tolist()) == set(range(10))


def test_small_digits_are_read_more_often_than_mnist():
    (*_, small), epochs = common.digits.read_digits(), common.digits.Epochs(mnist=3, small=30)
    assert (epochs.of(small), epochs.of(common.digits.MNIST)) == (30, 3)


def test_accuracy_counts_every_digit():
    digits = common.digits.Digits(np.arange(130)[:, None], np.where(np.arange(130) < 127, 1, 0))
    always_one = eqx.nn.Lambda(lambda xs: jax.nn.one_hot(1, 10) + 0.0 * xs)
    assert pixel_digits.accuracy(always_one, digits) == 127 / 130


def test_digits_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="RNNJAX_DATA: expected mnist in"):
        common.digits.read_digits()


# Video


def test_digits_go_straight_on_and_bounce():
    room, speed = 8, 1.6
    walked = moving_digits.path(np.random.default_rng(5), room, speed)
    generator = np.random.default_rng(5)
    angle = generator.uniform(0, 2 * np.pi)
    velocity, place, expected = speed * np.array([np.sin(angle), np.cos(angle)]), generator.uniform(0, room, 2), []
    for _ in range(moving_digits.T):
        expected.append(place)
        place = place + velocity
        velocity = np.where((place < 0) | (place > room), -velocity, velocity)
        place = np.where(place < 0, -place, np.where(place > room, 2 * room - place, place))
    np.testing.assert_array_equal(walked, np.rint(expected))
    assert (np.diff(walked, axis=0) > 0).any(0).all()
    assert (np.diff(walked, axis=0) < 0).any(0).all()


@pytest.mark.parametrize(("size", "side"), [(8, 16), (28, 64)])
def test_two_digits_are_in_every_frame(size, side):
    frames = moving_digits.videos(np.random.default_rng(0), np.ones((1, size, size), np.float32), 3)
    assert frames.shape == (3, moving_digits.T, 1, side, side)
    lit = frames.sum((2, 3, 4))
    assert size**2 <= lit.min() < lit.max() <= 2 * size**2


def test_each_frame_is_predicted_from_those_before_it(monkeypatch):
    monkeypatch.setattr(moving_digits, "CHANNELS", 4)
    video = np.random.default_rng(0).random((moving_digits.T, 1, 8, 8), np.float32)
    network, predict = moving_digits.recurrent(8, grid.KEY), eqx.filter_jit(moving_digits.predict)
    spoilt = video.copy()
    spoilt[6] = 0.0
    logits, changed = (np.asarray(predict(network, one)) for one in (video, spoilt))
    first = 7 - moving_digits.SEEN  # the prediction of frame 7
    np.testing.assert_array_equal(logits[:first], changed[:first])
    assert (logits[first:] != changed[first:]).any((1, 2, 3)).all()
    assert len(logits) == moving_digits.T - moving_digits.SEEN


@pytest.mark.slow
def test_video_is_predicted_better_than_not_at_all(monkeypatch, tmp_path, capsys):
    for name, value in {"B": 2, "T": 5, "CHANNELS": 4, "JUDGED": 4}.items():
        monkeypatch.setattr(moving_digits, name, value)
    steps_to_take(monkeypatch, moving_digits, 25)
    picture = tmp_path / "a" / "frames.png"
    records = run(moving_digits, "--picture", str(picture))
    assert [(record["model"], record["steps"]) for record in records] == [(name, 25) for name in moving_digits.MODELS]
    assert all(record["nats"] < 0.9 * np.log(2) for record in records)
    assert picture.stat().st_size > 1000
    assert "the last frame again: error" in capsys.readouterr().out
