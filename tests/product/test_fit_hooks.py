"""Hooks of `fit`: metrics of the loss and of `validate`, reports of each line, batches from any iterable."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.training import read_metrics
from rnnjax.training.source import source


def pull(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any, dict[str, Any]]:
    """A loss whose gradient is `model - batch`, with two metrics."""
    del key
    return (
        0.5 * jnp.sum((model - batch) ** 2),
        carry,
        {"distance": jnp.abs(model - batch).sum(), "above": model > batch},
    )


def plain(*arguments: Any) -> tuple[jax.Array, Any]:
    return pull(*arguments)[:2]


def scalar_of_batch(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any, dict[str, Any]]:
    value, carry, metrics = pull(model, carry, batch, key)
    return value, carry, {**metrics, "above": jnp.sum(metrics["above"])}


def noise(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(3)


def train(
    loss: Callable[..., Any] = scalar_of_batch, batches: Any = noise, *, steps: int = 5, every: int = 2, **options: Any
) -> rnnjax.training.Fitted:
    """Fit three weights, from zero."""
    given = {"optimiser": optax.sgd(0.5), "key": grid.KEY, "progress": False} | options
    return rnnjax.training.fit(grid.place(np.zeros(3)), loss, batches, steps=steps, every=every, **given)


# Metrics


def test_metrics_that_are_no_numbers_are_json(tmp_path):
    """NaN and infinities are strings in the file, and numbers again when they are read."""
    values = {"below": -np.inf, "above": np.inf, "none": np.nan}
    loss = lambda *arguments: (*plain(*arguments), {name: jnp.asarray(value) for name, value in values.items()})  # noqa: E731
    train(loss, steps=4, validate=lambda _: np.inf, folder=tmp_path)

    def strictly(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    written = [
        json.loads(line, parse_constant=strictly) for line in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    expected = {"below": "-Infinity", "above": "Infinity", "none": "NaN", "validation": "Infinity"}
    assert [{name: line[name] for name in expected} for line in written] == [expected] * 2
    lines = read_metrics(tmp_path / "metrics.jsonl")
    for line in lines:
        np.testing.assert_equal({name: line[name] for name in expected}, values | {"validation": np.inf})
    train(loss, steps=6, validate=lambda _: np.inf, folder=tmp_path, resume=True)  # which writes the lines anew
    assert str(read_metrics(tmp_path / "metrics.jsonl")[:2]) == str(lines)


def path() -> tuple[list[float], list[float], list[np.ndarray]]:
    """By hand, of each step: the distance and the number above; and the weights after each."""
    weights, distances, above = [np.zeros(3)], [], []
    for step in range(5):
        distances.append(np.abs(weights[-1] - noise(step)).sum())
        above.append((weights[-1] > noise(step)).sum())
        weights.append(weights[-1] - 0.5 * (weights[-1] - noise(step)))
    return distances, above, weights[1:]


def test_metrics_are_written_and_reported_as_means_since_the_last_line(tmp_path):
    lines: list[Any] = []
    judge = lambda model: {"largest": np.max(model), "validation": np.sum(model)}  # noqa: E731
    fitted = train(folder=tmp_path, report=lines.append, validate=judge)
    assert lines == read_metrics(tmp_path / "metrics.jsonl")
    names = ["step", "loss", "gradient_norm", "above", "distance", "validation", "largest", "seconds"]
    assert [list(line) for line in lines] == [names] * 3
    distances, above, weights = path()
    for line, begin, end in zip(lines, (0, 2, 4), (2, 4, 5), strict=True):
        assert line["step"] == end
        assert line["distance"] == pytest.approx(np.mean(distances[begin:end]), rel=1e-12)
        assert line["above"] == pytest.approx(np.mean(above[begin:end]), rel=1e-12)
        assert line["largest"] == pytest.approx(weights[end - 1].max(), rel=1e-12)
    best = min((weights[end - 1] for end in (2, 4, 5)), key=np.sum)  # neither by the loss nor by the other entry
    np.testing.assert_allclose(fitted.model, best, rtol=1e-12)


def test_metrics_are_averaged_over_devices():
    lines: list[Any] = []
    train(report=lines.append, mesh=jax.make_mesh((1,), ("batch",)))
    distances, above, _ = path()
    assert [line["distance"] for line in lines][-1] == pytest.approx(distances[-1], rel=1e-12)
    assert [line["above"] for line in lines][-1] == above[-1]


def test_metrics_change_no_bit_of_the_run(tmp_path):
    train(folder=tmp_path / "with", validate=lambda model: {"validation": model.sum(), "other": 1.0})
    train(plain, folder=tmp_path / "without", validate=lambda model: model.sum())
    assert (tmp_path / "with" / "checkpoint").read_bytes() == (tmp_path / "without" / "checkpoint").read_bytes()


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (3.0, TypeError, r"^loss: expected its metrics as a dictionary of scalars, got 3\.0\. Return"),
        ({"loss": 1.0}, ValueError, r"^loss: expected names .* other than step, loss, .* got \['loss'\]\. Name"),
        ({"parts": np.zeros(3)}, ValueError, r"^loss: expected its metrics to be scalars, got .*f64\[3\].*\. Return"),
    ],
)
def test_metrics_misused(metrics, error, message):
    with pytest.raises(error, match=message):
        train(lambda *arguments: (*plain(*arguments), metrics), steps=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"accuracy": 1.0}, r"^validate: expected an entry 'validation', .* among \['accuracy'\]\. Return it"),
        (
            {"validation": 1.0, "distance": 1.0},
            r"^validate: expected names, as text, other .* got \['distance'\]\. Name them",
        ),
        (
            {"validation": 1.0, "seconds": 1.0},
            r"^validate: expected names, as text, other .* got \['seconds'\]\. Name them",
        ),
    ],
)
def test_validation_misused(answer, message):
    with pytest.raises(ValueError, match=message):
        train(validate=lambda model: answer, steps=1)  # noqa: ARG005


def test_a_report_that_fails_loses_nothing(tmp_path):
    with pytest.raises(KeyError):
        train(plain, folder=tmp_path, report=lambda line: line["accuracy"])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2]
    train(plain, folder=tmp_path, resume=True)
    train(plain, folder=tmp_path / "straight")
    assert (tmp_path / "checkpoint").read_bytes() == (tmp_path / "straight" / "checkpoint").read_bytes()
    with pytest.raises(TypeError, match=r"^report: expected a function of a line of metrics, got 3\. Write"):
        train(report=3)


# Batches


class Loader:
    """As torch's: it begins again with each `iter`, and its batches are lists of arrays of another library."""

    def __iter__(self) -> Iterator[list[Any]]:
        return iter([[Tensor(noise(step))] for step in range(3)])


