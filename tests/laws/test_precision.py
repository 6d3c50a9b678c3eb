"""Long sequences in every dtype: errors of values and of gradients do not grow with T, or as its square root."""

from functools import lru_cache
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import initialise
from rnnjax.arrays import carry_dtype

# Relative to the norm of the outputs, and of each weight's gradient. Half a unit in the last place is 2^-9 and 2^-12.
BARS = {"bfloat16": 1e-2, "float16": 2e-3}  # for any T
SINGLE = 3e-6  # in float32 at T = 100; the carry rounds at every step, so that it may grow as the square root of T
# Small differences of large terms, each rounded with its u and y: by decay, frequency and step.
CANCELLING = {"s5": 8.0, "lru": 3.0, "linear_rnn": 4.0, "s6": 2.0}
# The sum over the source of what a query does to its alignment, which sums to 1.
CANCELLING_LEAVES = {".decoder.score.query_weight": 8.0}
# Every cell on the engine that sums in a way of its own, where it has one. `Scan` and `Checkpointed` see a pytree.
CELLS = {
    "scan": [cell for cell in grid.CELLS if cell not in grid.LINEAR or cell in grid.REPRESENTATIVES],
    "checkpointed": [*grid.REPRESENTATIVES, "lem"],
    "associative": grid.LINEAR,
    "fused": grid.ADMITTED["fused"],
}
LONG, LONGEST = 3_000, 10_000  # an error that grows with T is far above its bar at either
LONGEST_PAIRS = [("lem", "scan"), ("lem", "checkpointed"), ("sru", "associative"), ("gru", "fused")]
PAIRS = [(cell, engine) for engine, cells in CELLS.items() for cell in cells if (cell, engine) not in LONGEST_PAIRS]
QUICK = LONGEST_PAIRS[1:]


def build(cell: str, dtype: str) -> Any:
    """The grid's cell, but for the linear recurrence that grows without bound."""
    if cell != "linear_rnn":
        return grid.build(cell, dtype)
    decays = initialise.time_constants(1.0, 30.0)
    return rnnjax.LinearRNN(grid.I, grid.H, key=grid.KEY, decay_initialiser=decays, dtype=jnp.dtype(dtype))


def gradient(part: Any, run: Any, *arguments: Any) -> Any:
    """By the weights of `part`, of a loss whose weights for the outputs `run(part, *arguments)` are random."""
    return outputs_and_gradient(part, run, *arguments)[1]


def outputs_and_gradient(part: Any, run: Any, *arguments: Any) -> tuple[Any, Any]:
    weights, static = eqx.partition(part, eqx.is_inexact_array)

    def loss(weights: Any) -> tuple[jax.Array, jax.Array]:
        ys = run(eqx.combine(weights, static), *arguments)
        return jnp.sum(grid.widen(ys) * np.random.default_rng(3).normal(size=ys.shape)), ys

    slope, ys = jax.grad(loss, has_aux=True)(weights)
    return ys, slope


def wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: grid.widen(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def errors(got: Any, expected: Any) -> dict[str, float]:
    """The error of each array, relative to its norm."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    norm = np.linalg.norm
    return {
        jax.tree_util.keystr(path): float(norm(grid.widen(one) - np.asarray(other)) / norm(other))
        for (path, one), other in pairs
    }


def of_engine(cell: Any, xs: jax.Array, engine: rnnjax.AbstractEngine) -> jax.Array:
    return rnnjax.unroll(cell, None, xs, engine=engine)[1]


@eqx.filter_jit
def run_all(parts: Any, xs: Any, engine: rnnjax.AbstractEngine) -> Any:
    """The outputs and the gradient of each part, in one program."""
    return {dtype: outputs_and_gradient(part, of_engine, xs[dtype], engine) for dtype, part in parts.items()}


@lru_cache
def given(cell: str, T: int) -> tuple[Any, Any]:
    """The cell and its inputs in each dtype."""
    dtypes = ("float32", *BARS)
    return {dtype: build(cell, dtype) for dtype in dtypes}, {dtype: grid.inputs(T, dtype=dtype) for dtype in dtypes}


@lru_cache
def exact(cell: str, T: int) -> Any:
    """What `Scan` gives in float64 with the same weights: the reference for every engine."""
    return run_all(*wide(given(cell, T)), rnnjax.Scan())


@lru_cache
def found(cell: str, engine: str, T: int) -> dict[str, dict[str, float]]:
    """The errors in each dtype. `[0]` is of the outputs."""
    run = grid.ENGINES[engine] if engine != "checkpointed" else rnnjax.Checkpointed()
    got, expected = run_all(*given(cell, T), run), exact(cell, T)
    return {dtype: errors(got[dtype], expected[dtype]) for dtype in got}


@pytest.mark.parametrize("dtype", ["float32", *BARS])
@pytest.mark.parametrize(
    ("cell", "engine", "T"),
    [
        *((*pair, 1000) for pair in QUICK),
        *(pytest.param(*pair, LONG, marks=pytest.mark.slow) for pair in PAIRS),
        *(pytest.param(*pair, LONGEST, marks=pytest.mark.slow) for pair in LONGEST_PAIRS),
    ],
)
def test_the_error_of_values_and_gradients_does_not_grow_with_time(cell, engine, T, dtype):
    errors = found(cell, engine, T)[dtype]
    bar = BARS[dtype] if dtype in BARS else SINGLE * (T / 100) ** 0.5
    assert max(errors.values()) < bar * CANCELLING.get(cell, 1), errors


def test_nor_does_it_for_a_function_and_all_it_closes_over():
    T = 3000

    def run(weight: jax.Array, xs: jax.Array) -> jax.Array:
        def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.tanh((weight @ state.astype(weight.dtype) + x).astype(state.dtype))
            return state, state

        return rnnjax.unroll(step, jnp.zeros(grid.I, carry_dtype(xs.dtype)), xs)[1]

    weight = grid.place(np.random.default_rng(0).normal(size=(grid.I, grid.I)).astype("bfloat16") / 2)
    xs = grid.inputs(T, dtype="bfloat16")
    pairs = (weight, xs), (wide(weight), wide(xs))
    got, expected = jax.jit(lambda pairs: [gradient(weight, run, xs) for weight, xs in pairs])(pairs)
    assert errors(got, expected)[""] < BARS["bfloat16"]


def sequence_to_sequence(kind: str) -> rnnjax.models.Seq2Seq:
    dtype, keys = jnp.dtype("bfloat16"), rnnjax.random.split(grid.KEY, 4)
    encoder = rnnjax.GRU(4, grid.H, key=keys[0], dtype=dtype)
    recurrence = rnnjax.GRU(4 + (5 if kind == "luong" else grid.H), grid.H, key=keys[1], dtype=dtype)
    if kind == "luong":
        score = rnnjax.models.General(grid.H, grid.H, key=keys[2], dtype=dtype)
        decoder: Any = rnnjax.models.LuongDecoder(
            recurrence, score, memory_size=grid.H, attentional_size=5, key=keys[3]
        )
    else:
        score = rnnjax.models.Additive(grid.H, grid.H, 6, key=keys[2], dtype=dtype)
        decoder = rnnjax.models.BahdanauDecoder(recurrence, score)
    return rnnjax.models.Seq2Seq(7, 7, encoder, decoder, key=grid.KEY)


def forced(model: rnnjax.models.Seq2Seq, tokens: jax.Array) -> jax.Array:
    return model.logits(tokens[:9], tokens)[0]


def scheduled(model: rnnjax.models.Seq2Seq, tokens: jax.Array) -> jax.Array:
    always = jnp.asarray(1.0)  # an array, so that it goes step by step
    return model.logits(tokens[:9], tokens, teacher_forcing=always, key=jax.random.key(0))[0]


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("bahdanau", forced),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("luong", forced), ("luong", scheduled), ("bahdanau", scheduled))
        ),
    ],
)
def test_nor_does_it_for_a_decoder_its_memory_and_its_embedding(kind, run):
    model, tokens = sequence_to_sequence(kind), np.random.default_rng(2).integers(0, 7, 2000)
    got, expected = eqx.filter_jit(lambda *models: [gradient(model, run, tokens) for model in models])(
        model, wide(model)
    )
    found = {path: error / CANCELLING_LEAVES.get(path, 1) for path, error in errors(got, expected).items()}
    assert max(found.values()) < 1.5 * BARS["bfloat16"], found
