"""Frames over time: layers of Equinox at each of them, and the recurrences whose products are convolutions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import by_gate, float64, sigmoid

import rnnjax
from rnnjax import unroll
from rnnjax.cells.convolutional import convolve

F32, F64 = jnp.float32, jnp.float64


@grid.once
def key() -> jax.Array:
    return jax.random.key(3)


def videos(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def shaken(tree: Any) -> Any:
    """`tree` with random numbers added to all of its weights, zeros included."""
    generator = np.random.default_rng(2)
    noise = lambda leaf: (leaf + 0.3 * generator.standard_normal(leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(lambda leaf: noise(np.asarray(leaf)) if eqx.is_array(leaf) else leaf, tree)


def layer(make: Callable[..., Any], *sizes: int, **options: Any) -> Any:
    """A layer of Equinox with random weights, which compiles nothing."""
    form = eqx.filter_eval_shape(lambda: make(*sizes, key=key(), **options))
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf  # noqa: E731
    return shaken(jax.tree.map(zeros, form))


# Layers at every frame


def test_a_convolution_of_equinox_sees_each_frame_alone():
    convolution = layer(eqx.nn.Conv2d, 2, 3, kernel_size=3, padding=1, dtype=F64)
    xs = videos(4, 2, 5, 4)
    network = rnnjax.TimeDistributed(convolution, (2, 5, 4), dtype=F64)
    (last, ys), expected = jax.jit(lambda xs: (unroll(network, None, xs), [convolution(x) for x in xs]))(xs)
    assert last == ()
    np.testing.assert_allclose(ys, np.stack(expected), rtol=0, atol=1e-12)


def test_what_sees_a_scalar_gets_one_at_every_step():
    words = np.asarray([2, 0, 1])
    table = layer(eqx.nn.Embedding, 3, 5)
    _, ys = jax.jit(unroll)(rnnjax.TimeDistributed(table, (), dtype=words.dtype), None, words)
    np.testing.assert_array_equal(ys, table.weight[words])


def test_a_network_over_frames_ignores_their_padding():
    """Local context by a convolution, recurrence over what it saw, and NaN in ignored frames reaches no gradient."""
    network = rnnjax.Stack(
        [
            rnnjax.TimeDistributed(layer(eqx.nn.Conv2d, 1, 2, 3, stride=2, dtype=F64), (1, 5, 5), dtype=F64),
            rnnjax.TimeDistributed(jnp.ravel, (2, 2, 2), dtype=F64),
            rnnjax.GRU(8, 3, key=key(), dtype=F64),
        ]
    )
    xs, spoiled = videos(7, 1, 5, 5), videos(7, 1, 5, 5)
    spoiled[4:] = np.nan

    @eqx.filter_grad
    def slope(network: rnnjax.Stack, xs: jax.Array, length: jax.Array | None = None) -> jax.Array:
        last, ys = unroll(network, None, xs, length=length)
        return grid.contract((last, ys[:4]))

    both = eqx.filter_jit(lambda network, spoiled, xs, length: (slope(network, spoiled, length), slope(network, xs)))
    grid.assert_close(*both(network, spoiled, xs[:4], np.asarray(4)))


# Convolutional cells


class Axis(NamedTuple):
    """An axis of space as a convolution sees it."""

    size: int  # of the output
    stride: int
    dilation: int
    before: int  # zeros in front of the frame

    def at(self, position: int, entry: int) -> int:
        """Where in the frame the entry of a kernel lies."""
        return self.stride * position + self.dilation * entry - self.before


def axes(geometry: Any, kernel: Sequence[int]) -> list[Axis]:
    """Those of the input convolution."""
    made = []
    each = zip(geometry.space, kernel, geometry.stride, geometry.dilation, strict=True)
    for number, (size, entries, stride, dilation) in enumerate(each):
        reach = dilation * (entries - 1)
        if geometry.padding is None:
            positions = int(np.ceil(size / stride))
            made.append(Axis(positions, stride, dilation, max(stride * (positions - 1) + reach + 1 - size, 0) // 2))
        else:
            starts = range(0, size + 2 * geometry.padding[number] - reach, stride)
            made.append(Axis(len(starts), stride, dilation, geometry.padding[number]))
    return made


def convolved(weight: np.ndarray, frame: np.ndarray, gate: int, axes: Sequence[Axis]) -> np.ndarray:
    """One gate's convolution, position by position and kernel entry by kernel entry."""
    *kernel, _, _, units = weight.shape
    y = np.zeros((units, *(axis.size for axis in axes)))
    for position in np.ndindex(*y.shape[1:]):
        for entry in np.ndindex(*kernel):
            at = tuple(axis.at(p, k) for axis, p, k in zip(axes, position, entry, strict=True))
            if all(0 <= a < size for a, size in zip(at, frame.shape[1:], strict=True)):
                y[:, *position] += frame[:, *at] @ weight[entry][:, gate]
    return y


