"""Optimisers that treat matrices and vectors differently do so with the weights of cells: optax's rules, by name."""

from functools import lru_cache
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

import rnnjax

T, SIZE = 4, 128  # the smallest that Adafactor factors

DENSE = ".input_weight", ".recurrent_weight"
STATE_SPACE = ".input_weight", ".output_weight"
MATRICES: dict[str, tuple[str, ...]] = {  # of each cell of the grid; all else are vectors
    "elman": DENSE,
    "lstm": DENSE,
    "gru": DENSE,
    "projected_lstm": (*DENSE, ".projection"),
    "reset_before_gru": (*DENSE, ".candidate_weight"),
    "lem": (*DENSE, ".candidate_weight"),
    "rate_rnn": (".input_weight", ".recurrent_weight.m", ".recurrent_weight.n"),
    "sru": STATE_SPACE,
    "lru": STATE_SPACE,
    "s5": STATE_SPACE,
    "s6": (".selection_weight", ".step_weight", ".log_rate"),
    "matrix": (".weight",),
    **dict.fromkeys(("min_gru", "min_lstm", "linear_rnn", "ind_rnn", "diagonal_gru", "diagonal_lstm"), DENSE[:1]),
}
BLOCKS = {
    "lstm_options": (".recurrent_weight",),
    "slstm": (".recurrent_weight",),
    "matrix": (".initial_state.S",),
}  # a matrix for each head


def ranks(tree: PyTree) -> dict[str, int]:
    """The rank of each floating array, by its name."""
    leaves = jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_inexact_array))
    return {jax.tree_util.keystr(path): leaf.ndim for path, leaf in leaves}


@pytest.mark.parametrize("name", grid.CELLS)
def test_a_weight_is_a_matrix_or_a_vector(name):
    found = ranks(grid.CELLS[name](grid.I, jnp.dtype("float32")))
    matrices = MATRICES.get(name, DENSE[:1])
    expected = {leaf: 2 if leaf in matrices else 3 if leaf in BLOCKS.get(name, ()) else 1 for leaf in found}
    assert found == expected
    assert {*matrices, *BLOCKS.get(name, ())} <= set(found)


NETWORKS = (*grid.MIXERS, "rwkv6", "rwkv7", "mamba", "mlstm", "xlstm")  # those with weights of their own
VECTORS = (".norm", "time_norm", "channel_norm", "head_norm", "skip")  # modules whose weights are vectors
MATRIX_NAMES = ("weight", "down", "up", "S", "log_rate")


@pytest.mark.parametrize("name", NETWORKS)
def test_biases_and_weights_of_normalisations_in_networks_are_vectors(name):
    found = ranks(grid.NETWORKS[name](grid.I, jnp.dtype("float32")))
    for leaf, rank in found.items():
        is_rate = leaf.endswith("decay.log_rate")  # one for each head
        is_vector = is_rate or any(f"{owner}.weight" in leaf for owner in VECTORS) or not leaf.endswith(MATRIX_NAMES)
        assert (rank == 1) == is_vector, leaf
    assert max(found.values()) > 1


# What optax's rules take


def built() -> dict[str, Any]:
    """Cells and a network, with biases, peepholes and learned initial states wherever they have some."""
    options = {"key": grid.KEY, "learn_initial": True}
    two_ways = lambda inputs: rnnjax.Bidirectional(  # noqa: E731
        rnnjax.GRU(inputs, SIZE, **options), rnnjax.LSTM(inputs, SIZE, **options)
    )
    return {
        "elman": rnnjax.Elman(SIZE, SIZE, **options),
        "lstm": rnnjax.LSTM(SIZE, SIZE, peepholes=True, **options),
        "gru": rnnjax.GRU(SIZE, SIZE, **options),
        "ind_rnn": rnnjax.IndRNN(SIZE, SIZE, **options),
        "stack": rnnjax.Stack([two_ways(SIZE), two_ways(2 * SIZE)]),
    }


OWNERS = (
    *("['elman']", "['lstm']", "['gru']"),
    *(f"['stack'].layers[{layer}].{way}" for layer in (0, 1) for way in ("forward", "backward")),
)
TAKEN = {"['ind_rnn'].input_weight", *(f"{owner}{leaf}" for owner in OWNERS for leaf in DENSE)}


