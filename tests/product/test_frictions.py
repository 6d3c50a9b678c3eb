"""What new users ran into, one test each: the call or the message that took its place."""

import json
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.diagnose import count, summary
from rnnjax.models import Captioner, Captions, Classifier, LanguageModel, Pairs, Sequences, Tagger
from rnnjax.training import accuracy, fit, minibatches, pad

KEY = grid.KEY
SENTENCES = [[1.0, 2.0, 3.0], [1.0], [4.0, 5.0]]


def classifier(head: Any = None) -> Classifier:
    return Classifier(rnnjax.Elman(1, 3, key=KEY), eqx.nn.Linear(3, 2, key=KEY) if head is None else head)


def batch() -> Sequences:
    """Three sequences of up to three steps, and their classes."""
    xs, lengths = pad([np.array(sentence, np.float32)[:, None] for sentence in SENTENCES])
    return Sequences(xs, np.array([0, 1, 1]), lengths)


def train(loss: Any, batches: Any, **options: Any) -> rnnjax.training.Fitted:
    """Two steps of plain gradient descent."""
    given = {"optimiser": optax.sgd(0.1), "steps": 2, "key": KEY, "progress": False} | options
    return fit(classifier(), loss, batches, **given)


# 4: jax.jit, jax.grad and optax take models as they take cells


def models() -> dict[str, Any]:
    language = LanguageModel(4, rnnjax.Elman(2, 3, key=KEY), key=KEY)
    attentive = rnnjax.models.BahdanauDecoder(rnnjax.Elman(5, 3, key=KEY), rnnjax.models.Dot(), readout=jnp.tanh)
    encoder, identity = rnnjax.Elman(2, 3, key=KEY), lambda state: state
    return {
        "classifier": classifier(),
        "classifier of functions": Classifier(rnnjax.Elman(1, 3, key=KEY), jax.nn.softmax, pooling=jnp.add),
        "tagger": Tagger(rnnjax.Elman(1, 3, key=KEY), jnp.tanh),
        "captioner": Captioner(jnp.ravel, lambda features: features, language),
        "sequence to sequence": rnnjax.models.Seq2Seq(4, 4, encoder, attentive, bridge=identity, key=KEY),
    }


@pytest.mark.usefixtures("as_it_comes")
def test_models_have_no_leaves_but_arrays():
    leaves = {name: jax.tree.leaves(model) for name, model in models().items()}
    assert [name for name, found in leaves.items() if not all(map(eqx.is_inexact_array, found))] == []


@pytest.mark.usefixtures("as_it_comes")
def test_plain_jit_grad_and_optax_take_a_classifier():
    model, optimiser = classifier(), optax.adam(0.1)

    @jax.jit
    def step(model: Classifier, state: Any) -> tuple[Classifier, Any, jax.Array]:
        loss = lambda model: rnnjax.models.classifier_loss(model, None, batch(), None)[0]  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = optimiser.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, value

    state = optimiser.init(model)
    first = step(model, state)
    assert step(*first[:2])[2] < first[2]


# 5: metrics, a mapping from `validate`, and a report of each line: tests/product/test_fit_hooks.py has the rest


@pytest.mark.usefixtures("as_it_comes")
def test_a_training_has_an_accuracy_column_and_a_logger():
    def loss(model: Any, carry: Any, batch: Any, key: Any) -> tuple[Any, Any, dict[str, Any]]:
        value, carry = rnnjax.models.classifier_loss(model, carry, batch, key)
        return value, carry, {"perplexity": jnp.exp(value)}

    lines: list[str] = []
    judge = lambda model: {"validation": 1 - accuracy(model, batch()), "accuracy": accuracy(model, batch())}  # noqa: E731
    train(loss, lambda step: batch(), validate=judge, report=lambda line: lines.append(json.dumps(line)))  # noqa: ARG005
    assert json.loads(lines[0]).keys() >= {"step", "loss", "perplexity", "validation", "accuracy"}


# 6: the commonest batches


@pytest.mark.usefixtures("as_it_comes")
def test_pairs_and_lists_are_batches():
    whole = batch()._replace(lengths=None)
    expected = train(rnnjax.models.classifier_loss, lambda step: whole).model  # noqa: ARG005
    for batches in ([(whole.xs, whole.targets)], minibatches([whole.xs, whole.targets], 3, seed=0)):
        got = train(rnnjax.models.classifier_loss, batches).model
        assert eqx.tree_equal(got, expected, rtol=1e-5, atol=1e-6)


