"""The inputs of the last few steps, as every step sees them, for all of time at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..arrays import Inputs, select
from ..network import Options

Remembered = Inexact[Array, "K I"]


class Window(NamedTuple):
    """The state of what looks back: the inputs of the last `window - 1` steps, oldest first; zeros before the start.

    They are kept as they came, in the dtype of the inputs.
    """

    inputs: Remembered


def look_back(before: Remembered, xs: Inputs, options: Options) -> tuple[Remembered, Inexact[Array, "T W I"]]:
    """What to remember after the last step; and at each step x_t, x_{t-1}, ... as far back as the window reaches.

    Past a reset zeros are seen in place of what came before it: selected, not multiplied, so that a NaN there reaches
    neither a value nor a gradient.
    """
    remembered, T = before.shape[0], xs.shape[0]
    all_inputs = jnp.concatenate([before, xs])  # x_t stands at `remembered + t`
    end = T if options.length is None else options.length
    last = jax.lax.dynamic_slice_in_dim(all_inputs, end, remembered)
    aged = [jax.lax.slice_in_dim(all_inputs, remembered - age, remembered - age + T) for age in range(remembered + 1)]
    windows = jnp.stack(aged, axis=1)
    if options.resets is None:
        return last, windows
    steps, ages = jnp.arange(T), jnp.arange(remembered + 1)
    starts = jnp.where(options.resets, steps, -remembered)  # where there is no reset, all that is remembered counts
    visible = steps[:, None] - ages >= jax.lax.cummax(starts)[:, None]
    kept = end - remembered + jnp.arange(remembered) >= jnp.max(starts, initial=-remembered)
    return select(kept, last, jnp.zeros_like(last)), select(visible, windows, jnp.zeros_like(windows))