@lru_cache
def weights() -> PyTree:
    return eqx.filter(built(), eqx.is_inexact_array)


def decayed(weights: PyTree) -> PyTree:
    """The usual mask of weight decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, weights)


OPTIMISERS = {
    "muon": optax.contrib.muon(0.01),
    "adafactor": optax.adafactor(0.01),
    "weight_decay": optax.adamw(0.01, weight_decay=0.1, mask=decayed),
}


def where(mask: PyTree) -> set[str]:
    """The names of the leaves that are true."""
    return {jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(mask) if leaf}


def of_muon(state: Any) -> set[str]:
    momenta = state.inner_states["muon"].inner_state[0].mu  # there are none of what Adam takes
    return where(jax.tree.map(lambda _: True, momenta))


def of_adafactor(state: Any) -> set[str]:
    """Those of whose squares it keeps the means of rows and columns, and no more."""
    (factored,) = (part for part in state if hasattr(part, "v_row"))
    is_factored = lambda leaf, row, column: (*row.shape, *column.shape) == leaf.shape  # noqa: E731
    return where(jax.tree.map(is_factored, weights(), factored.v_row, factored.v_col))


def test_muon_takes_the_matrices():
    assert of_muon(OPTIMISERS["muon"].init(weights())) == TAKEN


def test_adafactor_factors_the_matrices():
    assert of_adafactor(OPTIMISERS["adafactor"].init(weights())) == TAKEN


def test_weight_decay_takes_the_matrices():
    assert where(decayed(weights())) == TAKEN


def test_the_blocks_of_heads_are_matrices_to_one_who_says_so():
    """Muon takes an array of rank three once it is told which axes are the rows and the columns."""
    cell = rnnjax.LSTM(SIZE, SIZE, heads=2, key=grid.KEY)
    parts = eqx.filter(cell, eqx.is_inexact_array)
    assert where(decayed(parts)) == set(DENSE)
    assert of_muon(OPTIMISERS["muon"].init(parts)) == {".input_weight"}
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    told = optax.contrib.muon(
        0.01,
        muon_weight_dimension_numbers=lambda parts: jax.tree.map(lambda leaf: axes if leaf.ndim > 1 else None, parts),
    )
    assert of_muon(told.init(parts)) == set(DENSE)


@lru_cache
def steps() -> dict[str, tuple[PyTree, PyTree]]:
    """The updates of one step by each optimiser, and the weights after it, as one program."""
    static = eqx.filter(built(), eqx.is_inexact_array, inverse=True)
    xs = np.random.default_rng(3).normal(size=(T, SIZE)).astype("float32")

    def loss(weights: PyTree) -> jax.Array:
        parts = eqx.combine(weights, static)
        return sum(jnp.sum(rnnjax.unroll(part, None, xs, engine=rnnjax.Scan())[1] ** 2) for part in parts.values())

    @jax.jit
    def step(weights: PyTree) -> dict[str, tuple[PyTree, PyTree]]:
        gradient = jax.grad(loss)(weights)
        updates = {name: of.update(gradient, of.init(weights), weights)[0] for name, of in OPTIMISERS.items()}
        return {name: (update, optax.apply_updates(weights, update)) for name, update in updates.items()}

    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        return jax.tree.map(np.asarray, step(weights()))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_one_step_changes_every_weight(name):
    _, after = steps()[name]
    changed = jax.tree.map(lambda one, other: bool(np.isfinite(other).all() and (one != other).any()), weights(), after)
    assert jax.tree.all(changed)


def test_muon_turns_by_orthogonal_matrices():
    """A gradient [in, out], of a rank of T - 1 or more, becomes a matrix whose singular values are about the same."""
    updates, _ = steps()["muon"]
    for leaf in updates["lstm"].input_weight, updates["gru"].recurrent_weight, updates["elman"].recurrent_weight:
        values = np.linalg.svd(leaf, compute_uv=False)[: T - 1]
        assert values.min() > 0.5 * values.max()