TOKENS, LENGTHS = np.zeros((2, 3), int), np.array([3, 2])


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("loss", "batch", "error", "message"),
    [
        (
            "classifier_loss",
            (1, 2, 3, 4),
            TypeError,
            r"^batch: expected \(xs, targets, lengths\), got .*Pass Sequences\(",
        ),
        ("tagger_loss", TOKENS, TypeError, r"^batch: expected \(xs, targets, lengths\), got i64\[2,3\]"),
        (
            "seq2seq_loss",
            Pairs(TOKENS, TOKENS, LENGTHS, LENGTHS),
            ValueError,
            r"^batch: expected \(source of rank 2, .* source_length and target of another rank\. Pass Pairs\(",
        ),
        ("caption_loss", (TOKENS, TOKENS), TypeError, r"^batch: expected \(image, target, .*Pass Captions\("),
        ("caption_loss", Captions(TOKENS, LENGTHS, TOKENS), ValueError, r"target and target_length of another rank"),
        ("language_loss", (TOKENS, TOKENS), TypeError, r"^batch: expected \(inputs, targets, resets\), got .*streams"),
        ("awd_loss", (TOKENS[0], TOKENS[0], TOKENS[0]), ValueError, r"inputs and targets and resets of another rank"),
    ],
)
def test_a_batch_of_another_form_is_named(loss, batch, error, message):
    with pytest.raises(error, match=message):
        getattr(rnnjax.models, loss)(None, None, batch, None)


# 7: a run that failed or was killed


@pytest.mark.usefixtures("as_it_comes")
def test_a_failed_run_names_the_call_that_gives_the_model_back(tmp_path):
    spoilt = lambda step: batch()._replace(xs=np.full((3, 3, 1), np.nan, np.float32)) if step else batch()  # noqa: E731
    call = rf"Call rnnjax\.load\('{tmp_path}/checkpoint', model\)"
    with pytest.raises(FloatingPointError, match=call):
        train(rnnjax.models.classifier_loss, spoilt, folder=tmp_path, every=1)
    with pytest.raises(FileExistsError, match=rf"resume=True.*{call}"):
        train(rnnjax.models.classifier_loss, spoilt, folder=tmp_path)


# 10: optimisers that want `value`; 11: labels that are callable


@pytest.mark.usefixtures("as_it_comes")
def test_a_plateau_lowers_the_rate_and_labels_may_be_a_model():
    model = classifier()
    labels = jax.tree.map(lambda _: "freeze", model)
    labels = eqx.tree_at(lambda labels: labels.head, labels, jax.tree.map(lambda _: "train", model.head))
    parts = {"train": optax.sgd(0.1), "freeze": optax.set_to_zero()}
    optimiser = optax.chain(optax.multi_transform(parts, lambda _: labels), optax.contrib.reduce_on_plateau())
    fitted = train(rnnjax.models.classifier_loss, lambda step: batch(), optimiser=optimiser).model  # noqa: ARG005
    assert (
        optax.multi_transform(parts, labels.network).init(model.network) is not None
    )  # optax calls labels that it can
    assert eqx.tree_equal(fitted.network, model.network)
    assert not eqx.tree_equal(fitted.head, model.head)


# 12: a summary, and the number of parameters


@pytest.mark.usefixtures("as_it_comes")
def test_a_summary_has_paths_sizes_states_and_engines():
    model, xs = classifier(), jax.ShapeDtypeStruct((40, 1), jnp.float32)
    seen = summary(model, xs, rnnjax.Scan())
    assert count(model) == seen.parameters == 3 + 9 + 3 + 6 + 2
    assert seen.bytes == 4 * seen.parameters
    assert [array.path for array in seen.arrays][-2:] == ["head.weight", "head.bias"]
    assert str(seen) == repr(seen)
    assert "network.recurrent_weight  [3, 3]  float32           9     36" in str(seen)
    assert "network, Elman: state of 12 bytes; Scan" in str(seen)
    deep = summary(rnnjax.Stack([model.network, rnnjax.QRNN(3, 4, key=KEY)]), xs, rnnjax.Scan())
    assert [(cell.path, cell.state_bytes) for cell in deep.cells] == [("layers[0]", 12), ("layers[1]", 12 + 16)]
    with pytest.raises(ValueError, match=r"^xs: expected one sequence, \[T, \.\.\.\], got .*\. Pass"):
        summary(model, 3)


# 13: a deep network in one line


@pytest.mark.usefixtures("as_it_comes")
def test_layers_are_a_stack_of_cells_with_keys_of_their_own():
    network = rnnjax.networks.layers(rnnjax.LSTM, 2, [3, 4], bidirectional=True, dropout=0.2, key=KEY, peepholes=True)
    assert isinstance(network, rnnjax.Stack)
    assert [layer.input_type().shape for layer in network.layers] == [(2,), (6,)]
    cells = [cell for layer in network.layers for cell in (layer.forward, layer.backward)]
    assert [cell.hidden_size for cell in cells] == [3, 3, 4, 4]
    assert all(cell.peepholes is not None for cell in cells)
    assert not np.array_equal(cells[0].input_weight, cells[1].input_weight)
    assert network.dropout == 0.2
    plain = rnnjax.networks.layers(rnnjax.LRU, 2, [3, 4], key=KEY, output_size=5, skip=False)
    assert [layer.input_type().shape for layer in plain.layers] == [(2,), (5,)]
    with pytest.raises(ValueError, match=r"^hidden_sizes: expected a size for each layer, .* got 64\. Write"):
        rnnjax.networks.layers(rnnjax.LSTM, 2, 64, key=KEY)


