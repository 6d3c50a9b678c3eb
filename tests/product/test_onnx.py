"""Networks as files of ONNX, run by onnxruntime, and back: the same outputs, last states and weights."""

import re
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, Elman, ResetBeforeGRU, Reversed, Stack, TimeDistributed, unroll
from rnnjax.cells import LSTMState, clipped
from rnnjax.convert import from_onnx, to_onnx
from rnnjax.convert.onnx.activations import FORMS, Activation, activation_of, function_of, unclipped
from rnnjax.models import Classifier, LanguageModel, Tagger
from rnnjax.models import pooling as pools

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

T, B, I, H, TOKENS = 7, 5, 3, 4, 11  # noqa: E741
LENGTHS = np.array([7, 3, 0, 1, 6], np.int32)
TOLERANCE = 1e-6
F32 = jnp.float32


def linear(inputs: int, outputs: int, **options: Any) -> TimeDistributed:
    layer = eqx.nn.Linear(inputs, outputs, dtype=F32, key=grid.KEY, **options)
    return TimeDistributed(layer, inputs)


def layer_norm(size: int) -> TimeDistributed:
    return TimeDistributed(eqx.nn.LayerNorm(size, dtype=F32), size)


def both(make: Callable[..., Any] = LSTM, inputs: int = I, **options: Any) -> Bidirectional:
    return Bidirectional(make(inputs, H, key=grid.KEY), make(inputs, H, key=grid.KEY), **options)


def cell(make: Callable[..., Any], inputs: int = I, **options: Any) -> Any:
    return make(inputs, H, key=grid.KEY, **options)


def own(n: jax.Array) -> jax.Array:
    """An activation that ONNX has no name for."""
    return jnp.where(n > 0, jnp.log1p(n), jnp.expm1(n)) * jax.nn.sigmoid(n) - 0.1 * n**2


BOUND = {"activation": clipped(jnp.tanh, 0.25), "gate_activation": clipped(jax.nn.sigmoid, 0.25)}
OTHER = {"activation": jax.nn.relu, "gate_activation": jax.nn.hard_sigmoid}
# What from_onnx gives back as it was, to the last bit.
KEPT: dict[str, Callable[[], Any]] = {
    "elman": partial(cell, Elman),
    "elman_relu": partial(cell, Elman, activation=jax.nn.relu),
    "elman_linear": partial(cell, Elman, activation=rnnjax.cells.linear, bias=False),
    "elman_bound": partial(cell, Elman, activation=clipped(jnp.tanh, 0.25)),
    "lstm": partial(cell, LSTM),
    "lstm_no_bias": partial(cell, LSTM, bias=False),
    "lstm_peepholes": partial(cell, LSTM, peepholes=True),
    "lstm_coupled": partial(cell, LSTM, peepholes=True, coupled=True),
    "lstm_activations": partial(cell, LSTM, activation=jax.nn.soft_sign, output_activation=jax.nn.relu),
    "lstm_bound": partial(cell, LSTM, peepholes=True, output_activation=jnp.tanh, **BOUND),
    "gru": partial(cell, GRU),
    "gru_no_bias": partial(cell, GRU, bias=False),
    "gru_bound": partial(cell, GRU, **BOUND),
    "reset_before_gru": partial(cell, ResetBeforeGRU),
    "reset_before_gru_bound": partial(cell, ResetBeforeGRU, **BOUND),
    "reversed": lambda: Reversed(cell(GRU)),
    "bidirectional": both,
    "bidirectional_added": partial(both, GRU, merge=rnnjax.networks.add),
    "bidirectional_average": partial(both, Elman, merge=rnnjax.networks.average),
    "two_directions": lambda: Bidirectional(cell(GRU), cell(LSTM), merge=rnnjax.networks.multiply),
    "reversed_bidirectional": lambda: Reversed(both()),
    "deep": lambda: Stack(
        [
            *(linear(I, H, use_bias=False), layer_norm(H), rnnjax.residual(cell(LSTM, H))),
            *(TimeDistributed(jnp.tanh, H), rnnjax.skip(Stack([cell(GRU, H), cell(Elman, H)]))),
            *(cell(LSTM, 2 * H), linear(H, 2)),
        ]
    ),
    "tokens": lambda: Stack(
        [TimeDistributed(eqx.nn.Embedding(TOKENS, I, dtype=F32, key=grid.KEY), (), dtype=jnp.int32), both(GRU)]
    ),
}
# What it gives back in another form, or what has a loop of its own in the file.
CHANGED: dict[str, Callable[[], Any]] = {
    "gru_activations": partial(cell, GRU, **OTHER),
    "lstm_heads": partial(cell, LSTM, heads=2),
    "gru_heads": partial(cell, GRU, heads=2),
    "reset_before_gru_heads": partial(cell, ResetBeforeGRU, heads=2),
    "shared_bidirectional": lambda: Reversed(rnnjax.networks.SharedBidirectional(cell(LSTM))),
    "reversed_stack": lambda: Reversed(Stack([both(), rnnjax.skip(cell(Elman, 2 * H))])),
    "scan_clip": partial(cell, LSTM, clip=0.3, peepholes=True),
    "scan_leak": partial(cell, Elman, leak=0.3, heads=2),
    "scan_reversed": lambda: Reversed(cell(GRU, activation=own, gate_activation=jax.nn.gelu)),
    "functions": lambda: Stack(
        [TimeDistributed(own, I), cell(GRU), TimeDistributed(jax.nn.leaky_relu, H), TimeDistributed(jax.nn.softmax, H)]
    ),
    "regularised": lambda: Stack(
        [
            rnnjax.regularise.VariationalDropout(cell(GRU), inputs=0.5),
            rnnjax.regularise.RecurrentDropout(cell(LSTM, H), 0.2),
        ],
        dropout=0.5,
    ),
    "tagger": lambda: Tagger(
        cell(LSTM), eqx.nn.Sequential([eqx.nn.MLP(H, 2, 6, 1, dtype=F32, key=grid.KEY), eqx.nn.Lambda(jnp.tanh)])
    ),
    **{
        f"classifier_{pooling.__name__}": partial(
            lambda pooling: Classifier(both(GRU), linear(2 * H, 2).function, pooling=pooling), pooling
        )
        for pooling in (pools.last, pools.ends, pools.mean, pools.maximum)
    },
    "language_model": lambda: LanguageModel(TOKENS, cell(GRU), key=grid.KEY),
    "tied_language_model": lambda: LanguageModel(TOKENS, cell(GRU, H), key=grid.KEY, tied=True),
}
NETWORKS = KEPT | CHANGED
QUICK = (  # a network for each way to be different; the others are slow
    *(
        "elman_relu",
        "lstm_coupled",
        "lstm_bound",
        "gru",
        "reset_before_gru",
        "lstm_heads",
        "deep",
        "tokens",
        "functions",
    ),
    *("bidirectional_added", "two_directions", "scan_clip", "scan_reversed", "tagger", "language_model"),
    *("classifier_last", "classifier_ends"),
)
SLOW = tuple(name for name in NETWORKS if name not in QUICK)
each_network = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


