"""Gradient estimators inside of `fit`: what a step computes, when a sequence begins, resuming to the bit, errors."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import online_learning
import optax
import pytest

import rnnjax

B, T, H, TARGETS = 3, 4, 4, 2
RATE = 0.05


@grid.once
def weights() -> tuple[rnnjax.Elman, jax.Array]:
    """A cell with a learned initial state, and a linear head."""
    cell = rnnjax.Elman(grid.I, H, key=grid.KEY, dtype=jnp.float64, learn_initial=True)
    return cell, grid.place(np.random.default_rng(5).normal(size=(H, TARGETS)))


def loss(head: Any, y: Any, target: Any) -> jax.Array:
    """Squared error of a linear head."""
    return jnp.sum((y @ head - target) ** 2)


def chunk(step: int, steps: int = T, begins: Any = None) -> tuple[np.ndarray, ...]:
    """The batch of a step: the sequences begin at the first one, or those that `begins` names."""
    generator = np.random.default_rng(step)
    starts = np.full(B, step == 0) if begins is None else np.array(begins)
    return generator.normal(size=(B, steps, grid.I)), generator.normal(size=(B, steps, TARGETS)), starts


def begin(step: int) -> tuple[np.ndarray, ...]:
    """The batch of a step: sequences of its own."""
    return chunk(step, begins=[True] * B)


def restart(step: int) -> tuple[np.ndarray, ...]:
    """The batch of a step of streams, the first of which begins anew at the fourth step."""
    return chunk(step, 2, [step in (0, 3), step == 0, step == 0])


def train(gradient: Any, batches: Callable[[int], Any] = chunk, **options: Any) -> rnnjax.training.Fitted:
    """Fit for three steps."""
    given = {"steps": 3, "key": grid.KEY, "progress": False, "optimiser": optax.sgd(RATE, momentum=0.9)} | options
    model, loss_ = given.pop("model", None) or weights(), given.pop("loss", loss)
    return rnnjax.training.fit(model, loss_, batches, given.pop("optimiser"), gradient=gradient, **given)


def assert_same_bits(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


# What a step computes


def whole_loss(model: Any, carry: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
    """The same loss for a `fit` without an estimator: of whole sequences, from the initial state."""
    del key
    xs, targets, _ = batch
    ys = jax.vmap(lambda xs: rnnjax.unroll(model[0], None, xs)[1])(xs)
    return jax.vmap(jax.vmap(partial(loss, model[1])))(ys, targets).sum(1).mean(), carry


def test_bptt_of_whole_sequences_is_the_gradient_of_the_loss(tmp_path):
    got = train(rnnjax.gradients.BPTT(), begin, folder=tmp_path / "estimated", every=1)
    expected = train(None, begin, loss=whole_loss, folder=tmp_path / "differentiated", every=1)
    grid.assert_close(got.model, expected.model)
    for name in ("loss", "gradient_norm"):
        one, other = (
            [line[name] for line in rnnjax.training.read_metrics(tmp_path / folder / "metrics.jsonl")]
            for folder in ("estimated", "differentiated")
        )
        np.testing.assert_allclose(one, other, rtol=1e-11)
    assert not np.allclose(
        np.asarray(got.model[0].initial_state.h), np.asarray(weights()[0].initial_state.h), atol=1e-4
    )


def test_rtrl_step_by_step_is_the_loop_by_hand_to_the_bit():
    estimator, optimiser, steps = rnnjax.gradients.RTRL(), optax.sgd(RATE, momentum=0.9), 40
    start = lambda cell: jax.vmap(lambda _: estimator.start(cell))(np.zeros(B))  # noqa: E731

    @eqx.filter_jit
    def update(model: Any, memory: Any, optimised: Any, xs: Any, targets: Any) -> Any:
        estimate = lambda *given: estimator.estimate(loss, model, *given)  # noqa: E731
        estimates = jax.vmap(estimate)(memory, xs, targets)
        gradient = jax.tree.map(lambda leaf: leaf.mean(0), estimates.gradient)
        updates, optimised = optimiser.update(gradient, optimised)
        return eqx.apply_updates(model, updates), estimates.memory, optimised

    model = weights()
    memory, optimised = eqx.filter_jit(start)(model[0]), optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    for step in range(steps):
        model, memory, optimised = update(model, memory, optimised, *chunk(step, 1)[:2])
    fitted = train(estimator, partial(chunk, steps=1), steps=steps)
    assert_same_bits((fitted.model, fitted.carry), (model, memory))


def test_a_sequence_begins_where_it_is_said_to_and_nowhere_else():
    """With weights that stand still, memories are those of the sequences since their starts."""
    estimator, batches = rnnjax.gradients.RTRL(), [restart(step) for step in range(5)]
    got = train(estimator, restart, steps=5, optimiser=optax.sgd(0.0)).carry

    @eqx.filter_jit
    def remember(model: Any, xs: Any, targets: Any) -> Any:
        return estimator.estimate(loss, model, estimator.start(model[0]), xs, targets).memory

    for row, first in enumerate((3, 0, 0)):
        xs, targets = (np.concatenate([batch[part][row] for batch in batches[first:]]) for part in (0, 1))
        grid.assert_close(jax.tree.map(lambda leaf, row=row: leaf[row], got), remember(weights(), xs, targets))


def test_memories_are_carried_on_by_the_next_fit():
    optimiser = optax.sgd(RATE)
    whole = train(rnnjax.gradients.RTRL(), steps=4, optimiser=optimiser)
    first = train(rnnjax.gradients.RTRL(), steps=2, optimiser=optimiser)
    follow = lambda step: chunk(step + 2)  # noqa: E731
    second = train(rnnjax.gradients.RTRL(), follow, steps=2, optimiser=optimiser, model=first.model, carry=first.carry)
    assert_same_bits((second.model, second.carry), (whole.model, whole.carry))


def test_each_sequence_and_each_step_has_draws_of_its_own():
    same = tuple(np.broadcast_to(leaf[:1], leaf.shape) for leaf in begin(0))
    signs = lambda steps: np.asarray(  # noqa: E731
        train(rnnjax.gradients.UORO(), lambda _: same, steps=steps, optimiser=optax.sgd(0.0)).carry.trace.state
    )
    drawn = [signs(steps) for steps in range(3)]  # before the first step, after it, and after the second
    assert [len(np.unique(np.round(each, 12), axis=0)) for each in drawn] == [B, B, B]
    assert not np.allclose(drawn[1], drawn[2])


def slow(case: Any) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)


ESTIMATORS = (
    rnnjax.gradients.RTRL(),
    rnnjax.gradients.EProp(),
    rnnjax.gradients.TruncatedBPTT(2),
    *map(
        slow,
        (
            rnnjax.gradients.TruncatedBPTT(1, 3),
            rnnjax.gradients.SnAp1(),
            rnnjax.gradients.UORO(),
            rnnjax.gradients.BPTT(),
        ),
    ),
)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_every_estimator_learns(estimator, tmp_path):
    xs, targets, _ = chunk(0)
    batches = lambda step: (xs, targets, np.full(B, step % 2 == 0))  # noqa: E731  its memories live for two steps
    fitted = train(estimator, batches, steps=60, every=2, folder=tmp_path, optimiser=optax.sgd(0.01))
    losses = [line["loss"] for line in rnnjax.training.read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    trained = lambda cell, head: (cell.input_weight, cell.recurrent_weight, cell.bias, head)  # noqa: E731
    for old, new in zip(trained(*weights()), trained(*fitted.model), strict=True):
        assert np.abs(np.asarray(old) - np.asarray(new)).max() > 1e-3


# What `fit` does for every loss


@grid.once
def stacked() -> tuple[rnnjax.Stack, jax.Array]:
    """Two cells above a layer without a state, and a linear head."""
    options = {"key": grid.KEY, "dtype": jnp.float64}
    enter = rnnjax.TimeDistributed(eqx.nn.Linear(grid.I, H, **options), grid.I, dtype=jnp.float64)
    return rnnjax.Stack([enter, *(rnnjax.Elman(H, H, **options) for _ in range(2))], dropout=0.5), weights()[1]


@pytest.mark.parametrize(
    ("estimator", "model"),
    [
        pytest.param(rnnjax.gradients.RTRL(), weights, id="rtrl"),
        pytest.param(rnnjax.gradients.UORO(), weights, id="uoro"),
        pytest.param(rnnjax.gradients.EProp(), stacked, id="eprop of a stack"),
        pytest.param(rnnjax.gradients.SnAp1(), stacked, id="snap1 of a stack", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_interrupted_ends_in_the_same_bits(estimator, model, tmp_path):
    """One memory begins anew before the interruption, and one after it."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    expected = train(estimator, restart, steps=5, every=2, folder=straight, model=model())
    train(estimator, restart, steps=2, every=2, folder=resumed, model=model())
    got = train(estimator, restart, steps=5, every=2, folder=resumed, resume=True, model=model())
    assert (resumed / "checkpoint").read_bytes() == (straight / "checkpoint").read_bytes()
    assert_same_bits((got.model, got.carry), (expected.model, expected.carry))
    one, other = (rnnjax.training.read_metrics(folder / "metrics.jsonl") for folder in (straight, resumed))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]


