"""Variational dropout: one dropout mask for all steps of a sequence."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ... import check
from ...arrays import Gates, PyTree, State, count_steps
from ...checked import Checked
from ...gated_cell import AbstractGatedCell, recur
from ...network import Layer, Options
from ...networks.layer import AbstractWrapper
from ...unroll import unroll
from ..masks import drop, keep, scale
from .checks import check_inherits, check_kind
from .masked import run_masked


class VariationalDropout(AbstractWrapper):
    """Gal & Ghahramani 2016, arXiv:1512.05287: the same features are dropped at every step of a sequence.

        x_t -> m_x * x_t            h_{t-1} -> m_h * h_{t-1} where it enters v = R h             y_t -> m_y * y_t

    Each mask m is drawn once per call of `unroll`, and scaled by 1 / (1 - rate). Sequences packed into one by `resets`
    share it. Under `vmap`, map over the key for one mask per sequence; leave it unmapped to share the mask. Without a
    key nothing is dropped.

    With a `recurrent` rate the layer must be an `AbstractGatedCell`, and with a key it runs as a plain cell, which
    `Fused` refuses; `Fused` runs cells whose recurrent weights `drop_weights` has dropped. Without a `recurrent` rate
    the layer may be any cell or network.
    """

    layer: Layer
    inputs: float = eqx.field(static=True)
    recurrent: float = eqx.field(static=True)
    outputs: float = eqx.field(static=True)

    def __init__(
        self,
        layer: Checked[Layer],
        *,
        inputs: Checked[float] = 0.0,
        recurrent: Checked[float] = 0.0,
        outputs: Checked[float] = 0.0,
    ):
        """The rates are probabilities of dropping, 0 <= rate < 1."""
        check_kind(layer, Layer, "a cell or a network")
        self.layer = layer
        self.inputs = check.probability("inputs", inputs)
        self.recurrent = check.probability("recurrent", recurrent)
        self.outputs = check.probability("outputs", outputs)
        if self.recurrent > 0:
            check_kind(layer, AbstractGatedCell, "an AbstractGatedCell, which a recurrent rate needs")
            check_inherits(layer, AbstractGatedCell, "step")

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        if options.key is None:
            return unroll(self.layer, state, xs, **options._asdict())
        inputs_key, recurrent_key, outputs_key, part_key = jax.random.split(options.key, 4)
        options = options._replace(key=part_key)
        xs = drop("inputs", inputs_key, self.inputs, xs)
        if self.recurrent > 0:
            mask = keep(recurrent_key, self.recurrent, self.layer.initial().h.shape)
            masks = jnp.broadcast_to(mask, (count_steps(xs), *mask.shape))
            state, ys = run_masked(self, VariationalDropout._step, state, xs, masks, options)
        else:
            state, ys = unroll(self.layer, state, xs, **options._asdict())
        return state, drop("outputs", outputs_key, self.outputs, ys)

    def _step(self, state: State, u: Gates, mask: Bool[Array, " H"]) -> State:
        cell: Any = self.layer  # a gated cell, which `__init__` checks
        v = recur(cell.recurrent_weight, scale(mask, self.recurrent, state.h), len(cell.gates))
        return cell.advance(u, v, state)