def draw(tree: Any, *leading: int, seed: int) -> Any:
    """`tree` with every inexact array drawn afresh, with leading axes."""
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)
    normal = lambda leaf: (0.5 * generator.standard_normal((*leading, *leaf.shape))).astype(leaf.dtype)  # noqa: E731
    return jax.tree.unflatten(structure, [normal(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves])


@grid.once
def network(name: str) -> Any:
    """A network with random weights."""
    place = lambda leaf: grid.place(leaf) if isinstance(leaf, np.ndarray) else leaf  # noqa: E731
    return jax.tree.map(place, draw(NETWORKS[name](), seed=1))


def recurrent(model: Any) -> Any:
    """The part of a model that has a state."""
    return model.network if isinstance(model, Classifier | Tagger | LanguageModel) else model


@lru_cache
def given(name: str) -> tuple[Any, np.ndarray]:
    """Random states and inputs of a batch."""
    state = jax.eval_shape(recurrent(network(name)).initial)
    generator = np.random.default_rng(3)
    if "tokens" in name or "language" in name:
        return draw(state, B, seed=2), generator.integers(0, TOKENS, (B, T)).astype(np.int32)
    return draw(state, B, seed=2), generator.standard_normal((B, T, I)).astype(np.float32)


def run_here(model: Any, state: Any, xs: jax.Array, length: jax.Array) -> tuple[Any, jax.Array]:
    if isinstance(model, LanguageModel):
        return model.logits(state, xs)
    if isinstance(model, Classifier):
        return (), model(xs, length=length)
    if isinstance(model, Tagger):
        return model.run(state, xs, length=length)
    return unroll(model, state, xs, length=length, engine=rnnjax.Scan())


@lru_cache
def answers(names: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Last states and outputs of these networks, as one compiled program."""
    arguments = {name: (network(name), *given(name)) for name in names}

    @eqx.filter_jit
    def every(arguments: Any) -> Any:
        return {
            name: jax.vmap(partial(run_here, model))(state, xs, lengths_of(model))
            for name, (model, state, xs) in arguments.items()
        }

    return every(arguments)


def lengths_of(model: Any) -> np.ndarray:
    """A language model runs all steps."""
    return np.full(B, T, np.int32) if isinstance(model, LanguageModel) else LENGTHS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The file of a network, written once."""
    folder = tmp_path_factory.mktemp("onnx")

    @lru_cache
    def written(name: str, **options: bool) -> Path:
        path = folder / f"{name}{'_'.join(options)}.onnx"
        to_onnx(network(name), path, **options)
        return path

    return written


class Session:
    """A file in onnxruntime."""

    def __init__(self, model: Any):
        content = str(model) if isinstance(model, Path) else model.SerializeToString()
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]

    def run(self, **feeds: Any) -> list[np.ndarray]:
        return self.session.run(None, {name: np.asarray(feeds[name]) for name in self.inputs})

    def batch(self, state: Any, xs: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """The outputs, and the arrays of the last state, of a file of `to_onnx`."""
        names = [name for name in self.inputs if name.startswith("state")]
        given = jax.tree.leaves(state) if names else []
        return self.run(xs=xs, lengths=lengths, **dict(zip(names, given, strict=True)))


def assert_close(got: Any, expected: Any) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


# Ours, in onnxruntime


@each_network
def test_a_file_gives_what_unroll_gives(name, files):
    state, xs = given(name)
    last, ys = answers(QUICK if name in QUICK else SLOW)[name]
    got = Session(files(name)).batch(state, xs, lengths_of(network(name)))
    assert_close(got, [ys, *jax.tree.leaves(last)])


def test_names_and_sizes_of_inputs_and_outputs(files):
    session = Session(files("deep")).session
    sizes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
    states = {"2.h": H, "2.c": H, "4.0.h": H, "4.1.h": H, "5.h": H, "5.c": H}
    assert sizes == {
        **{"xs": ["batch", "time", I], "lengths": ["batch"], "ys": ["batch", "time", 2]},
        **{f"{when}.{name}": ["batch", size] for when in ("state", "last") for name, size in states.items()},
    }
    (opset,) = onnx.load(files("deep")).opset_import
    assert opset.version == 17


def test_nodes_are_those_of_onnx(files):
    operators = lambda name: [node.op_type for node in onnx.load(files(name)).graph.node]  # noqa: E731
    assert operators("bidirectional").count("LSTM") == 1
    assert {"GRU", "LSTM"} <= {*operators("two_directions")}
    assert "Scan" in operators("scan_clip")
    assert not any("Scan" in operators(name) for name in KEPT)


@pytest.mark.parametrize("name", ["lstm", "deep", "scan_leak", "tagger", "language_model"])
def test_one_file_runs_a_batch_and_a_time_of_any_size(name, files):
    state, xs = given(name)
    session, full = Session(files(name)), np.full(B, T, np.int32)
    whole = session.batch(state, xs, full)
    one = jax.tree.map(lambda leaf: leaf[1:2], state)
    ys, *_ = session.batch(one, xs[1:2, :2], np.array([2], np.int32))
    assert ys.shape == (1, 2, *whole[0].shape[2:])
    assert_close([ys[0]], [whole[0][1, :2]])


@pytest.mark.parametrize("name", ["lstm_peepholes", "gru", "deep", "scan_clip", "tagger", "language_model"])
def test_feeding_the_last_state_back_continues_the_sequence(name, files):
    state, xs = given(name)
    session = Session(files(name))
    whole, parts = session.batch(state, xs, np.full(B, T, np.int32)), []
    for start, end in ((0, 1), (1, 5), (5, T)):
        ys, *last = session.batch(state, xs[:, start:end], np.full(B, end - start, np.int32))
        parts.append(ys)
        state = last
    assert_close([np.concatenate(parts, axis=1), *state], whole)


@pytest.mark.parametrize("name", ["bidirectional", "deep", "scan_reversed", "reversed_stack", "tokens"])
def test_padding_changes_nothing(name, files):
    state, xs = given(name)
    session = Session(files(name))
    padded = np.arange(T) >= LENGTHS[:, None]
    other = np.where(padded.reshape(B, T, *[1] * (xs.ndim - 2)), TOKENS + 5 if xs.ndim == 2 else np.nan, xs)
    clean, *_ = session.batch(state, xs, LENGTHS)
    assert_close(session.batch(state, other.astype(xs.dtype), LENGTHS), session.batch(state, xs, LENGTHS))
    assert np.all(clean[padded] == 0)


@pytest.mark.parametrize("name", ["lstm", "scan_clip", "two_directions"])
def test_a_length_beyond_the_sequence_is_its_end(name, files):
    """As `unroll` clamps a length that is traced."""
    state, xs = given(name)
    session = Session(files(name))
    got = session.batch(state, xs, np.array([99, 3, -4, 1, 6], np.int32))
    assert_close(got, session.batch(state, xs, LENGTHS))


@pytest.mark.parametrize("name", ["classifier_last", "classifier_mean", "classifier_maximum"])
def test_a_classifier_of_all_steps_needs_no_lengths(name, files):
    xs = given(name)[1]
    (y,) = Session(files(name, lengths=False)).run(xs=xs)
    assert_close([y], Session(files(name)).run(xs=xs, lengths=np.full(B, T, np.int32)))


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "deep", "scan_clip"])
@pytest.mark.parametrize(("lengths", "states"), [(False, True), (True, False), (False, False)])
def test_without_lengths_or_states(name, lengths, states, files):
    """Then all steps count, and the sequences begin in the network's initial state: zeros."""
    state, xs = given(name)
    session = Session(files(name, lengths=lengths, states=states))
    inputs = ["xs", *["lengths"] * lengths]
    assert [each for each in session.inputs if not each.startswith("state")] == inputs
    assert session.outputs[1:] == [each.replace("state", "last") for each in session.inputs if "state" in each]
    zeros = state if states else jax.tree.map(np.zeros_like, state)
    feeds = dict(zip([each for each in session.inputs if "state" in each], jax.tree.leaves(zeros), strict=False))
    got = session.run(xs=xs, lengths=LENGTHS, **feeds)
    whole = Session(files(name)).batch(zeros, xs, LENGTHS if lengths else np.full(B, T, np.int32))
    assert_close(got, whole if states else whole[:1])


