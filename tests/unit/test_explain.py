"""`explain`: the engine, the kernel and the reasons for every cell of a network, found without running it."""

import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel import needs_kernel

import rnnjax
from rnnjax import Auto, Fused, Scan, Stack, explain
from rnnjax.engines import Plan, Refusal

H, T = 32, 40  # from 32 steps and 16 units on, `Auto` takes `Fused`
NOT_LINEAR = "Associative cannot run {}: it needs an AbstractLinearCell. Use Scan()."
NOT_GATED = "Fused cannot run {}: it needs an AbstractGatedCell. Use Scan()."
NOT_MATRIX = "Chunked cannot run {}: it needs an AbstractMatrixCell. Use Scan()."


def cell(kind, inputs=H):
    return kind(inputs, H, key=grid.KEY)


def steps(inputs=H, count=T):
    return jax.ShapeDtypeStruct((count, inputs), "float32")


def places(explanation):
    return [(planned.path, planned.name, str(planned.plan).partition(":")[0]) for planned in explanation.cells]


class Own(rnnjax.AbstractNetwork):
    """A user's network: two cells by name, the same cell twice, and one in a dict."""

    by_name: dict
    shared: rnnjax.AbstractCell

    def input_type(self):
        return self.shared.input_type()

    def initial(self):
        return self.shared.initial(), {name: part.initial() for name, part in self.by_name.items()}, ()

    def run(self, state, xs, options):
        first, ys = rnnjax.unroll(self.shared, state[0], xs, **options._asdict())
        last = {}
        for name, part in self.by_name.items():
            last[name], ys = rnnjax.unroll(part, state[1][name], ys, **options._asdict())
        _, ys = rnnjax.unroll(self.shared, None, ys, **options._asdict())
        return (first, last, ()), ys


@needs_kernel
def test_every_cell_of_a_network_has_its_path_its_engine_and_the_reasons():
    both = rnnjax.Bidirectional(cell(rnnjax.LSTM), cell(rnnjax.MinGRU))
    network = Stack([both, rnnjax.TimeDistributed(lambda x: x[:H], 2 * H), rnnjax.residual(cell(rnnjax.IndRNN))])
    found = explain(network, steps())
    assert places(found) == [
        ("layers[0].forward", "LSTM", "Fused"),
        ("layers[0].backward", "MinGRU", "Associative"),
        ("layers[2].layer", "IndRNN", "Scan"),
    ]
    assert str(found) == repr(found)
    assert str(found).splitlines() == [
        "layers[0].forward, LSTM",
        f"    {Fused().plan(both.forward, steps())}",
        f"    {NOT_LINEAR.format('LSTM')}",
        "layers[0].backward, MinGRU",
        f"    {rnnjax.Associative().plan(both.backward, steps())}",
        "layers[2].layer, IndRNN",
        "    Scan: step by step",
        f"    {NOT_LINEAR.format('IndRNN')}",
        f"    {NOT_GATED.format('IndRNN')}",
        f"    {NOT_MATRIX.format('IndRNN')}",
    ]


def test_equal_cells_are_told_apart():
    """A program that is compiled for the first one would serve the others, too."""
    found = explain(Stack([cell(rnnjax.GRU), cell(rnnjax.GRU), Stack([cell(rnnjax.GRU)])]), steps())
    assert [planned.path for planned in found.cells] == ["layers[0]", "layers[1]", "layers[2].layers[0]"]
    assert found == explain(Stack([cell(rnnjax.GRU), cell(rnnjax.GRU), Stack([cell(rnnjax.GRU)])]), steps())


@needs_kernel
def test_a_network_of_ones_own():
    network = Own({"a": cell(rnnjax.GRU), "b": rnnjax.RGLRU(H, key=grid.KEY)}, cell(rnnjax.LSTM))
    assert places(explain(network, steps())) == [
        ("shared", "LSTM", "Fused"),
        ("by_name['a']", "GRU", "Fused"),
        ("by_name['b']", "LinearRecurrence", "Associative"),  # a cell that the network makes
    ]