def test_validation_sees_the_pair_and_ends_the_run():
    seen: list[Any] = []
    validate = lambda model: seen.append(model) or 1.0  # noqa: E731
    fitted = train(rnnjax.gradients.RTRL(), validate=validate, every=1, patience=1, steps=9)
    assert fitted.steps == 2
    assert_same_bits(fitted.model, seen[0])
    assert jax.tree.structure(fitted.model) == jax.tree.structure(weights())


def test_an_optimiser_is_given_the_loss_but_no_line_search():
    seen: list[set[str]] = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params
        seen.append(set(extra))
        return updates, state

    optimiser = optax.GradientTransformationExtraArgs(lambda _: (), update)
    train(rnnjax.gradients.RTRL(), steps=1, optimiser=optimiser)
    train(None, begin, steps=1, optimiser=optimiser, loss=whole_loss)
    assert seen == [{"value", "grad"}, {"value", "grad", "value_fn"}]


@pytest.mark.usefixtures("promoting")
def test_an_optimiser_that_searches_says_what_it_lacks():
    with pytest.raises(TypeError, match="value_fn"):
        train(rnnjax.gradients.RTRL(), steps=1, optimiser=optax.lbfgs())


# What does not fit


def no_batches(step: int) -> Any:
    raise AssertionError(f"batch {step} was asked for")


