"""Classifiers of trees: an embedding, a tree cell, and a softmax at every node."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import check, random
from ..arrays import PyTree
from ..trees.cell import AbstractTreeCell
from ..trees.pack import Trees
from ..trees.recurse import recurse
from .embedding import Embedding, OutputLayer
from .objectives import cross_entropy


class TreeClassifier(eqx.Module):
    """The class of every node of a tree, from the node's state (Socher et al. 2013; Tai et al. 2015).

        states = recurse(cell, trees, embedding)        logits = output(dropout(h))

    The cell's state must be a NamedTuple with a field `h`, as it is for all cells of rnnjax.
    """

    embedding: Embedding  # [V, E]
    cell: AbstractTreeCell
    dropout: eqx.nn.Dropout
    output: OutputLayer  # [C, H]

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        cell: AbstractTreeCell,
        *,
        key: PRNGKeyArray,
        dropout: float = 0.0,
    ):
        """Draw embedding and output weights in the dtype of the cell; `dropout` is the rate for the units of h."""
        (input_size,), dtype = cell.input_type().shape, cell.input_type().dtype
        hidden_size = jax.eval_shape(cell.absent).h.shape[0]
        keys = random.split(key, 2)
        self.embedding = Embedding(vocabulary_size, input_size, key=keys[0], dtype=dtype)
        self.cell = cell
        self.dropout = eqx.nn.Dropout(check.probability("dropout", dropout))
        self.output = OutputLayer(classes, hidden_size, key=keys[1], dtype=dtype)

    def logits(self, trees: Trees, *, key: PRNGKeyArray | None = None) -> Float[Array, "N C"]:
        """The logits of every slot of `trees`, in float32 or wider; without a key nothing is dropped."""
        h = recurse(self.cell, trees, self.embedding.weight).h
        return self.output(self.dropout(h, key=key, inference=key is None).astype(self.output.bias.dtype))


def tree_loss(
    model: TreeClassifier, carry: PyTree, trees: Trees, key: PRNGKeyArray | None
) -> tuple[Float[Array, ""], PyTree]:
    """Mean cross-entropy of the nodes that have a label, in nats, and the carry as it was: a loss for `fit`.

    trees   packed with the model's vocabulary and number of classes; a tree may have no labels at all.
            A label outside of the model's classes makes the loss NaN
    key     for dropout; None: nothing is dropped
    """
    labelled = jnp.asarray(trees.labels) >= 0
    losses = cross_entropy(model.logits(trees, key=key), jnp.maximum(jnp.asarray(trees.labels), 0))
    count = labelled.sum().astype(losses.dtype)
    return jnp.where(labelled, losses, jnp.zeros_like(losses)).sum() / jnp.maximum(count, jnp.ones_like(count)), carry


def count_right_roots(logits: Float[Array, "N C"], trees: Trees) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The number of roots that are classified correctly, and the number of roots that have a label.

    Unlike rates, counts can be added over batches.
    """
    labels = jnp.asarray(trees.labels)[trees.roots]
    right = logits[trees.roots].argmax(-1).astype(labels.dtype) == labels  # never where there is none, -1
    return right.sum(), (labels >= 0).sum()
