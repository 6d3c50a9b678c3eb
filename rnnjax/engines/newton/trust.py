"""The step of Levenberg and Marquardt for a trajectory, all of time at once, as a Kalman smoother."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .blocks import Blocks, Vectors, adjoint, apply, identity_like, inverse, multiply
from .time import after, prefix, recurrence


class Riccati(NamedTuple):
    """The map of variances P -> c + a P (1 + j P)^-1 a*, one step's or several steps'."""

    a: Blocks
    c: Blocks
    j: Blocks


def damped_step(jacobians: Blocks, residuals: Vectors, damping: Float[Array, ""], axis: str | None) -> Vectors:
    """The change `d` of the trajectory that minimises sum_t |d_t - J_t d_{t-1} - r_t|^2 + damping |d_t|^2, d_0 = 0.

    Without damping that is Newton's step, d_t = J_t d_{t-1} + r_t, which long products of J may carry away; with it, no
    step is longer than |r| / (2 sqrt(damping)). The least squares are those of a Gaussian d_t = J_t d_{t-1} + r_t +
    noise of variance 1, of which zero was observed with variance 1 / damping: a Kalman filter forward, whose variances
    are a scan of Riccati maps, and a smoother backward (Rauch, Tung & Striebel 1965; in parallel, Sarkka &
    Garcia-Fernandez 2021, arXiv:1905.13002; as trust region for recurrent networks ELK, Gonzalez et al. 2024,
    arXiv:2407.19115).
    """
    ones = identity_like(jacobians)
    predicted = prefix(_compose, Riccati(jacobians, ones, damping * ones), axis).c  # variances before they are observed
    shrink = inverse(ones + damping * predicted)
    zero = jnp.zeros_like(residuals[0])
    filtered = recurrence(multiply(shrink, jacobians), apply(shrink, residuals), zero, axis)

    following = after(jacobians, jnp.zeros_like(jacobians[0]), axis)
    variance = multiply(shrink, predicted)
    precision = inverse(after(predicted, ones[0], axis))
    gain = multiply(multiply(variance, adjoint(following)), precision)
    expected = apply(following, filtered) + after(residuals, zero, axis)
    return recurrence(gain, filtered - apply(gain, expected), zero, axis, reverse=True)


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