def both_ways() -> Any:
    return rnnjax.Bidirectional(weights()[0], weights()[0], merge=rnnjax.networks.add), weights()[1]


STARTS = np.ones(B, bool)
BAD: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]] = {
    "a name": (
        lambda: {"gradient": "rtrl"},
        TypeError,
        "gradient: expected an estimator, such as rnnjax.gradients.RTRL(), or",
    ),
    "a class": (
        lambda: {"gradient": rnnjax.gradients.RTRL},
        TypeError,
        "gradient: expected an estimator, such as rnnjax.gradients.RTRL()",
    ),
    "no pair": (
        lambda: {"model": weights()[0]},
        TypeError,
        "model: expected a pair (cell, head) for gradient=RTRL, got Elman",
    ),
    "a network": (
        lambda: {"model": both_ways()},
        ValueError,
        "gradient: RTRL cannot train Bidirectional: it needs a cell, or a Stack, residual or skip of such cells and "
        "TimeDistributed layers. Use BPTT() or TruncatedBPTT",
    ),
    "a loss of the model": (
        lambda: {"loss": whole_loss},
        TypeError,
        "loss: expected a function (head, y, target) -> scalar for gradient=RTRL, got one that takes (model:",
    ),
    "a loss of a step": (
        lambda: {"gradient": None},
        TypeError,
        "loss: expected a function (model, carry, batch, key) -> (scalar, carry), got one that takes (head:",
    ),
    "no loss": (lambda: {"loss": 3.0}, TypeError, "loss: expected a function (head, y, target) -> scalar for"),
    "a carry of another form": (
        lambda: {"carry": np.zeros((B, H))},
        ValueError,
        "carry: expected a memory of RTRL for each sequence, Traced(",
    ),
    "a carry of one sequence": (
        lambda: {"carry": train(rnnjax.gradients.BPTT(), steps=0).carry},
        ValueError,
        "carry: expected a memory of RTRL for each sequence, Traced(",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("annotations_unchecked")
def test_bad_arguments_are_named_before_anything_is_done(name, tmp_path):
    given, error, message = BAD[name]
    options = {"gradient": rnnjax.gradients.RTRL(), "folder": tmp_path / "run"} | given()
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        train(batches=no_batches, **options)
    assert list(tmp_path.iterdir()) == []


XS, OTHERS, _ = chunk(0)
BAD_BATCHES: dict[str, tuple[Any, type[Exception], str]] = {
    "no starts": ((XS, OTHERS), TypeError, "batches: expected (xs, targets, starts) for an estimator, got (f64["),
    "starts of numbers": ((XS, OTHERS, np.ones(B)), ValueError, "batches: expected starts as booleans [3], "),
    "starts over time": ((XS, OTHERS, np.ones((B, T), bool)), ValueError, "batches: expected starts as booleans [3], "),
    "one start": ((XS, OTHERS, np.bool_(True)), ValueError, "batches: expected starts as booleans [B], "),
    "one sequence": ((XS[0], OTHERS[0], STARTS), ValueError, "batches: expected xs [B=3, T, ...], of f64[3] at each"),
    "more features": (
        (np.zeros((B, T, 5)), OTHERS, STARTS),
        ValueError,
        "batches: expected xs [B=3, T, ...], of f64[3] at each step for Elman, got f64[3,4,5]",
    ),
    "fewer targets": (
        (XS, OTHERS[:, 1:], STARTS),
        ValueError,
        "batches: expected targets [B=3, T=4, ...] as long as xs, got f64[3,3,2]",
    ),
    "no targets": ((XS, None, STARTS), ValueError, "batches: expected targets [B=3, T=4, ...] as long as xs, got None"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_of_another_form_is_named(name):
    batch, error, message = BAD_BATCHES[name]
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        train(rnnjax.gradients.RTRL(), lambda _: batch)


def test_the_number_of_sequences_stays_the_same():
    fewer = lambda step: tuple(leaf[: B - step] for leaf in chunk(step))  # noqa: E731
    with pytest.raises(
        ValueError, match=r"^batches: expected starts as booleans \[3\], .*, got bool\[2\]\. .*same\. Pass "
    ):
        train(rnnjax.gradients.RTRL(), fewer)


# The example


def learn_online(*words: str, folder: Path) -> list[dict[str, Any]]:
    """The example with some words."""
    return list(online_learning.run(online_learning.parse([*words, "--folder", str(folder)])))


@pytest.mark.usefixtures("as_it_comes")
def test_the_example_learns_a_delay_and_goes_on(tmp_path, capsys):
    words, whole, cut = ["--estimators", "rtrl", "--delay", "1", "--chunk", "2"], tmp_path / "whole", tmp_path / "cut"
    (record,) = learn_online(*words, "--steps", "600", folder=whole)
    printed = capsys.readouterr().out
    assert "rtrl, bits repeated after 1 steps; chance is 0.693 nats a bit" in printed
    assert "MB resident" in printed
    losses = list(record["losses"].values())
    assert list(record["losses"]) == list(range(60, 601, 60))
    assert 0.5 < losses[0] < 1.0
    assert losses[-1] < 0.1
    learn_online(*words, "--steps", "200", folder=cut)
    learn_online(*words, "--steps", "600", "--resume", folder=cut)
    checkpoint = (whole / "rtrl" / "checkpoint").read_bytes()
    assert b"carry.trace" in checkpoint  # RTRL's
    assert (cut / "rtrl" / "checkpoint").read_bytes() == checkpoint


@pytest.mark.slow
@pytest.mark.usefixtures("as_it_comes")
def test_the_example_shows_what_the_readme_says(tmp_path):
    by_rtrl, by_bptt = (record["losses"][10_000] / online_learning.CHANCE for record in learn_online(folder=tmp_path))
    assert by_rtrl < 0.1
    assert by_bptt > 0.8


def test_the_stream_repeats_each_bit_after_the_delay():
    batch = online_learning.stream(seed=3, delay=4, chunk=7)
    chunks = [batch(step) for step in range(300)]
    inputs, targets = (np.concatenate([each[part] for each in chunks], 1) for part in (0, 1))
    assert inputs.shape == (1, 2100, 1)
    np.testing.assert_array_equal(targets[0, 4:], (inputs[0, :-4, 0] + 1) / 2)
    assert [bool(starts[0]) for *_, starts in chunks] == [True] + [False] * 299
    assert 0.45 < targets.mean() < 0.55
    assert not np.array_equal(targets[:, :1000], targets[:, 1000:2000])
    assert_same_bits(batch(140), chunks[140])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume"], "--resume: expected a --folder to resume from, got none"),
        (["--chunk", "0"], "--chunk: expected 1 or more, got 0"),
        (["--delay", "-1"], "--delay: expected 0 or more, got -1"),
    ],
)
def test_the_example_refuses(words, message, capsys):
    with pytest.raises(SystemExit):
        online_learning.parse(words)
    assert message in capsys.readouterr().err
