"""Frames over time: layers of Equinox at each of them, and the recurrences whose products are convolutions."""

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax import unroll

KEY = jax.random.key(3)
F64 = jnp.float64


def videos(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, F64)


# Layers at every frame


def test_a_convolution_of_equinox_sees_each_frame_alone():
    layer = eqx.nn.Conv2d(2, 3, kernel_size=3, padding=1, key=KEY, dtype=F64)
    xs = videos(4, 2, 5, 4)
    last, ys = jax.jit(unroll)(rnnjax.TimeDistributed(layer, (2, 5, 4), dtype=F64), None, xs)
    assert last == ()
    np.testing.assert_allclose(ys, np.stack([layer(x) for x in xs]), rtol=0, atol=1e-12)


def test_what_sees_a_scalar_gets_one_at_every_step():
    words = jnp.asarray([2, 0, 1])
    table = eqx.nn.Embedding(3, 5, key=KEY)
    _, ys = unroll(rnnjax.TimeDistributed(table, (), dtype=words.dtype), None, words)
    np.testing.assert_array_equal(ys, table.weight[words])


def test_a_network_over_frames_ignores_their_padding():
    """Local context by a convolution, recurrence over what it saw, and NaN in ignored frames reaches no gradient."""
    network = rnnjax.Stack(
        [
            rnnjax.TimeDistributed(eqx.nn.Conv2d(1, 2, 3, stride=2, key=KEY, dtype=F64), (1, 5, 5), dtype=F64),
            rnnjax.TimeDistributed(jnp.ravel, (2, 2, 2), dtype=F64),
            rnnjax.GRU(8, 3, key=KEY, dtype=F64),
        ]
    )
    xs = videos(7, 1, 5, 5)

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(network: rnnjax.Stack, xs: jax.Array, length: jax.Array | None = None) -> jax.Array:
        last, ys = unroll(network, None, xs, length=length)
        return grid.contract((last, ys[:4]))

    grid.assert_close(slope(network, xs.at[4:].set(jnp.nan), jnp.asarray(4)), slope(network, xs[:4]))
