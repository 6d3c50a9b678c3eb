"""A damped step, in a trust region, for all of time at once: a Kalman filter."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .blocks import Blocks, Vectors, adjoint, apply, identity_like, inverse, multiply
from .time import prefix, recurrence


class Riccati(NamedTuple):
    """The map of variances P -> c + a P (1 + j P)^-1 a*, of one step or of several."""

    a: Blocks
    c: Blocks
    j: Blocks


def damped_step(jacobians: Blocks, residuals: Vectors, damping: Float[Array, ""], axis: str | None) -> Vectors:
    """A change `d` of the states that follows d_t = J_t d_{t-1} + r_t only where that can be trusted.

    Without damping it is Newton's step, which becomes very large where products of J grow, in unstable sequences. Here
    noise of variance 1 is added to it, and at every step zero is observed, with variance 1 / damping:

        d_t = (1 + damping P_t)^-1 (J_t d_{t-1} + r_t)
        P_t = 1 + J_t P_{t-1} (1 + damping P_{t-1})^-1 J_t*,        P_1 = 1

    the mean of a Kalman filter. Where J contracts, P is about 1 and d is close to Newton's step; where J expands, P is
    large and contributions from much earlier steps are damped. A solved prefix of time stays solved. The variances are
    a scan of Riccati maps (Sarkka & Garcia-Fernandez 2021, arXiv:1905.13002). As a trust region for recurrent networks
    this is ELK (Gonzalez et al. 2024, arXiv:2407.19115), without its smoothing: with it, the step is that of Levenberg
    and Marquardt, which may change a solved prefix for the sake of later steps.
    """
    ones, damping = identity_like(jacobians), damping.astype(jacobians.dtype)
    variances = prefix(_compose, Riccati(jacobians, ones, damping * ones), axis).c
    trusted = inverse(ones + damping * variances)
    start = jnp.zeros_like(residuals[0])
    return recurrence(multiply(trusted, jacobians), apply(trusted, residuals), start, axis)


def _compose(first: Riccati, second: Riccati) -> Riccati:
    """The map `second(first(P))`."""
    middle = inverse(identity_like(first.a) + multiply(first.c, second.j))
    through = multiply(second.a, middle)
    onward = multiply(second.j, multiply(middle, first.a))
    return Riccati(
        multiply(through, first.a),
        second.c + multiply(multiply(through, first.c), adjoint(second.a)),
        first.j + multiply(adjoint(first.a), onward),
    )
