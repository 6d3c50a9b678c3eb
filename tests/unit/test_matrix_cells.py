"""Matrix-state cells: every form of a step, step by step and in chunks, against the six lines of the equations."""

from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cells import Matrix, MatrixRecurrence, Transition
from rnnjax.engines import Chunked
from rnnjax.kernels.matrix_scan import cpu
from rnnjax.kernels.matrix_scan.splitting import inverse, scores

N, K, V = 4, 5, 3


class Form(NamedTuple):
    """What a recurrence is made of, how long it is, and in chunks of how many steps it runs."""

    T: int
    size: int
    key_heads: int = N
    reads_before: bool = False
    scalar_decay: bool = False
    erases: bool = False
    has_erase_key: bool = False
    learn_initial: bool = False
    complex: bool = False


FORMS = {
    "one chunk of delta rules": Form(9, 16, scalar_decay=True, erases=True, key_heads=2),
    "every option": Form(
        37, 8, key_heads=1, reads_before=True, erases=True, has_erase_key=True, learn_initial=True, complex=True
    ),
    "gated": Form(37, 16),
    "scalar, learned start": Form(21, 4, scalar_decay=True, learn_initial=True),
    "one step": Form(7, 1, erases=True, learn_initial=True),
    "two steps": Form(9, 2, erases=True, has_erase_key=True, reads_before=True),
    "64 steps": Form(70, 64, erases=True, has_erase_key=True, learn_initial=True),
    "32 steps of scalars": Form(70, 32, scalar_decay=True, erases=True, reads_before=True, complex=True),
}
QUICK = "one chunk of delta rules", "every option"


def draw(form: Form, seed: int = 0) -> tuple[MatrixRecurrence, Matrix, Transition]:
    """A recurrence, a state before it and its inputs; a tenth of the decays is zero, the others are of any sign."""
    generator = np.random.default_rng(seed)
    dtype = "complex128" if form.complex else "float64"

    def normal(*shape: int) -> np.ndarray:
        drawn = generator.normal(size=shape)
        return (drawn + 1j * generator.normal(size=shape) if form.complex else drawn).astype(dtype)

    decay = normal(form.T, N, 1 if form.scalar_decay else K)
    decay = decay / np.maximum(1, abs(decay)) * (generator.random(decay.shape) > 0.1)
    key = lambda: normal(form.T, form.key_heads, K) / np.sqrt(K)  # noqa: E731
    made: tuple[Any, ...] = (
        decay,
        key(),
        normal(form.T, N, V),
        key(),
        key() if form.erases else None,
        key() if form.has_erase_key else None,
    )
    options: dict[str, Any] = form._asdict()
    for name in ("T", "size", "complex"):
        del options[name]
    cell = MatrixRecurrence(N, K, V, **options, dtype=dtype)
    if form.learn_initial:
        cell = eqx.tree_at(lambda cell: cell.initial_state.S, cell, normal(N, K, V))
    return cell, matrix(normal(N, K, V)), Transition(*made)


def matrix(S: Any) -> Matrix:
    return Matrix(S)


def by_hand(cell: MatrixRecurrence, S: Any, xs: Transition, length: int, resets: np.ndarray) -> Any:
    """The last state and the outputs, by the equations."""
    start = np.zeros_like(S) if cell.initial_state is None else np.asarray(cell.initial_state.S)
    wide: list[Any] = [
        None if leaf is None else np.repeat(np.asarray(leaf), len(S) // leaf.shape[1], axis=1) for leaf in xs
    ]
    ys = np.zeros(xs.value.shape, S.dtype)
    for t in range(length):
        decay, key, value, query, erase, erase_key = (None if leaf is None else leaf[t] for leaf in wide)
        before = start if resets[t] else S
        S = decay[:, :, None] * before + key[:, :, None] * value[:, None, :]
        if erase is not None:
            found = np.einsum("nkv,nk->nv", before, erase)
            S = S - (key if erase_key is None else erase_key)[:, :, None] * found[:, None, :]
        ys[t] = np.einsum("nkv,nk->nv", before if cell.reads_before else S, query)
    return matrix(S), ys


def each_form() -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FORMS]
    )


@each_form()
def test_every_form_equals_its_equations_and_chunks_have_the_gradient_of_scan(name):
    form = FORMS[name]
    cell, state, xs = draw(form)
    length, resets = form.T - 3, np.arange(form.T) % 7 == 3

    @jax.jit
    def run(learned: Any, state: Matrix, xs: Transition) -> list[Any]:
        def loss(engine: rnnjax.AbstractEngine, learned: Any, state: Matrix, xs: Transition) -> Any:
            own = cell if learned is None else eqx.tree_at(lambda cell: cell.initial_state, cell, learned)
            made = rnnjax.unroll(own, state, xs, engine=engine, length=length, resets=resets)
            return grid.contract(made), made

        gradient = jax.grad(loss, (1, 2, 3), has_aux=True)
        return [gradient(engine, learned, state, xs) for engine in (rnnjax.Scan(), Chunked(form.size))]

    (by_steps, stepped), (by_chunks, chunked) = run(cell.initial_state, state, xs)
    expected = by_hand(cell, state.S, xs, length, resets)
    grid.assert_close(stepped, expected)
    grid.assert_close(chunked, expected)
    grid.assert_close(by_chunks, by_steps)


