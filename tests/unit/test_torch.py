"""The cells that torch has too: the same outputs, last states and gradients, in both directions, deep and ragged."""

from functools import partial
from itertools import product
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

torch = pytest.importorskip("torch")

T, B, I, H = 7, 5, 3, 5  # noqa: E741
LENGTHS = np.array([4, 7, 1, 6, 3])
TOLERANCE = 1e-10
CELLS = {
    "lstm": (lambda inputs, key: rnnjax.LSTM(inputs, H, key=key, dtype=jnp.float64), torch.nn.LSTM, {}),
    "gru": (lambda inputs, key: rnnjax.GRU(inputs, H, key=key, dtype=jnp.float64), torch.nn.GRU, {}),
    "elman_tanh": (
        lambda inputs, key: rnnjax.Elman(inputs, H, key=key, dtype=jnp.float64),
        torch.nn.RNN,
        {"nonlinearity": "tanh"},
    ),
    "elman_relu": (
        lambda inputs, key: rnnjax.Elman(inputs, H, key=key, activation=jax.nn.relu, dtype=jnp.float64),
        torch.nn.RNN,
        {"nonlinearity": "relu"},
    ),
}


def draw(tree: Any, *shape: int, seed: int) -> Any:
    """`tree` with every array drawn afresh, with leading axes `shape`."""
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)
    drawn = [grid.place(0.5 * generator.standard_normal((*shape, *leaf.shape))) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def network(name: str, layers: int, directions: int) -> rnnjax.Stack:
    """Layers of the cell in one or both directions, all weights random."""
    make, key, parts = CELLS[name][0], jax.random.key(0), []
    for layer in range(layers):
        inputs = H * directions if layer else I
        forward, backward = make(inputs, key), make(inputs, key)  # whose weights are drawn below
        parts.append(
            forward if directions == 1 else rnnjax.Bidirectional(forward, backward, merge=rnnjax.networks.concatenate)
        )
    return draw(rnnjax.Stack(parts), seed=1)


def in_order(tree: Any, kind: Any) -> list[Any]:
    """The cells, or the states, of a network by layer and direction, as torch counts them."""
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, kind))


def torch_weights(cell: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weight_ih, weight_hh and bias_ih, of a cell or of its gradient."""
    return np.asarray(cell.input_weight).T, np.asarray(cell.recurrent_weight).T, np.asarray(cell.bias)


def torch_candidate_bias(cell: Any) -> np.ndarray:
    """The rows of bias_hh that we have too: the last H, for a GRU."""
    return np.asarray(cell.candidate_bias) if isinstance(cell, rnnjax.GRU) else np.zeros(0)


def torch_states(state: Any) -> list[np.ndarray]:
    """Field by field, [layers * directions, B, H]."""
    states = in_order(state, (rnnjax.Hidden, rnnjax.cells.LSTMState))
    return [np.stack(fields) for fields in zip(*states, strict=True)]


def torch_module(name: str, cells: list[Any], layers: int, directions: int) -> Any:
    """The module of torch that has the weights of `cells`."""
    _, kind, options = CELLS[name]
    module = kind(I, H, num_layers=layers, bidirectional=directions == 2, dtype=torch.float64, **options)
    for cell, parameters in zip(cells, module.all_weights, strict=True):
        inside = torch_candidate_bias(cell)
        bias_hh = np.zeros(cell.bias.size)
        bias_hh[bias_hh.size - inside.size :] = inside
        for parameter, value in zip(parameters, (*torch_weights(cell), bias_hh), strict=True):
            parameter.data = torch.tensor(value)
    return module


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


def rnnjax_run(net: Any, state: Any, xs: jax.Array, ragged: bool, cotangents: Any) -> Any:
    """((last, ys), gradients in (net, state, xs)), for a batch [B, T, I]."""

    def run(arguments):
        net, state, xs = arguments
        one = lambda state, xs, length: rnnjax.unroll(net, state, xs, length=length)  # noqa: E731
        return jax.vmap(one)(state, xs, jnp.asarray(LENGTHS) if ragged else None)

    values, transpose = jax.vjp(run, (net, state, xs))
    return values, transpose(cotangents)[0]


def assert_close(got: Any, expected: Any) -> None:
    for leaf, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(leaf), other.detach().numpy(), rtol=0, atol=TOLERANCE)


QUICK = (  # in which every two options meet
    *(("lstm", 1, 3, False), ("lstm", 2, 1, True), ("gru", 1, 1, True), ("gru", 2, 3, False)),
    *(("elman_tanh", 1, 1, False), ("elman_tanh", 2, 3, True), ("elman_relu", 1, 3, True), ("elman_relu", 2, 1, False)),
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
    net = network(name, layers, directions)
    state = draw(jax.eval_shape(net.initial), B, seed=2)
    xs = draw(jax.ShapeDtypeStruct((I,), "float64"), B, T, seed=3)
    last_cotangent, ys_cotangent = (
        draw(state, seed=4),
        draw(jax.ShapeDtypeStruct((H * directions,), "float64"), B, T, seed=5),
    )
    run = eqx.filter_jit(rnnjax_run)
    (last, ys), (dnet, dstate, dxs) = run(net, state, xs, ragged, (last_cotangent, ys_cotangent))

    module = torch_module(name, in_order(net, rnnjax.AbstractCell), layers, directions)
    time_first = lambda array: np.swapaxes(np.asarray(array), 0, 1)  # noqa: E731
    cotangents = [time_first(ys_cotangent), *torch_states(last_cotangent)]
    values, gradients = torch_run(module, torch_states(state), time_first(xs), ragged, cotangents)
    assert_close([time_first(ys), *torch_states(last)], values)
    assert_close([time_first(dxs), *torch_states(dstate)], gradients)
    for dcell, parameters in zip(in_order(dnet, rnnjax.AbstractCell), module.all_weights, strict=True):
        *weights, bias_hh = (parameter.grad for parameter in parameters)
        assert_close(torch_weights(dcell), weights)
        inside = torch_candidate_bias(dcell)
        assert_close([inside], [bias_hh[bias_hh.numel() - inside.size :]])


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
