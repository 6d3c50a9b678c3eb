"""The inputs of the last few steps, for all steps at once."""

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
    """The state of a convolution: the inputs of the last `window - 1` steps, oldest first; zeros before the start.

    They have the dtype of the inputs.
    """

    inputs: Remembered


def look_back(before: Remembered, xs: Inputs, options: Options) -> tuple[Remembered, tuple[Inputs, ...]]:
    """The inputs to remember after the last step; and, over time, x_t, x_{t-1}, ... of the whole window.

    There is one array for each age; one array with an axis of ages would be W times as large as the inputs. Inputs from
    before a reset are replaced by zeros: by `where` and not by a product, so that a NaN there reaches neither a value
    nor a gradient.
    """
    remembered, T = before.shape[0], xs.shape[0]
    all_inputs = jnp.concatenate([before, xs])  # x_t is at `remembered + t`
    end = T if options.length is None else options.length
    last = jax.lax.dynamic_slice_in_dim(all_inputs, end, remembered)
    aged = tuple(all_inputs[remembered - age : remembered - age + T] for age in range(remembered + 1))
    if options.resets is None:
        return last, aged
    steps = jnp.arange(T)
    starts = jnp.where(options.resets, steps, -remembered)  # without a reset, all remembered inputs are used
    oldest = jax.lax.cummax(starts)
    visible = tuple(select(steps - age >= oldest, x, jnp.zeros_like(x)) for age, x in enumerate(aged))
    kept = end - remembered + jnp.arange(remembered) >= jnp.max(starts, initial=-remembered)
    return select(kept, last, jnp.zeros_like(last)), visible
