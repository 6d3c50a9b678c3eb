"""The cells that torch has too: the same outputs, last states and gradients, in both directions, deep and ragged."""

from functools import partial
from itertools import product
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

torch = pytest.importorskip("torch")

T, B, I, H = 7, 5, 3, 5  # noqa: E741
LENGTHS = np.array([4, 7, 1, 6, 3])
TOLERANCE = 1e-12
CELLS = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "elman_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "elman_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "projected_lstm": (torch.nn.LSTM, {"proj_size": 2}),
    "lstm_without_bias": (torch.nn.LSTM, {"bias": False}),
    "gru_without_bias": (torch.nn.GRU, {"bias": False}),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def draw(tree: Any, *shape: int, seed: int) -> Any:
    """`tree` with every array drawn afresh, with leading axes `shape`."""
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)
    drawn = [grid.place(0.5 * generator.standard_normal((*shape, *leaf.shape))) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def torch_module(name: str, layers: int, directions: int) -> Any:
    """A module of torch with random weights."""
    torch.manual_seed(1)
    kind, options = CELLS[name]
    return kind(I, H, num_layers=layers, bidirectional=directions == 2, dtype=torch.float64, **options)


def arrays(module: Any) -> dict[str, np.ndarray]:
    """Its state dict, without torch."""
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def in_order(tree: Any, kind: Any) -> list[Any]:
    """The states of a network by layer and direction, as torch counts them."""
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, kind))


def torch_states(state: Any) -> list[np.ndarray]:
    """Field by field, [layers * directions, B, H]."""
    states = in_order(state, (rnnjax.Hidden, rnnjax.cells.LSTMState))
    return [np.stack(fields) for fields in zip(*states, strict=True)]


def torch_run(module: Any, state: list[np.ndarray], xs: np.ndarray, ragged: bool, cotangents: Any) -> Any:
    """Outputs [T, B, H], last states, and the gradients in inputs and states; the module keeps those of its weights."""
    xs, fields = torch.tensor(xs, requires_grad=True), [torch.tensor(field, requires_grad=True) for field in state]
    before = tuple(fields) if len(fields) == 2 else fields[0]
    if ragged:
        packed = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(LENGTHS), enforce_sorted=False)
        ys, last = module(packed, before)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=T)
    else:
        ys, last = module(xs, before)
    last = list(last) if isinstance(last, tuple) else [last]
    parts = zip((ys, *last), cotangents, strict=True)
    sum((part * torch.tensor(cotangent)).sum() for part, cotangent in parts).backward()
    return [ys, *last], [xs.grad, *(field.grad for field in fields)]


def rnnjax_run(read: Any, weights: Any, state: Any, xs: jax.Array, ragged: bool, cotangents: Any) -> Any:
    """((last, ys), gradients in (weights, state, xs)), for a batch [B, T, I], of the network that `read` gives."""

    def run(weights, state, xs):
        net = read(weights)
        one = lambda state, xs, length: rnnjax.unroll(net, state, xs, length=length)  # noqa: E731
        return jax.vmap(one)(state, xs, jnp.asarray(LENGTHS) if ragged else None)

    values, transpose = jax.vjp(run, weights, state, xs)
    return values, transpose(cotangents)


def assert_close(got: Any, expected: Any) -> None:
    for leaf, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(leaf), other.detach().numpy(), rtol=0, atol=TOLERANCE)


QUICK = (  # in which every two options meet
    *(("lstm", 1, 3, False), ("lstm", 2, 1, True), ("gru", 1, 1, True), ("gru", 2, 3, False)),
    *(("elman_tanh", 1, 1, False), ("elman_tanh", 2, 3, True), ("elman_relu", 1, 3, True), ("elman_relu", 2, 1, False)),
    *(("projected_lstm", 2, 3, False), ("lstm_without_bias", 1, 1, True), ("gru_without_bias", 2, 3, True)),
)


