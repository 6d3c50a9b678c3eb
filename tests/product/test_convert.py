"""Weights to and from other JAX libraries: the numbers and gradients of the original, and the same bits on the way.

torch is in `unit/test_torch.py`. A case whose library is not installed is skipped; `.ci/run` installs them all.
"""

from collections.abc import Callable
from typing import Any

import conversions
import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import instructs

import rnnjax
from rnnjax import convert

I, H = 3, 4  # noqa: E741
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
SINGLE = (  # the cases that are held in float32, too: one for each cell
    *("linen SimpleCell", "linen LSTMCell", "linen GRUCell", "nnx OptimizedLSTMCell", "nnx GRUCell"),
    *("VanillaRNN", "LSTM", "GRU", "LSTMCell", "GRUCell", "SimpleRNN tanh", "GRU, reset after", "GRU, reset before"),
)
CASES = [
    pytest.param(case, dtype, id=f"{case.library}-{case.name}-{dtype}", marks=pytest.mark.slow)
    for case in conversions.cases()
    for dtype in ("float64", "float32")
    if dtype == "float64" or case.name in SINGLE
]

# Keras and nnx add integers and floats, as strict promotion forbids.
pytestmark = [pytest.mark.usefixtures("promoting", "annotations_unchecked")]


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_equals_the_original(case, dtype):
    pytest.importorskip(case.library)
    original = case.build(dtype)
    values, gradients = conversions.differences(original)
    assert values <= TOLERANCE[dtype]
    assert gradients <= TOLERANCE[dtype]
    network = original.network(original.parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype(dtype)}
    back = original.there_and_back(network)
    if case.library == "haiku" and case.name == "LSTM":  # whose forget bias has lost a 1 on the way, and has it again
        network, back = network, original.there_and_back(back)
        forget = slice(conversions.H, 2 * conversions.H)
        np.testing.assert_allclose(back.bias[forget], network.bias[forget], rtol=0, atol=jnp.finfo(dtype).eps)
        network = eqx.tree_at(lambda cell: cell.bias, network, back.bias)
    assert conversions.same_bits(network, back)


# Refusals: what one side cannot represent is named, with what to do


def key() -> jax.Array:
    return jax.random.key(0)


def make(cell: Callable[..., Any], **options: Any) -> Any:
    return cell(I, H, key=key(), **options)


def assert_refused(call: Callable[[], Any], kind: type[Exception], *fragments: str) -> None:
    assert instructs(grid.assert_error(call, kind, fragments))


TO = {"haiku": convert.to_haiku, "linen": convert.to_linen, "equinox": convert.to_equinox}  # which import nothing
NOT_PLAIN = [
    ("peepholes", {"peepholes": True}, "got", "without peepholes"),
    ("clip", {"clip": 1.0}, "None", "without clip"),
    ("coupled", {"coupled": True}, "False", "forget gate"),
    ("recurrent_weight", {"heads": 2}, "2 heads", "heads=1"),
    ("initial_state", {"learn_initial": True}, "None", "first state"),
    ("activation", {"activation": jax.nn.relu}, "relu", "without activation"),
    ("output_activation", {"output_activation": jax.nn.relu}, "relu", "without output_activation"),
    ("gate_activation", {"gate_activation": jax.nn.hard_sigmoid}, "hard_sigmoid", "without gate_activation"),
]


@pytest.mark.parametrize("library", TO)
@pytest.mark.parametrize(("name", "options", "fragment", "advice"), NOT_PLAIN, ids=[name for name, *_ in NOT_PLAIN])
def test_an_option_of_ours_alone_is_refused(library, name, options, fragment, advice):
    cell = make(rnnjax.LSTM, **options)
    assert_refused(
        lambda: TO[library](cell), ValueError, name, "expected", *(() if fragment == "got" else (fragment,)), advice
    )


class Own(rnnjax.LSTM):
    """A user's cell, which may have other equations."""


@pytest.mark.parametrize("library", TO)
def test_a_cell_of_ours_alone_is_refused(library):
    shared = rnnjax.networks.SharedBidirectional(make(rnnjax.GRU))
    for cell in (make(rnnjax.MinGRU), make(rnnjax.IndRNN), rnnjax.Stack([make(rnnjax.LSTM)]), make(Own), shared):
        assert_refused(lambda cell=cell: TO[library](cell), ValueError, "network", "expected", type(cell).__name__)


