"""`rnnjax.prepare`: a prepared cell is the cell whose weights are those that are stored, rounded or not."""

import itertools
import re
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import prepared_shapes
import pytest
from jaxtyping import PyTree
from prepared_shapes import STORED, with_rounded_weights

import rnnjax
from rnnjax.kernels import CPU, InstructionSet
from rnnjax.kernels.native import library
from rnnjax.kernels.recurrence.prepared.cell import PreparedCell

B, T = 5, 7
ONE = np.ones((1, 3), np.float32)
CELLS = {
    "lstm": lambda **o: rnnjax.LSTM(3, 37, key=grid.KEY, peepholes=True, learn_initial=True, **o),
    "gru": lambda **o: rnnjax.GRU(5, 16, key=grid.KEY, **o),
    "elman": lambda **o: rnnjax.Elman(2, 9, key=grid.KEY, **o),
    "heads": lambda **o: rnnjax.LSTM(4, 38, key=grid.KEY, heads=2, bias=False, **o),
}


def drawn(cell: Any) -> Any:
    """The cell with weights, biases and all else drawn at random."""
    generator = np.random.default_rng(0)
    arrays, static = eqx.partition(cell, eqx.is_inexact_array)
    return eqx.combine(
        jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape) / 3, leaf.dtype), arrays), static
    )


class Batch(NamedTuple):
    """Sequences with lengths of all kinds, resets, and NaN: in padding, and before a reset."""

    xs: np.ndarray
    length: np.ndarray
    resets: np.ndarray


def batch(cell: Any) -> Batch:
    generator = np.random.default_rng(1)
    xs = generator.normal(size=(B, T, cell.input_weight.shape[0])).astype(cell.dtype)
    length, resets = np.asarray([0, T, 3, 1, 6]), generator.random((B, T)) < 0.3
    xs[2, 3:], xs[4, 1], resets[4, 2:4] = np.nan, np.nan, [True, False]
    return Batch(xs, length, resets)


@partial(jax.jit, static_argnums=2)
def run(cell: Any, batch: Batch, engine: rnnjax.AbstractEngine) -> PyTree:
    """With marks, and without: the first sequences alone, which have no NaN."""

    def marked(xs: Any, length: Any, resets: Any) -> PyTree:
        return rnnjax.unroll(cell, None, xs, length=length, resets=resets, engine=engine)

    plain = jax.vmap(lambda xs: rnnjax.unroll(cell, None, xs, engine=engine))(batch.xs[:2])
    return jax.vmap(marked)(*batch), plain, rnnjax.unroll(cell, None, batch.xs[0], reverse=True, engine=engine)


def alike(got: PyTree, expected: PyTree, bar: float) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=bar, atol=bar), got, expected)


QUICK = ("lstm", "int8"), ("gru", "bfloat16"), ("heads", None)
PAIRS = [
    pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow]) for pair in itertools.product(CELLS, STORED)
]


@pytest.mark.parametrize(("name", "stored"), PAIRS)
def test_it_is_the_cell_with_the_weights_that_are_stored(name, stored):
    """By the kernel and, step by step, in plain JAX: lengths, resets, a batch, the direction and NaN included."""
    cell = drawn(CELLS[name](dtype="float64"))
    prepared = rnnjax.prepare(cell, STORED[stored])
    assert prepared.weights.R.dtype == (stored or "float64")
    given = batch(cell)
    expected = run(with_rounded_weights(cell, stored), given, rnnjax.Scan())
    alike(run(prepared, given, rnnjax.Auto()), expected, 1e-12)
    alike(run(prepared, given, rnnjax.Scan()), expected, 1e-12)


