"""Discretisations of a diagonal linear system in continuous time: the map h -> a h + scale B x of one time step."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from .. import check
from ..cell import describe

Rate = Complex[Array, " H"]  # the eigenvalue Lambda of each unit
Step = Float[Array, " H"]  # the duration of a step
Discretisation: TypeAlias = Callable[[Rate, Step], tuple[Rate, Rate]]


def zero_order_hold(rate: Rate, step: Step) -> tuple[Rate, Rate]:
    """`(a, scale)` of h' = Lambda h + B x, exact for an x that is constant during the step.

    a = exp(Lambda step)        scale = (a - 1) / Lambda
    """
    turned = rate * step.astype(rate.dtype)
    # expm1: a step is short, and exp(z) - 1 would keep few of the digits of z
    return jnp.exp(turned), jnp.expm1(turned) / rate


def bilinear(rate: Rate, step: Step) -> tuple[Rate, Rate]:
    """`(a, scale)` of h' = Lambda h + B x by the bilinear transform (Tustin's method): the trapezoidal rule.

    a = (1 + Lambda step / 2) / (1 - Lambda step / 2)        scale = step / (1 - Lambda step / 2)

    Its error is of the third order in Lambda step, and |a| < 1 wherever the real part of Lambda is negative.
    """
    duration = step.astype(rate.dtype)
    half = rate * duration / 2
    implicit = 1 / (1 - half)
    return (1 + half) * implicit, duration * implicit


def discretised(discretise: Discretisation, rate: Rate, step: Step) -> tuple[Rate, Rate]:
    """`discretise(rate, step)`. Raises a ValueError unless it gives two arrays like `rate`."""
    made = jax.tree.map(jnp.asarray, discretise(rate, step))
    if not check.alike(made, (rate, rate)):
        raise ValueError(
            f"discretise: expected {describe(discretise)} to return (a, scale), each {check.show(rate)}, "
            f"got {check.show(made)}. Return one complex number for each unit in both"
        )
    return made


def check_discretisation(discretise: object) -> None:
    """Raise unless it is a function."""
    if isinstance(discretise, type) or not callable(discretise):
        raise TypeError(
            f"discretise: expected a function (rate, step) -> (a, scale), got {discretise!r}. "
            "Pass rnnjax.cells.zero_order_hold or rnnjax.cells.bilinear"
        )
