"""Batches of different trees as arrays of a few shapes, so that one compiled program serves many batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int

from .. import check
from ..checked import Checked
from . import validate
from .schedule import schedule
from .tree import Tree


class TreeBucket(NamedTuple):
    """Room for so many leaves, and for so many steps of `width` inner nodes."""

    leaves: int
    steps: int


class Trees(eqx.Module):
    """A batch of trees as `pack_trees` lays it out: N slots, those of the leaves first, then those of each step.

    Arrays over slots are -1 in empty slots. In `children`, N stands for a missing child. In `parents`, S W K, the
    number of all places of children, stands for a missing parent.
    """

    tokens: Int[Array | np.ndarray, " N"]  # -1: no input
    labels: Int[Array | np.ndarray, " N"]  # -1: no label
    tree: Int[Array | np.ndarray, " N"]  # of which tree, in the order given
    node: Int[Array | np.ndarray, " N"]  # which node of that tree
    parents: Int[Array | np.ndarray, " N"]  # the place in `children`, flattened, of this node
    children: Int[Array | np.ndarray, "S W K"]
    roots: Int[Array | np.ndarray, " B"]  # the slot of each tree's root
    vocabulary_size: int = eqx.field(static=True)
    bare: bool = eqx.field(static=True)  # inner nodes have no input, as in a treebank

    @property
    def leaves(self) -> int:
        """The number of slots for leaves."""
        steps, width, _ = self.children.shape
        return self.tokens.shape[0] - steps * width


def pack_trees(
    trees: Checked[Sequence[Tree]],
    *,
    vocabulary_size: int,
    classes: int | None = None,
    arity: int = 2,
    width: int = 32,
    bucket: TreeBucket | None = None,
) -> Trees:
    """The nodes of all `trees` in one batch, each after its children, `width` inner nodes at a time; on the host.

    trees             a sequence of `Tree`
    vocabulary_size   rows of the table of inputs that tokens point to
    classes           number of classes of the labels; None: labels are left out
    arity             the most children of a node: that of the cell, if it has one
    width             inner nodes in a step: a small number wastes less, a large one uses the processor better
    bucket            numbers of leaves and steps to pad to; None: those needed, rounded up by at most a quarter

    The leaves are one product before the first step. The number of steps is minimal: about the depth of the deepest
    tree, or the number of inner nodes over `width`, whichever is more.

    Raises ValueError or TypeError naming the argument, the tree and the node: for a cycle, two parents, several roots,
    no node, more than `arity` children, a number out of range, or a batch in which no node has a label.
    """
    check.sizes(vocabulary_size=vocabulary_size, arity=arity, width=width)
    trees = list(trees)
    if not trees:
        raise ValueError("trees: expected at least one, got none. Pass one or more, as parse_tree reads them")
    checked = [validate.rooted(tree, number, arity) for number, tree in enumerate(trees)]
    forest = _join(trees, checked, vocabulary_size, classes)
    steps = schedule(forest.parents, forest.depths, [bool(below) for below in forest.children], width)
    leaves = [node for node, below in enumerate(forest.children) if not below]
    bucket = _room(bucket, len(leaves), max(1, len(steps)))  # the loop needs at least one step, even an empty one
    slots = _place(leaves, steps, width, bucket.leaves, len(forest.children))
    return _lay_out(forest, slots, checked, bucket, arity, width, vocabulary_size)


class _Forest(NamedTuple):
    """All nodes of all trees, in one numbering."""

    children: list[list[int]]
    parents: list[int]
    depths: list[int]
    tokens: list[int]
    labels: list[int]
    starts: list[int]  # the first node of each tree


def _join(
    trees: Sequence[Tree], checked: Sequence[validate.Rooted], vocabulary_size: int, classes: int | None
) -> _Forest:
    forest = _Forest([], [], [], [], [], [])
    for number, (tree, known) in enumerate(zip(trees, checked, strict=True)):
        start = len(forest.children)
        forest.starts.append(start)
        forest.children.extend([start + child for child in below] for below in tree.children)
        forest.parents.extend(parent + start if parent >= 0 else -1 for parent in known.parents)
        forest.depths.extend(known.depths)
        forest.tokens.extend(validate.numbers("tokens", tree.tokens, vocabulary_size, number))
        labels = None if classes is None else tree.labels
        blank = [-1] * len(tree.children)
        forest.labels.extend(blank if labels is None else validate.numbers("labels", labels, classes or 0, number))
    if classes is not None and max(forest.labels) < 0:
        raise ValueError(
            f"labels: expected a label at some node of trees 0 to {len(trees) - 1}, got none. "
            "Leave `classes` out for trees without labels"
        )
    return forest


def _room(bucket: TreeBucket | None, leaves: int, steps: int) -> TreeBucket:
    if bucket is None:
        return TreeBucket(round_up(leaves), round_up(steps))
    if bucket.leaves < leaves or bucket.steps < steps:
        raise ValueError(
            f"bucket: expected room for {leaves} leaves and {steps} steps, got {bucket}. "
            f"Pass TreeBucket({leaves}, {steps}) or a larger one, or leave `bucket` out"
        )
    return bucket


def round_up(size: int) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...: at most a quarter more."""
    unit = 1 << max(0, size.bit_length() - 3)
    return -(-size // unit) * unit


def _place(leaves: list[int], steps: list[list[int]], width: int, first: int, nodes: int) -> np.ndarray:
    """The slot of each node."""
    slots = np.empty(nodes, np.int32)
    slots[leaves] = np.arange(len(leaves))
    for number, step in enumerate(steps):
        slots[step] = first + number * width + np.arange(len(step))
    return slots


def _lay_out(
    forest: _Forest,
    slots: np.ndarray,
    checked: Sequence[validate.Rooted],
    bucket: TreeBucket,
    arity: int,
    width: int,
    vocabulary_size: int,
) -> Trees:
    places = bucket.steps * width
    empty = bucket.leaves + places

    def spread(values: Any, filler: int) -> np.ndarray:
        filled = np.full(empty, filler, np.int32)
        filled[slots] = values
        return filled

    children = np.full((places, arity), empty, np.int32)
    parents = np.full(len(slots), places * arity, np.int32)
    inner = [(node, place) for node, below in enumerate(forest.children) for place in range(len(below))]
    below = np.fromiter((child for below in forest.children for child in below), np.int32, len(inner))
    above, place = np.asarray(inner, np.int32).reshape(-1, 2).T
    rows = slots[above] - bucket.leaves
    children[rows, place] = slots[below]
    parents[below] = rows * arity + place
    sizes = np.diff([*forest.starts, len(slots)])
    tokens = spread(forest.tokens, -1)
    return Trees(
        tokens=tokens,
        labels=spread(forest.labels, -1),
        tree=spread(np.repeat(np.arange(len(sizes)), sizes), -1),
        node=spread(np.arange(len(slots)) - np.repeat(forest.starts, sizes), -1),
        parents=spread(parents, places * arity),
        children=children.reshape(bucket.steps, width, arity),
        roots=slots[[start + known.root for start, known in zip(forest.starts, checked, strict=True)]],
        vocabulary_size=vocabulary_size,
        bare=bool((tokens[bucket.leaves :] < 0).all()),
    )
