"""Models of one answer for a sequence, and of one for each step: by hand, under masks, and trained."""

from functools import partial

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax

KEY = jax.random.key(23)
CLASSES = 4
NETWORK = rnnjax.Bidirectional(grid.build("gru"), grid.build("lstm"))
POOLINGS = {
    "last": rnnjax.last,
    "ends": rnnjax.ends,
    "mean": rnnjax.mean,
    "maximum": rnnjax.maximum,
    "flatten": rnnjax.flatten,
    "attention": rnnjax.AttentionPooling(2 * grid.H, 5, key=KEY, dtype="float64"),
}
BY_HAND = {
    "last": lambda ys: ys[-1],
    "ends": lambda ys: np.concatenate([ys[-1, : grid.H], ys[0, grid.H :]]),
    "mean": lambda ys: ys.mean(0),
    "maximum": lambda ys: ys.max(0),
    "flatten": lambda ys: np.concatenate([ys.ravel(), np.zeros((grid.T - len(ys)) * ys.shape[1])]),
}


def linear(inputs, outputs=CLASSES):
    return eqx.nn.Linear(inputs, outputs, key=KEY, dtype="float64")


def attended(ys):
    """Attention pooling in NumPy."""
    pooling = POOLINGS["attention"]
    scores = np.tanh(ys @ np.asarray(pooling.weight) + np.asarray(pooling.bias)) @ np.asarray(pooling.score)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ ys


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("length", [None, 7, 1])
def test_pooling_is_of_the_steps_that_count(name, length):
    ys = jax.random.normal(KEY, (grid.T, 2 * grid.H), "float64")
    steps = ys[:length]
    expected = (BY_HAND | {"attention": attended})[name](np.asarray(steps))
    padded = ys if length is None else ys.at[length:].set(jnp.nan)
    pool = lambda ys: POOLINGS[name](ys, None if length is None else jnp.asarray(length))  # noqa: E731
    np.testing.assert_allclose(jax.jit(pool)(padded), expected, atol=1e-12)
    gradient = jax.jit(jax.grad(lambda ys: (pool(ys) ** 2).sum()))(padded)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient[len(steps) :]).any()


@pytest.mark.parametrize("name", POOLINGS)
def test_what_no_step_says_is_zero(name):
    ys = jnp.full((grid.T, 2 * grid.H), jnp.nan)
    pool = lambda ys: POOLINGS[name](ys, jnp.asarray(0)).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(pool)(ys)
    assert value == 0
    assert not np.asarray(gradient).any()
    if name != "flatten":
        assert POOLINGS[name](ys[:0], None).shape == (2 * grid.H,)


def test_the_weights_of_attention_sum_to_one():
    weights = POOLINGS["attention"].alignment(jax.random.normal(KEY, (grid.T, 2 * grid.H), "float64"), jnp.asarray(5))
    np.testing.assert_allclose(weights.sum(), 1)
    assert (np.asarray(weights[:5]) > 0).all()
    assert not np.asarray(weights[5:]).any()


