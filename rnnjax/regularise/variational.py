"""Variational dropout: one mask for all steps of a sequence."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .. import check
from ..arrays import Gates, PyTree, State
from ..cell import AbstractCell, AbstractGatedCell, recur
from ..checked import Checked
from ..network import AbstractNetwork, Layer, Options
from ..unroll import unroll
from .around import AbstractAround, check_inherits, check_kind
from .masked import run_masked
from .masks import drop, keep, scale


class VariationalDropout(AbstractAround):
    """Gal & Ghahramani 2016, arXiv:1512.05287: what is dropped is dropped at every step of the sequence.

        x_t -> m_x * x_t            h_{t-1} -> m_h * h_{t-1} where it enters v = R h             y_t -> m_y * y_t

    Each mask m is drawn once for a call of `unroll`, and scaled by 1 / (1 - rate): sequences packed into one by
    `resets` share it, and so does a batch under `vmap` unless the key is mapped, too. Without a key nothing is dropped.

    A layer with a `recurrent` rate must be an `AbstractGatedCell`; with a key it runs as a plain cell, which `Fused`
    refuses: `drop_weights` drops what is recurrent at its speed. For inputs and outputs alone any layer will do.
    """

    layer: AbstractCell | AbstractNetwork
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
        check_kind(layer, AbstractCell | AbstractNetwork, "a cell or a network")
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
            masks = jnp.broadcast_to(mask, (jax.tree.leaves(xs)[0].shape[0], *mask.shape))
            state, ys = run_masked(self, VariationalDropout._step, state, xs, masks, options)
        else:
            state, ys = unroll(self.layer, state, xs, **options._asdict())
        return state, drop("outputs", outputs_key, self.outputs, ys)

    def _step(self, state: State, u: Gates, mask: Bool[Array, " H"]) -> State:
        cell: Any = self.layer  # a gated cell, as `__init__` saw to
        v = recur(cell.recurrent_weight, scale(mask, self.recurrent, state.h), len(cell.gates))
        return cell.advance(u, v, state)