@pytest.mark.parametrize("instruction_set", InstructionSet)
@pytest.mark.parametrize(
    "stored", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in (None, "bfloat16"))]
)
def test_float32_by_every_instruction_set(stored, instruction_set):
    cell = drawn(CELLS["lstm"](dtype="float32"))
    engine, given = rnnjax.Fused(cpu=CPU(instruction_set)), batch(cell)
    assert isinstance(engine.plan(rnnjax.prepare(cell), jnp.asarray(given.xs[0])), rnnjax.engines.Plan)
    got = run(rnnjax.prepare(cell, STORED[stored]), given, engine)
    alike(got, run(with_rounded_weights(cell, stored), given, rnnjax.Scan()), 3e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_cells(dtype):
    """Sums and activations are float32, whatever the cell's dtype: closer to the exact result than the cell is."""
    cell = drawn(CELLS["gru"](dtype=dtype))
    prepared, xs = rnnjax.prepare(cell), batch(cell).xs[0]
    exact = jax.tree.map(lambda leaf: leaf.astype("float64"), cell)
    _, ys = rnnjax.unroll(prepared, None, xs)
    assert ys.dtype == cell.dtype
    assert prepared.weights.W.dtype == {"bfloat16": "bfloat16", "float16": "float32"}[dtype]
    expected = rnnjax.unroll(exact, None, xs.astype("float64"))[1]
    np.testing.assert_allclose(ys.astype("float64"), expected, atol=float(jnp.finfo(dtype).eps))


SIZES = [1, 17, 48, *(pytest.param(units, marks=pytest.mark.slow) for units in (2, 15, 16, 31, 33, 100, 257))]


@jax.jit
def by_both(cell: PreparedCell, xs: np.ndarray) -> PyTree:
    """Of a batch, by the kernel and by its reference."""
    return [
        jax.vmap(lambda xs, engine=engine: rnnjax.unroll(cell, None, xs, engine=engine))(xs)
        for engine in (rnnjax.Fused(), rnnjax.Fused(cpu=None))
    ]


@pytest.mark.parametrize("units", SIZES)
def test_odd_sizes(units):
    """So many units and inputs; in the largest case the cores share each step."""
    xs = np.random.default_rng(units).normal(size=(1 + units % 7, 1 + units % 40, units))
    cell = rnnjax.prepare(drawn(rnnjax.GRU(units, units, key=grid.KEY, dtype="float64")), jnp.int8)
    got, expected = by_both(cell, xs)
    alike(got, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, prepared_shapes.TOGETHER])
def test_random_shapes(first):
    """Every weight type, dtype and instruction set; groups, heads, lengths, resets and directions at random."""
    for case, found in prepared_shapes.errors(range(first, first + prepared_shapes.TOGETHER)):
        assert found <= prepared_shapes.BARS[case.dtype], (case.title, found)


def test_members_of_an_ensemble_have_weights_of_their_own():
    cells = eqx.filter_vmap(lambda key: rnnjax.GRU(3, 20, key=key, dtype="float64"))(jax.random.split(grid.KEY, 3))
    prepared = eqx.filter_vmap(rnnjax.prepare)(cells)
    xs = np.random.default_rng(0).normal(size=(2, T, 3))
    members = lambda cells, xs: eqx.filter_vmap(lambda cell: rnnjax.unroll(cell, None, xs))(cells)  # noqa: E731
    got, expected = (jax.vmap(partial(members, each))(xs) for each in (prepared, cells))
    alike(got, expected, 1e-12)
    with pytest.raises(ValueError, match=r"GRU with weights of several members, which `eqx.filter_vmap\(prepare\)`"):
        rnnjax.prepare(cells)


def test_no_steps_and_no_sequences():
    cell = rnnjax.prepare(drawn(rnnjax.GRU(3, 20, key=grid.KEY)))
    state, ys = rnnjax.unroll(cell, None, np.zeros((0, 3), "float32"))
    alike(state, cell.initial(), 0)
    assert ys.shape == (0, 20)
    none = jax.vmap(lambda xs: rnnjax.unroll(cell, None, xs)[1])(np.zeros((0, 4, 3), "float32"))
    assert none.shape == (0, 4, 20)


# What it promises


def test_a_step_reads_the_weights_where_they_are():
    """In a compiled loop of single steps nothing but the kernel's call has the size of the weights."""
    assert library.absence() is None
    prepared = rnnjax.prepare(rnnjax.LSTM(64, 64, key=grid.KEY), jnp.int8)

    @jax.jit
    def loop(cell: PreparedCell, xs: jax.Array) -> PyTree:
        return jax.lax.scan(lambda state, x: rnnjax.unroll(cell, state, x[None]), cell.initial(), xs)

    text = loop.lower(prepared, np.zeros((9, 64), np.float32)).compile().as_text()
    assert text is not None
    assert len(re.findall(r'custom_call_target="rnnjax_prepared_v\d+"', text)) == 1
    made = set(re.findall(r"= s8\[[\d,]+\]\S* ([\w-]+)\(", text))
    assert made <= {"parameter", "get-tuple-element", "bitcast"}, made
    assert "transpose" not in text


