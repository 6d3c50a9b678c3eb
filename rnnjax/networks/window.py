"""The inputs of the last few steps, as every step sees them, for all of time at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..arrays import Inputs, select
from ..exporting import exportable
from ..network import Options

Remembered = Inexact[Array, "K I"]


@exportable
class Window(NamedTuple):
    """The state of what looks back: the inputs of the last `window - 1` steps, oldest first; zeros before the start.

    They are kept as they came, in the dtype of the inputs.
    """

    inputs: Remembered


def look_back(before: Remembered, xs: Inputs, options: Options) -> tuple[Remembered, tuple[Inputs, ...]]:
    """What to remember after the last step; and, over time, x_t, x_{t-1}, ... as far back as the window reaches.

    An array for each age rather than an axis of them, which would be written out W times as large as the inputs. Past a
    reset zeros are seen in place of what came before it: selected, not multiplied, so that a NaN there reaches neither
    a value nor a gradient.
    """
    remembered, T = before.shape[0], xs.shape[0]
    all_inputs = jnp.concatenate([before, xs])  # x_t stands at `remembered + t`
    end = T if options.length is None else options.length
    last = jax.lax.dynamic_slice_in_dim(all_inputs, end, remembered)
    aged = tuple(all_inputs[remembered - age : remembered - age + T] for age in range(remembered + 1))
    if options.resets is None:
        return last, aged
    steps = jnp.arange(T)
    starts = jnp.where(options.resets, steps, -remembered)  # where there is no reset, all that is remembered counts
    oldest = jax.lax.cummax(starts)
    visible = tuple(select(steps - age >= oldest, x, jnp.zeros_like(x)) for age, x in enumerate(aged))
    kept = end - remembered + jnp.arange(remembered) >= jnp.max(starts, initial=-remembered)
    return select(kept, last, jnp.zeros_like(last)), visible
