"""Cells and networks say which part of their state is the hidden one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grid import KEY, place

import rnnjax
from rnnjax import GRU, LRU, LSTM, Bidirectional, ConvLSTM, Reversed, Stack, TimeDistributed
from rnnjax.models import BahdanauDecoder, ContextDecoder, Dot, Seq2Seq

I, H = 3, 4  # noqa: E741


def lstm(inputs=I):
    return LSTM(inputs, H, key=KEY)


def rectify(size):
    return TimeDistributed(jax.nn.relu, size)


PARTS = {  # and the leaves of their state, from 0, that are hidden, side by side
    "lstm": (lstm, [0]),
    "gru": (lambda: GRU(I, H, key=KEY), [0]),
    "lem": (lambda: rnnjax.LEM(I, H, key=KEY), [0]),
    "projected": (lambda: rnnjax.ProjectedLSTM(I, H, projected_size=2, key=KEY), [0]),
    "frames": (lambda: ConvLSTM(1, 2, (3, 5), kernel_size=3, key=KEY), [0]),
    "qrnn": (lambda: rnnjax.QRNN(I, H, key=KEY), [1]),
    "rg_lru": (lambda: rnnjax.RGLRU(H, key=KEY), [0]),
    "cg_lru": (lambda: rnnjax.networks.CGLRU(2 * H, key=KEY), [0]),
    "mamba": (lambda: rnnjax.networks.Mamba(H, key=KEY), [1]),
    "partial resets": (lambda: rnnjax.networks.PartialResets(lstm(), True), [0]),
    "all states": (lambda: rnnjax.networks.AllStates(lstm()), [0]),
    "reversed": (lambda: Reversed(lstm()), [0]),
    "skip": (lambda: rnnjax.skip(lstm()), [0]),
    "dilated": (lambda: rnnjax.networks.Dilated(lstm(), 1), [0]),
    "dropout": (lambda: rnnjax.regularise.VariationalDropout(lstm(), inputs=0.5), [0]),
    "both directions": (lambda: Bidirectional(lstm(), lstm()), [0, 2]),
    "shared weights": (lambda: rnnjax.networks.SharedBidirectional(lstm()), [0, 2]),
    "topmost layer": (lambda: Stack([lstm(), lstm(H)]), [2]),
    "topmost layer with a state": (lambda: Stack([lstm(), rectify(H)]), [0]),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_hidden_part_of_a_state(name):
    make, hidden = PARTS[name]
    part = make()
    leaves, structure = jax.tree.flatten(jax.eval_shape(part.initial))
    values = [place(value_of(number, leaf)) for number, leaf in enumerate(leaves)]
    got = part.hidden(jax.tree.unflatten(structure, values))
    np.testing.assert_array_equal(got, np.concatenate([parts_of(values[number]) for number in hidden]))


def value_of(number, leaf):
    """An array like `leaf`, of numbers that tell it from the others."""
    parts = 0.5j if np.issubdtype(leaf.dtype, np.complexfloating) else 0
    return np.full(leaf.shape, number + 1 + parts, leaf.dtype)


def parts_of(value):
    """An array as a vector of real numbers: the real parts of complex ones, and then their imaginary parts."""
    flat = np.ravel(value)
    return np.concatenate([flat.real, flat.imag]) if np.iscomplexobj(flat) else flat


def lru(size=I):
    return LRU(size, H, key=KEY)


@pytest.mark.parametrize(
    "make", [lru, lambda: Bidirectional(lru(), lru()), lambda: Stack([lstm(), lru(H)]), lambda: rectify(I)]
)
def test_a_state_that_is_complex_or_empty_has_no_hidden_part(make):
    part = make()
    assert part.hidden(part.initial()) is None


@pytest.mark.usefixtures("as_it_comes")
def test_a_decoder_that_needs_a_hidden_state_says_so():
    identity = lambda state: state  # noqa: E731
    with pytest.raises(ValueError, match=r"^encoder: expected a hidden state of real numbers.*`summary`"):
        Seq2Seq(5, 5, lru(), ContextDecoder(lru(2 * I)), bridge=identity, key=KEY)
    with pytest.raises(ValueError, match=r"^recurrence: expected a hidden state of real numbers.*`hidden` of LRU"):
        Seq2Seq(5, 5, lru(), BahdanauDecoder(lru(2 * I), Dot()), bridge=identity, key=KEY)
    summary = lambda state: jnp.abs(state.h)  # noqa: E731
    decoder = ContextDecoder(lru(I + H), summary)
    assert Seq2Seq(5, 5, lru(), decoder, bridge=identity, key=KEY).target_embedding.weight.shape == (5, I)