def test_strong_decays_do_not_overflow():
    """In float32 within 2e-6, where a decay divided by another would be infinite: 0.05^40 is 1e-52."""
    generator, T = np.random.default_rng(1), 100
    decay = np.where(generator.random((T, 1, 4)) < 0.5, 0.05, 0.999)
    others = [generator.normal(size=(T, 1, size)) for size in (4, 2, 4)]
    narrow = Transition(*(jnp.asarray(leaf, "float32") for leaf in (decay, *others)))
    cell = MatrixRecurrence(1, 4, 2)
    _, ys = rnnjax.unroll(cell, None, narrow, engine=Chunked())
    _, expected = by_hand(cell, np.zeros((1, 4, 2)), narrow, T, np.zeros(T, bool))
    assert np.abs(np.asarray(ys) - expected).max() <= 2e-6 * np.abs(expected).max()


def test_pairs_are_products_of_the_decays_between_them():
    generator = np.random.default_rng(2)
    decay = generator.normal(size=(16, 3))
    readers, writers = generator.normal(size=(2, 1, 16, 3))
    found, decays = jax.jit(scores)(readers, writers, decay)
    for t in range(16):
        for j in range(16):
            expected = (readers[0, t] * writers[0, j] * decay[j + 1 : t].prod(0)).sum() if j < t else 0.0
            np.testing.assert_allclose(found[0, 0, t, j], expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(decays.before[t], decay[:t].prod(0), rtol=1e-13)
        np.testing.assert_allclose(decays.after[t], decay[t + 1 :].prod(0), rtol=1e-13)
    np.testing.assert_allclose(decays.total, decay.prod(0), rtol=1e-13)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_inverse_is_accurate_where_keys_are_alike(scale):
    """A Neumann series loses all digits there."""
    generator = np.random.default_rng(3)
    keys = generator.normal(size=6) + 0.05 * generator.normal(size=(64, 6))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    lower = np.tril(scale * keys @ keys.T, -1).astype("float32")
    exact = np.linalg.inv(np.eye(64) + lower.astype("float64"))
    assert np.abs(np.asarray(jax.jit(inverse)(lower)) - exact).max() <= 2e-5 * np.abs(exact).max()


def test_narrow_inputs_have_a_wide_state():
    _, _, xs = draw(Form(9, 4, erases=True))
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, "bfloat16"), xs)
    cell = MatrixRecurrence(N, K, V, erases=True, dtype="bfloat16")
    with jax.numpy_rank_promotion("raise"):
        last, ys = rnnjax.unroll(cell, None, narrow, engine=Chunked(4))
    expected, expected_ys = rnnjax.unroll(cell, None, narrow, engine=rnnjax.Scan())
    assert (last.S.dtype, ys.dtype) == ("float32", "bfloat16")
    grid.assert_close(last, expected, "float32")
    grid.assert_close(ys, expected_ys, "bfloat16")


def test_the_gradient_stores_no_state_of_each_step():
    """Of 256 steps of 4 heads of 32 by 32, `Scan` stores 4 MiB of states."""
    cell = MatrixRecurrence(4, 32, 32, scalar_decay=True)
    xs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((256, *leaf.shape), leaf.dtype), cell.input_type())

    def temporary(engine: rnnjax.AbstractEngine) -> int:
        loss = lambda xs: rnnjax.unroll(cell, None, xs, engine=engine)[1].sum()  # noqa: E731
        analysis: Any = jax.jit(jax.grad(loss)).lower(xs).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    states = 256 * 4 * 32 * 32 * 4
    assert temporary(rnnjax.Scan()) >= states
    assert temporary(Chunked()) <= states / 2


def test_errors():
    one = jnp.zeros((3, 2, 5))
    cell = MatrixRecurrence(2, 5, 5)
    xs = Transition(one, one, one, one)
    cases = [
        (lambda: Chunked(48), ValueError, ["size", "power of two", "48"]),
        (lambda: Chunked(0), ValueError, ["size", "0"]),
        (lambda: MatrixRecurrence(4, 5, 5, key_heads=3), ValueError, ["key_heads", "heads=4", "3"]),
        (lambda: MatrixRecurrence(4, 5, 5, has_erase_key=True), ValueError, ["has_erase_key", "erases=True"]),
        (lambda: rnnjax.unroll(cell, None, xs._replace(erase=one)), ValueError, ["xs", "MatrixRecurrence"]),
        (lambda: rnnjax.unroll(cell, None, xs._replace(decay=one[:, :, :1])), ValueError, ["xs", "MatrixRecurrence"]),
    ]
    for call, kind, fragments in cases:
        grid.assert_error(call, kind, fragments)


