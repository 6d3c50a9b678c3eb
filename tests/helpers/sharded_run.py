"""For `test_fused`, in a process of its own: `Fused` under `jax.shard_map`, the weights shared, the batch sharded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import rnnjax
from rnnjax.engines.fused import Fused


def main() -> None:
    weights, static = eqx.partition(grid.build("gru"), eqx.is_inexact_array)
    batch = grid.inputs(4, 6), np.asarray([6, 0, 3, 5])

    @jax.jit
    def both(*arguments: Any) -> tuple[Any, Any]:
        return sharded(static, *arguments), derivatives(partial(loss, rnnjax.Scan(), static))(*arguments)

    grid.assert_close(*both(weights, *batch))


def loss(engine: rnnjax.AbstractEngine, static: Any, weights: Any, xs: jax.Array, lengths: jax.Array) -> jax.Array:
    def one(xs: jax.Array, length: jax.Array) -> jax.Array:
        return grid.contract(rnnjax.unroll(eqx.combine(weights, static), None, xs, length=length, engine=engine))

    return jnp.tanh(jax.vmap(one)(xs, lengths)).sum()


def sharded(static: Any, *arguments: Any) -> Any:
    """The derivatives of a loss that is summed over the devices."""
    parts = {"in_specs": (P(), P("device"), P("device")), "out_specs": P()}
    total = lambda *arguments: jax.lax.psum(loss(Fused(), static, *arguments), "device")  # noqa: E731
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(derivatives(total), mesh=mesh, **parts)(*arguments)


def derivatives(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradient, and its derivative along the weights themselves."""

    def along(weights: Any, xs: jax.Array, lengths: jax.Array) -> Any:
        return jax.jvp(lambda weights: jax.grad(loss)(weights, xs, lengths), (weights,), (weights,))

    return along


if __name__ == "__main__":
    main()
