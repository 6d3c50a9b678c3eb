"""Models of one answer for a sequence, and of one for each step: by hand, under masks, and trained."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import rnnjax

T, I, H, CLASSES = 8, 3, 5, 4  # noqa: E741
F64 = jnp.float64
FUNCTIONS = {
    "last": rnnjax.models.last,
    "ends": rnnjax.models.ends,
    "mean": rnnjax.models.mean,
    "maximum": rnnjax.models.maximum,
    "flatten": rnnjax.models.flatten,
}
POOLINGS = (*FUNCTIONS, "attention")
LENGTHS = np.array([T, 5, 1])


@lru_cache
def key() -> Any:
    with jax.ensure_compile_time_eval():  # kept beyond the program that may be the first to ask
        return jax.random.key(23)


def slow(*arguments: Any) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def filled(make: Callable[[], Any]) -> Any:
    """What `make` makes, every weight a normal number."""
    random = np.random.default_rng(3)
    draw = lambda leaf: grid.place((0.5 * random.normal(size=leaf.shape)).astype(leaf.dtype))  # noqa: E731
    form = eqx.filter_eval_shape(make)
    with jax.ensure_compile_time_eval():
        return jax.tree.map(draw, form)


@grid.once
def pooling(name: str) -> Any:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    return filled(lambda: rnnjax.models.AttentionPooling(2 * H, 5, key=key(), dtype="float64"))


@grid.once
def linear(inputs: int, outputs: int = CLASSES) -> eqx.nn.Linear:
    return filled(lambda: eqx.nn.Linear(inputs, outputs, key=key(), dtype=F64))


def lstm() -> rnnjax.LSTM:
    return rnnjax.LSTM(I, H, key=key(), dtype=F64)


@grid.once
def bidirectional() -> rnnjax.Bidirectional:
    return filled(lambda: rnnjax.Bidirectional(rnnjax.GRU(I, H, key=key(), dtype=F64), lstm()))


@grid.once
def elman() -> rnnjax.Bidirectional:
    return filled(lambda: rnnjax.Bidirectional(*[rnnjax.Elman(I, H, key=key(), dtype=F64)] * 2))


def each_step(function: Callable[[Any], Any] = jax.nn.identity) -> rnnjax.TimeDistributed:
    """A network that remembers nothing, where that does not matter: its programs are small."""
    return rnnjax.TimeDistributed(function, I, dtype=F64)


def padded(xs: np.ndarray, lengths: Any) -> np.ndarray:
    """A batch with NaN from its lengths on."""
    return np.where(np.arange(xs.shape[1])[:, None] < np.asarray(lengths)[:, None, None], xs, np.nan)


# The equations, in NumPy


def by_hand(name: str, pooling: Any, ys: np.ndarray) -> np.ndarray:
    """The pooling of all steps of `ys`."""
    return {
        "last": lambda: ys[-1],
        "ends": lambda: np.concatenate([ys[-1, :H], ys[0, H:]]),
        "mean": lambda: ys.mean(0),
        "maximum": lambda: ys.max(0),
        "flatten": lambda: np.concatenate([ys.ravel(), np.zeros((T - len(ys)) * ys.shape[1])]),
        "attention": lambda: attended(pooling, ys),
    }[name]()


def attended(pooling: rnnjax.models.AttentionPooling, ys: np.ndarray) -> np.ndarray:
    scores = np.tanh(ys @ np.asarray(pooling.weight) + np.asarray(pooling.bias)) @ np.asarray(pooling.score)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ ys


def outputs(network: Any, xs: np.ndarray) -> np.ndarray:
    """Of a GRU to the right and an LSTM to the left, or of what lets everything through."""
    if isinstance(network, rnnjax.TimeDistributed):
        return xs
    zeros = np.zeros(H)
    right, left = oracle.run(network.forward, (zeros,), xs), oracle.run(network.backward, (zeros, zeros), xs[::-1])
    return np.concatenate([right[1], left[1][::-1]], 1)


def head_outputs(head: eqx.nn.Linear, ys: np.ndarray) -> np.ndarray:
    return ys @ np.asarray(head.weight).T + np.asarray(head.bias)


def losses(logits: np.ndarray, labels: Any) -> np.ndarray:
    """-log softmax(logits)[label], of each."""
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]


def cosines(leaf: Any) -> np.ndarray:
    """The direction in which weights are changed, all of them."""
    return np.cos(np.arange(leaf.size)).reshape(leaf.shape)


def slope_by_differences(function: Callable[[Any], float], model: Any) -> float:
    """How what NumPy makes of a model changes with its weights."""
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    moved = lambda step: jax.tree.map(lambda leaf: np.asarray(leaf) + step * cosines(leaf), weights)  # noqa: E731
    ahead, behind = (function(eqx.combine(moved(step), rest)) for step in (1e-5, -1e-5))
    return (ahead - behind) / 2e-5


def slope_by(gradient: Any) -> float:
    return sum(float(np.sum(leaf * cosines(leaf))) for leaf in jax.tree.leaves(gradient))


# Pooling


@lru_cache
def pooled(name: str) -> Callable[..., Any]:
    """The pooling of all steps of one sequence, and of the first `length` of another; each beside a gradient."""

    def value_and_slope(ys: Any, length: Any) -> Any:
        def number(ys: Any) -> Any:
            vector = pooling(name)(ys, length)
            return (vector + vector**2).sum(), vector

        slope, vector = jax.grad(number, has_aux=True)(ys)
        return vector, slope

    return jax.jit(lambda whole, ys, length: (value_and_slope(whole, None), value_and_slope(ys, length)))


def pool(name: str, length: int | None) -> Any:
    """Of normal numbers, that are followed by NaN where there is a length."""
    ys = normal(T, 2 * H)
    bad = np.where(np.arange(T)[:, None] < (T if length is None else length), ys, np.nan)
    whole, first = pooled(name)(ys, bad, np.asarray(length or 0))
    return jax.tree.map(np.asarray, whole if length is None else first)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("length", [None, 7, 1])
def test_pooling_is_of_the_steps_that_count(name, length):
    steps = normal(T, 2 * H)[:length]
    vector, slope = pool(name, length)
    np.testing.assert_allclose(vector, by_hand(name, pooling(name), steps), atol=1e-12)
    assert np.isfinite(slope).all()
    assert slope[: len(steps)].any()
    assert not slope[len(steps) :].any()


@pytest.mark.parametrize("name", POOLINGS)
def test_what_no_step_says_is_zero(name):
    vector, slope = pool(name, 0)
    assert not vector.any()
    assert not slope.any()
    if name != "flatten":
        none = jax.ShapeDtypeStruct((0, 2 * H), F64)
        assert jax.eval_shape(lambda ys: pooling(name)(ys, None), none).shape == (2 * H,)


def test_the_weights_of_attention_sum_to_one():
    align = jax.jit(lambda ys, length: pooling("attention").alignment(ys, length))
    weights = np.asarray(align(normal(T, 2 * H), np.asarray(5)))
    np.testing.assert_allclose(weights.sum(), 1)
    assert (weights[:5] > 0).all()
    assert not weights[5:].any()


# Objectives


def test_objectives_are_their_formulas():
    logits = np.asarray([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    labels, answers = np.asarray([2, 1]), np.asarray([[True, False, True], [False, False, True]])

    @jax.jit
    def all_of_them(logits: Any, labels: Any, answers: Any) -> Any:
        squared = rnnjax.models.squared_error(logits, logits + np.asarray([1.0, 2.0, 3.0]))
        return rnnjax.models.cross_entropy(logits, labels), rnnjax.models.binary_cross_entropy(logits, answers), squared

    one_of, each, squared = all_of_them(logits, labels, answers)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(one_of, -np.log([shares[0, 2], shares[1, 1]]))
    yes = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(each, -np.where(answers, np.log(yes), np.log(1 - yes)).sum(1))
    np.testing.assert_allclose(squared, [14 / 3] * 2)


@pytest.mark.parametrize(
    "objective", [rnnjax.models.cross_entropy, rnnjax.models.binary_cross_entropy, rnnjax.models.squared_error]
)
def test_losses_of_sixteen_bits_are_in_thirty_two(objective):
    target = np.asarray([0, 2]) if objective is rnnjax.models.cross_entropy else np.zeros((2, 3), "float16")
    losses = jax.jit(objective)(np.full((2, 3), 300, "float16"), target)
    assert losses.dtype == "float32"
    assert np.isfinite(losses).all()


def test_a_label_may_be_any_integer():
    logits, labels = normal(200), [2, np.int64(2), np.uint8(2), grid.place(np.int8(2))]
    found = jax.jit(lambda logits: [rnnjax.models.cross_entropy(logits, label) for label in labels])(logits)
    for label, loss in zip(labels, found, strict=True):
        np.testing.assert_allclose(loss, np.log(np.exp(logits).sum()) - logits[2], err_msg=str(type(label)))


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_never_one(label):
    found = jax.jit(rnnjax.models.cross_entropy)(np.zeros((2, CLASSES)), np.asarray([0, label]))
    assert np.isnan(found).tolist() == [False, True]
    with pytest.raises(ValueError, match=rf"labels: expected classes from 0 to 3, got {label} at \[1\]"):
        rnnjax.models.check_labels([0, label], CLASSES)
    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        rnnjax.models.check_labels([0.5], CLASSES)
    rnnjax.models.check_labels([[0, 3]], CLASSES)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("objective", "targets", "message"),
    [
        (
            rnnjax.models.squared_error,
            np.zeros(4),
            r"(?m)^targets: expected \[4, 1\], by the answers, got \[4\]\. Reshape .*$",
        ),
        (
            rnnjax.models.squared_error,
            np.zeros((1, 4)),
            r"(?m)^targets: expected \[4, 1\], by the answers, got \[1, 4\]\. Reshape .*$",
        ),
        (
            rnnjax.models.binary_cross_entropy,
            np.zeros(4),
            r"(?m)^targets: expected \[4, 1\], by the answers, got \[4\]\. Reshape .*$",
        ),
        (
            rnnjax.models.cross_entropy,
            np.zeros((4, 1), int),
            r"(?m)^labels: expected \[4\], by the answers, got \[4, 1\]\. Reshape .*$",
        ),
        (
            rnnjax.models.cross_entropy,
            np.zeros((), int),
            r"(?m)^labels: expected \[4\], by the answers, got \[\]\. Reshape .*$",
        ),
    ],
)
def test_targets_that_would_be_broadcast_are_refused(objective, targets, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(objective, np.zeros((4, 1)), targets)


def test_a_label_that_is_no_class_stops_training():
    model = rnnjax.models.Classifier(each_step(), linear(I))
    batches = rnnjax.training.minibatches((normal(2, T, I), np.asarray([0, CLASSES]), None), 2, seed=0)
    options = {"steps": 1, "key": key(), "progress": False}
    with pytest.raises(FloatingPointError, match="loss"), jax.numpy_dtype_promotion("standard"):
        rnnjax.training.fit(model, rnnjax.models.classifier_loss, batches, optax.sgd(0.1), **options)


# One answer for a sequence


@lru_cache
def learn(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of (model, batch), and its gradient."""
    return eqx.filter_jit(eqx.filter_value_and_grad(loss))