# 14: ragged lists, and how often a model is right


def test_ragged_sequences_are_padded():
    xs, lengths = pad([[3, 0, 4], [1, 2]], length=5, value=-1)
    assert (xs.tolist(), lengths.tolist()) == ([[3, 0, 4, -1, -1], [1, 2, -1, -1, -1]], [3, 2])
    assert (batch().xs.shape, batch().xs.dtype, batch().lengths.tolist()) == ((3, 3, 1), np.float32, [3, 1, 2])
    assert pad([[3, 0, 4], []])[0].dtype == int
    assert pad([np.float32([1.0]), []], length=2, value=0.1)[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"^value: expected a number of dtype int64.*, got 0\.5\. Pass"):
        pad([[3], [1, 2]], value=0.5)
    with pytest.raises(ValueError, match=r"^length: expected at least the longest sequence's 3, got 2\. Cut"):
        pad(SENTENCES, length=2)
    with pytest.raises(ValueError, match=r"^sequences: expected arrays .* whose steps have one shape, got .*\. Pass"):
        pad([np.zeros((3, 2)), np.zeros((3, 4))])
    with pytest.raises(ValueError, match=r"^sequences: expected at least one sequence, got none\. Pass"):
        pad([])


class Says(eqx.Module):
    """A model whose answers are its inputs."""

    def __call__(self, xs: Any, **_: Any) -> Any:
        return xs


@pytest.mark.parametrize("size", [2, 1000])
def test_accuracy_is_the_share_of_right_answers(size):
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [np.nan, 9.0], [0.0, 3.0], [1.0, 0.0]])
    labels = np.array([1, 1, 0, 1, 0])
    assert accuracy(Says(), (logits, labels), size=size) == 3 / 5  # NaN is wrong
    tags, steps = np.array([[1, 0, 7], [0, 1, 1]]), np.stack([logits[[0, 1, 3]], logits[[4, 0, 0]]])
    assert accuracy(Says(), (steps, tags, np.array([2, 3])), size=size) == 1.0
    assert accuracy(Says(), (steps, tags), size=size) == 5 / 6


def test_accuracy_misused():
    with pytest.raises(ValueError, match=r"^targets: expected \[2\], a class for each .* got \[2, 1\]\. Pass"):
        accuracy(Says(), (np.zeros((2, 3)), np.zeros((2, 1), int)))
    with pytest.raises(ValueError, match=r"^targets: expected one for each of 4 sequences, got 8\. Pass"):
        accuracy(Says(), (np.zeros((4, 3)), np.zeros(8, int)), size=2)
    with pytest.raises(TypeError, match=r"^targets: expected integers, got f64\[2\]\. Write"):
        accuracy(Says(), (np.zeros((2, 3)), np.zeros(2)))
    with pytest.raises(ValueError, match=r"^batch: expected at least one target to count, got .*\. Pass"):
        accuracy(Says(), (np.zeros((0, 3)), np.zeros(0, int)))


# 16: a notebook


def test_a_report_shows_its_sentence_and_plots_need_no_import():
    report = rnnjax.diagnose.Report("LSTM", np.ones(3), None, None, 0.0, None, ())
    assert repr(report) == str(report) == "LSTM: healthy over 2 steps; going back, the gradient changes by 1 a step"
    assert callable(rnnjax.diagnose.plot.draw_gates)
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        _ = rnnjax.diagnose.draw


# 20: serving: tests/product/test_serving.py has the rest; 24: habits of other libraries


@pytest.mark.usefixtures("as_it_comes")
def test_a_list_is_a_prompt_and_an_integer_is_a_token():
    model = LanguageModel(4, rnnjax.Elman(2, 3, key=KEY), key=KEY)
    assert rnnjax.models.sample(model, [1, 2], 3, key=KEY, top_p=0.9, end=0).shape == (3,)
    assert model.step(model.initial(), 3)[1].shape == (4,)


HABITS = [
    (lambda _: rnnjax.LSTM(2, 3, key=KEY, num_layers=2), r"^num_layers: LSTM has no .* Write .*layers\(LSTM, "),
    (lambda _: rnnjax.GRU(2, 3, key=KEY, bidirectional=True), r"^bidirectional: GRU .* Write .*layers\(GRU, "),
    (lambda cell: rnnjax.Stack(cell, cell), r"^layers: expected one list .* Write Stack\(\[Elman, Elman\]\)"),
    (lambda cell: rnnjax.Stack(cell), r"^layers: expected one list .* Write Stack\(\[Elman\]\)"),
    (lambda cell: rnnjax.TimeDistributed(cell, 3), r"^function: expected a function of the input of one step"),
    (lambda cell: fit(cell, None, None, None, epochs=3), r"^epochs: fit has no such argument\. Write steps=epochs \* "),
]


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize(("call", "message"), HABITS)
def test_habits_of_other_libraries_meet_what_to_write_instead(call, message):
    with pytest.raises(TypeError, match=message):
        call(classifier().network)