def test_other_engines_say_why_they_refuse():
    cell = MatrixRecurrence(2, 5, 5)
    xs = Transition(*(jnp.zeros((3, 2, 5)) for _ in range(4)))
    assert "AbstractGatedCell" in (grid.refusal(rnnjax.Fused(), cell, xs) or "")
    assert "AbstractLinearCell" in (grid.refusal(rnnjax.Associative(), cell, xs) or "")
    gated = rnnjax.GRU(3, 4, key=jax.random.key(0))
    assert "AbstractMatrixCell" in (grid.refusal(Chunked(), gated, jnp.zeros((5, 3))) or "")


class Counts(grid.MatrixOfInputs):
    """A cell whose step is another one."""

    def step(self, state, u):
        return Matrix(super().step(state, u).S + 1)


def test_a_step_of_its_own_is_not_run_in_chunks():
    drawn = grid.MatrixOfInputs.draw(3, "float32")
    counts = Counts(drawn.weight, drawn.initial_state)
    assert "overrides `step`" in (grid.refusal(Chunked(), counts, jnp.zeros((5, 3))) or "")


# Cells that emit something else than their state, inside of others


class Lagged(rnnjax.MinGRU):
    """A cell that puts out the state before its step."""

    def emit(self, state, before, u):
        del state, u
        return before


def test_every_engine_emits_by_the_state_before_the_step():
    """After a reset that is the initial state; at the first step, the given one."""
    cell = Lagged(3, 4, key=grid.KEY, learn_initial=True, dtype="float64")
    cell = eqx.tree_at(lambda cell: cell.initial_state.h, cell, np.full(4, 0.5))
    xs, state, resets = grid.inputs(9), rnnjax.Hidden(np.full(4, 0.25)), np.arange(9) == 5
    plain = rnnjax.MinGRU(3, 4, key=grid.KEY, learn_initial=True, dtype="float64")
    plain = jax.tree.unflatten(jax.tree.structure(plain), jax.tree.leaves(cell))
    _, after = rnnjax.unroll(plain, state, xs, resets=resets)
    expected = np.concatenate([state.h[None], after[:-1]])
    expected[5] = 0.5
    engines = [rnnjax.Scan(), rnnjax.Checkpointed(segment=4), rnnjax.Associative(), rnnjax.Associative(block=4)]
    for engine in (*engines, rnnjax.Unrolled(), rnnjax.Newton(rnnjax.engines.Diagonal())):
        grid.assert_close(rnnjax.unroll(cell, state, xs, resets=resets, engine=engine)[1], expected)


class LaggedLSTM(rnnjax.LSTM):
    """An LSTM that puts out the state before its step."""

    def emit(self, state, before, u):
        del state, u
        return before


def test_a_partial_reset_comes_before_the_state_that_is_emitted():
    cell = LaggedLSTM(3, 4, key=grid.KEY, dtype="float64")
    layer = rnnjax.networks.PartialResets(cell, rnnjax.cells.LSTMState(h=True, c=False))
    flags = rnnjax.cells.LSTMState(h=jnp.arange(5) == 3, c=None)
    _, ys = rnnjax.unroll(layer, None, (grid.inputs(5), flags))
    assert (np.abs(ys).max(1) == 0).tolist() == [True, False, False, True, False]


def test_wrappers_emit_what_their_cell_does():
    cell, xs = grid.build("s6"), grid.inputs(9)
    _, expected = rnnjax.unroll(cell, None, xs)
    rarely = rnnjax.regularise.Zoneout(cell, 1e-12)
    _, ys = rnnjax.unroll(rarely, None, xs, key=grid.KEY)
    grid.assert_close(ys, expected)
    loss = lambda last, ys: grid.contract((last, ys))  # noqa: E731
    by_lag = [
        rnnjax.diagnose.gradient_by_lag(loss, cell, None, xs, engine=engine)
        for engine in (rnnjax.Scan(), rnnjax.Associative(block=4))
    ]
    grid.assert_close(by_lag[1], by_lag[0])


