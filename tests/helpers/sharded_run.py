"""For `test_fused`, in a process of its own: `Fused` under `jax.shard_map`, the weights shared, the batch sharded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import rnnjax
from rnnjax.engines.fused import Fused

WEIGHTS, STATIC = eqx.partition(grid.build("gru"), eqx.is_inexact_array)
XS, LENGTHS = grid.inputs(4, 6), jnp.asarray([6, 0, 3, 5])


def loss(engine: rnnjax.AbstractEngine, weights: Any, xs: jax.Array, lengths: jax.Array) -> jax.Array:
    def one(xs: jax.Array, length: jax.Array) -> jax.Array:
        return grid.contract(rnnjax.unroll(eqx.combine(weights, STATIC), None, xs, length=length, engine=engine))

    return jnp.tanh(jax.vmap(one)(xs, lengths)).sum()


def sharded(function: Callable[..., Any]) -> Any:
    """`function` of a loss that is summed over the devices."""
    parts = {"in_specs": (P(), P("device"), P("device")), "out_specs": P()}
    total = lambda *arguments: jax.lax.psum(loss(Fused(), *arguments), "device")  # noqa: E731
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(function(total), mesh=mesh, **parts)(WEIGHTS, XS, LENGTHS)


def derivatives(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradient, and its derivative along the weights themselves."""

    def along(weights: Any, xs: jax.Array, lengths: jax.Array) -> Any:
        return jax.jvp(lambda weights: jax.grad(loss)(weights, xs, lengths), (weights,), (weights,))

    return along


def main() -> None:
    expected = jax.jit(derivatives(partial(loss, rnnjax.Scan())))(WEIGHTS, XS, LENGTHS)
    grid.assert_close(jax.jit(partial(sharded, derivatives))(), expected)


if __name__ == "__main__":
    main()
