"""xLSTM: blocks against their equations in NumPy, no dependence on the stabiliser, extreme gates, initial weights."""

from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from scipy.special import erf

import rnnjax
from rnnjax.cells.slstm import AbstractSLSTM
from rnnjax.networks import MLSTMInputs, mlstm_recurrence

T, SIZE, HEADS = 11, 6, 2
OWN = rnnjax.Auto((rnnjax.Fused(), rnnjax.engines.Chunked(size=4), rnnjax.Scan()))


def drawn(part: Any, seed: int = 1) -> Any:
    """The part with noise on its weights, so that none of them is zero."""
    generator = np.random.default_rng(seed)
    noise = lambda leaf: (leaf + 0.3 * generator.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(lambda leaf: noise(np.asarray(leaf)) if eqx.is_inexact_array(leaf) else leaf, part)


def inputs(steps: int = T, features: int = SIZE) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(steps, features))


# The blocks, of figures 10 and 11 of the paper


def silu(a: np.ndarray) -> np.ndarray:
    return a * oracle.sigmoid(a)


def block_diagonal(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[M, b, c] by [M b]: [M, c]."""
    return np.einsum("mb,mbc->mc", x.reshape(len(weight), -1), weight)


def convolved(layer: Any, rows: list[np.ndarray]) -> np.ndarray:
    """After its nonlinearity, at the last of the rows."""
    window = len(layer.weight)
    before = [np.zeros_like(rows[0])] * (window - 1)
    aged = (before + rows)[-window:][::-1]
    return silu(sum(w * row for w, row in zip(layer.weight, aged, strict=True)) + layer.bias)


def mlstm_block(block: Any, xs: np.ndarray) -> np.ndarray:
    N, E = block.recurrence.heads, len(block.skip)
    state = np.zeros((N, E // N, E // N)), np.zeros((N, E // N)), np.full(N, -1e30)
    seen, ys = [], []
    for x in xs:
        a, z = np.split((oracle.normed(x) * block.input_scale) @ block.up_weight, 2)
        seen.append(a)
        c = convolved(block.convolution, seen)
        q, k = (rows.reshape(-1) for rows in np.split(block_diagonal(block.query_key_weight, c), 2, 1))
        v = block_diagonal(block.value_weight, a).reshape(-1)
        i, f = np.split(np.concatenate([q, k, v]) @ block.gate_weight + block.gate_bias, 2)
        by_head = (rows.reshape(N, -1) for rows in (q, k, v))
        state, h = oracle.matrix_lstm(block.recurrence, state, *by_head, i, f)
        h = oracle.normed(h).reshape(-1) * block.norm_scale
        ys.append(x + ((h + block.skip * c) * silu(z)) @ block.down_weight)
    return np.stack(ys)


def slstm_block(block: Any, xs: np.ndarray) -> np.ndarray:
    N = len(block.input_weight)
    h, c, n, m = (np.full((N, xs.shape[1] // N), start) for start in (0.0, 0.0, 0.0, -1e30))
    seen, ys = [], []
    for x in xs:
        a = oracle.normed(x) * block.input_scale
        seen.append(a)
        of_convolved, of_a = (
            block_diagonal(block.input_weight, rows) for rows in (convolved(block.convolution, seen), a)
        )
        recurrent = np.einsum("np,npg->ng", h, block.recurrent_weight) + block.bias.reshape(N, -1)
        i, f = np.split(of_convolved + recurrent, 4, 1)[:2]
        z, o = np.split(of_a + recurrent, 4, 1)[2:]
        keep, write, m = oracle.normalised_memory(np.log(oracle.sigmoid(f)), m, i)
        c, n = keep * c + write * np.tanh(z), keep * n + write
        h = oracle.sigmoid(o) * c / n
        x = x + oracle.normed(h).reshape(-1) * block.norm_scale
        gate, up = np.split((oracle.normed(x) * block.up_scale) @ block.up_weight, 2)
        ys.append(x + (gate * (1 + erf(gate / np.sqrt(2))) / 2 * up) @ block.down_weight)
    return np.stack(ys)


def test_a_stack_of_both_blocks_is_that_of_the_equations():
    options: dict[str, Any] = {"heads": HEADS, "window": 3, "dtype": "float64"}
    network = drawn(rnnjax.models.xlstm_layers(SIZE, 2, slstm_at=[1], key=grid.KEY, **options))
    matrix, scalar, norm = network.layers
    xs = inputs()
    last, ys = eqx.filter_jit(rnnjax.unroll)(network, None, xs, engine=OWN)
    expected = slstm_block(scalar, mlstm_block(matrix, xs))
    np.testing.assert_allclose(ys, oracle.normed(expected) * norm.function.weight, rtol=0, atol=1e-11)
    assert (last[0].recurrence.C.shape, last[1].slstm.h.shape) == ((HEADS, 6, 6), (HEADS, 3))


# The stabiliser


class StoppedSLSTM(AbstractSLSTM):
    """An sLSTM whose gradient does not go through m."""

    input_weight: Any
    recurrent_weight: Any
    bias: Any
    exponential_forget_gate: bool = eqx.field(static=True)

    def pointwise(self, parameters, u, v, state):
        del parameters
        i, f, z, o = u + v
        log_f = jax.nn.log_sigmoid(f)
        m = jax.lax.stop_gradient(jnp.maximum(log_f + state.m, i))
        keep, write = jnp.exp(log_f + state.m - m), jnp.exp(i - m)
        c, n = keep * state.c + write * jnp.tanh(z), keep * state.n + write
        return rnnjax.cells.SLSTMState(jax.nn.sigmoid(o) * c / n, c, n, m)


def slopes(part: Any, xs: Any) -> Any:
    """The outputs, and the gradient of a loss on them by weights and inputs."""
    weights, static = eqx.partition(part, eqx.is_inexact_array)

    def loss(weights: Any, xs: Any) -> tuple[Any, Any]:
        _, ys = rnnjax.unroll(eqx.combine(weights, static), None, xs, engine=rnnjax.Scan())
        return grid.contract(ys), ys

    gradients, ys = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(weights, xs)
    return ys, jax.tree.leaves(gradients)


def test_the_gradient_of_an_slstm_may_stop_at_m():
    cell = drawn(rnnjax.cells.SLSTM(SIZE, 4, key=grid.KEY, dtype="float64"))
    stopped = StoppedSLSTM(*map(jnp.asarray, (cell.input_weight, cell.recurrent_weight, cell.bias)), False)
    grid.assert_close(slopes(stopped, inputs()), slopes(cell, inputs()))


def test_the_gradient_of_an_mlstm_may_stop_at_m(monkeypatch):
    layer, xs = drawn(rnnjax.networks.MLSTM(SIZE, 4, heads=HEADS, key=grid.KEY, dtype="float64")), 3 * inputs()
    expected = slopes(layer, xs)
    found = mlstm_recurrence.running_maximum
    monkeypatch.setattr(mlstm_recurrence, "running_maximum", lambda *given: jax.lax.stop_gradient(found(*given)))
    grid.assert_close(slopes(layer, xs), expected)


@pytest.mark.parametrize("offset", [-30.0, 500.0])
def test_the_scale_of_a_given_state_is_that_of_its_m(offset):
    """C exp(m), n exp(m) and c exp(m) are what a state means."""
    generator = np.random.default_rng(4)
    network = rnnjax.networks.MLSTMRecurrence(HEADS, 3, 2, dtype="float64")
    draw = lambda *shape: generator.normal(size=(HEADS, *shape))  # noqa: E731
    state = rnnjax.networks.MLSTMState(draw(3, 2), draw(3), draw())
    shifted = state._replace(m=state.m + offset)
    rows = lambda *shape: generator.normal(size=(T, HEADS, *shape))  # noqa: E731
    xs = MLSTMInputs(rows(3), rows(3), rows(2), rows(), rows())
    xs = xs._replace(input_gate=xs.input_gate + offset)
    run = eqx.filter_jit(lambda state, xs: rnnjax.unroll(network, state, xs)[1])
    reads = np.asarray(run(state, xs)), np.asarray(run(shifted, xs))
    floor = np.exp(-offset)  # of the denominator, and so of a read, beside the same state times exp(offset)
    expected = [_read(state, xs._replace(input_gate=xs.input_gate - offset), floor)]
    np.testing.assert_allclose(reads[1], expected[0], rtol=0, atol=1e-10)
    assert np.isfinite(reads[0]).all()


def _read(state: Any, xs: MLSTMInputs, floor: float) -> np.ndarray:
    """h by the equations without a stabiliser."""
    C, n, m = state
    C, n, reads = C * np.exp(m)[:, None, None], n * np.exp(m)[:, None], []
    for q, k, v, i, f in zip(*xs, strict=True):
        i, f, q = np.exp(i), oracle.sigmoid(f), q / np.sqrt(q.shape[1])
        C = f[:, None, None] * C + i[:, None, None] * k[:, :, None] * v[:, None, :]
        n = f[:, None] * n + i[:, None] * k
        reads.append(np.einsum("nkv,nk->nv", C, q) / np.maximum(abs(np.sum(n * q, 1)), floor)[:, None])
    return np.stack(reads)


# Extreme gates


def test_extreme_gates_neither_overflow_nor_divide_by_zero():
    """In float32, with gates far beyond the range of exp, and queries of zeros; values and gradients."""
    sizes = np.asarray([110.0, 1e4], "float32")
    signs = np.random.default_rng(6).choice([-1.0, 1.0], size=(2, T, HEADS))
    rows = np.random.default_rng(7).normal(size=(3, T, HEADS, 4)).astype("float32")
    rows[0, ::3] = 0
    network = rnnjax.networks.MLSTMRecurrence(HEADS, 4, 4)
    cell = rnnjax.cells.SLSTM(SIZE, 4, key=grid.KEY)

    def loss(gates: Any, cell: Any, xs: Any) -> tuple[Any, Any]:
        ys, hs = rnnjax.unroll(network, None, MLSTMInputs(*rows, *gates))[1], rnnjax.unroll(cell, None, xs)[1]
        return jnp.sum(ys**2) + jnp.sum(hs), (ys, hs)

    def of_size(size: Any) -> Any:
        gates = size * signs.astype("float32")
        large = eqx.tree_at(lambda cell: cell.input_weight, cell, size * jnp.sign(cell.input_weight))
        return jax.grad(loss, (0, 1, 2), has_aux=True)(gates, large, inputs().astype("float32"))

    gradients, (ys, hs) = jax.jit(jax.vmap(of_size))(sizes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, ys, hs)))
    assert np.abs(hs).max() <= 1
    for size, got in zip(sizes, ys, strict=True):
        state, expected = (np.zeros((HEADS, 4, 4)), np.zeros((HEADS, 4)), np.full(HEADS, -1e30)), []
        for each in zip(*rows.astype("float64"), *(size * signs), strict=True):
            state, h = _far(state, *each)
            expected.append(h)
        np.testing.assert_allclose(got, np.stack(expected), rtol=2e-3, atol=1e-4)


def _far(state: Any, q: Any, k: Any, v: Any, i: Any, f: Any) -> tuple[Any, np.ndarray]:
    """As the oracle, with a log of the sigmoid that does not overflow; 0 / 0 is 0."""
    C, n, m = state
    q, log_f = q / 2, np.minimum(f, 0) - np.log1p(np.exp(-abs(f)))
    keep, write, m = oracle.normalised_memory(log_f, m, i)
    C = keep[:, None, None] * C + write[:, None, None] * k[:, :, None] * v[:, None, :]
    n = keep[:, None] * n + write[:, None] * k
    divisor = np.maximum(abs(np.sum(n * q, 1)), np.exp(np.minimum(-m, 700.0)))
    read = np.einsum("nkv,nk->nv", C, q)
    return (C, n, m), read / np.where(divisor > 0, divisor, 1.0)[:, None]


# Initial weights, and errors


def test_weights_are_drawn_as_published():
    network = rnnjax.models.xlstm_layers(64, 3, slstm_at=[2, 1], key=grid.KEY)
    matrix, middle, scalar, _ = network.layers
    for layer, bias, places in ((matrix, matrix.gate_bias, 4), (None, rnnjax.networks.MLSTM(8, 8, key=grid.KEY), 4)):
        bias = bias if layer is matrix else bias.gate_bias
        np.testing.assert_allclose(bias[places:], np.linspace(3, 6, 4), rtol=1e-6)
        assert 0.01 < np.std(bias[:places]) < 0.3
    assert not np.any(matrix.gate_weight)
    assert not np.any(scalar.recurrent_weight)
    np.testing.assert_allclose(np.std(matrix.up_weight), np.sqrt(2 / (5 * 64)), rtol=0.05)
    np.testing.assert_allclose(np.std(matrix.value_weight), np.sqrt(2 / (5 * 64)), rtol=0.15)
    np.testing.assert_allclose(np.std(matrix.down_weight), 2 / 3 / 8, rtol=0.05)
    np.testing.assert_allclose(np.std(scalar.down_weight), 2 / 3 / 8, rtol=0.05)
    for block, power in ((middle, 0.95), (scalar, 1.6)):
        expected = np.zeros((4, 4, 16))
        expected[:, 1] = 5 - 12 * (np.arange(16) / 15) ** power
        np.testing.assert_allclose(block.bias.reshape(4, 4, 16), expected, atol=1e-5)
    cell = rnnjax.cells.SLSTM(8, 64, heads=4, key=grid.KEY)
    np.testing.assert_allclose(
        cell.bias[64:128].reshape(4, 16), np.tile(5 - 12 * (np.arange(16) / 15) ** 0.3, (4, 1)), atol=1e-5
    )


def test_errors_say_what_to_do():
    network = rnnjax.networks
    for call, fragments in (
        (lambda: network.MLSTMBlock(6, heads=5, key=grid.KEY), ("heads", "divisor of the 12 features", "heads=4")),
        (lambda: network.SLSTMBlock(6, heads=4, key=grid.KEY), ("heads", "6 features", "got 4", "heads=3")),
        (lambda: network.MLSTM(6, 6, key=grid.KEY), ("heads", "hidden_size=6", "got 4")),
        (
            lambda: network.MLSTM(6, 8, key=grid.KEY, sigmoid_input_gate=True, exponential_forget_gate=True),
            ("exponential_forget_gate", "expected False", "Pass one of the two"),
        ),
        (lambda: rnnjax.models.xlstm_layers(6, 2, slstm_at=[2], key=grid.KEY), ("slstm_at", "from 0 to 1", "got 2")),
        (lambda: rnnjax.models.xlstm_layers(6, 2, slstm_at=[0.5], key=grid.KEY), ("slstm_at", "integers", "got 0.5")),
        (
            lambda: rnnjax.cells.SLSTM(3, 8, heads=2, bias_initialiser=rnnjax.initialise.power_law(3), key=grid.KEY),
            ("heads", "divisor of hidden_size=8", "got 3"),
        ),
        (lambda: rnnjax.initialise.power_law(depth=1.5), ("depth", "0 <= depth <= 1", "got 1.5")),
    ):
        grid.assert_error(call, ValueError, fragments)
    number = lambda: rnnjax.models.xlstm_layers(6, 2, slstm_at=1, key=grid.KEY)  # noqa: E731
    grid.assert_error(number, TypeError, ("slstm_at", "places", "[1]"))


def test_an_slstm_whose_first_input_gate_is_almost_closed_has_written_once():
    """Its first output is sigmoid(o) tanh(z), whatever i is; from m = 0 it would be 0 / 0 in float32."""
    cell = jax.tree.map(jnp.zeros_like, rnnjax.cells.SLSTM(1, 1, key=grid.KEY))
    cell = eqx.tree_at(lambda cell: cell.bias, cell, jnp.asarray([-110.0, 0.0, 1.0, 0.0], "float32"))
    ys = eqx.filter_jit(rnnjax.unroll)(cell, None, np.zeros((1, 1), "float32"))[1]
    np.testing.assert_allclose(ys, np.tanh([[1.0]]) / 2, rtol=1e-6)