def test_a_value_that_is_not_finite_reaches_no_earlier_step_of_its_chunk():
    _, _, xs = draw(Form(12, 16))
    cell = MatrixRecurrence(N, K, V, dtype="float64")
    spoiled = xs._replace(value=np.where(np.arange(12)[:, None, None] == 9, np.nan, xs.value))
    early = lambda xs: rnnjax.unroll(cell, None, xs, engine=Chunked())[1]  # noqa: E731
    ys, expected = early(spoiled), early(xs)
    grid.assert_close(ys[:9], expected[:9])
    assert np.isnan(ys[9:]).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_state_that_overflowed_stays_as_it_is_in_ignored_steps(compiled, monkeypatch):
    """An ignored step erases nothing: zero times infinity would be NaN. Earlier steps have the gradient of `Scan`."""
    if not compiled:
        monkeypatch.setattr(cpu, "is_here_for", lambda _: False)
    cell, T, length = MatrixRecurrence(1, 3, 2, erases=True), 11 + compiled, 5  # a cached trace for each T
    xs = jax.tree.map(lambda leaf: np.full((T, *leaf.shape), 0.25, leaf.dtype), cell.input_type())
    xs.decay[length - 1] = 1e38
    xs.value[length - 2] = 1024.0

    @jax.jit
    def run(xs: Transition) -> Any:
        def early(xs: Transition, engine: rnnjax.AbstractEngine) -> Any:
            last, ys = rnnjax.unroll(cell, None, xs, engine=engine, length=length)
            return ys[: length - 1].sum(), (last, ys)

        return [jax.grad(early, has_aux=True)(xs, engine) for engine in (rnnjax.Scan(), Chunked(4))]

    (by_steps, stepped), (by_chunks, chunked) = run(xs)
    assert np.isinf(stepped[0].S).all()
    assert np.array_equal(stepped[0].S, chunked[0].S)
    for one, other in zip(
        jax.tree.leaves((by_steps, stepped[1])), jax.tree.leaves((by_chunks, chunked[1])), strict=True
    ):
        grid.assert_close(other[: length - 1], one[: length - 1], "float32")
        assert np.array_equal(other[length:], np.zeros_like(one[length:]))


def test_narrow_weights_of_coefficients_have_a_gradient_summed_in_float32():
    """Over 4,096 chunks of one step; in bfloat16 the sum would stop growing at a tenth of it."""
    cell, xs = grid.MatrixOfInputs.draw(3, "bfloat16"), jnp.ones((4096, 3), "bfloat16")

    def gradient(engine: rnnjax.AbstractEngine) -> Any:
        def loss(cell: Any) -> jax.Array:
            _, ys = rnnjax.unroll(WeightedSteps(cell.weight, cell.initial_state), None, xs, engine=engine)
            return ys.astype("float32").sum()

        return jax.jit(jax.grad(loss))(cell).weight

    by_chunks, by_steps = (np.asarray(gradient(engine), "float64") for engine in (Chunked(1), rnnjax.Scan()))
    assert np.linalg.norm(by_chunks - by_steps) <= 2e-2 * np.linalg.norm(by_steps)


class WeightedSteps(grid.MatrixOfInputs):
    """A cell whose weights are in its coefficients, in the loop, and not in `project`."""

    def project(self, xs):
        return xs

    def coefficients(self, u):
        return super().coefficients((u @ self.weight).reshape(2, 17))


class TooFewRows(grid.MatrixOfInputs):
    """A cell with one key for both heads, which broadcasts step by step."""

    def coefficients(self, u):
        steps = super().coefficients(u)
        return steps._replace(key=steps.key[:1])


def test_coefficients_of_other_shapes_are_named():
    drawn = grid.MatrixOfInputs.draw(3, "float32")
    cell = TooFewRows(drawn.weight, drawn.initial_state)
    with pytest.raises(ValueError, match=r"^TooFewRows.coefficients: expected a key \[2, 3\] .* got .* Return a row"):
        rnnjax.unroll(cell, None, jnp.zeros((5, 3), "float32"), engine=Chunked(4))
    with pytest.raises(TypeError, match=r"^dtype: expected a floating or complex dtype, got int32. Pass"):
        MatrixRecurrence(2, 3, 4, dtype="int32")


class Twice(rnnjax.GRU):
    """A GRU that puts out twice its state."""

    def emit(self, state, before, u):
        del before, u
        return type(state)(2 * state.h)


def test_what_reads_states_does_not_take_what_is_emitted_for_them():
    gru, twice = (kind(3, 4, key=grid.KEY, dtype="float64") for kind in (rnnjax.GRU, Twice))
    xs = grid.inputs(5)
    grid.assert_close(rnnjax.diagnose.jacobians(twice, None, xs), rnnjax.diagnose.jacobians(gru, None, xs))
    _, ys = rnnjax.unroll(gru, None, xs)
    grid.assert_close(rnnjax.unroll(twice, None, xs)[1], 2 * ys)
    assert rnnjax.diagnose.jacobians(grid.build("matrix"), None, xs).shape == (5, 12, 12)