class Tensor:
    """An array of another library."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        del copy
        return np.asarray(self.values, dtype)


def first(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    return plain(model, carry, batch[0], key)


ITERABLES: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "list": (lambda: [[noise(step)] for step in range(3)], lambda step: [noise(step % 3)]),
    "loader": (Loader, lambda step: [noise(step % 3)]),
    "generator": (lambda: ([noise(step)] for step in range(9)), lambda step: [noise(step)]),
}


@pytest.mark.parametrize("name", ITERABLES)
def test_batches_may_be_any_iterable(name):
    make, by_step = ITERABLES[name]
    fitted = train(first, make())
    assert fitted.steps == 5
    np.testing.assert_array_equal(fitted.model, train(first, by_step).model)


def test_an_iterator_is_taken_no_further_than_the_steps():
    left = iter(map(noise, range(9)))
    train(plain, left, steps=3)
    np.testing.assert_array_equal(next(left), noise(3))


def test_an_iterator_keeps_the_batch_after_an_early_stop():
    left = iter(map(noise, range(20)))
    fitted = train(plain, left, steps=20, every=2, validate=lambda model: 1.0 + 0 * float(model[0]), patience=2)
    assert fitted.steps == 6
    np.testing.assert_array_equal(next(left), noise(6))


def test_a_run_ends_with_its_iterator(tmp_path):
    lines: list[Any] = []
    fitted = train(plain, map(noise, range(3)), steps=50, folder=tmp_path, report=lines.append, validate=np.sum)
    assert fitted.steps == 3
    assert [line["step"] for line in lines] == [2, 3]
    train(plain, steps=3, folder=tmp_path / "straight", validate=np.sum)
    assert (tmp_path / "checkpoint").read_bytes() == (tmp_path / "straight" / "checkpoint").read_bytes()


BAD_BATCHES = [
    pytest.param(3, {}, TypeError, r"^batches: expected a function of the step, .* got 3\. Write .*minibatches"),
    pytest.param((np.zeros(3), np.zeros(3)), {}, TypeError, r"^batches: .* got \(f64\[3\].*\)\. Write"),
    pytest.param(np.zeros((2, 3)), {}, TypeError, r"^batches: .* got f64\[2,3\].*\. Write"),
    pytest.param(
        [], {}, ValueError, r"^batches: expected at least one batch in each turn, got none of list at step 0\. Pass"
    ),
    pytest.param(
        iter(()),
        {},
        ValueError,
        r"^batches: expected at least one batch in each turn, got none of tuple_iterator at step 0\. Pass",
    ),
    pytest.param(
        [np.zeros(3)],
        {"resume": True, "folder": "never"},
        ValueError,
        r"^resume: expected batches that are a function of the step, got list: .*Write a function step -> batch",
    ),
]


@pytest.mark.parametrize(("batches", "options", "error", "message"), BAD_BATCHES)
def test_batches_misused(batches, options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        train(plain, batches, **options)
    assert not Path("never").exists()


def test_a_batch_that_was_looked_at_before_the_first_step_is_not_lost():
    """As that which tells an estimator how many sequences there are."""
    supply = source(iter("abc"), False)
    seen = [supply(0), supply(0), supply.ends(0), supply(1), supply.ends(1), supply(2), supply.ends(2)]
    assert seen == ["a", "a", False, "b", False, "c", True]


@pytest.mark.slow
def test_a_loader_of_torch():
    data = pytest.importorskip("torch.utils.data")
    rows = data.TensorDataset(pytest.importorskip("torch").tensor(np.stack([noise(step) for step in range(4)])))
    loader = data.DataLoader(rows, batch_size=2)
    mean = lambda model, carry, batch, key: first(model, carry, [batch[0].mean(0)], key)  # noqa: E731
    by_step = lambda step: [np.stack([noise(2 * (step % 2)), noise(2 * (step % 2) + 1)])]  # noqa: E731
    np.testing.assert_array_equal(train(mean, loader).model, train(mean, by_step).model)
