"""Noise on the states."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...arrays import PyTree, State, count_steps
from ...cell import AbstractCell
from ...checked import Checked
from ...network import Options
from ...networks.layer import AbstractWrapper
from ...unroll import unroll
from ..weights import add_noise, check_deviation
from .checks import check_kind
from .masked import run_masked


class NoisyStates(AbstractWrapper):
    """Jim, Giles & Horne 1996, IEEE Trans. Neural Networks 7:1424: noise added to the state after each step.

        s_t = step(s_{t-1}, x_t) + deviation * e_t,         e_t standard normal

    Without a key there is no noise. With one, the layer runs as a plain cell, which `Fused` and `Associative` refuse.
    The layer may be any cell.
    """

    layer: AbstractCell
    deviation: float = eqx.field(static=True)

    def __init__(self, layer: Checked[AbstractCell], deviation: Checked[float]):
        """`deviation` is the standard deviation, 0 or more."""
        check_kind(layer, AbstractCell, "a cell")
        self.layer = layer
        self.deviation = check_deviation(deviation)

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        if options.key is None or self.deviation == 0:
            return unroll(self.layer, state, xs, **options._asdict())
        T = count_steps(xs)
        zeros = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), jax.eval_shape(self.layer.initial))
        noise = add_noise(zeros, self.deviation, key=options.key)
        return run_masked(self, NoisyStates._step, state, xs, noise, options)

    def _step(self, state: State, u: PyTree[Array], noise: State) -> State:
        return jax.tree.map(jnp.add, self.layer.step(state, u), noise)
