"""Checks that losses, weights, carries and validation results are finite, before anything is saved."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..arrays import PyTree
from .devices import AbstractDevices
from .log import Log, Metrics
from .run import Run


def summarise(measured: Sequence[Mapping[str, Array | float]]) -> Metrics:
    """Means since the last report: of the loss, of the norm of the gradient, of the metrics of the loss."""
    names = ["loss", "gradient_norm", *(name for name in measured[0] if name not in ("loss", "gradient_norm"))]
    known = jax.device_get(measured)
    return {name: float(np.mean(np.asarray([each[name] for each in known], np.float64))) for name in names}


def check_loss(measured: Mapping[str, Array | float], step: int, log: Log | None) -> None:
    """Raise if the loss is not finite, before any later results are written."""
    value = np.asarray(jax.device_get(measured["loss"]))
    if not np.isfinite(value):
        raise FloatingPointError(
            f"loss: expected a finite value, got {value} of `batches({step})`. "
            f"Clip the gradient, lower the learning rate, or look at the data.{_kept(log)}"
        )


def check_finite(run: Run, devices: AbstractDevices, log: Log | None) -> None:
    """Raise if weights or carry are not finite: no loss has been computed from those of the last step yet."""
    remedies = {
        "weights": "Clip the gradient, lower the learning rate, or look at the gradient.",
        "carry": "Look at the batch, and at what the loss makes of it. If the carry is an estimator's memories, let "
        "sequences begin more often, or lower the learning rate.",
    }
    for name, remedy in remedies.items():
        if not devices.gather(_is_finite(getattr(run, name))):
            raise FloatingPointError(
                f"{name}: expected finite values, got some that are not after step {int(run.step)}, though the loss "
                f"was finite. {remedy}{_kept(log)}"
            )


def check_judged(judged: float, step: int, log: Log | None) -> None:
    """Raise if the validation result is NaN: NaN compares false, so early stopping would never trigger."""
    if np.isnan(judged):
        raise FloatingPointError(
            f"validate: expected a number, got NaN after step {step}. "
            f"Look at the held-out data, and at `validate`.{_kept(log)}"
        )


@jax.jit
def _is_finite(tree: PyTree) -> Array:
    numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.asarray([jnp.isfinite(leaf).all() for leaf in numbers], bool).all()


def _kept(log: Log | None) -> str:
    return "" if log is None else log.advice()