def loss_of_classifier(model: rnnjax.models.Classifier, batch: Any) -> Any:
    return rnnjax.models.classifier_loss(model, None, batch, None)[0]


LABELS = np.asarray([0, 3, 1])


@pytest.mark.parametrize("name", ["ends", slow("attention")])
def test_a_batch_of_padded_sequences_is_each_alone(name):
    def alone(model: rnnjax.models.Classifier) -> float:
        found = [outputs(model.network, xs[:length]) for xs, length in zip(normal(3, T, I), LENGTHS, strict=True)]
        pooled = np.stack([by_hand(name, model.pooling, ys) for ys in found])
        return float(losses(head_outputs(model.head, pooled), LABELS).mean())

    model = rnnjax.models.Classifier(bidirectional(), linear(2 * H), pooling=pooling(name))
    batch = padded(normal(3, T, I), LENGTHS), LABELS, LENGTHS
    loss, gradient = jax.tree.map(np.asarray, learn(loss_of_classifier)(model, batch))
    assert float(loss) == pytest.approx(alone(model), rel=1e-11)
    assert slope_by(gradient) == pytest.approx(slope_by_differences(alone, model), rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ends", "attention"])
def test_to_the_last_bits_a_batch_of_padded_sequences_is_each_alone(name):
    def alone(model: rnnjax.models.Classifier, batch: Any) -> Any:
        xs, labels = batch
        each = [model(xs[row, :length]) for row, length in enumerate(LENGTHS[1:])]
        return sum(rnnjax.models.cross_entropy(answer, labels[row]) for row, answer in enumerate(each)) / 2

    model, xs = rnnjax.models.Classifier(elman(), linear(2 * H), pooling=pooling(name)), normal(2, T, I)
    together = learn(loss_of_classifier)(model, (padded(xs, LENGTHS[1:]), LABELS[1:], LENGTHS[1:]))
    grid.assert_close(together, learn(alone)(model, (xs, LABELS[1:])))


# One answer for each step


REDUCTIONS = {"average": rnnjax.models.average_steps, "total": rnnjax.models.total_steps}
COUNTS = np.asarray([T, 5, 0])
TAGS = np.random.default_rng(5).integers(0, CLASSES, (3, T))


@lru_cache
def loss_of_tagger(over_steps: str) -> Callable[..., Any]:
    reduce = REDUCTIONS[over_steps]
    return lambda model, batch: rnnjax.models.tagger_loss(model, None, batch, None, over_steps=reduce)[0]


def padded_tags() -> Any:
    """Labels that are no class stand in the padding."""
    unknown = np.where(np.arange(T) < COUNTS[:, None], TAGS, -1)
    return padded(normal(3, T, I), COUNTS), unknown, COUNTS


@pytest.mark.parametrize("over_steps", REDUCTIONS)
def test_the_loss_of_a_tagger_is_of_the_valid_steps(over_steps):
    network = bidirectional() if over_steps == "average" else each_step()
    model = rnnjax.models.Tagger(network, linear(2 * H if over_steps == "average" else I))

    def alone(model: rnnjax.models.Tagger) -> float:
        pairs = [(xs[:n], tags[:n]) for xs, tags, n in zip(normal(3, T, I), TAGS, COUNTS, strict=True) if n]
        sums = [losses(head_outputs(model.head, outputs(model.network, xs)), tags).sum() for xs, tags in pairs]
        return float(sum(sums) / {"average": COUNTS.sum(), "total": 3}[over_steps])

    xs, tags, counts = padded_tags()
    loss, gradient = jax.tree.map(np.asarray, learn(loss_of_tagger(over_steps))(model, (xs, tags, counts)))
    assert float(loss) == pytest.approx(alone(model), rel=1e-11)
    assert slope_by(gradient) == pytest.approx(slope_by_differences(alone, model), rel=1e-7)
    assert float(learn(loss_of_tagger(over_steps))(model, (xs, tags, np.zeros(3, int)))[0]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("over_steps", REDUCTIONS)
def test_to_the_last_bits_the_loss_of_a_tagger_is_of_the_valid_steps(over_steps):
    def alone(model: rnnjax.models.Tagger, batch: Any) -> Any:
        each = [
            rnnjax.models.cross_entropy(model(xs[:n]), tags[:n]).sum()
            for xs, tags, n in zip(*batch, COUNTS, strict=True)
        ]
        return sum(each) / {"average": float(COUNTS.sum()), "total": 3}[over_steps]

    model = rnnjax.models.Tagger(elman(), linear(2 * H))
    together = learn(loss_of_tagger(over_steps))(model, padded_tags())
    grid.assert_close(together, learn(alone)(model, (normal(3, T, I), TAGS)))


def test_answers_are_zeros_from_the_length_on():
    model, xs = rnnjax.models.Tagger(each_step(), linear(I)), normal(T, I)
    answers = np.asarray(jax.jit(lambda xs, length: model(xs, length=length))(padded(xs[None], [5])[0], np.asarray(5)))
    np.testing.assert_allclose(answers[:5], head_outputs(linear(I), xs[:5]), atol=1e-12)
    assert not answers[5:].any()


def test_padding_does_not_reach_the_gradient_of_the_head():
    """Zeros, which stand there after the network, have no direction."""
    head = eqx.nn.Sequential([eqx.nn.Lambda(lambda y: y / jnp.linalg.norm(y)), linear(I)])
    batch = normal(2, T, I), np.zeros((2, T), int), np.asarray([T, 3])
    _, slope = learn(loss_of_tagger("average"))(rnnjax.models.Tagger(each_step(), head), batch)
    assert len(jax.tree.leaves(slope)) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_dropout_is_drawn_for_each_sequence():
    model = rnnjax.models.Tagger(rnnjax.Stack([each_step(), each_step()], dropout=0.5), linear(I))
    xs, targets = np.broadcast_to(normal(T, I), (2, T, I)), np.zeros((2, T, CLASSES))

    @jax.jit
    def answers(batch: Any, key: Any) -> Any:
        seen: list[Any] = []
        spy = lambda ys, target: seen.append(ys) or rnnjax.models.squared_error(ys, target)  # noqa: E731
        for each in (key, None):
            rnnjax.models.tagger_loss(model, None, batch, each, objective=spy)
        return seen

    (one, whole), (same, _) = (map(np.asarray, answers((xs, targets, None), key())) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one[0], one[1])
    np.testing.assert_array_equal(whole[0], whole[1])


def test_a_forecast_reads_its_own_answers():
    cell, xs = filled(lstm), normal(T, I)
    values, read = rnnjax.models.forecast(rnnjax.models.Tagger(cell, linear(H, I)), grid.place(xs), 3), xs
    for value in np.asarray(values):
        _, ys = oracle.run(cell, (np.zeros(H), np.zeros(H)), read)
        expected = head_outputs(linear(H, I), ys)[-1]
        np.testing.assert_allclose(value, expected, atol=1e-12)
        read = np.concatenate([read, expected[None]])


@pytest.mark.parametrize(
    ("answers", "steps", "message"),
    [
        (CLASSES, T, r"model: expected answers like its inputs \[3\], got \[4\]"),
        (I, 0, "xs: expected at least one step"),
    ],
    ids=["answers", "steps"],
)
def test_a_forecast_misused(answers, steps, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda xs: rnnjax.models.forecast(rnnjax.models.Tagger(lstm(), linear(H, answers)), xs, 3), normal(steps, I)
        )


@pytest.mark.slow
def test_a_classifier_learns():
    """Which of two halves of a sequence is the larger: the sum alone does not tell."""
    xs = normal(200, 10, 1, seed=2)
    labels = (xs[:, :5].sum((1, 2)) > xs[:, 5:].sum((1, 2))).astype(int)
    model = rnnjax.models.Classifier(
        rnnjax.GRU(1, 8, key=key(), dtype="float64"), linear(8, 2), pooling=rnnjax.models.mean
    )
    loss = partial(rnnjax.models.classifier_loss, engine=rnnjax.Scan())
    with jax.numpy_dtype_promotion("standard"):
        batches = rnnjax.training.minibatches(rnnjax.models.Sequences(xs, labels), 50, seed=0)
        model = rnnjax.training.fit(model, loss, batches, optax.adam(0.03), steps=200, key=key(), progress=False).model
    answers = np.asarray(eqx.filter_jit(eqx.filter_vmap(model))(xs))
    assert (answers.argmax(-1) == labels).mean() > 0.9


@pytest.mark.parametrize("length", [None, 80, 2])
def test_the_maximum_shows_what_is_not_a_number(length):
    """XLA's own drops it, in arrays as large as these."""
    ys = np.zeros((100, 64), np.float32)
    ys[3, 5] = np.nan
    pooled = jax.jit(lambda ys: rnnjax.models.maximum(ys, None if length is None else jnp.asarray(length)))
    expected = (np.arange(64) == 5) & (length != 2)
    np.testing.assert_array_equal(np.isnan(pooled(ys)), expected)
    gradient = jax.jit(jax.grad(lambda ys: pooled(ys).sum()))(ys)
    assert np.isnan(gradient).any() == (length != 2)
