"""Constraints of the recurrent weight: signs of units and missing connections hold in the run and in its gradient."""

from functools import partial

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel import NO_KERNEL
from messages import instructs

import rnnjax
from rnnjax.cells import RateRNN
from rnnjax.networks import ConnectionMask, Constrained, Dale

H, E = 5, 3
OTHERS = ~np.eye(H, dtype=bool)


def elman(size: int = H) -> rnnjax.Elman:
    return rnnjax.Elman(grid.I, size, key=grid.KEY, dtype="float64")


def test_units_have_signs_and_do_not_reach_themselves():
    """R by NumPy: E to I is 3 to 2, so an inhibitory unit counts one and a half times."""
    network = Constrained(elman(), Dale(E), ConnectionMask(OTHERS))
    signs = np.asarray([1, 1, 1, -1.5, -1.5])
    expected = np.abs(network.layer.recurrent_weight) * signs[:, None] * OTHERS
    np.testing.assert_allclose(network.cell.recurrent_weight, expected, rtol=1e-12)


def test_it_runs_as_the_cell_of_that_weight_and_the_gradient_passes_through_the_constraints():
    network, xs = Constrained(elman(), Dale(E), ConnectionMask(OTHERS)), grid.inputs(grid.T)
    engine = rnnjax.Scan() if NO_KERNEL else rnnjax.Fused()

    def loss(run, part):
        return (run(part) ** 2).sum()

    @eqx.filter_jit
    def both(network):
        run = lambda part: rnnjax.unroll(part, None, xs, engine=engine)[1]  # noqa: E731
        plain = lambda part: rnnjax.unroll(part, None, xs, engine=rnnjax.Scan())[1]  # noqa: E731
        of_cell = eqx.filter_grad(partial(loss, plain))(network.cell)
        return run(network), plain(network.cell), eqx.filter_grad(partial(loss, run))(network), of_cell

    got, expected, gradient, of_cell = both(network)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    weight = np.asarray(network.layer.recurrent_weight)
    factors = np.sign(weight) * np.asarray([1, 1, 1, -1.5, -1.5])[:, None] * OTHERS
    np.testing.assert_allclose(gradient.layer.recurrent_weight, of_cell.recurrent_weight * factors, rtol=1e-10)
    assert gradient.constraints[1].mask is None


@pytest.mark.parametrize(("excitatory", "signs"), [(0, -1.0), (H, 1.0)])
def test_units_of_one_kind_keep_their_sizes(excitatory, signs):
    weight = np.random.default_rng(0).normal(size=(H, H))
    np.testing.assert_allclose(Dale(excitatory)(jnp.asarray(weight)), signs * np.abs(weight))


def test_a_function_is_a_constraint():
    network = Constrained(elman(), jnp.tanh)
    assert jax.tree.leaves(network.constraints) == []
    np.testing.assert_allclose(network.cell.recurrent_weight, np.tanh(network.layer.recurrent_weight))


def test_noise_on_currents_is_that_of_the_equation():
    """h without noise, plus sqrt(2 leak) sigma e: of the first step, over many keys, mean and deviation."""
    leak, sigma = 0.2, 0.5
    cell = RateRNN(grid.I, H, leak=leak, key=grid.KEY, dtype="float64")
    noisy = rnnjax.regularise.NoisyStates(cell, (2 * leak) ** 0.5 * sigma)
    run = lambda key: rnnjax.unroll(noisy, None, grid.inputs(1), key=key)[0].h  # noqa: E731
    plain, drawn = jax.jit(lambda keys: (run(None), jax.vmap(run)(keys)))(jax.random.split(grid.KEY, 4000))
    np.testing.assert_allclose(np.std(drawn - plain), (2 * leak) ** 0.5 * sigma, rtol=0.02)
    np.testing.assert_allclose(np.mean(drawn, 0), plain, atol=0.03)


BAD = {
    "RateRNN(3, 8, leak=0.0, key=grid.KEY)": r"leak: expected dt / tau, above 0 and up to 1, got 0\.0",
    "RateRNN(3, 8, leak=0.1, rank=9, key=grid.KEY)": "rank: expected up to hidden_size=8, got 9",
    "Constrained(elman(), Dale(6))": "excitatory: expected up to the 5 units of the cell, got 6",
    "Constrained(elman(), ConnectionMask(OTHERS[1:]))": r"mask: expected \[5, 5\], .* got \[4, 5\]",
    "ConnectionMask(np.eye(3))": r"mask: expected booleans \[H, G H\], got",
    "Constrained(rnnjax.LRU(3, 8, key=grid.KEY))": "cell: expected a cell whose recurrent_weight is one .* got LRU",
    "Constrained(RateRNN(3, 8, leak=0.1, rank=2, key=grid.KEY))": "cell: expected a cell whose recurrent_weight",
    "Constrained(rnnjax.Stack([elman()]))": "cell: expected a cell whose recurrent_weight is one matrix, got Stack",
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    with pytest.raises((TypeError, ValueError), match=BAD[call]) as raised:
        eval(call)
    assert instructs(str(raised.value))