def case(name: str, directions: int, layers: int, ragged: bool) -> Any:
    options = name, directions, layers, ragged
    words = f"{('uni', 'bi')[directions - 1]}directional", f"{layers}", "ragged" if ragged else "full"
    return pytest.param(*options, id="-".join([name, *words]), marks=() if options in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "directions", "layers", "ragged"),
    [case(*options) for options in product(CELLS, (1, 2), (1, 3), (False, True))],
)
def test_equals_torch(name, directions, layers, ragged):
    """By `from_torch`, of the module and of its state dict; back by `to_torch`, the numbers and bits are the same."""
    module = torch_module(name, layers, directions)
    net = convert.from_torch(module)
    read = partial(convert.from_torch, activation=jax.nn.relu if name == "elman_relu" else None)
    assert conversions.same_bits(read(arrays(module)), net)
    assert conversions.same_bits(convert.from_torch(convert.to_torch(net)), net)

    state = draw(jax.eval_shape(net.initial), B, seed=2)
    xs = draw(jax.ShapeDtypeStruct((I,), "float64"), B, T, seed=3)
    size = module.proj_size or H
    last_cotangent, ys_cotangent = (
        draw(state, seed=4),
        draw(jax.ShapeDtypeStruct((size * directions,), "float64"), B, T, seed=5),
    )
    run = eqx.filter_jit(partial(rnnjax_run, read))
    cotangents = last_cotangent, ys_cotangent
    (last, ys), (dweights, dstate, dxs) = run(arrays(module), state, xs, ragged, cotangents)

    time_first = lambda array: np.swapaxes(np.asarray(array), 0, 1)  # noqa: E731
    cotangents = [time_first(ys_cotangent), *torch_states(last_cotangent)]
    values, gradients = torch_run(module, torch_states(state), time_first(xs), ragged, cotangents)
    assert_close([time_first(ys), *torch_states(last)], values)
    assert_close([time_first(dxs), *torch_states(dstate)], gradients)
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert dweights.keys() == expected.keys()
    assert_close([dweights[name] for name in expected], expected.values())
    with torch.no_grad():
        back = convert.to_torch(net)(torch.tensor(np.array(time_first(xs))))[0]
        assert_close([module(torch.tensor(np.array(time_first(xs))))[0].numpy()], [back])


def torch_gru(**options: Any) -> Any:
    return torch.nn.GRU(I, H, **options)


def our(cell: Any, **options: Any) -> Any:
    return cell(I, H, key=jax.random.key(0), **options)


REFUSED = {
    "prefix": (
        lambda: convert.from_torch({"rnn.weight_ih_l0": np.ones((H, I))}),
        ["source", "rnn.weight_ih_l0", "prefix"],
    ),
    "half": (
        lambda: convert.from_torch({name: a for name, a in arrays(torch_gru()).items() if name != "bias_hh_l0"}),
        ["source", "['bias_hh_l0']"],
    ),
    "activation": (
        lambda: convert.from_torch(arrays(torch_gru()), activation=jnp.tanh),
        ["activation", "None for a GRU", "Leave it out"],
    ),
    "peepholes": (lambda: convert.to_torch(our(rnnjax.LSTM, peepholes=True)), ["peepholes", "torch", "None"]),
    "heads": (lambda: convert.to_torch(our(rnnjax.LSTM, heads=H)), ["recurrent_weight", "5 heads", "torch"]),
    "leak": (lambda: convert.to_torch(our(rnnjax.Elman, leak=0.5)), ["leak", "torch", "None"]),
    "sigmoid": (
        lambda: convert.to_torch(our(rnnjax.Elman, activation=jax.nn.sigmoid)),
        ["activation", "tanh", "sigmoid"],
    ),
    "cell": (lambda: convert.to_torch(our(rnnjax.MinGRU)), ["network", "MinGRU", "torch"]),
    "merge": (
        lambda: convert.to_torch(
            rnnjax.Bidirectional(our(rnnjax.GRU), our(rnnjax.GRU), merge=rnnjax.networks.add),
        ),
        ["merge", "concatenate", "add"],
    ),
    "sizes": (
        lambda: convert.to_torch(rnnjax.Stack([our(rnnjax.GRU), rnnjax.GRU(H, 2, key=jax.random.key(0))])),
        ["network", "one kind and size", "hidden_size=5", "hidden_size=2"],
    ),
    "projection": (
        lambda: convert.to_torch(our(rnnjax.ProjectedLSTM, projected_size=H)),
        ["projected_size", "less than the 5", "got 5"],
    ),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_has_not_is_refused(name):
    call, fragments = REFUSED[name]
    assert instructs(grid.assert_error(call, ValueError, fragments))


@pytest.mark.usefixtures("annotations_unchecked")
def test_options_of_a_module_are_its_own():
    refused = [
        (lambda: convert.from_torch(torch_gru(), dropout=0.5), ["activation, dropout", "0.5", "state dict"]),
        (lambda: convert.from_torch(torch.nn.Linear(I, H)), ["source", "nn.GRU", "Linear"]),
    ]
    for call, fragments in refused:
        assert instructs(grid.assert_error(call, TypeError, fragments))


def test_dropout_and_dtype_are_kept():
    deep = torch_gru(num_layers=2, dropout=0.25, dtype=torch.bfloat16)
    stack = convert.from_torch(deep)
    assert stack.dropout == 0.25
    assert {leaf.dtype for leaf in jax.tree.leaves(stack)} == {jnp.dtype(jnp.bfloat16)}
    back = convert.to_torch(stack)
    assert back.dropout == 0.25
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}
    assert conversions.same_bits(convert.from_torch(back), stack)
    assert convert.from_torch(arrays(torch_gru(num_layers=2)), dropout=0.25).dropout == 0.25


