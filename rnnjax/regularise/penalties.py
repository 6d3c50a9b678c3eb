"""Penalties, to be added to a loss: on large weights, large outputs, and outputs that change fast."""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arrays import Length, PyTree, carry_dtype
from ..marks import blank


def l1_penalty(weights: PyTree) -> Float[Array, ""]:
    """The sum of |w| over all floating and complex arrays of `weights`: a model, or a part of one."""
    return _total(jnp.abs(leaf) for leaf in _leaves(weights))


def l2_penalty(weights: PyTree) -> Float[Array, ""]:
    """The sum of |w|^2 over all floating and complex arrays of `weights`.

    Its gradient, 2 w, is scaled by Adam as the rest of the loss is; the weight decay of `optax.adamw` is not.
    """
    return _total(leaf.real**2 + leaf.imag**2 for leaf in _leaves(weights))


def activation_penalty(ys: Float[Array, "T ..."], *, length: Length | int | None = None) -> Float[Array, ""]:
    """The mean of y^2 over the valid steps (AR; Merity et al. 2017, arXiv:1708.01009). Zero where no step is valid.

    ys       outputs or states over time: of the last layer, after its dropout
    length   steps from there on are ignored; under `vmap` each sequence has the same weight, whatever its length
    """
    steps = _valid(ys, length)
    return _mean(blank(_wide(ys), steps, ys.shape[0]) ** 2, steps)


def temporal_activation_penalty(ys: Float[Array, "T ..."], *, length: Length | int | None = None) -> Float[Array, ""]:
    """The mean of (y_{t+1} - y_t)^2 over the valid pairs of steps (TAR; Merity et al. 2017, arXiv:1708.01009).

    ys       outputs or states over time: of the last layer, before its dropout
    length   steps from there on are ignored. Zero where there is no pair

    `resets` are not taken into account: the pair of steps on both sides of a reset counts, too.
    """
    steps = _valid(ys, length)
    ys = blank(_wide(ys), steps, ys.shape[0])  # before the difference, so that NaN in padding reaches no gradient
    return _mean((ys[1:] - ys[:-1]) ** 2, jnp.maximum(steps - 1, 0))


def _leaves(weights: PyTree) -> list[Array]:
    return [_wide(leaf) for leaf in jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array))]


def _wide(values: Array) -> Array:
    """In float32 or wider: the square of 256 overflows in float16."""
    return values.astype(carry_dtype(values.dtype))


def _total(parts: Iterable[Array]) -> Float[Array, ""]:
    """The sum of all their entries; zero of none."""
    return jnp.asarray(sum((part.sum() for part in parts), 0.0))


def _valid(ys: Array, length: Length | int | None) -> Length:
    """The number of valid steps."""
    T = ys.shape[0]
    return jnp.asarray(T) if length is None else jnp.clip(jnp.asarray(length), 0, T)


def _mean(values: Array, steps: Length) -> Float[Array, ""]:
    """The mean over the first `steps` steps; zero of none."""
    entries = jnp.maximum(steps, 1).astype(values.dtype) * max(values[:1].size, 1)
    return blank(values, steps, values.shape[0]).sum() / entries