def test_one_step_at_a_time_is_the_whole_sequence():
    cell = rnnjax.prepare(drawn(rnnjax.LSTM(3, 37, key=grid.KEY, dtype="float64")), jnp.bfloat16)
    xs, step = np.random.default_rng(0).normal(size=(T, 3)), jax.jit(rnnjax.unroll)
    state, ys = cell.initial(), []
    for x in xs:
        state, y = step(cell, state, x[None])
        ys.append(y[0])
    alike((state, np.stack(ys)), rnnjax.unroll(cell, None, xs), 1e-12)


@pytest.mark.parametrize("engine", [rnnjax.Fused(), rnnjax.Scan()])
def test_it_has_no_gradient_and_says_what_has(engine):
    cell, xs = rnnjax.prepare(rnnjax.GRU(3, 8, key=grid.KEY)), jnp.ones((2, 3), "float32")
    loss = lambda xs: rnnjax.unroll(cell, None, xs, engine=engine)[1].sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"packed for inference. Take the gradient of the cell that rnnjax.prepare"):
        jax.grad(loss)(xs)
    with pytest.raises(ValueError, match="packed for inference"):
        eqx.filter_grad(lambda cell: rnnjax.unroll(cell, None, xs, engine=engine)[1].sum())(cell)
    assert jax.grad(lambda scale: scale * loss(xs))(1.0) == loss(xs)  # nothing of it is differentiated


def test_newton_refuses_it_and_the_next_candidate_runs_it():
    cell, xs = rnnjax.prepare(rnnjax.GRU(3, 8, key=grid.KEY)), jnp.ones((4, 3), "float32")
    engine = rnnjax.Auto((rnnjax.Newton(), rnnjax.Scan()))
    assert "Newton cannot run PreparedGRU: its weights are prepared for inference" in str(
        rnnjax.explain(cell, xs, engine)
    )
    alike(rnnjax.unroll(cell, None, xs, engine=engine), rnnjax.unroll(cell, None, xs, engine=rnnjax.Scan()), 0)


@pytest.mark.usefixtures("annotations_unchecked")
def test_the_number_of_steps_may_be_a_symbol():
    cell, (T,) = rnnjax.prepare(rnnjax.LSTM(3, 20, key=grid.KEY), jnp.int8), jax.export.symbolic_shape("T")
    xs = jax.ShapeDtypeStruct((T, 3), jnp.float32)
    assert jax.eval_shape(lambda xs: rnnjax.unroll(cell, None, xs)[1], xs).shape == (T, 20)


def test_a_layer_that_needs_the_cell_itself_says_so():
    layer = rnnjax.prepare(rnnjax.regularise.RecurrentDropout(rnnjax.LSTM(3, 8, key=grid.KEY), 0.5))
    with pytest.raises(
        TypeError, match=r"^layer: expected an AbstractCandidateCell, which a prepared cell is not, got"
    ):
        rnnjax.unroll(layer, None, jnp.ones((4, 3), "float32"), key=grid.KEY)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_not_rounded_away(value):
    """It is refused; where it is traced, its unit is NaN."""
    cell = drawn(rnnjax.GRU(3, 8, key=grid.KEY))
    broken = eqx.tree_at(lambda cell: cell.input_weight, cell, cell.input_weight.at[1, 5].set(value))
    with pytest.raises(
        ValueError, match=r"^input_weight: expected finite weights of GRU .* got NaN or inf.*\. Look at"
    ):
        rnnjax.prepare(broken, jnp.int8)
    recurrent = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, cell.recurrent_weight.at[1, 5].set(value))
    with pytest.raises(ValueError, match=r"^recurrent_weight: expected finite weights"):
        rnnjax.prepare(rnnjax.Stack([recurrent]), jnp.int8)
    _, ys = eqx.filter_jit(lambda cell: rnnjax.unroll(rnnjax.prepare(cell, jnp.int8), None, ONE))(broken)
    assert np.isnan(ys[0, 5])
    assert np.isfinite(np.delete(ys[0], 5)).all()


def test_a_column_of_zeros_stays_zero():
    cell = eqx.tree_at(
        lambda cell: cell.input_weight, drawn(rnnjax.Elman(3, 8, key=grid.KEY)), jnp.zeros((3, 8), "float32")
    )
    expected, got = (rnnjax.unroll(each, None, ONE)[1] for each in (cell, rnnjax.prepare(cell, jnp.int8)))
    alike(got, expected, 1e-6)


# Networks


