"""A dilated layer is the layer along every d-th step; the laws of streaming, lengths and resets are in `laws`."""

import equinox as eqx
import grid
import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.networks import Dilated


@pytest.mark.parametrize("T", [10, 2])
def test_it_is_the_layer_along_every_third_step(T):
    layer, d = grid.build("lstm_options"), 3
    xs = grid.inputs(T)

    @eqx.filter_jit
    def both(layer, xs):
        apart = [rnnjax.unroll(layer, None, xs[first::d]) for first in range(min(d, T))]
        return rnnjax.unroll(Dilated(layer, d), None, xs), apart

    (state, ys), apart = both(layer, xs)
    expected = np.empty_like(ys)
    for first, (_, values) in enumerate(apart):
        expected[first::d] = values
    grid.assert_close(ys, expected)
    grid.assert_close(Dilated(layer, d).hidden(state), ys[-1])
    for first, (last, _) in enumerate(apart):  # the entry of step T is the first one
        grid.assert_close(jax.tree.map(lambda leaf, at=(first - T) % d: leaf[at], state), last)


def test_of_no_steps_nothing_changes():
    part = grid.build("dilated")
    before = grid.random_state(part)
    state, ys = rnnjax.unroll(part, before, grid.inputs(0))
    grid.assert_close(state, before)
    assert ys.shape == (0, grid.H)


def test_errors():
    with pytest.raises(ValueError, match="dilation: expected a positive integer, got 0"):
        Dilated(grid.build("gru"), 0)
    with pytest.raises(TypeError, match=r"layer: expected a cell or a network, got .* Build an instance"):
        Dilated(rnnjax.GRU, 2)
