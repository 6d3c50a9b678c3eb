"""Zoneout: random units keep their previous state for a step."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ... import check
from ...arrays import PyTree, State, count_steps
from ...cell import AbstractCell
from ...checked import Checked
from ...network import Options
from ...networks.layer import AbstractWrapper
from ...unroll import unroll
from ..masks import keep
from .checks import check_kind
from .masked import run_masked

KEEPING = "keeping the state as it was (of 1 it would never change)"


class Zoneout(AbstractWrapper):
    """Krueger et al. 2017, arXiv:1606.01305: at each step, each unit keeps its state with probability `rates`.

        s_t = m_t * s_{t-1} + (1 - m_t) * step(s_{t-1}, x_t)

    Without a key the mask is replaced by its mean, m_t = rates, so the result differs from that of the layer alone. It
    runs as a plain cell, which `Fused` and `Associative` refuse. The layer may be any cell; a field of its state that
    is not floating or complex, such as a counter, is always updated.
    """

    layer: AbstractCell
    rates: PyTree[float] = eqx.field(static=True)

    def __init__(self, layer: Checked[AbstractCell], rates: Checked[float | PyTree[float]]):
        """`rates` is one probability, 0 <= rate < 1, or one for each field of the state.

        The paper's best for an LSTM is `LSTMState(h=0.05, c=0.5)` on characters, and half of both on words.
        """
        check_kind(layer, AbstractCell, "a cell")
        like = jax.eval_shape(layer.initial)
        fields = jax.tree.structure(like)
        if isinstance(rates, Real):
            rates = jax.tree.unflatten(fields, [check.probability("rates", rates, KEEPING)] * fields.num_leaves)
        if jax.tree.structure(rates) != fields:
            raise ValueError(
                f"rates: expected one probability, or one for each of {check.show(like)}, got {rates!r}. "
                "Write one number for all, or a state of numbers, such as LSTMState(0.05, 0.5)"
            )
        self.layer = layer
        self.rates = jax.tree_util.tree_map_with_path(
            lambda path, rate: check.probability(f"rates{jax.tree_util.keystr(path)}", rate, KEEPING), rates
        )

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        like, fields = jax.tree.flatten(jax.eval_shape(self.layer.initial))
        rates = jax.tree.leaves(self.rates)
        if not any(rates):
            return unroll(self.layer, state, xs, **options._asdict())
        if options.key is None:
            return run_masked(self, Zoneout._mean_step, state, xs, (), options)
        keys = jax.random.split(options.key, len(like))
        T = count_steps(xs)
        masks = [~keep(key, rate, (T, *leaf.shape)) for key, rate, leaf in zip(keys, rates, like, strict=True)]
        return run_masked(self, Zoneout._step, state, xs, jax.tree.unflatten(fields, masks), options)

    def _step(self, before: State, u: PyTree[Array], masks: State) -> State:
        return self._mix(jnp.where, masks, before, u)

    def _mean_step(self, before: State, u: PyTree[Array], masks: tuple[()]) -> State:
        del masks
        return self._mix(lambda rate, before, after: rate * before + (1 - rate) * after, self.rates, before, u)

    def _mix(self, mix: Callable[[Any, Array, Array], Array], kept: PyTree, before: State, u: PyTree[Array]) -> State:
        leaf = lambda kept, before, after: mix(kept, before, after) if eqx.is_inexact_array(after) else after  # noqa: E731
        return jax.tree.map(leaf, kept, before, self.layer.step(before, u))
