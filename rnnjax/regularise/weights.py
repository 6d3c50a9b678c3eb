"""Dropout and noise on the weights of a model, before it runs: functions from a model to a model."""

from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check
from ..arrays import PyTree
from ..checked import Checked
from ..gated_cell import AbstractGatedCell
from .masks import keep, scale

Model = TypeVar("Model")


def drop_weights(model: Model, rate: Checked[float], *, key: PRNGKeyArray) -> Model:
    """`model` with each entry of the recurrent weights R of its gated cells dropped with probability `rate`.

    The rest is scaled by 1 / (1 - rate). This is the weight drop of Merity et al. 2018 (AWD-LSTM, arXiv:1708.02182),
    after the DropConnect of Wan et al. 2013: one mask for all steps. Apply it inside the loss, before `vmap` makes a
    batch, so that all sequences share the mask. The classes of the cells do not change, so every engine runs them as
    before. `model` is a cell, a network, or any pytree with gated cells in it; without one it is a ValueError. Cells of
    other families (`ProjectedLSTM`, `ResetBeforeGRU`, the diagonal ones) are not changed.
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
    """`embedding` with each row dropped with probability `rate`; the other rows are scaled by 1 / (1 - rate).

    Gal & Ghahramani 2016, arXiv:1512.05287, as Merity et al. 2018 use it: a dropped word is dropped wherever it occurs.
    """
    rate = check.probability("rate", rate)
    if not eqx.is_inexact_array(embedding) or embedding.ndim != 2:
        raise ValueError(
            f"embedding: expected floating vectors [V, E], one row for each word, got {check.show(embedding)}. "
            "Pass the weight of an eqx.nn.Embedding"
        )
    return scale(keep(key, rate, (embedding.shape[0], 1)), rate, embedding)


def add_noise(tree: PyTree, deviation: Checked[float], *, key: PRNGKeyArray) -> PyTree:
    """`tree` with normal noise of standard deviation `deviation` on every floating or complex array in it.

    `tree` may be inputs (Sietsma & Dow 1991), or a whole model: weight noise (Graves 2011, "Practical variational
    inference for neural networks"), which the loss adds before it runs the model.
    """
    deviation = check_deviation(deviation)
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, noisy), rest)


def check_deviation(value: object) -> float:
    """`value` as a float. Raises unless it is a standard deviation."""
    return check.nonnegative("deviation", value, "a standard deviation", "noise")


def _is_gated(node: Any) -> bool:
    return isinstance(node, AbstractGatedCell)


def _drop_cell(cell: AbstractGatedCell, rate: float, key: PRNGKeyArray) -> AbstractGatedCell:
    weight = cell.recurrent_weight
    return eqx.tree_at(lambda cell: cell.recurrent_weight, cell, scale(keep(key, rate, weight.shape), rate, weight))