def network() -> rnnjax.Stack:
    gru = partial(rnnjax.GRU, 8, 8, key=grid.KEY)
    return rnnjax.Stack(
        [
            rnnjax.Bidirectional(rnnjax.LSTM(8, 4, key=grid.KEY), rnnjax.LSTM(8, 4, key=grid.KEY)),
            rnnjax.residual(gru()),
            rnnjax.MinGRU(8, 8, key=grid.KEY),
            rnnjax.regularise.Zoneout(gru(), 0.1),
        ]
    )


def test_each_gated_cell_of_a_network_is_prepared_and_the_others_stay():
    built = network()
    prepared = rnnjax.prepare(built)
    found = rnnjax.explain(prepared, jax.ShapeDtypeStruct((1, 8), "float32"))
    assert [(cell.path, cell.name) for cell in found.cells] == [
        ("layers[0].forward", "PreparedLSTM"),
        ("layers[0].backward", "PreparedLSTM"),
        ("layers[1].layer", "PreparedGRU"),
        ("layers[2]", "MinGRU"),
        ("layers[3]", "Zoneout of PreparedGRU"),  # which runs as a plain cell
    ]
    xs = np.random.default_rng(0).normal(size=(T, 8)).astype("float32")
    expected, got = (jax.jit(rnnjax.unroll)(each, None, xs, length=5) for each in (built, prepared))
    alike(got, expected, 1e-6)


def test_explain_names_the_kernel_and_the_dtype_of_the_weights():
    found = str(rnnjax.explain(rnnjax.prepare(rnnjax.GRU(3, 8, key=grid.KEY), jnp.int8), ONE))
    assert found.startswith("PreparedGRU\n    Fused: CPU kernel, weights prepared in int8, a program of ")


def test_another_kernel_refuses_prepared_weights():
    cell = rnnjax.prepare(rnnjax.GRU(3, 8, key=grid.KEY))
    plan = rnnjax.Fused(cuda=rnnjax.kernels.GPU()).plan(cell, jnp.asarray(ONE))
    assert isinstance(plan, rnnjax.engines.Plan)
    assert plan.notes == ("The GPU kernel does not run prepared weights.",)
    alone = rnnjax.Fused(cpu=None, tpu=rnnjax.kernels.TPU()).plan(cell, jnp.asarray(ONE))
    assert isinstance(alone, rnnjax.engines.Refusal)


def test_it_is_saved_and_loaded(tmp_path):
    prepared = rnnjax.prepare(rnnjax.Stack([rnnjax.GRU(3, 8, key=grid.KEY)]), jnp.int8)
    rnnjax.save(tmp_path / "prepared", prepared)
    other = rnnjax.prepare(rnnjax.Stack([rnnjax.GRU(3, 8, key=jax.random.key(1))]), jnp.int8)
    alike(rnnjax.load(tmp_path / "prepared", other), prepared, 0)


@pytest.mark.parametrize(
    ("given", "weights", "kind", "message"),
    [
        (lambda: rnnjax.GRU, None, TypeError, "cell: expected a cell or a network, got GRU"),
        (lambda: rnnjax.GRU(3, 8, key=grid.KEY), jnp.float32, ValueError, "weights: expected None, jnp.bfloat16 or"),
        (lambda: rnnjax.GRU(3, 8, key=grid.KEY), "int4", ValueError, "weights: expected None, jnp.bfloat16 or"),
        (lambda: rnnjax.MinGRU(3, 8, key=grid.KEY), None, ValueError, "got MinGRU, and it needs an AbstractGatedCell"),
        (lambda: rnnjax.prepare(rnnjax.GRU(3, 8, key=grid.KEY)), None, ValueError, "which is prepared already"),
        (lambda: rnnjax.Stack([rnnjax.MinGRU(3, 8, key=grid.KEY)]), None, ValueError, "a network with a gated cell"),
        (lambda: eqx.nn.Linear(3, 8, key=grid.KEY), None, ValueError, "got no cell at all"),
        (
            lambda: eqx.tree_at(lambda cell: cell.recurrent_weight, rnnjax.LSTM(3, 8, key=grid.KEY), jnp.ones((8, 16))),
            *(None, ValueError, r"^recurrent_weight: expected \[8, 32\].*got \[8, 16\]"),
        ),
    ],
)
def test_what_cannot_be_prepared(given, weights, kind, message):
    with pytest.raises(kind, match=message):
        rnnjax.prepare(given(), weights)
