"""Noise: on the states at every step, or on any arrays."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .. import check
from ..arrays import PyTree, State
from ..cell import AbstractCell
from ..checked import Checked
from ..network import Options
from ..unroll import unroll
from .around import AbstractAround, check_kind
from .masked import run_masked


class NoisyStates(AbstractAround):
    """Jim, Giles & Horne 1996, IEEE Trans. Neural Networks 7:1424: noise added to the state after each step.

        s_t = step(s_{t-1}, x_t) + deviation * e_t,         e_t standard normal

    Without a key there is none. With one, it runs as a plain cell, which `Fused` and `Associative` refuse. The layer
    may be any cell.
    """

    layer: AbstractCell
    deviation: float = eqx.field(static=True)

    def __init__(self, layer: Checked[AbstractCell], deviation: Checked[float]):
        """`deviation` is the standard deviation, 0 or more."""
        check_kind(layer, AbstractCell, "a cell")
        self.layer = layer
        self.deviation = _deviation(deviation)

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        if options.key is None or self.deviation == 0:
            return unroll(self.layer, state, xs, **options._asdict())
        T = jax.tree.leaves(xs)[0].shape[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), jax.eval_shape(self.layer.initial))
        noise = add_noise(zeros, self.deviation, key=options.key)
        return run_masked(self, NoisyStates._step, state, xs, noise, options)

    def _step(self, state: State, u: PyTree[Array], noise: State) -> State:
        return jax.tree.map(jnp.add, self.layer.step(state, u), noise)


def add_noise(tree: PyTree, deviation: Checked[float], *, key: PRNGKeyArray) -> PyTree:
    """`tree` with normal noise of standard deviation `deviation` on every floating or complex array in it.

    Of inputs (Sietsma & Dow 1991), or of a whole model: weight noise (Graves 2011, "Practical variational inference
    for neural networks"), which the loss adds before it runs the model.
    """
    deviation = _deviation(deviation)
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, noisy), rest)


def _deviation(value: Any) -> float:
    """`value` as a float. Raises unless it is a standard deviation."""
    deviation = check.number("deviation", value, "a standard deviation")
    if not 0 <= deviation < float("inf"):
        raise ValueError(
            f"deviation: expected a standard deviation, 0 or more and finite, got {value!r}. Pass 0 for no noise"
        )
    return deviation
