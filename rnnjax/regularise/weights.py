"""Dropout of weights, ahead of the run: a function from a model to a model."""

from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check
from ..cell import AbstractGatedCell
from ..checked import Checked
from .masks import keep, scale

Model = TypeVar("Model")


def drop_weights(model: Model, rate: Checked[float], *, key: PRNGKeyArray) -> Model:
    """`model` with each entry of the recurrent weights R of its gated cells dropped with probability `rate`.

    The rest is scaled by 1 / (1 - rate). This is the weight drop of Merity et al. 2018 (AWD-LSTM, arXiv:1708.02182),
    after the DropConnect of Wan et al. 2013: one mask for all steps. Apply it inside the loss, before `vmap` makes a
    batch, and all sequences share the mask, and the cells stay what they were: every engine runs them as before.
    `model` is a cell, a network, or any pytree with gated cells in it; a ValueError says if there is none. A cell of
    another family (`ProjectedLSTM`, `ResetBeforeGRU`, the diagonal ones) keeps its weights whole.
    """
    rate = check.probability("rate", rate)
    leaves, structure = jax.tree.flatten(model, is_leaf=_is_gated)
    if not any(map(_is_gated, leaves)):
        raise ValueError(
            "model: expected an AbstractGatedCell in it, whose recurrent weight could be dropped; none is. "
            "Use it for a model with an LSTM, GRU or Elman cell"
        )
    dropped = [
        _drop_cell(leaf, rate, jax.random.fold_in(key, number)) if _is_gated(leaf) else leaf
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, dropped)


def drop_embedding(embedding: Checked[Array], rate: Checked[float], *, key: PRNGKeyArray) -> Float[Array, "V E"]:
    """`embedding` with each word dropped with probability `rate`, wherever it stands; the rest scaled.

    Gal & Ghahramani 2016, arXiv:1512.05287, as Merity et al. 2018 use it: whole rows are dropped, not entries.
    """
    rate = check.probability("rate", rate)
    if not eqx.is_inexact_array(embedding) or embedding.ndim != 2:
        raise ValueError(
            f"embedding: expected floating vectors [V, E], one row for each word, got {check.show(embedding)}. "
            "Pass the weight of an eqx.nn.Embedding"
        )
    return scale(keep(key, rate, (embedding.shape[0], 1)), rate, embedding)


def _is_gated(node: Any) -> bool:
    return isinstance(node, AbstractGatedCell)


def _drop_cell(cell: AbstractGatedCell, rate: float, key: PRNGKeyArray) -> AbstractGatedCell:
    weight = cell.recurrent_weight
    return eqx.tree_at(lambda cell: cell.recurrent_weight, cell, scale(keep(key, rate, weight.shape), rate, weight))