def equations(cell: Any, state: Any, xs: Any) -> tuple[Any, np.ndarray]:
    """The last state and the outputs, in NumPy."""
    W, R, b = (by_gate(leaf, len(cell.gates)) for leaf in (cell.input_weight, cell.recurrent_weight, cell.bias))
    wide = lambda vector: vector.reshape(-1, *(1 for _ in cell.space))  # noqa: E731
    kernel, ys = cell.input_weight.shape[:-2], []
    inward = axes(cell.geometry, kernel)
    around = [
        Axis(axis.size, 1, dilation, dilation * (entries // 2))
        for axis, entries, dilation in zip(inward, kernel, cell.geometry.recurrent_dilation, strict=True)
    ]
    for x in float64(xs):
        h = float64(state[0])
        u = [convolved(W, x, gate, inward) + wide(b[gate]) for gate in range(W.shape[-2])]
        v = [convolved(R, h, gate, around) for gate in range(W.shape[-2])]
        if isinstance(cell, rnnjax.ConvLSTM):
            (p_i, (p_f,), p_o), c = jax.tree.map(float64, cell.peepholes or (0.0, (0.0,), 0.0)), float64(state[1])
            i, f = sigmoid(u[0] + v[0] + p_i * c), sigmoid(u[1] + v[1] + p_f * c)
            c = f * c + i * np.tanh(u[2] + v[2])
            state = sigmoid(u[3] + v[3] + p_o * c) * np.tanh(c), c
        else:
            r, z = sigmoid(u[0] + v[0]), sigmoid(u[1] + v[1])
            n = np.tanh(u[2] + r * (v[2] + wide(float64(cell.candidate_bias))))
            state = ((1.0 - z) * n + z * h,)
        ys.append(state[0])
    return state, np.stack(ys)


@pytest.mark.parametrize(
    ("cell", "space", "options"),
    [
        (rnnjax.ConvLSTM, (4, 5), {"kernel_size": 3, "peepholes": True}),
        (rnnjax.ConvLSTM, 6, {"kernel_size": 5}),
        (rnnjax.ConvGRU, (5, 4), {"kernel_size": (3, 1)}),
        (rnnjax.ConvGRU, (2, 3, 3), {"kernel_size": (1, 3, 3)}),
        (rnnjax.ConvLSTM, (5, 6), {"kernel_size": 3, "padding": 0, "stride": (1, 2), "peepholes": True}),
        (rnnjax.ConvLSTM, (6, 7), {"kernel_size": (3, 5), "stride": 2, "dilation": (2, 1)}),
        (rnnjax.ConvGRU, 9, {"kernel_size": 3, "padding": 1, "dilation": 2, "recurrent_dilation": 3}),
    ],
)
def test_values_are_those_of_loops_over_positions(cell, space, options):
    cell = shaken(cell(2, 3, space, key=key(), learn_initial=True, dtype=F64, **options))
    xs = videos(3, 2, *cell.space)
    last, ys = equations(cell, cell.initial_state, xs)
    grid.assert_close(jax.jit(unroll)(cell, None, xs), (type(cell.initial_state)(*last), ys))


def on_a_pixel(cell: Any) -> Any:
    """The convolutional cell of a frame of one position that has the weights of a cell of vectors."""
    inputs, units = len(cell.input_weight), cell.hidden_size
    W, R = cell.input_weight[None, None], cell.recurrent_weight[None, None]
    spread = partial(jax.tree.map, lambda vector: vector[:, None, None])
    options = {"bias": cell.bias, "input_weight": W, "recurrent_weight": R, "initial_state": spread(cell.initial_state)}
    if isinstance(cell, rnnjax.LSTM):
        made = rnnjax.ConvLSTM(inputs, units, (1, 1), kernel_size=1, peepholes=True, learn_initial=True, key=key())
        options["peepholes"] = spread(cell.peepholes)
    else:
        made = rnnjax.ConvGRU(inputs, units, (1, 1), kernel_size=1, learn_initial=True, key=key())
        options["candidate_bias"] = cell.candidate_bias
    return eqx.tree_at(lambda made: [getattr(made, name) for name in options], made, list(options.values()))


@pytest.mark.parametrize("make", [partial(rnnjax.LSTM, peepholes=True), rnnjax.GRU])
def test_on_a_frame_of_one_pixel_they_are_the_cells_of_vectors(make):
    """In value and in gradient, of the same weights."""
    cell, xs = shaken(make(3, 4, key=key(), learn_initial=True, dtype=F64)), videos(6, 3)

    def answer(cell: Any, xs: jax.Array, convolutional: bool) -> Any:
        part, frames = (on_a_pixel(cell), xs[..., None, None]) if convolutional else (cell, xs)
        last, ys = jax.tree.map(jnp.ravel, unroll(part, None, frames, engine=rnnjax.Scan()))
        return grid.contract((last, ys)), ys

    slope = jax.value_and_grad(answer, (0, 1), has_aux=True)
    got, expected = jax.jit(lambda cell, xs: (slope(cell, xs, True), slope(cell, xs, False)))(cell, xs)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("part", "view"),
    [pytest.param("conv_lstm", "vmap_of_grad", marks=pytest.mark.slow), ("conv_gru", "weights_vmapped")],
)
def test_checkpointed_is_scan_on_frames(part, view):
    run = lambda engine, built: grid.VIEWS[view](partial(unroll, engine=engine), built)  # noqa: E731
    both = eqx.filter_jit(
        lambda built: [run(engine, built) for engine in (rnnjax.Checkpointed(segment=3), rnnjax.Scan())]
    )
    grid.assert_close(*both(grid.build(part)))


def test_newton_solves_for_frames():
    cell, xs = rnnjax.ConvGRU(1, 2, 4, kernel_size=3, key=key(), dtype=F64), videos(6, 1, 4)
    both = jax.jit(lambda cell: [unroll(cell, None, xs, engine=engine) for engine in (rnnjax.Newton(), rnnjax.Scan())])
    grid.assert_close(*both(cell))


def test_fused_says_why_not_and_auto_scans():
    cell, xs = rnnjax.ConvLSTM(1, 2, (4, 4), kernel_size=3, key=key()), jax.ShapeDtypeStruct((5, 1, 4, 4), F32)
    assert "AbstractGatedCell" in str(grid.refusal(rnnjax.Fused(), cell, xs))
    assert str(rnnjax.Auto().plan(cell, xs)) == "Scan: step by step"


def test_weights_are_drawn_gate_by_gate():
    cell = rnnjax.ConvLSTM(2, 6, (4, 4), kernel_size=(3, 5), peepholes=True, key=key(), dtype=F64)
    assert cell.input_weight.shape == (3, 5, 2, 4 * 6)
    blocks = np.moveaxis(np.asarray(cell.recurrent_weight).reshape(3 * 5 * 6, 4, 6), 1, 0)
    np.testing.assert_allclose(np.linalg.svd(blocks, compute_uv=False), 1.0, atol=1e-12)
    assert len({block[:2].tobytes() for block in blocks}) == 4
    bound = np.sqrt(6 / (3 * 5 * 2 + 6))
    assert 0.9 * bound < np.abs(cell.input_weight).max() <= bound
    np.testing.assert_array_equal(cell.bias, np.repeat([0, 1, 0, 0], 6))
    assert {leaf.shape for leaf in jax.tree.leaves(cell.peepholes)} == {(6, 4, 4)}
    assert rnnjax.ConvGRU(2, 6, 4, kernel_size=3, bias=False, key=key()).candidate_bias is None


@pytest.mark.parametrize(("cell", "dtype"), [(rnnjax.ConvLSTM, "bfloat16"), (rnnjax.ConvGRU, "float16")])
def test_narrow_weights_give_narrow_frames_and_a_wide_state(cell, dtype):
    narrow = cell(2, 3, (4, 4), kernel_size=3, key=key(), dtype=dtype), videos(5, 2, 4, 4).astype(jnp.dtype(dtype))

    @partial(jax.grad, has_aux=True)
    def slope(arguments: Any) -> Any:
        cell, xs = arguments
        last, ys = unroll(cell, None, xs)
        return grid.contract((last, ys)), (last, ys)

    got, expected = jax.jit(lambda *both: list(map(slope, both)))(narrow, jax.tree.map(grid.widen, narrow))
    gradient, (last, ys) = got
    assert {leaf.dtype.name for leaf in (*jax.tree.leaves(gradient), ys)} == {dtype}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(last)} == {"float32"}
    grid.assert_close(got, expected, dtype)


