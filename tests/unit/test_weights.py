"""Weights of another shape than their cell's are named when a program is traced, before any engine sees them."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import equinox as eqx
import grid
import jax
import numpy as np
import pytest
from messages import instructs

import rnnjax

T, I, H = 5, grid.I, grid.H  # noqa: E741
CELLS: dict[str, Callable[[], rnnjax.AbstractCell]] = {
    **{name: lambda make=make: make(I, "float64") for name, make in grid.CELLS.items()},
    "lstm_with_peepholes": lambda: rnnjax.LSTM(I, H, peepholes=True, learn_initial=True, key=grid.KEY, dtype="float64"),
    "gru_with_biases": lambda: rnnjax.GRU(I, H, key=grid.KEY, dtype="float64"),
    "projected_lstm_with_state": lambda: rnnjax.ProjectedLSTM(
        I, H, projected_size=4, learn_initial=True, key=grid.KEY, dtype="float64"
    ),
    "reset_before_gru_of_heads": lambda: rnnjax.ResetBeforeGRU(I, H, heads=2, key=grid.KEY, dtype="float64"),
    "s5_with_skip": lambda: rnnjax.S5(I, H, learn_initial=True, key=grid.KEY, dtype="float64"),
    "conv_lstm": lambda: rnnjax.ConvLSTM(
        1, H, I, kernel_size=3, stride=2, peepholes=True, learn_initial=True, key=grid.KEY, dtype="float64"
    ),
    "conv_gru": lambda: rnnjax.ConvGRU(1, H, I, kernel_size=3, key=grid.KEY, dtype="float64"),
}


@grid.once
def built(name: str) -> rnnjax.AbstractCell:
    return CELLS[name]()


def leaves(cell: rnnjax.AbstractCell) -> list[tuple[str, Any]]:
    """The arrays of a cell, by the path of each as Python writes it."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(cell)
    return [(jax.tree_util.keystr(path).lstrip("."), leaf) for path, leaf in pairs]


def added(path: str, leaf: Any) -> list[tuple[int, int]]:
    """What is added to the end of each axis."""
    axis = 0 if path == "output_weight" else leaf.ndim - 1
    return [(0, int(each == axis)) for each in range(leaf.ndim)]


def misshapen(cell: rnnjax.AbstractCell, path: str) -> rnnjax.AbstractCell:
    """`cell` with one more column in the array of this path, or one more row in an `output_weight` of any width."""
    arrays = [np.pad(leaf, added(path, leaf)) if each == path else leaf for each, leaf in leaves(cell)]
    return jax.tree.unflatten(jax.tree.structure(cell), arrays)


def traced(cell: Any, state: Any = None, engine: rnnjax.AbstractEngine = rnnjax.Auto()) -> str:  # noqa: B008
    """What tracing a run of the cell says is wrong with a weight."""
    xs = jax.tree.map(lambda x: np.zeros((T, *x.shape), x.dtype), cell.input_type())
    with pytest.raises(ValueError, match=r"^\S+: expected \[") as raised:
        jax.eval_shape(lambda cell: rnnjax.unroll(cell, state, xs, engine=engine), cell)
    return str(raised.value)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("name", CELLS)
def test_a_weight_of_another_shape_is_named(name):
    """Every array of the cell, one after the other."""
    cell = built(name)
    for path, leaf in leaves(cell):
        wrong = misshapen(cell, path)
        given = [size + more for size, (_, more) in zip(leaf.shape, added(path, leaf), strict=True)]
        message = traced(wrong)
        field = path.split(".")[0].split("[")[0]
        if field == "input_weight" and not message.startswith("input_weight"):
            assert f"with input_weight {given}" in message  # of one gate: it is the others that do not fit it
        else:
            assert message.startswith((f"{field}: expected {list(leaf.shape)}", f"{path}: expected {list(leaf.shape)}"))
            assert message.split(". ")[0].endswith(f"got {given}")
        assert instructs(message)


LSTM_SHAPES = "expected [8, 32] for LSTM with input_weight [3, 32], got"


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("engine", [rnnjax.Scan(), rnnjax.Fused(), rnnjax.Newton()], ids=lambda engine: str(engine)[:4])
def test_no_engine_comes_first(engine):
    cell = built("lstm")
    three_gates = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, cell.recurrent_weight[:, : 3 * H])
    assert traced(three_gates, engine=engine).startswith(f"recurrent_weight: {LSTM_SHAPES} [8, 24].")


@pytest.mark.usefixtures("annotations_unchecked")
def test_neither_the_inputs_nor_the_state_are_blamed():
    cell = built("lstm")
    of_torch = eqx.tree_at(
        lambda cell: (cell.input_weight, cell.recurrent_weight), cell, (cell.input_weight.T, cell.recurrent_weight.T)
    )
    xs = np.zeros((T, I))
    for network in (of_torch, rnnjax.Reversed(of_torch)):
        with pytest.raises(ValueError, match=r"^input_weight: expected \[32, 4\] for LSTM, got \[32, 3\]\."):
            rnnjax.unroll(network, None, xs)
    wide = eqx.tree_at(lambda cell: cell.input_weight, cell, np.zeros((I, 36)))
    assert "with input_weight [3, 36]" in traced(wide, cell.initial())


def test_an_own_cell_is_held_to_its_family():
    class Own(rnnjax.AbstractGatedCell):
        gates = "n"
        input_weight: Any
        recurrent_weight: Any
        bias: Any
        initial_state: Any
        slopes: Any

        @property
        def unit_parameters(self):
            return self.slopes

        def pointwise(self, parameters, u, v, state):
            del state
            return rnnjax.Hidden(parameters * (u[0] + v[0]))

    def own(units: int) -> Own:
        return Own(np.zeros((I, H)), np.zeros((H, H)), None, None, np.zeros(units))

    assert jax.eval_shape(lambda: rnnjax.unroll(own(H), None, np.zeros((T, I))))[1].shape == (T, H)
    assert traced(own(H + 1)).startswith("slopes: expected [8] for Own with input_weight [3, 8], got [9]. ")


def test_every_array_has_a_shape():
    """A cell that does not say one of its shapes is not held to it."""
    for name in CELLS:
        cell = built(name)
        said = set(cell.weight_shapes)
        assert all(said & {path, path.split(".")[0].split("[")[0]} for path, _ in leaves(cell)), name
        assert all(attrgetter(path)(cell) is None or path.split(".")[0] in vars(cell) for path in said)
