"""Direct forecasts: all steps of the horizon at once."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check
from ...arrays import IntegerLike, PyTree
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...named import as_module
from ...network import Layer
from ...unroll import unroll
from .distribution import AbstractDistribution, Outputs
from .windows import Windows, check_head, mean_scale, valid_past


class Forecaster(eqx.Module):
    """The distribution of each of the next `horizon` values, from the last output of a network.

        outputs = head(network(past / scale)_last)          scale = mean |past|

    horizon        steps that are forecast
    network        any that reads vectors [1], the value over the scale, or [1 + C] with C features
    head           from an output of the network to [horizon * distribution.size]
    distribution   `Normal`, `StudentT`, `NegativeBinomial`, `Quantiles`

        model = Forecaster(12, LSTM(1, 32, key=a), eqx.nn.Linear(32, 12 * 2, key=b), Normal())

    The steps of a forecast are drawn independently of each other; use `DeepAR` for paths.
    """

    network: Layer
    head: Callable[[Array], Array] = eqx.field(converter=as_module)
    distribution: AbstractDistribution
    horizon: int = eqx.field(static=True)

    def __init__(
        self, horizon: int, network: Layer, head: Callable[[Array], Array], distribution: AbstractDistribution
    ):
        """The parts as they are. Raises ValueError for a head whose outputs do not fit the horizon."""
        check.sizes(horizon=horizon)
        check_head(network, head, horizon * distribution.size)
        self.network = network
        self.head = head
        self.distribution = distribution
        self.horizon = int(horizon)

    def __call__(
        self,
        past: Float[Array, " P"],
        *,
        length: Checked[IntegerLike | None] = None,
        features: Float[Array, "S C"] | None = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Float[Array, ""]]:
        """The outputs [horizon, size] after one past, and its scale: what the methods of `distribution` take.

        past       the last values of a series; the last one is the latest
        length     how many of them count, which are the last ones; None: all
        features   [P, C] or [P + horizon, C], of which the first P are read; None: there are none
        """
        P = past.shape[0]
        valid = valid_past(length, P)
        scale = mean_scale(past, valid)
        xs = (past / scale)[:, None]
        if features is not None:
            xs = jnp.concatenate([xs, features[:P].astype(xs.dtype)], axis=1)
        _, ys = unroll(self.network, None, xs, mask=None if length is None else valid, engine=engine, key=key)
        return self.head(ys[-1]).reshape(self.horizon, self.distribution.size), scale


def forecaster_loss(
    model: Forecaster,
    carry: PyTree,
    batch: Windows,
    key: PRNGKeyArray | None,
    *,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """The mean loss of the future values of `windows`, and the carry: a loss for `fit`.

    batch   `Windows`; their future is [B, horizon]
    key     for dropout in the network, drawn anew for each window; None: nothing is dropped
    """
    if batch.future is None or batch.future.shape[1:] != (model.horizon,):
        raise ValueError(
            f"batch: expected Windows with a future [B, {model.horizon}], got {check.show(batch)}. "
            f"Write windows(series, past, {model.horizon})"
        )
    keys = None if key is None else jax.random.split(key, len(batch.past))

    def one(past: Array, length: Array, future: Array, features: Array | None, key: PRNGKeyArray | None) -> Array:
        outputs, scale = model(past, length=length, features=features, engine=engine, key=key)
        return model.distribution.loss(outputs, scale, future)

    losses = jax.vmap(one)(batch.past, batch.lengths, batch.future, batch.features, keys)
    return losses.mean(), carry
