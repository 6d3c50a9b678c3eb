"""Masks, lengths and names of nodes in files of ONNX: what is read is the padding, anything else is refused."""

from typing import Any

import numpy as np
import pytest

from rnnjax import LSTM, Stack
from rnnjax.convert import from_onnx

onnx = pytest.importorskip("onnx")

I, H = 3, 4  # noqa: E741


def model(text: str, outputs: str = "float[T, B, H] Y", opset: int = 17) -> Any:
    """A graph in ONNX's own notation; its nodes have no names. W0 and R0 are those of an LSTM, W1 of one above it."""
    generator = np.random.default_rng(0)
    shapes = {"W0": (1, 4 * H, I), "W1": (1, 4 * H, H), "R": (1, 4 * H, H)}
    held = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    held |= {
        "zero": np.zeros((), np.float32),
        "two": np.full((), 2, np.float32),
        "rows": np.zeros((3, 1, 1), np.float32),
    }
    held |= {"i0": np.array(0), "i1": np.array(1), "a0": np.array([0]), "a1": np.array([1]), "a2": np.array([2])}
    held |= {"a02": np.array([0, 2]), "a12": np.array([1, 2])}
    inputs = f"float[T, B, {I}] X, float[T, B, {I}] other, int32[B] lengths, bool[T, B, 1] given"
    graph = onnx.parser.parse_graph(f"g ({inputs}) => ({outputs}) {{ {text} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def lstm(xs: str = "X", ys: str = "Y", lengths: str = "lengths", number: int = 0) -> str:
    return f"{ys}_, {ys}_h = LSTM<hidden_size = {H}>({xs}, W{number}, R, , {lengths}) {ys} = Squeeze({ys}_, a1)"


SIZE = "shape = Shape(X) size = Gather(shape, i0)"
TIMES = "times = Range(i0, size, i1) t = Unsqueeze(times, a12)"
ENDS = "ends = Cast<to = 7>(lengths) n = Unsqueeze(ends, a02)"
OTHER_ENDS = "ends = Cast<to = 7>(lengths) less = Sub(ends, i1)"
MASK = f"{SIZE} {TIMES} {ENDS} m = Less(t, n)"
PUT_OUT = f"{lstm(ys='ys')} Y = Where(m, ys, zero)"
COUNT = f"{SIZE} {TIMES} {ENDS}"
TAKEN_IN = f"xs = Where(m, X, two) {lstm('xs')}"

READ = {
    "inputs": f"{MASK} {TAKEN_IN}",
    "outputs": f"{MASK} {PUT_OUT}",
    "greater": f"{COUNT} m = Greater(n, t) {TAKEN_IN}",
    "batch_first": f"{SIZE} times = Range(i0, size, i1) {ENDS} n0 = Squeeze(n, a02) n1 = Unsqueeze(n0, a1) "
    f"m0 = Less(times, n1) m1 = Unsqueeze(m0, a2) m = Transpose<perm = [1, 0, 2]>(m1) {TAKEN_IN}",
    "within": f"{SIZE} {TIMES} ends = Cast<to = 7>(lengths) e0 = Max(ends, i0) e1 = Min(e0, size) "
    f"n = Unsqueeze(e1, a02) m = Less(t, n) kept = Max(e1, i1) kept32 = Cast<to = 6>(kept) "
    f"xs = Where(m, X, two) {lstm('xs', 'Y', 'kept32')}",
}  # fmt: skip

REFUSED = {
    "given_mask": (f"m = Not(given) {TAKEN_IN}", "masks"),
    "given_mask_of_outputs": (f"m = Not(given) {PUT_OUT}", "masks"),
    "given_as_it_is": (f"xs = Where(given, X, two) {lstm('xs')}", "masks"),
    "other_values": (f"{MASK} xs = Where(m, X, other) {lstm('xs')}", "masks"),
    "values_of_steps": (f"{MASK} xs = Where(m, X, rows) {lstm('xs')}", "masks"),
    "padding_kept": (f"{MASK} xs = Where(m, two, X) {lstm('xs')}", "masks"),
    "outputs_of_two": (f"{MASK} {lstm(ys='ys')} Y = Where(m, ys, two)", "masks"),
    "from_the_end_on": (f"{COUNT} m = Less(n, t) {TAKEN_IN}", "masks"),
    "and_one_more": (f"{COUNT} m = LessOrEqual(t, n) {TAKEN_IN}", "masks"),
    "one_less": (f"{SIZE} {TIMES} {OTHER_ENDS} n = Unsqueeze(less, a02) m = Less(t, n) {TAKEN_IN}", "masks"),
    "at_least_one": (
        f"{COUNT} e = Max(ends, i1) e_ = Unsqueeze(e, a02) m = Less(t, e_) {TAKEN_IN}",
        "masks",
    ),
    "from_one_on": (
        f"{SIZE} times = Range(i1, size, i1) t = Unsqueeze(times, a12) {ENDS} m = Less(t, n) {TAKEN_IN}",
        "masks",
    ),
    "sizes_of_the_batch": (
        f"shape = Shape(X) size = Gather(shape, i1) {TIMES} {ENDS} m = Less(t, n) {TAKEN_IN}",
        "masks",
    ),
    "along_the_batch": (
        f"{SIZE} times = Range(i0, size, i1) t = Unsqueeze(times, a02) ends = Cast<to = 7>(lengths) "
        f"n = Unsqueeze(ends, a12) m = Less(t, n) {TAKEN_IN}",
        "masks",
    ),
    "bound_by_the_batch": (
        f"{SIZE} {TIMES} ends = Cast<to = 7>(lengths) batch = Gather(shape, i1) e = Min(ends, batch) "
        f"n = Unsqueeze(e, a02) m = Less(t, n) {TAKEN_IN}",
        "masks",
    ),
    "truth_of_lengths": (
        f"{SIZE} {TIMES} truth = Cast<to = 9>(lengths) ends = Cast<to = 7>(truth) n = Unsqueeze(ends, a02) "
        f"m = Less(t, n) {TAKEN_IN}",
        "masks",
    ),
    "without_lengths": (f"{MASK} xs = Where(m, X, two) {lstm('xs', lengths='')}", "follow from sequence_lens"),
    "computed_lengths": (f"less = Sub(lengths, lengths) {lstm(lengths='less')}", "sequence_lens"),
    "bounded_lengths": (
        f"shape = Shape(X) batch = Gather(shape, i1) b = Cast<to = 6>(batch) less = Min(lengths, b) "
        f"{lstm(lengths='less')}",
        "sequence_lens",
    ),
    "twice": (f"{lstm(ys='Y')} {lstm('Y', 'Y', number=1)}", "name of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_mask_of_padding_is_read_as_the_lengths(name):
    network, state, lengths = from_onnx(model(READ[name]))
    assert (type(network), state, lengths) == (LSTM, None, None)


@pytest.mark.parametrize("name", REFUSED)
def test_another_mask_is_refused(name):
    text, words = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^model: expected .*{words}.*\. (Drop|Make|Check) "):
        from_onnx(model(text))


@pytest.mark.parametrize("label", ["", "lstm"])
def test_nodes_need_no_names_of_their_own(label):
    """Recurrent nodes of one name, or of none, are told apart."""

    def named(text: str, outputs: str = "float[T, B, H] Y") -> Any:
        made = model(text, outputs)
        for node in made.graph.node:
            node.name = label
        return made

    two = f"{lstm(ys='ys')} {lstm('ys', number=1)}"
    network: Any = from_onnx(named(two, "float[T, B, H] Y, float[D, B, H] Y_h")).network
    assert isinstance(network, Stack)
    assert [type(layer) for layer in network.layers] == [LSTM, LSTM]
    assert [layer.input_weight.shape[0] for layer in network.layers] == [I, H]
    with pytest.raises(ValueError, match="one and the same sequence_lens"):
        from_onnx(named(f"{lstm(ys='ys', lengths='')} {lstm('ys', number=1)}"))
    with pytest.raises(ValueError, match="outputs of one network"):  # the state of a layer that is not put out
        from_onnx(named(two, "float[T, B, H] ys, float[D, B, H] Y_h"))