def test_no_memory_is_shared():
    module = torch_gru()
    cell = convert.from_torch(module)
    before = np.array(cell.candidate_bias)
    with torch.no_grad():
        for parameter in (*module.parameters(), *convert.to_torch(cell).parameters()):
            parameter.zero_()
    assert np.any(before)
    np.testing.assert_array_equal(cell.candidate_bias, before)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_convolution_equals_torch(depthwise, window):
    """torch's conv1d, which counts its weights from the oldest input on, padded on the left alone."""
    make = (
        partial(rnnjax.networks.DepthwiseConvolution, I)
        if depthwise
        else partial(rnnjax.networks.CausalConvolution, I, H)
    )
    network = draw(make(window=window, key=jax.random.key(0), dtype=jnp.float64), seed=1)
    state = draw(jax.eval_shape(network.initial), seed=2)
    xs = draw(jax.ShapeDtypeStruct((I,), "float64"), T, seed=3)

    @jax.jit
    def run(*arguments: Any) -> Any:
        *arguments, cotangent = arguments
        (last, ys), transpose = jax.vjp(rnnjax.unroll, *arguments)
        return ys, transpose((jax.tree.map(jnp.zeros_like, last), cotangent))

    cotangent = draw(jax.ShapeDtypeStruct((I if depthwise else H,), "float64"), T, seed=4)
    ys, (dnetwork, dstate, dxs) = run(network, state, xs, cotangent)

    def to_torch(weight: Any) -> np.ndarray:
        """[window, I, O] as [O, I, window], and [window, I] as [I, 1, window], the oldest first."""
        oldest_first = np.asarray(weight)[::-1]
        return (oldest_first[:, None] if depthwise else oldest_first).T.copy()

    leaf = lambda array: torch.tensor(np.array(array), requires_grad=True)  # noqa: E731
    weight, bias, before, inputs = leaf(to_torch(network.weight)), leaf(network.bias), leaf(state.inputs), leaf(xs)
    padded = torch.cat([before, inputs]).T[None]
    expected = torch.nn.functional.conv1d(padded, weight, bias, groups=I if depthwise else 1)[0].T
    (expected * torch.tensor(np.array(cotangent))).sum().backward()
    assert_close([ys], [expected])
    gradients = to_torch(dnetwork.weight), dnetwork.bias, dstate.inputs, dxs
    assert_close(gradients, [weight.grad, bias.grad, before.grad, inputs.grad])