@needs_kernel
def test_a_cell_a_function_and_a_regulariser():
    gru = cell(rnnjax.GRU)
    assert places(explain(gru, steps())) == [("", "GRU", "Fused")]
    assert str(explain(gru, steps())).startswith("GRU\n    Fused: CPU kernel, a program of ")
    accumulate = lambda total, x: (total + x, total)  # noqa: E731
    found = explain(accumulate, steps(), state=jnp.zeros(H, jnp.float32))
    assert places(found) == [("", "<lambda>", "Scan")]
    zoneout = rnnjax.regularise.Zoneout(gru, 0.1)
    assert places(explain(Stack([zoneout]), steps())) == [("layers[0]", "Zoneout of GRU", "Scan")]


@pytest.mark.parametrize("xs", [steps(), steps(count=T + 1)])
@pytest.mark.parametrize("engine", [Auto(), Scan(), rnnjax.Checkpointed(), Fused(cuda=rnnjax.kernels.GPU())])
def test_the_plans_are_those_of_the_engine(engine, xs):
    gru = cell(rnnjax.GRU)
    (planned,) = explain(gru, xs, engine).cells
    assert explain(gru, grid.place(np.zeros(xs.shape, xs.dtype)), engine).cells == (planned,)
    assert isinstance(planned.plan, Plan)
    assert planned.plan == engine.plan(gru, xs)


def test_experimental_kernels_are_called_so():
    engine = Fused(cuda=rnnjax.kernels.GPU(), tpu=rnnjax.kernels.TPU())
    assert str(explain(cell(rnnjax.GRU), steps(), engine)).count("(experimental: no device has measured it)") == 2


def test_a_refusal_is_an_answer_and_the_other_cells_are_explained():
    found = explain(Stack([cell(rnnjax.GRU), cell(rnnjax.MinGRU)]), steps(), rnnjax.Associative())
    assert found.cells[0].plan == Refusal(NOT_LINEAR.format("GRU"))
    assert places(found)[1] == ("layers[1]", "MinGRU", "Associative")


def test_nothing_is_run():
    """Not even of arrays."""

    def step(state, x):
        assert isinstance(x, jax.core.Tracer)
        return state, x

    explain(step, jnp.zeros((T, 3)), state=jnp.zeros(()))


@needs_kernel
def test_auto_does_not_look_for_devices_whose_kernels_it_does_not_run(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", None)
    assert places(explain(Stack([cell(rnnjax.LSTM), cell(rnnjax.LRU)]), steps()))[0][2] == "Fused"


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("call", "kind", "fragments"),
    [
        (
            lambda: explain(cell(rnnjax.GRU), steps(3)),
            ValueError,
            ["xs", "[T, 32] for GRU", "the feature sizes differ"],
        ),
        (lambda: explain(cell(rnnjax.GRU), [[0.0] * H]), TypeError, ["xs", "array [T, ...]", "float"]),
        (lambda: explain(cell(rnnjax.GRU), None), TypeError, ["xs", "array [T, ...]", "None"]),
        (lambda: explain(cell(rnnjax.GRU), steps(count=0)), ValueError, ["xs", "at least one step", "longer sequence"]),
        (lambda: explain(cell(rnnjax.GRU), steps(), Scan), TypeError, ["engine", "Write Scan()"]),
        (lambda: explain(rnnjax.GRU, steps()), TypeError, ["cell", "Write GRU(...)"]),
        (lambda: explain(lambda state, x: (state, x), steps()), ValueError, ["state", "is a function"]),
        (lambda: explain(cell(rnnjax.GRU), steps(), state=jnp.zeros(3)), ValueError, ["state", "expected", "GRU"]),
    ],
)
def test_bad_input_is_answered_as_by_unroll(call, kind, fragments):
    grid.assert_error(call, kind, fragments)


def test_decays_above_one_are_warned_of_where_they_are_known():
    recurrence = rnnjax.cells.MatrixRecurrence(2, 3, 4, scalar_decay=True)
    xs = jax.tree.map(lambda leaf: np.full((5, *leaf.shape), -1.0, leaf.dtype), recurrence.input_type())
    assert "decays" not in str(explain(recurrence, xs))
    xs.decay[1:3, 0] = -1.25
    expected = "2 of 10 decays are above 1 in modulus, the largest 1.25: the state may overflow"
    assert expected in str(explain(recurrence, xs))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), xs)
    assert "decays" not in str(explain(recurrence, abstract))
    found: list[str] = []
    jax.eval_shape(lambda xs: found.append(str(explain(recurrence, xs))), xs)
    assert "decays" not in found[0]