def test_haiku_has_relu_and_resets_before():
    assert_refused(lambda: convert.to_haiku(make(rnnjax.Elman)), ValueError, "activation", "relu", "tanh")
    assert_refused(lambda: convert.to_haiku(make(rnnjax.GRU)), ValueError, "network", "ResetBeforeGRU", "GRU")
    params = convert.to_haiku(make(rnnjax.LSTM)) | convert.to_haiku(make(rnnjax.ResetBeforeGRU))
    assert_refused(lambda: convert.from_haiku(params), ValueError, "params", "lstm/linear", "one module")


def test_the_forget_bias_of_haiku_is_one_less():
    """hk.LSTM adds 1 to it. That loses no bit of a bias from 1/2 to 2, such as ours at first."""
    cell = make(rnnjax.LSTM)
    params = convert.to_haiku(cell)["lstm/linear"]
    assert not np.any(params["b"])
    assert conversions.same_bits(convert.from_haiku({"any/name/linear": params}), cell)


def paths(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of the dense layers in the parameters of Flax."""
    here = [path] if "kernel" in tree else []
    return here + [
        each for name, entry in tree.items() if isinstance(entry, dict) for each in paths(entry, (*path, name))
    ]


def changed(tree: dict[str, Any], path: tuple[str, ...], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """`tree` with another dict at a path."""
    name, *rest = path
    return tree | {name: changed(tree[name], (*rest,), change) if rest else change(tree[name])}


def linen_cells() -> dict[str, Any]:
    one = {kind.__name__: make(kind) for kind in (rnnjax.Elman, rnnjax.LSTM, rnnjax.GRU)}
    return one | {"Bidirectional": rnnjax.Bidirectional(one["LSTM"], one["GRU"])}


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a bias": lambda entry: entry | {"bias": np.ones(H, np.float32)},
    "a scale": lambda entry: entry | {"scale": np.ones(H, np.float32)},
    "no bias": lambda entry: {"kernel": entry["kernel"]},
    "no kernel": lambda entry: {name: weight for name, weight in entry.items() if name != "kernel"},
    "an array": lambda entry: entry["kernel"],
}


@pytest.mark.parametrize("name", ["Elman", "LSTM", "GRU", "Bidirectional"])
def test_every_parameter_of_linen_is_read_or_refused(name):
    params = convert.to_linen(linen_cells()[name])
    assert conversions.same_bits(convert.from_linen(params), linen_cells()[name])
    for path in paths(params):
        for what, change in CHANGES.items():
            other = changed(params, path, change)
            same = jax.tree.structure(other) == jax.tree.structure(params)
            if not same and (path, what) != (("i",), "no bias"):  # a bias that a SimpleCell need not have
                assert_refused(lambda other=other: convert.from_linen(other), ValueError, "source", path[-1])
    extra = params | {"LayerNorm_0": {"scale": np.ones(H, np.float32)}}
    assert_refused(lambda: convert.from_linen(extra), ValueError, "source", "LayerNorm_0")


def test_every_parameter_of_nnx_is_read_or_refused():
    kernels = {gates: {"dense_i": {"kernel": np.ones((I, gates * H), np.float32)},
                       "dense_h": {"kernel": np.ones((H, gates * H), np.float32)}} for gates in (1, 3, 4)}  # fmt: skip
    for gates, params in kernels.items():
        other, right = ("dense_i", "dense_h") if gates == 4 else ("dense_h", "dense_i")
        for name, weight in (("bias", other), ("scale", other), ("scale", right)):
            more = changed(
                params, (weight,), lambda entry, name=name, gates=gates: entry | {name: np.ones(gates * H, np.float32)}
            )
            assert_refused(lambda more=more: convert.from_nnx(more), ValueError, "source", weight, "kernel", name)
        assert convert.from_nnx(
            changed(params, (right,), lambda entry, gates=gates: entry | {"bias": np.ones(gates * H, np.float32)})
        )
        assert_refused(
            lambda params=params: convert.from_nnx(params | {"dense_i": {}}), ValueError, "source", "dense_i"
        )
    lstm = convert.to_linen(make(rnnjax.LSTM))
    both = {name.replace("if", "if_"): entry for name, entry in lstm.items()}
    assert conversions.same_bits(convert.from_nnx(both), make(rnnjax.LSTM))
    assert_refused(lambda: convert.from_nnx(both | {"hf_": both["hf"]}), ValueError, "source", "hf_")


def test_every_parameter_of_haiku_is_read_or_refused():
    params = convert.to_haiku(make(rnnjax.Elman, activation=jax.nn.relu))
    extra = changed(params, ("vanilla_rnn/linear_1",), lambda entry: entry | {"scale": entry["b"]})
    assert_refused(lambda: convert.from_haiku(extra), ValueError, "params", "scale", "one module")
    two = {"a/linear": params["vanilla_rnn/linear"], "b/linear_1": params["vanilla_rnn/linear_1"]}
    assert_refused(lambda: convert.from_haiku(two), ValueError, "params", "b/linear_1", "one module")


class Gained(eqx.nn.GRUCell):
    """A user's cell of Equinox, with one more weight."""

    gain: Any

    def __init__(self, gain: Any):
        super().__init__(I, H, key=key())
        self.gain = gain


def test_every_weight_of_equinox_is_read_or_refused():
    assert isinstance(convert.from_equinox(Gained(None)), rnnjax.GRU)
    assert_refused(lambda: convert.from_equinox(Gained(jnp.ones(H))), ValueError, "cell", "bias_n", "gain")


class Halved(eqx.nn.LSTMCell):
    """A user's cell of Equinox, with a step of its own."""

    def __call__(self, x: Any, hidden: Any, *, key: Any = None) -> Any:
        return jax.tree.map(lambda leaf: leaf / 2, super().__call__(x, hidden, key=key))


def test_a_step_of_ones_own_is_refused():
    halved = Halved(I, H, key=key())
    assert_refused(lambda: convert.from_equinox(halved), TypeError, "cell", "step of Equinox", "Halved")


def test_modules_of_linen_say_what_parameters_do_not():
    nn = pytest.importorskip("flax.linen")
    rnn = lambda cell=nn.GRUCell, **options: nn.RNN(cell(H, **options))  # noqa: E731
    bound = lambda module: module.bind(jax.eval_shape(module.init, key(), jnp.ones((2, I), jnp.float32)))  # noqa: E731
    filled = lambda module: module.bind(  # noqa: E731
        jax.tree.map(
            lambda leaf: np.ones(leaf.shape, leaf.dtype),
            jax.eval_shape(module.init, key(), jnp.ones((2, I), jnp.float32)),
        )
    )
    assert type(convert.from_linen(filled(nn.Bidirectional(rnn(), rnn())))) is rnnjax.Bidirectional
    relu = convert.from_linen(filled(rnn(nn.SimpleCell, activation_fn=jax.nn.relu)))
    assert relu.activation == jax.nn.relu
    cases = [
        (nn.Bidirectional(rnn(), rnn(), merge_fn=jnp.add), "merge_fn", "concatenation", "add"),
        (rnn(nn.SimpleCell, residual=True), "residual", "False", "kernel of h"),
        (rnn(gate_fn=jax.nn.hard_sigmoid), "gate_fn", "sigmoid", "hard_sigmoid"),
        (rnn(nn.LSTMCell, activation_fn=jax.nn.relu), "activation_fn", "tanh", "relu"),
        (nn.RNN(nn.GRUCell(H), reverse=True), "reverse", "False", "Reversed"),
    ]
    for module, *fragments in cases:
        assert_refused(lambda module=module: convert.from_linen(bound(module)), ValueError, *fragments)
    assert_refused(lambda: convert.from_linen(rnn()), ValueError, "source", "bound", "module.bind")
    assert_refused(lambda: convert.from_linen(nn.Dense(H)), TypeError, "source", "GRUCell", "Dense")
    assert_refused(lambda: convert.from_linen(bound(rnn()), activation=jnp.tanh), TypeError, "activation", "module")

    class Doubled(nn.GRUCell):
        def __call__(self, carry: Any, inputs: Any) -> Any:
            carry, y = super().__call__(carry, inputs)
            return carry, 2 * y

    assert_refused(lambda: convert.from_linen(filled(rnn(Doubled))), TypeError, "source", "step of Flax", "Doubled")


def test_linen_says_no_activation_of_gates():
    params = convert.to_linen(make(rnnjax.LSTM))
    assert_refused(lambda: convert.from_linen(params, activation=jnp.tanh), ValueError, "activation", "SimpleCell")
    del params["hf"]
    assert_refused(lambda: convert.from_linen(params), ValueError, "source", "OptimizedLSTMCell", "'hg'")
    network = rnnjax.Bidirectional(make(rnnjax.GRU), make(rnnjax.GRU), merge=rnnjax.networks.add)
    assert_refused(lambda: convert.to_linen(network), ValueError, "merge", "concatenate", "add")


def test_equinox_has_two_cells():
    assert_refused(
        lambda: convert.from_equinox(eqx.nn.Linear(2, 3, key=key())), TypeError, "cell", "LSTMCell", "Linear"
    )
    half = eqx.tree_at(lambda cell: cell.candidate_bias, make(rnnjax.GRU), None)
    assert not np.any(convert.to_equinox(half).bias_n)


ARRAYS = {"kernel": np.ones((I, 3 * H)), "recurrent_kernel": np.ones((H, 3 * H)), "bias": np.ones((2, 3 * H))}


def test_arrays_of_keras_need_no_keras():
    assert isinstance(convert.from_keras(ARRAYS), rnnjax.GRU)
    assert isinstance(convert.from_keras(ARRAYS | {"bias": np.ones(3 * H)}), rnnjax.ResetBeforeGRU)
    without = {name: array for name, array in ARRAYS.items() if name != "bias"}
    assert_refused(lambda: convert.from_keras(without), ValueError, "source", "before or after", "layer")
    assert_refused(lambda: convert.from_keras({"kernel": np.ones((I, H))}), ValueError, "source", "recurrent_kernel")
    wide = ARRAYS | {"kernel": np.ones((I, 5 * H))}
    assert_refused(lambda: convert.from_keras(wide), ValueError, "weights", "12 for a GRU", "4 hidden", "20")
    tall = ARRAYS | {"bias": np.ones((2, 6 * H))}
    assert_refused(lambda: convert.from_keras(tall), ValueError, "bias", "[12]", "GRU", "[24]")


def test_dtypes_are_kept_or_refused():
    mixed = ARRAYS | {"bias": np.ones((2, 3 * H), np.float32)}
    assert_refused(lambda: convert.from_keras(mixed), ValueError, "weights", "one dtype", "float64", "float32")
    assert_refused(
        lambda: convert.from_keras({name: array.astype(int) for name, array in ARRAYS.items()}),
        TypeError,
        "dtype",
        "int64",
    )
    with jax.enable_x64(False):
        assert_refused(lambda: convert.from_keras(ARRAYS), ValueError, "input_weight", "float32", "jax_enable_x64")
    half = {name: array.astype(jnp.bfloat16) for name, array in ARRAYS.items()}
    assert convert.from_keras(half).dtype == jnp.bfloat16


def test_keras_refuses_what_changes_the_numbers():
    keras = pytest.importorskip("keras")
    layers, built = keras.layers, lambda layer: layer.build((None, 2, I)) or layer
    cases = [
        (layers.LSTM(H, activation="relu"), "activation", "tanh", "relu"),
        (layers.GRU(H, recurrent_activation="hard_sigmoid"), "recurrent_activation", "sigmoid", "hard_sigmoid"),
        (layers.SimpleRNN(H, activation="softplus"), "activation", "tanh", "softplus"),
        (layers.LSTM(H, dropout=0.5), "dropout", "0.5", "VariationalDropout"),
        (layers.LSTM(H, recurrent_dropout=0.5), "recurrent_dropout", "0.5", "VariationalDropout"),
        (layers.LSTM(H, go_backwards=True), "go_backwards", "False", "Reversed"),
    ]
    for layer, *fragments in cases:
        assert_refused(lambda layer=layer: convert.from_keras(built(layer)), ValueError, *fragments)
    assert_refused(lambda: convert.from_keras(layers.LSTM(H)), ValueError, "source", "built", "layer.build")
    assert_refused(lambda: convert.from_keras(layers.Dense(H)), TypeError, "source", "SimpleRNN", "Dense")
    even = layers.ConvLSTM1D(H, 2)
    even.build((None, 2, 5, I))
    assert_refused(lambda: convert.from_keras(even), ValueError, "kernel_size", "odd", "(2,)")

    class Scaled(layers.GRUCell):
        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self.scale = self.add_weight(shape=(H,), name="scale")

    scaled = built(layers.RNN(Scaled(H)))
    assert_refused(lambda: convert.from_keras(scaled), ValueError, "source", "recurrent_kernel, bias alone", "scale")
    deep = rnnjax.Stack([make(rnnjax.LSTM), rnnjax.GRU(H, H, key=key())], dropout=0.5)
    assert_refused(lambda: convert.to_keras(deep), ValueError, "dropout", "0.5", "keras.layers.Dropout")
    assert_refused(lambda: convert.to_keras(make(rnnjax.MinGRU)), ValueError, "network", "Elman", "MinGRU")


def frames(**options: Any) -> rnnjax.ConvLSTM:
    return rnnjax.ConvLSTM(I, H, (6, 7), kernel_size=(3, 5), key=key(), **options)


def test_keras_names_two_paddings():
    pytest.importorskip("keras")
    for options, expected in (
        ({"padding": (2, 2), "dilation": (2, 1)}, "same"),
        ({"padding": 0, "stride": 2}, "valid"),
    ):
        assert convert.to_keras(frames(**options)).cell.padding == expected
    cases = [
        ({"padding": 1}, "padding", "(1, 2)", "got (1, 1)", "padding=0"),
        ({"padding": (1, 2), "stride": 2}, "padding", "at a stride of (2, 2)"),
        ({"stride": 2, "dilation": 2}, "dilation", "stride=(2, 2)", "got (2, 2)"),
        ({"recurrent_dilation": 2}, "recurrent_dilation", "expected 1", "got (2, 2)"),
    ]
    for options, *fragments in cases:
        assert_refused(lambda options=options: convert.to_keras(frames(**options)), ValueError, *fragments)


def test_nnx_refuses_what_changes_the_numbers():
    nnx = pytest.importorskip("flax.nnx")
    options = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float32}
    cases = [
        (nnx.LSTMCell(I, H, activation_fn=jax.nn.relu, **options), "activation_fn", "tanh", "relu"),
        (nnx.GRUCell(I, H, gate_fn=jax.nn.relu, **options), "gate_fn", "sigmoid", "relu"),
        (nnx.SimpleCell(I, H, residual=True, **options), "residual", "False", "identity"),
        (nnx.RNN(nnx.GRUCell(I, H, **options), reverse=True), "reverse", "False", "Reversed"),
    ]
    for module, *fragments in cases:
        assert_refused(lambda module=module: convert.from_nnx(module), ValueError, *fragments)
    assert_refused(
        lambda: convert.from_nnx(nnx.Linear(I, H, rngs=nnx.Rngs(0))), TypeError, "source", "GRUCell", "Linear"
    )

    class Doubled(nnx.GRUCell):
        def __call__(self, carry: Any, inputs: Any) -> Any:
            carry, y = super().__call__(carry, inputs)
            return carry, 2 * y

    doubled = Doubled(I, H, rngs=nnx.Rngs(0))
    assert_refused(lambda: convert.from_nnx(doubled), TypeError, "source", "step of Flax", "Doubled")

    class Averaged(nnx.GRUCell):
        def __init__(self, *sizes: int, **options: Any):
            super().__init__(*sizes, **options)
            self.mean = nnx.BatchStat(jnp.ones(H))

    averaged = Averaged(I, H, **options)
    assert_refused(lambda: convert.from_nnx(averaged), ValueError, "source", "GRUCell", "mean")
    assert_refused(lambda: convert.to_nnx(make(rnnjax.GRU)), ValueError, "candidate_bias", "None", "to_linen")