def test_a_learned_initial_state_is_in_a_file_without_states(tmp_path):
    cells = [cell(LSTM, learn_initial=True), cell(Elman, H, learn_initial=True, leak=0.2)]
    drawn = draw(Stack(cells), seed=4)
    to_onnx(drawn, tmp_path / "file.onnx", states=False)
    xs = given("lstm")[1]
    (ys,) = Session(tmp_path / "file.onnx").run(xs=xs, lengths=LENGTHS)
    below = [oracle.run(drawn.layers[0], drawn.layers[0].initial_state, x)[1] for x in xs]
    above = np.stack([oracle.run(drawn.layers[1], drawn.layers[1].initial_state, y)[1] for y in below])
    above[np.arange(T) >= LENGTHS[:, None]] = 0
    assert_close([ys], [above])


# And back


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_module_of_torch_arrives_in_onnxruntime(kind, tmp_path):
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, kind)(I, H, num_layers=2, bidirectional=True, batch_first=True)
    xs, lengths = np.random.default_rng(4).standard_normal((B, T, I)).astype(np.float32), np.array([7, 3, 2, 1, 6])
    pack = partial(torch.nn.utils.rnn.pack_padded_sequence, batch_first=True, enforce_sorted=False)
    unpack = partial(torch.nn.utils.rnn.pad_packed_sequence, batch_first=True, total_length=T)
    with torch.no_grad():
        expected = unpack(module(pack(torch.from_numpy(xs), torch.from_numpy(lengths)))[0])[0].numpy()
    to_onnx(rnnjax.convert.from_torch(module), tmp_path / "model.onnx", states=False)
    got = Session(tmp_path / "model.onnx").run(xs=xs, lengths=lengths.astype(np.int32))[0]
    assert_close([got], [expected])


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("lengths", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_from_onnx_gives_the_network_back(name, lengths, files):
    imported = from_onnx(files(name) if lengths else files(name, lengths=False))
    assert (imported.state, imported.lengths) == (None, None)
    assert jax.tree.structure(imported.network) == jax.tree.structure(network(name))
    for leaf, other in zip(jax.tree.leaves(imported.network), jax.tree.leaves(network(name)), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(
    "name", ["gru_activations", "lstm_heads", "reset_before_gru_heads", "reversed_stack", "tagger"]
)
def test_from_onnx_gives_the_same_function(name, files, tmp_path):
    to_onnx(from_onnx(files(name)).network, tmp_path / "again.onnx")
    state, xs = given(name)
    assert_close(
        Session(tmp_path / "again.onnx").batch(state, xs, LENGTHS), Session(files(name)).batch(state, xs, LENGTHS)
    )


def test_a_learned_initial_state_comes_back(tmp_path):
    drawn = draw(both(partial(LSTM, learn_initial=True)), seed=4)
    to_onnx(drawn, tmp_path / "file.onnx", states=False)
    got = from_onnx(str(tmp_path / "file.onnx"))
    assert eqx.tree_equal(jax.tree.map(np.asarray, got.network), drawn)
    assert got.state is None


# ONNX's own


class Case(NamedTuple):
    """A node of ONNX with random weights."""

    operator: str
    attributes: dict[str, Any] = {}  # noqa: RUF012
    bias: bool = True
    peepholes: bool = False
    lengths: str = "none"  # given when run, or held by the file
    initial: str = "none"

    @property
    def directions(self) -> int:
        return 2 if self.attributes.get("direction") == "bidirectional" else 1


ALPHAS = {"activation_alpha": [0.3, 0.7], "activation_beta": [0.4, 0.9]}
CASES = {
    "rnn": Case("RNN"),
    "rnn_relu_reverse": Case("RNN", {"activations": ["Relu"], "direction": "reverse"}, lengths="run", initial="run"),
    "rnn_both_clip": Case("RNN", {"activations": ["Tanh", "Sigmoid"], "direction": "bidirectional", "clip": 0.3}),
    "rnn_affine": Case("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
    "rnn_leaky": Case("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}, bias=False),
    "rnn_layout": Case("RNN", {"layout": 1}, initial="file"),
    "lstm": Case("LSTM"),
    "lstm_no_bias": Case("LSTM", bias=False, lengths="file"),
    "lstm_peepholes": Case("LSTM", peepholes=True, initial="run"),
    "lstm_clip": Case("LSTM", {"clip": 0.3}, peepholes=True),
    "lstm_input_forget": Case("LSTM", {"input_forget": 1}, peepholes=True, lengths="run"),
    "lstm_reverse": Case("LSTM", {"direction": "reverse"}, lengths="run", initial="file"),
    "lstm_both": Case("LSTM", {"direction": "bidirectional"}, peepholes=True, lengths="run", initial="file"),
    "lstm_all": Case("LSTM", {"direction": "bidirectional", "clip": 0.5, "input_forget": 1}, True, True, "run", "file"),
    "lstm_activations": Case("LSTM", {"activations": ["HardSigmoid", "ScaledTanh", "Softsign"], **ALPHAS}),
    "lstm_more_activations": Case(
        "LSTM", {"activations": ["sigmoid", "Elu", "ThresholdedRelu"], "activation_alpha": [1.5, 0.1]}
    ),
    "lstm_both_activations": Case(
        "LSTM",
        {"direction": "bidirectional", "activations": ["Sigmoid", "Relu", "Tanh", "Sigmoid", "Softplus", "LeakyRelu"]},
    ),
    "lstm_layout": Case("LSTM", {"layout": 1, "direction": "bidirectional"}, initial="file"),
    "gru": Case("GRU"),
    "gru_after": Case("GRU", {"linear_before_reset": 1}, initial="run"),
    "gru_clip": Case("GRU", {"clip": 0.2}, lengths="run"),
    "gru_after_clip": Case("GRU", {"clip": 0.2, "linear_before_reset": 1}, lengths="file"),
    "gru_no_bias": Case("GRU", bias=False),
    "gru_after_no_bias": Case("GRU", {"linear_before_reset": 1}, bias=False, initial="file"),
    "gru_both": Case("GRU", {"direction": "bidirectional"}, lengths="run", initial="file"),
    "gru_after_both": Case(
        "GRU", {"direction": "bidirectional", "linear_before_reset": 1}, lengths="run", initial="run"
    ),
    "gru_activations": Case("GRU", {"activations": ["HardSigmoid", "Relu"], "direction": "reverse"}),
    "gru_layout": Case("GRU", {"layout": 1, "linear_before_reset": 1}),
}
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def arrays(case: Case) -> dict[str, np.ndarray]:
    """Weights, inputs and states, time first."""
    generator = np.random.default_rng(5)
    G, D = GATES[case.operator], case.directions
    shapes = {
        **{"X": (T, B, I), "W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)},
        **{"initial_h": (D, B, H), "initial_c": (D, B, H)},
    }
    drawn = {name: generator.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {"sequence_lens": np.maximum(LENGTHS, 1)}


def model_of(case: Case, layout: int) -> Any:
    """The node as a model; onnxruntime runs layout 0 alone."""
    everything = arrays(case)
    names = ["X", "W", "R", *(["B"] if case.bias else [""])]
    names += ["sequence_lens" if case.lengths != "none" else ""]
    states = ["initial_h", "initial_c"] if case.operator == "LSTM" else ["initial_h"]
    names += states if case.initial != "none" else [""] * len(states)
    names += ["P"] if case.peepholes else []
    at_run = {"X", *(["sequence_lens"] if case.lengths == "run" else []), *(states if case.initial == "run" else [])}
    attributes = {name: value for name, value in case.attributes.items() if name != "layout"}
    attributes |= {"layout": 1} if layout else {}
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    node = onnx.helper.make_node(case.operator, names, outputs, hidden_size=H, **attributes)
    swap = lambda name: everything[name].swapaxes(0, 1) if layout and "initial" in name else everything[name]  # noqa: E731
    held = [onnx.numpy_helper.from_array(swap(name), name) for name in names if name and name not in at_run]
    describe = lambda name, shape, kind=np.float32: onnx.helper.make_tensor_value_info(  # noqa: E731
        name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape
    )
    inputs = [describe(name, everything[name].shape, everything[name].dtype) for name in names if name in at_run]
    graph = onnx.helper.make_graph([node], "node", inputs, [describe(name, None) for name in outputs], held)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Sigmoid": oracle.sigmoid,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "LeakyRelu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "Elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(x)),
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "ThresholdedRelu": lambda x, alpha: np.where(x > alpha, x, 0),
    "ScaledTanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "Affine": lambda x, alpha, beta: alpha * x + beta,
}


class InNumPy(dict):
    """The oracle's activations, and those of ONNX by their equations."""

    def __missing__(self, function: Any) -> Callable[..., np.ndarray]:
        activation, bound = unclipped(function)
        name, parameters = activation_of(activation)
        bound = np.inf if bound is None else bound
        return lambda x: NUMPY[name](np.clip(x, -bound, bound), *parameters)


@pytest.fixture
def in_numpy(monkeypatch):
    monkeypatch.setattr(oracle, "ACTIVATIONS", InNumPy())


def run_in_numpy(layer: Any, state: Any, xs: np.ndarray) -> tuple[Any, np.ndarray]:
    """The equations of a cell, in one or both directions, on the valid steps of one sequence."""
    if isinstance(layer, Bidirectional):
        forward, ys = run_in_numpy(layer.forward, state.forward, xs)
        backward, more = run_in_numpy(Reversed(layer.backward), state.backward, xs)
        return (forward, backward), np.concatenate([ys, more], axis=-1)
    if isinstance(layer, Reversed):
        last, ys = oracle.run(layer.layer, state, xs[::-1])
        return last, ys[::-1]
    return oracle.run(layer, state, xs)


def in_order(states: list[np.ndarray], directions: int) -> Any:
    """[D, H] for h, and for c, as the state of a network."""
    make = LSTMState if len(states) == 2 else rnnjax.Hidden
    each = [make(*(state[number] for state in states)) for number in range(directions)]
    return rnnjax.networks.Directions(*each) if directions == 2 else each[0]


@pytest.mark.usefixtures("in_numpy")
@pytest.mark.parametrize("name", CASES)
def test_a_node_becomes_a_cell_that_computes_the_same(name):
    case = CASES[name]
    everything = arrays(case)
    imported = from_onnx(model_of(case, case.attributes.get("layout", 0)))
    states = ["initial_h", "initial_c"] if case.operator == "LSTM" else ["initial_h"]
    Y, *last = Session(model_of(case, 0)).run(**everything)
    lengths = np.full(B, T) if case.lengths == "none" else everything["sequence_lens"]
    if case.lengths == "file":
        np.testing.assert_array_equal(imported.lengths, lengths)
    assert (imported.lengths is not None) == (case.lengths == "file")
    assert (imported.state is not None) == (case.initial == "file")
    for number in range(B):
        given = [everything[word][:, number] * (case.initial != "none") for word in states]
        state = in_order(given, case.directions)
        if case.initial == "file":
            held = jax.tree.map(lambda leaf, number=number: np.asarray(leaf)[number], imported.state)
            assert_close(jax.tree.leaves(held), jax.tree.leaves(state))
        length = lengths[number]
        after, ys = run_in_numpy(imported.network, state, everything["X"][:length, number])
        assert_close([ys], [np.concatenate([*Y[:length, :, number].swapaxes(0, 1)], axis=-1)])
        assert_close(
            jax.tree.leaves(after), jax.tree.leaves(in_order([each[:, number] for each in last], case.directions))
        )
        assert not Y[length:, :, number].any()


def chained(*nodes: Any, held: dict[str, np.ndarray], inputs: Any = None, outputs: Any = ("Y",)) -> Any:
    """A model of several nodes."""
    described = lambda name, kind, shape: onnx.helper.make_tensor_value_info(name, kind, shape)  # noqa: E731
    kind = onnx.TensorProto.FLOAT
    inputs = [described("X", kind, ["T", "B", I])] if inputs is None else inputs
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = onnx.helper.make_graph(
        [*nodes], "chain", inputs, [described(name, kind, None) for name in outputs], tensors
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def lstm(xs: str, number: int, *more: str, outputs: Any = None, **attributes: Any) -> Any:
    weights = [f"W{number}", f"R{number}"]
    outputs = [f"Y{number}"] if outputs is None else outputs
    return onnx.helper.make_node(
        "LSTM", [xs, *weights, *more], outputs, hidden_size=H, name=f"lstm_{number}", **attributes
    )


def weights(number: int, inputs: int, directions: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    shapes = {f"W{number}": (directions, 4 * H, inputs), f"R{number}": (directions, 4 * H, H)}
    return {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


node = lambda *arguments, **options: onnx.helper.make_node(*arguments, **options)  # noqa: E731


def deep_model() -> Any:
    """Two bidirectional layers as torch writes them, batch first, with their directions brought together."""
    return chained(
        node("Transpose", ["X"], ["first"], perm=[1, 0, 2]),
        lstm("first", 0, direction="bidirectional"),
        node("Transpose", ["Y0"], ["beside"], perm=[0, 2, 1, 3]),
        node("Reshape", ["beside", "shape"], ["joined"]),
        lstm("joined", 1, outputs=["Y1", "Y_h"]),
        node("Squeeze", ["Y1", "one"], ["squeezed"]),
        node("Transpose", ["squeezed"], ["Y"], perm=[1, 0, 2]),
        held=weights(0, I, 2) | weights(1, 2 * H) | {"shape": np.array([0, 0, -1]), "one": np.array([1])},
        outputs=("Y", "Y_h"),
    )


def test_nodes_in_a_chain_become_a_stack():
    network, state, lengths = from_onnx(deep_model())
    assert (state, lengths) == (None, None)
    assert [type(layer) for layer in network.layers] == [Bidirectional, LSTM]
    xs = given("lstm")[1]
    ys, _ = Session(deep_model()).run(X=xs)
    for x, y in zip(xs, ys, strict=True):
        _, below = run_in_numpy(network.layers[0], network.layers[0].initial(), x)
        assert_close([run_in_numpy(network.layers[1], network.layers[1].initial(), below)[1]], [y])


# What is refused


def refused_models() -> dict[str, tuple[Callable[[], Any], list[str]]]:
    """Models that no network here is, and words of the message."""
    one = weights(0, I)
    two = one | weights(1, H)
    squeeze = node("Squeeze", ["Y0", "axis"], ["ys"])
    axis = {"axis": np.array([1])}
    last = ["Y0", "h0", "c0"]
    mask = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, ["T", "B", 1])
    xs = onnx.helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, ["T", "B", I])
    return {
        "no_recurrence": (lambda: chained(node("Relu", ["X"], ["Y"]), held={}), ["RNN, LSTM or GRU", "Relu"]),
        "other_node": (
            lambda: chained(lstm("X", 0), squeeze, node("CumSum", ["ys", "axis"], ["Y"]), held=one | axis),
            ["CumSum"],
        ),
        "last_step": (
            lambda: chained(
                lstm("X", 0), squeeze, node("Gather", ["ys", "end"], ["Y"]), held=one | axis | {"end": np.array(-1)}
            ),
            ["Gather"],
        ),
        "head_of_the_state": (
            lambda: chained(lstm("X", 0, outputs=last), node("Tanh", ["h0"], ["Y"]), held=one),
            ["Tanh"],
        ),
        "decoder": (
            lambda: chained(
                lstm("X", 0, outputs=last), squeeze, lstm("ys", 1, "", "", "h0", "c0", outputs=["Y"]), held=two | axis
            ),
            ["initial_h", "Last"],
        ),
        "another_mask": (
            lambda: chained(
                *(lstm("X", 0), squeeze, node("Not", ["mask"], ["m"]), node("Where", ["m", "ys", "zero"], ["Y"])),
                held=one | axis | {"zero": np.zeros((), np.float32)}, inputs=[xs, mask],
            ),
            ["masks", "sequence_lens"],
        ),
        "features_first": (
            lambda: chained(node("Transpose", ["X"], ["t"], perm=[0, 2, 1]), lstm("t", 0, outputs=["Y"]), held=one),
            ["[T, B, features]"],
        ),
        "time_and_batch_swapped": (
            lambda: chained(
                lstm("X", 0), squeeze, node("Transpose", ["ys"], ["t"], perm=[1, 0, 2]), lstm("t", 1, outputs=["Y"]),
                held=two | axis,
            ),
            ["[T, B, features]"],
        ),
        "hidden_layer": (
            lambda: chained(lstm("X", 0), squeeze, lstm("ys", 1, outputs=["Y"]), held=two | axis, outputs=("Y", "Y0")),
            ["outputs"],
        ),
        "state_of_a_hidden_layer": (
            lambda: chained(
                lstm("X", 0), squeeze, lstm("ys", 1, outputs=["Y1", "Y_h"]), held=two | axis, outputs=("Y0", "Y_h")
            ),
            ["outputs", "Y_h"],
        ),
        "other_lengths": (
            lambda: chained(
                lstm("X", 0, "", "lengths"), squeeze, lstm("ys", 1, outputs=["Y"]),
                held=two | axis | {"lengths": np.array([2, 3], np.int32)},
            ),
            ["sequence_lens", "lstm_0", "lstm_1"],
        ),
        "activation": (
            lambda: chained(lstm("X", 0, outputs=["Y"], activations=["Sigmoid", "Tanh", "Gelu"]), held=one),
            ["activations", "Gelu"],
        ),
        "no_alpha": (
            lambda: chained(lstm("X", 0, outputs=["Y"], activations=["Sigmoid", "Tanh", "ScaledTanh"]), held=one),
            ["activation_alpha", "ScaledTanh"],
        ),
        "too_many_alphas": (
            lambda: chained(lstm("X", 0, outputs=["Y"], activation_alpha=[0.5]), held=one), ["activation_alpha", "0.5"]
        ),
        "other_weights": (lambda: chained(lstm("X", 0, outputs=["Y"]), held=weights(0, I, 2)), ["1 x 16", "W"]),
        "other_states": (
            lambda: chained(
                lstm("X", 0, "", "", "s"), squeeze, lstm("ys", 1, "", "", "t", outputs=["Y"]),
                held=two | axis | {"s": np.ones((1, 2, H), np.float32), "t": np.ones((1, 3, H), np.float32)},
            ),
            ["batch", "[2, 3]"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    *("no_recurrence", "other_node", "last_step", "head_of_the_state", "decoder", "another_mask", "features_first"),
    *("time_and_batch_swapped", "hidden_layer", "other_lengths", "activation", "no_alpha", "too_many_alphas"),
    *("other_weights", "other_states", "state_of_a_hidden_layer"),
])  # fmt: skip
def test_a_model_that_is_no_network_is_refused(name):
    make, words = refused_models()[name]
    with pytest.raises(ValueError, match=r"^(model|activations): expected") as error:
        from_onnx(make())
    assert all(word in str(error.value) for word in words), error.value


def test_softmax_before_opset_13_is_another_function():
    """Of the axis 1 and those behind it as one."""
    squeeze, axis = node("Squeeze", ["Y0", "axis"], ["ys"]), {"axis": np.array([1])}
    model = chained(lstm("X", 0), squeeze, node("Softmax", ["ys"], ["Y"]), held=weights(0, I) | axis)
    assert from_onnx(model).network is not None
    model.opset_import[0].version = 12
    with pytest.raises(ValueError, match=r"^model: expected nodes of .*, got Softmax"):
        from_onnx(model)


def test_inputs_that_are_rounded_are_refused():
    to = {"INT32": onnx.TensorProto.INT32, "FLOAT": onnx.TensorProto.FLOAT}
    casts = node("Cast", ["X"], ["n"], to=to["INT32"]), node("Cast", ["n"], ["x"], to=to["FLOAT"])
    with pytest.raises(ValueError, match=r"^model: expected nodes of .*, got Cast"):
        from_onnx(chained(*casts, lstm("x", 0, outputs=["Y"]), held=weights(0, I)))


class Twice(GRU):
    """A GRU that puts out twice its state."""

    def emit(self, state: Any, before: Any, u: Any) -> Any:
        del before, u
        return type(state)(2 * state.h)


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "min_gru": (partial(cell, rnnjax.MinGRU), ["MinGRU", "jax.export"]),
    "convolution": (partial(rnnjax.networks.CausalConvolution, I, H, window=2, key=grid.KEY), ["CausalConvolution"]),
    "zoneout": (lambda: rnnjax.regularise.Zoneout(cell(GRU), 0.1), ["Zoneout"]),
    "pair": (partial(both, merge=rnnjax.networks.pair), ["one vector", "Directions"]),
    "own_merge": (partial(both, merge=lambda a, b: a - b), ["lambda", "concatenate"]),
    "across_features": (lambda: Stack([TimeDistributed(lambda x: x[::-1], I), cell(GRU)]), ["elementwise"]),
    "size_in_function": (lambda: Stack([TimeDistributed(lambda x: x.cumsum(), I), cell(GRU)]), ["elementwise"]),
    "pooling": (lambda: Classifier(cell(GRU), linear(H, 2).function, pooling=pools.flatten), ["flatten", "mean"]),
    "frames": (lambda: TimeDistributed(jnp.ravel, (2, 2)), ["f32[2,2]"]),
    "bfloat16": (partial(cell, GRU, dtype=jnp.bfloat16), ["float32", "bfloat16"]),
    "two_dtypes": (
        lambda: Tagger(cell(GRU), eqx.nn.Linear(H, 2, dtype=jnp.float64, key=grid.KEY)),
        ["float32", "float64"],
    ),
    "emits": (partial(cell, Twice), ["emit", "Twice", "overrides"]),
    "no_counterpart": (partial(cell, Elman, activation=lambda n: jnp.arctan2(n, 1.0 + n)), ["atan2"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_onnx_cannot_say_is_refused_and_the_file_stays(name, tmp_path):
    path = tmp_path / "file.onnx"
    path.write_bytes(b"before")
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=r"^network: expected") as error:
        to_onnx(make(), path)
    assert all(word in str(error.value) for word in words), error.value
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


class Outputs(NamedTuple):
    """A state whose fields are named as outputs are."""

    h: Any
    y: Any
    ys: Any


class Twofold(rnnjax.AbstractGatedCell):
    """h_t = tanh(u + v), and sums over time of h / 8 and of -h / 8."""

    gates = "n"
    state_type = Outputs
    input_weight: Any
    recurrent_weight: Any
    bias: None = None
    initial_state: None = None

    def pointwise(self, parameters: None, u: Any, v: Any, state: Outputs) -> Outputs:
        del parameters
        h = jnp.tanh(u[0] + v[0])
        return Outputs(h, state.y + h / 8, state.ys - h / 8)


def test_values_and_nodes_have_names_of_their_own(tmp_path):
    """Whatever the fields of the state are called, and in a loop as well."""
    W, R = (np.random.default_rng(size).normal(0, 0.5, (size, H)).astype(np.float32) for size in (I, H))
    to_onnx(Stack([Twofold(W, R), Twofold(R, R)]), tmp_path / "file.onnx", lengths=False)
    graph = onnx.load(tmp_path / "file.onnx").graph
    bodies = [each.g for one in graph.node for each in one.attribute if each.HasField("g")]
    assert len(bodies) == 2
    for names in (
        [one.name for part in (graph, *bodies) for one in part.node],
        [name for part in (graph, *bodies) for one in part.node for name in one.output],
    ):
        assert len({"", *names}) == 1 + len(names)
    xs, zeros = given("lstm")[1], np.zeros((B, H), np.float32)
    feeds = {f"state.{number}.{field}": zeros for number in range(2) for field in Outputs._fields}
    ys, *last = Session(tmp_path / "file.onnx").run(xs=xs, **feeds)
    below, states = xs, []
    for weight in (W, R):
        h, outputs = zeros, []
        for time in range(T):
            h = np.tanh(below[:, time] @ weight + h @ R)
            outputs.append(h)
        below = np.stack(outputs, axis=1)
        states += [h, below.sum(1) / 8, -below.sum(1) / 8]
    assert_close([ys, *last], [below, *states])


def test_dropout_of_equinox_is_written_as_at_inference(tmp_path):
    linear, drop = eqx.nn.Linear(H, 2, dtype=F32, key=grid.KEY), eqx.nn.Dropout(0.5)
    for name, head in (("with", eqx.nn.Sequential([drop, linear, drop])), ("without", linear)):
        to_onnx(draw(Tagger(cell(GRU), head), seed=2), tmp_path / name, lengths=False, states=False)
    xs = given("gru")[1]
    one, other = (Session(tmp_path / name).run(xs=xs) for name in ("with", "without"))
    assert_close(one, other)


class Louder(GRU):
    """A cell that inherits from one that ONNX has, and is another."""

    def write(self, parameters: Any, u: Any, v: Any, state: Any, through: Any) -> Any:
        return super().write(parameters, 2 * u, v, state, through)


def test_a_cell_that_inherits_is_written_as_what_it_is(tmp_path):
    drawn = draw(cell(Louder), seed=6)
    to_onnx(drawn, tmp_path / "file.onnx", lengths=False)
    state, xs = given("gru")
    ys, _ = Session(tmp_path / "file.onnx").run(**{"xs": xs, "state.h": state.h})
    twice = eqx.tree_at(lambda cell: (cell.input_weight, cell.bias), drawn, (2 * drawn.input_weight, 2 * drawn.bias))
    as_gru = draw(cell(GRU), seed=6)
    as_gru = eqx.tree_at(jax.tree.leaves, as_gru, jax.tree.leaves(twice))
    assert_close(ys, [oracle.run(as_gru, [row], x)[1] for row, x in zip(state.h, xs, strict=True)])


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_no_network_is_an_error(tmp_path):
    with pytest.raises(TypeError, match=r"^network: expected a cell.*Pass the network"):
        to_onnx(jnp.tanh, tmp_path / "file.onnx")
    with pytest.raises(TypeError, match=r"^lengths: expected True or False"):
        to_onnx(cell(GRU), tmp_path / "file.onnx", lengths="no")
    with pytest.raises(TypeError, match=r"^model: expected a path or an onnx.ModelProto"):
        from_onnx(3)
    with pytest.raises(FileNotFoundError, match=r"^model: expected a file at .*Pass the path"):
        from_onnx(tmp_path / "none.onnx")


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda: to_onnx(cell(GRU), tmp_path / "file.onnx"), lambda: from_onnx(tmp_path / "file.onnx")):
        with pytest.raises(ImportError, match=r"^onnx: expected the package.*Install it: pip install onnx$"):
            call()


def test_every_activation_of_onnx_is_read_and_written():
    """One compiled program for all functions."""
    numbers = lambda form: tuple(0.25 * (number + 1) for number in range(len(form.keywords)))  # noqa: E731
    activations = [Activation(name, numbers(form)) for name, form in FORMS.items()]
    functions, x = [*map(function_of, activations)], np.linspace(-2, 2, 9)
    assert [*map(activation_of, functions)] == activations
    results = jax.jit(lambda x: [function(x) for function in functions])(x)
    for (name, parameters), result in zip(activations, results, strict=True):
        np.testing.assert_allclose(result, NUMPY[name](x, *parameters), rtol=1e-12, atol=1e-12)


def test_onnx_is_imported_when_a_file_is_read_or_written_and_not_before():
    """By name, in one place."""
    files = {file.name: file.read_text() for file in Path(rnnjax.__file__).parent.rglob("*.py")}
    assert len(files) > 100
    assert not [name for name, text in files.items() if re.search(r"^\s*(import|from) onnx", text, re.MULTILINE)]
    assert "package.py" in [name for name, text in files.items() if 'import_module("onnx")' in text]
