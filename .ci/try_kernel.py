"""Runs `Fused` by the CPU kernel of the rnnjax that is installed: for a wheel in an environment of its own."""

import jax
import numpy as np

import rnnjax

cell = rnnjax.LSTM(3, 16, key=jax.random.key(0))
xs = jax.random.normal(jax.random.key(1), (20, 3))
plan = rnnjax.Fused().plan(cell, xs)
print(plan)
assert isinstance(plan, rnnjax.engines.Plan)
_, got = rnnjax.unroll(cell, None, xs, engine=rnnjax.Fused())
_, expected = rnnjax.unroll(cell, None, xs, engine=rnnjax.Scan())
np.testing.assert_allclose(got, expected, atol=1e-6)
