"""Validation of trees. Each error names the argument, the tree, the node, the expected value and the given one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checked import Checked
from .tree import Tree


class Rooted(NamedTuple):
    """A validated tree: its root, and for each node its parent (-1 for the root) and its distance from the root."""

    root: int
    parents: list[int]
    depths: list[int]


def rooted(tree: Checked[Tree], number: int, arity: int) -> Rooted:
    """Tree `number` of a batch, validated. Raises unless it is a tree whose nodes have at most `arity` children."""
    if not isinstance(tree, Tree):
        raise TypeError(
            f"trees: expected a Tree as tree {number}, got {type(tree).__name__}. "
            "Build it with Tree(children, tokens, labels) or parse_tree"
        )
    count = len(tree.children)
    if count == 0:
        raise ValueError(f"trees: expected at least one node in tree {number}, got none. Leave out trees without nodes")
    if len(tree.tokens) != count:
        raise ValueError(
            f"tokens: expected one for each of the {count} nodes of tree {number}, got {len(tree.tokens)}. "
            "Write None for a node without a token"
        )
    if tree.labels is not None and len(tree.labels) != count:
        raise ValueError(
            f"labels: expected one for each of the {count} nodes of tree {number}, got {len(tree.labels)}. "
            "Write None for a node without a label, or None for all of them"
        )
    parents = _parents(tree.children, number, arity)
    roots = [node for node, parent in enumerate(parents) if parent < 0]
    if len(roots) > 1:
        raise ValueError(
            f"children: expected one root in tree {number}, got nodes {roots}, which are nobody's children. "
            "Make them the children of one node, or pass several trees"
        )
    return Rooted(roots[0] if roots else -1, parents, _depths(tree.children, roots, number))


def _parents(children: Sequence[Any], number: int, arity: int) -> list[int]:
    parents = [-1] * len(children)
    for node, below in enumerate(children):
        if len(below) > arity:
            raise ValueError(
                f"children: expected at most arity={arity} of node {node} of tree {number}, got {len(below)}. "
                f"Pass arity={len(below)} or more to pack_trees"
            )
        for child in below:
            if isinstance(child, bool) or not isinstance(child, int | np.integer):
                raise TypeError(
                    f"children: expected numbers of nodes at node {node} of tree {number}, got {child!r}. "
                    "Write the number of each child, its place in the lists of the tree"
                )
            if not 0 <= child < len(children):
                raise ValueError(
                    f"children: expected nodes from 0 to {len(children) - 1} below node {node} of tree {number}, "
                    f"got {child}. "
                    "Number the nodes from 0, by their places in the lists of the tree"
                )
            if parents[child] >= 0:
                raise ValueError(
                    f"children: expected one parent of node {child} of tree {number}, "
                    f"got nodes {parents[child]} and {node}. "
                    "List each node as the child of one node only"
                )
            parents[child] = node
    return parents


def _depths(children: Sequence[Any], roots: list[int], number: int) -> list[int]:
    depths = [-1] * len(children)
    path = list(roots)
    for root in roots:
        depths[root] = 0
    while path:
        node = path.pop()
        for child in children[node]:
            depths[child] = depths[node] + 1
            path.append(child)
    apart = [node for node, depth in enumerate(depths) if depth < 0]
    if apart:  # each has one parent, but none leads to a root
        raise ValueError(
            f"children: expected a tree as tree {number}, got a cycle among its nodes {apart}. "
            "Correct the children, so that every node is below the root"
        )
    return depths


def numbers(name: str, values: Checked[Sequence[int | None]], size: int, number: int) -> list[int]:
    """Tokens or labels of tree `number`, from 0 to `size` - 1, with -1 for None."""
    for node, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(
                f"{name}: expected an integer or None at node {node} of tree {number}, got {value!r}. "
                "Write None for a node that has none"
            )
        if not 0 <= value < size:
            raise ValueError(
                f"{name}: expected 0 to {size - 1} at node {node} of tree {number}, got {value}. "
                "Correct the tree, or pass a larger size to pack_trees"
            )
    return [-1 if value is None else int(value) for value in values]
