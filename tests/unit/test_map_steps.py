"""A function of one step over all steps: the same as `jax.vmap`, and linear layers as one product of rows."""

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.map_steps import map_steps

UP, DOWN = (eqx.nn.Linear(*sizes, key=grid.KEY, dtype="float64") for sizes in ((3, 5), (5, 2)))
FUNCTIONS = {
    "linear": UP,
    "without a bias": eqx.nn.Linear(3, 5, use_bias=False, key=grid.KEY, dtype="float64"),
    "sequence": eqx.nn.Sequential([UP, eqx.nn.Lambda(jax.nn.gelu), DOWN]),
    "to a scalar": eqx.nn.Linear(3, "scalar", key=grid.KEY, dtype="float64"),
    "of two arrays": lambda x: (x, x.sum()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_vmap(name):
    xs = np.random.default_rng(0).normal(size=(4, 3))
    both = jax.jit(lambda xs: (map_steps(FUNCTIONS[name], xs), jax.vmap(FUNCTIONS[name])(xs)))
    jax.tree.map(lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-12), *both(xs))


def test_features_of_a_batch_stay_the_last_axis():
    def shapes(run):
        equations = jax.make_jaxpr(jax.vmap(run))(jnp.zeros((7, 4, 3))).eqns
        return [equation.outvars[0].aval.shape for equation in equations if equation.primitive.name == "dot_general"]

    assert shapes(lambda xs: map_steps(UP, xs)) == [(7, 4, 5)]
    assert shapes(lambda xs: jax.vmap(UP.weight.dot)(xs)) == [(5, 7, 4)]  # what it is there to avoid