def test_objectives_are_their_formulas():
    logits = jnp.asarray([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(rnnjax.cross_entropy(logits, jnp.asarray([2, 1])), -np.log([shares[0, 2], shares[1, 1]]))
    answers = jnp.asarray([[True, False, True], [False, False, True]])
    yes = 1 / (1 + np.exp(-np.asarray(logits)))
    expected = -np.where(answers, np.log(yes), np.log(1 - yes)).sum(1)
    np.testing.assert_allclose(rnnjax.binary_cross_entropy(logits, answers), expected)
    np.testing.assert_allclose(rnnjax.squared_error(logits, logits + jnp.asarray([1.0, 2.0, 3.0])), [14 / 3] * 2)


@pytest.mark.parametrize("objective", [rnnjax.cross_entropy, rnnjax.binary_cross_entropy, rnnjax.squared_error])
def test_losses_of_sixteen_bits_are_in_thirty_two(objective):
    ys = jnp.full((2, 3), 300, "float16")
    target = jnp.asarray([0, 2]) if objective is rnnjax.cross_entropy else jnp.zeros((2, 3), "float16")
    losses = objective(ys, target)
    assert losses.dtype == "float32"
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("label", [2, np.int64(2), np.uint8(2), jnp.asarray(2, "int8")])
def test_a_label_may_be_any_integer(label):
    logits = jax.random.normal(KEY, (200,))
    np.testing.assert_allclose(rnnjax.cross_entropy(logits, label), -jax.nn.log_softmax(logits)[2])


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_never_one(label):
    logits = jnp.zeros((2, CLASSES))
    assert np.isnan(rnnjax.cross_entropy(logits, jnp.asarray([0, label]))).tolist() == [False, True]
    with pytest.raises(ValueError, match=rf"labels: expected classes from 0 to 3, got {label} at \[1\]"):
        rnnjax.check_labels([0, label], CLASSES)
    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        rnnjax.check_labels([0.5], CLASSES)
    rnnjax.check_labels([[0, 3]], CLASSES)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("objective", "targets", "message"),
    [
        (rnnjax.squared_error, jnp.zeros(4), r"^targets: expected \[4, 1\], by the answers, got \[4\]$"),
        (rnnjax.squared_error, jnp.zeros((1, 4)), r"^targets: expected \[4, 1\], by the answers, got \[1, 4\]$"),
        (rnnjax.binary_cross_entropy, jnp.zeros(4), r"^targets: expected \[4, 1\], by the answers, got \[4\]$"),
        (rnnjax.cross_entropy, np.zeros((4, 1), int), r"^labels: expected \[4\], by the answers, got \[4, 1\]$"),
        (rnnjax.cross_entropy, np.zeros((), int), r"^labels: expected \[4\], by the answers, got \[\]$"),
    ],
)
def test_targets_that_would_be_broadcast_are_refused(objective, targets, message):
    with pytest.raises(ValueError, match=message):
        objective(jnp.zeros((4, 1)), targets)


def test_a_label_that_is_no_class_stops_training():
    model = rnnjax.Classifier(grid.build("gru"), linear(grid.H))
    batch = (np.asarray(grid.inputs(2, grid.T)), np.asarray([0, CLASSES]), None)
    with pytest.raises(FloatingPointError, match="loss"), jax.numpy_dtype_promotion("standard"):
        rnnjax.fit(
            model,
            rnnjax.classifier_loss,
            rnnjax.minibatches(batch, 2, seed=0),
            optax.sgd(0.1),
            steps=1,
            key=KEY,
            progress=False,
        )


@pytest.mark.parametrize("name", ["ends", "attention"])
def test_a_batch_of_padded_sequences_is_each_alone(name):
    model = rnnjax.Classifier(NETWORK, linear(2 * grid.H), pooling=POOLINGS[name])
    xs, lengths = grid.inputs(3, grid.T), (12, 5, 1)
    padded = jnp.where(jnp.arange(grid.T)[:, None] < jnp.asarray(lengths)[:, None, None], xs, jnp.nan)
    labels = jnp.asarray([0, 3, 1])

    @eqx.filter_jit
    def learn(model, loss):
        return eqx.filter_value_and_grad(loss)(model)

    together = learn(model, lambda m: rnnjax.classifier_loss(m, None, (padded, labels, jnp.asarray(lengths)), None)[0])
    alone = lambda m, i: rnnjax.cross_entropy(m(xs[i, : lengths[i]]), labels[i])  # noqa: E731
    grid.assert_close(together, learn(model, lambda m: sum(alone(m, i) for i in range(3)) / 3))


def tagger():
    return rnnjax.Tagger(grid.build("bidirectional"), linear(2 * grid.H))


@pytest.mark.parametrize("over_steps", ["average", "total"])
def test_the_loss_of_a_tagger_is_of_the_valid_steps(over_steps):
    model, lengths = tagger(), [12, 5, 0]
    xs, labels = grid.inputs(3, grid.T), jax.random.randint(KEY, (3, grid.T), 0, CLASSES)
    counts = jnp.arange(grid.T) < jnp.asarray(lengths)[:, None]
    padded, unknown = jnp.where(counts[..., None], xs, jnp.nan), jnp.where(counts, labels, -1)
    reduce = {"average": rnnjax.average_steps, "total": rnnjax.total_steps}[over_steps]

    def alone(model):
        sums = [rnnjax.cross_entropy(model(x[:n]), label[:n]).sum() for x, label, n in zip(xs, labels, lengths)]  # noqa: B905
        return sum(sums) / {"average": sum(lengths), "total": 3}[over_steps]

    batch = padded, unknown, jnp.asarray(lengths)
    together = lambda model: rnnjax.tagger_loss(model, None, batch, None, over_steps=reduce)[0]  # noqa: E731
    learn = eqx.filter_jit(eqx.filter_value_and_grad)
    grid.assert_close(learn(together)(model), learn(alone)(model))
    assert not np.asarray(model(padded[1], length=5)[5:]).any()
    none = rnnjax.tagger_loss(model, None, (padded, unknown, jnp.zeros(3, int)), None, over_steps=reduce)[0]
    assert none == 0


def test_padding_does_not_reach_the_gradient_of_the_decision():
    """Zeros, which stand there after the network, have no direction."""
    head = linear(grid.H)
    model = rnnjax.Tagger(grid.build("gru"), eqx.nn.Sequential([eqx.nn.Lambda(lambda y: y / jnp.linalg.norm(y)), head]))
    batch = grid.inputs(2, grid.T), jnp.zeros((2, grid.T), int), jnp.asarray([grid.T, 3])
    slope = eqx.filter_jit(eqx.filter_grad(lambda model: rnnjax.tagger_loss(model, None, batch, None)[0]))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_dropout_is_drawn_for_each_sequence():
    model = rnnjax.Tagger(grid.build("stack"), linear(grid.H))
    xs = jnp.broadcast_to(grid.inputs(grid.T), (2, grid.T, grid.I))
    targets = jnp.zeros((2, grid.T, CLASSES))
    seen = []
    spy = lambda ys, target: seen.append(ys) or rnnjax.squared_error(ys, target)  # noqa: E731
    for key in (KEY, KEY, None):
        rnnjax.tagger_loss(model, None, (xs, targets, None), key, objective=spy)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.allclose(seen[0][0], seen[0][1])
    np.testing.assert_array_equal(seen[2][0], seen[2][1])


def test_a_forecast_reads_its_own_answers():
    model = rnnjax.Tagger(grid.build("lstm"), linear(grid.H, grid.I))
    xs = grid.inputs(grid.T)
    values, read = rnnjax.forecast(model, xs, 3), xs
    for value in values:
        expected = model(read)[-1]
        np.testing.assert_allclose(value, expected, atol=1e-12)
        read = jnp.concatenate([read, expected[None]])
    with pytest.raises(ValueError, match=r"model: expected answers like its inputs \[3\], got \[4\]"):
        rnnjax.forecast(rnnjax.Tagger(grid.build("lstm"), linear(grid.H)), xs, 3)
    with pytest.raises(ValueError, match="xs: expected at least one step"):
        rnnjax.forecast(model, xs[:0], 3)


def test_a_classifier_learns():
    """Which of two halves of a sequence is the larger: the sum alone does not tell."""
    xs = jax.random.normal(KEY, (200, 10, 1), "float64")
    labels = (xs[:, :5].sum((1, 2)) > xs[:, 5:].sum((1, 2))).astype(int)
    cell = rnnjax.GRU(1, 8, key=KEY, dtype="float64")
    model = rnnjax.Classifier(cell, linear(8, 2), pooling=rnnjax.mean)
    loss = partial(rnnjax.classifier_loss, engine=rnnjax.Scan())
    with jax.numpy_dtype_promotion("standard"):
        batches = rnnjax.minibatches(rnnjax.Sequences(np.asarray(xs), np.asarray(labels)), 50, seed=0)
        model = rnnjax.fit(model, loss, batches, optax.adam(0.03), steps=150, key=KEY, progress=False).model
    assert (jax.vmap(model)(xs).argmax(-1) == labels).mean() > 0.9
