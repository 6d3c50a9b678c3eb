"""A program as a user would type it, which pyright passes in strict mode: what the library returns has a type."""

# pyright: strict

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

import rnnjax


class Sentiment(eqx.Module):
    """Embedding, recurrence, head."""

    cell: rnnjax.LSTM
    head: eqx.nn.Linear

    def __call__(self, xs: Float[Array, "T I"], length: int | None = None) -> Array:
        last, _ = rnnjax.unroll(self.cell, None, xs, length=length, engine=rnnjax.Fused())
        return self.head(last.h)


def counter(state: Array, x: Array) -> tuple[Array, Array]:
    """A plain function."""
    return state + x, state


def main() -> None:
    """Cells, networks, engines, models, training."""
    key = jax.random.key(0)
    xs = jnp.zeros((5, 3))
    cell = rnnjax.GRU(3, 8, key=key)
    last, ys = rnnjax.unroll(cell, None, xs, reverse=True)
    print(last.h.shape, ys.shape)
    total, sums = rnnjax.unroll(counter, jnp.zeros(3), xs)
    print(total + sums[-1])
    stack = rnnjax.Stack([cell, rnnjax.LSTM(8, 8, key=key)], dropout=0.1)
    states, ys = rnnjax.unroll(stack, None, xs, key=key, engine=rnnjax.Scan(unroll=2))
    print(states, ys.mean())
    print(rnnjax.engines.CPU())
    model = Sentiment(rnnjax.LSTM(3, 8, key=key), eqx.nn.Linear(8, 2, key=key))
    print(model(xs))
    print(rnnjax.diagnose.gradient_by_lag(cell, None, xs, lags=3))
    print(optax.global_norm(eqx.filter(model, eqx.is_array)))


if __name__ == "__main__":
    main()
