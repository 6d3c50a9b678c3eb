"""What must be finite for a run of training to go on, and for anything of it to be kept."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .devices import AbstractDevices
from .run import Log, Metrics, Run


def summarise(losses: list[Array], norms: list[Array], log: Log | None) -> Metrics:
    """Means since the last report. A loss that is not finite ends the run here, before anything is written."""
    values = np.asarray(jax.device_get(losses), np.float64)
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"loss: expected a finite value, got {values[~np.isfinite(values)][0]} "
            f"{len(values) - int(np.argmax(~np.isfinite(values)))} steps ago. "
            f"Clip the gradient, lower the learning rate, or look at the data.{_kept(log)}"
        )
    return {"loss": float(values.mean()), "gradient_norm": float(np.mean(jax.device_get(norms)))}


def check_finite(run: Run, devices: AbstractDevices, log: Log | None) -> None:
    """What the last step made of weights and carry has met no loss yet: it must be seen before it is kept."""
    remedies = {
        "weights": "Clip the gradient, lower the learning rate, or look at the gradient.",
        "carry": "Look at the batch, and at what the loss makes of it.",
    }
    for name, remedy in remedies.items():
        if not devices.gather(_is_finite(getattr(run, name))):
            raise FloatingPointError(
                f"{name}: expected finite values, got some that are not after step {int(run.step)}, though the loss "
                f"was finite. {remedy}{_kept(log)}"
            )


@jax.jit
def _is_finite(tree: PyTree) -> Array:
    numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.asarray([jnp.isfinite(leaf).all() for leaf in numbers], bool).all()


def _kept(log: Log | None) -> str:
    return "" if log is None else f" The last good weights are in {log.checkpoint}."