def test_what_is_seen_is_summed_in_the_dtype_of_the_state():
    """A sum of 261 ones, which bfloat16 cannot hold."""
    ones = np.ones((3, 3, 29, 1), jnp.bfloat16)
    assert (
        np.asarray(jax.jit(convolve, static_argnums=2)(ones, np.ones((29, 3, 3), np.float32), (1, 1)))[0, 1, 1] == 261
    )


def make(space: Any, **options: Any) -> rnnjax.ConvLSTM:
    return rnnjax.ConvLSTM(2, 3, space, **{"kernel_size": 3, "key": key()} | options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (partial(make, (4, 4), kernel_size=2), ValueError, ["kernel_size", "odd", "got 2"]),
        (partial(make, (4, 4), kernel_size=(3,)), ValueError, ["kernel_size", "space=(4, 4)", "(3,)"]),
        (partial(make, (4, 4), kernel_size=3.0), ValueError, ["kernel_size", "positive integer", "3.0"]),
        (partial(make, (4, 0)), ValueError, ["space", "positive", "(4, 0)"]),
        (partial(make, (4, 4), stride=0), ValueError, ["stride", "positive integer", "got 0"]),
        (partial(make, (4, 4), stride=(1, 2, 1)), ValueError, ["stride", "space=(4, 4)", "(1, 2, 1)"]),
        (partial(make, (4, 4), dilation=1.5), ValueError, ["dilation", "positive integer", "1.5"]),
        (partial(make, (4, 4), recurrent_dilation=(2,)), ValueError, ["recurrent_dilation", "space=(4, 4)", "(2,)"]),
        (partial(make, (4, 4), padding=-1), ValueError, ["padding", "non-negative integer", "-1"]),
        (partial(make, (4, 4), padding="valid"), TypeError, ["padding", "number of zeros", "got 'valid'", "pass 0"]),
        (partial(make, (2, 4), padding=0), ValueError, ["kernel_size", "(2, 4)", "got (3, 3)", "Reduce"]),
        (partial(make, 8, padding=0, dilation=4), ValueError, ["kernel_size", "(8,)", "spans (9,)", "dilation"]),
        (partial(make, ()), ValueError, ["space", "one axis", "LSTM"]),
        (lambda: rnnjax.ConvGRU(0, 3, 4, kernel_size=3, key=key()), ValueError, ["input_channels", "0"]),
        (partial(make, 4, dtype=jnp.int32), TypeError, ["dtype", "int32"]),
        (
            lambda: unroll(make((4, 4)), None, np.zeros((7, 2, 4, 5))),
            ValueError,
            ["xs", "[T, 2, 4, 4]", "[7, 2, 4, 5]"],
        ),
        (lambda: unroll(make((4, 4)), None, np.zeros((9, 7, 2, 4, 4))), ValueError, ["xs", "batch", "jax.vmap"]),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), str(raised.value)
