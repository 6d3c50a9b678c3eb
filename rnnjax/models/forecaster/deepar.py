"""DeepAR: a distribution of the next value at every step, and forecasts by drawing one value after the other."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ... import check
from ...arrays import IntegerLike, PyTree, State
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...named import as_module
from ...network import Layer
from ...unroll import unroll
from .distribution import AbstractDistribution, Outputs
from .windows import Windows, check_head, mean_scale, valid_past


class DeepAR(eqx.Module):
    """Salinas et al. 2020, "DeepAR: probabilistic forecasting with autoregressive recurrent networks".

        h_t = network(h_{t-1}, y_{t-1} / scale, features_t)             scale = mean |past|
        y_t ~ distribution(head(h_t), scale)                            arXiv:1704.04110

    network        any that reads vectors [1], or [1 + C] with C features; it reads its sequence from the left
    head           from an output of the network to [distribution.size]: `eqx.nn.Linear(H, distribution.size, key=key)`
    distribution   `Normal`, `StudentT`, or `NegativeBinomial` for counts

    The value before the first one is zero. The paper's scale is 1 + the mean of the past.
    """

    network: Layer
    head: Callable[[Array], Array] = eqx.field(converter=as_module)
    distribution: AbstractDistribution

    def __init__(self, network: Layer, head: Callable[[Array], Array], distribution: AbstractDistribution):
        """The parts as they are. Raises ValueError for a head whose outputs are not those of the distribution."""
        check_head(network, head, distribution.size)
        self.network = network
        self.head = head
        self.distribution = distribution

    def __call__(
        self,
        values: Float[Array, " T"],
        valid: Bool[Array, " T"] | None,
        scale: Float[Array, ""],
        *,
        features: Float[Array, "T C"] | None = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Outputs]:
        """The state after T steps, and the outputs [T, size] for each value, by those before it.

        Where `valid` is false, which is in front, there is no value; None: all are valid.
        """
        state, ys = unroll(
            self.network, None, _inputs(values, valid, scale, features), mask=valid, engine=engine, key=key
        )
        return state, jax.vmap(self.head)(ys)

    def paths(
        self,
        past: Float[Array, " P"],
        horizon: int,
        number: int,
        *,
        key: PRNGKeyArray,
        length: Checked[IntegerLike | None] = None,
        features: Float[Array, "S C"] | None = None,
        engine: AbstractEngine = Auto(),
    ) -> Float[Array, "number horizon"]:
        """Draws of the next values, [number, horizon]: each step of a path is drawn after the steps before it.

        past       the last values of a series; the last one is the latest
        length     how many of them count, which are the last ones; None: all
        features   [P + horizon, C], of the past and of the steps to come; None: there are none

        `jnp.quantile(paths, 0.975, 0)` is the upper end of a band of 95 %.
        """
        check.sizes(horizon=horizon, number=number)
        P = past.shape[0]
        if features is not None and len(features) != P + horizon:
            raise ValueError(
                f"features: expected {P + horizon} rows, for the past and the horizon, got {len(features)}. "
                "Pass those of the steps to come, too"
            )
        valid = valid_past(length, P)
        scale = mean_scale(past, valid)
        known = None if features is None else features[:P]
        state, _ = self(past, None if length is None else valid, scale, features=known, engine=engine)
        coming = None if features is None else features[P:]

        def step(carry: tuple[State, Array], given: tuple) -> tuple[tuple[State, Array], Array]:
            state, last = carry
            features, key = given
            x = (last / scale)[None]
            if features is not None:
                x = jnp.append(x, features.astype(past.dtype))
            state, (y,) = unroll(self.network, state, x[None], engine=engine)
            drawn = self.distribution.sample(self.head(y), scale, key).astype(past.dtype)
            return (state, drawn), drawn

        def path(key: PRNGKeyArray) -> Array:
            last = jnp.where(valid[-1], past[-1], 0)
            return jax.lax.scan(step, (state, last), (coming, jax.random.split(key, horizon)))[1]

        return jax.vmap(path)(jax.random.split(key, number))


def deepar_loss(
    model: DeepAR,
    carry: PyTree,
    batch: Windows,
    key: PRNGKeyArray | None,
    *,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """The mean of -log p(y_t | y before it) over all values of the windows, past and future: a loss for `fit`.

    batch   `Windows`, with their future; the features, if there are any, are [B, P + horizon, C]
    key     for dropout in the network, drawn anew for each window; None: nothing is dropped
    """
    if batch.future is None:
        raise ValueError(
            f"batch: expected Windows with a future, got {check.show(batch)}. Write windows(series, past, horizon)"
        )
    keys = None if key is None else jax.random.split(key, len(batch.past))

    def one(past: Array, length: Array, future: Array, features: Array | None, key: PRNGKeyArray | None):
        known = valid_past(length, len(past))
        scale = mean_scale(past, known)
        valid = jnp.append(known, jnp.ones(len(future), bool))
        values = jnp.where(valid, jnp.append(past, future), 0)
        _, outputs = model(values, valid, scale, features=features, engine=engine, key=key)
        losses = model.distribution.loss(outputs, scale, values)
        return jnp.where(valid, losses, 0).sum(), valid.sum()

    sums, counts = jax.vmap(one)(batch.past, batch.lengths, batch.future, batch.features, keys)
    return sums.sum() / counts.sum().astype(sums.dtype), carry


def _inputs(
    values: Float[Array, " T"],
    valid: Bool[Array, " T"] | None,
    scale: Float[Array, ""],
    features: Float[Array, "T C"] | None,
) -> Float[Array, "T I"]:
    """The value before each step over the scale, and the features of the step."""
    values = values if valid is None else jnp.where(valid, values, 0)
    before = jnp.append(jnp.zeros(1, values.dtype), values[:-1]) / scale
    columns = before[:, None]
    return columns if features is None else jnp.concatenate([columns, features.astype(columns.dtype)], axis=1)
