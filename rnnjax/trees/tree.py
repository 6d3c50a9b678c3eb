"""A tree: children, tokens and labels of its nodes; and the parser of trees written with brackets."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..checked import Checked


class Tree(NamedTuple):
    """A rooted tree whose nodes are numbered from 0, in any order; `pack_trees` validates it.

    children   for each node the numbers of its children, in order; none for a leaf
    tokens     for each node its row in the table of inputs, or None if it has no input
    labels     for each node its class, or None if it has none; None for a tree without labels
    """

    children: Sequence[Sequence[int]]
    tokens: Sequence[int | None]
    labels: Sequence[int | None] | None = None


def parse_tree(text: Checked[str], token: Callable[[str], int]) -> Tree:
    """The tree of an s-expression with a label at every node and a word at every leaf, `(3 (2 very) (4 good))`.

    token    the number of a word, such as a dictionary's `__getitem__`

    This is the form of the Stanford Sentiment Treebank (Socher et al. 2013). A node comes before its children. Words
    end at a space or a bracket; other white space, such as a no-break space, is part of them.

    Raises ValueError naming the place in `text` where there is one bracket, label or word too many or too few.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"text: expected a string, got {type(text).__name__}. "
            "Pass the text of one tree, such as '(3 (2 a) (2 film))'"
        )
    tree = Tree([], [], [])
    path: list[int] = []  # the nodes whose bracket is open
    for match in re.finditer(r"\(|\)|[^() \t\r\n]+", text):
        piece, at = match.group(), match.start()
        if piece == "(":
            if tree.children and not path:
                raise _fault("one tree", f"another one at character {at}", text)
            _open(tree, path)
        elif not path:
            raise _fault("an opening bracket first", f"{piece!r} at character {at}", text)
        elif piece == ")":
            _check_whole(tree, path.pop(), at, text)
        else:
            _read(tree, path[-1], piece, at, text, token)
    if path or not tree.children:
        raise _fault(f"{len(path)} more closing brackets" if path else "a tree", "the end", text)
    return tree


def _open(tree: Tree, path: list[int]) -> None:
    """One more node, a child of the last one on the path."""
    children, tokens, labels = _lists(tree)
    if path:
        children[path[-1]].append(len(children))
    path.append(len(children))
    children.append([])
    tokens.append(None)
    labels.append(None)


def _read(tree: Tree, node: int, piece: str, at: int, text: str, token: Callable[[str], int]) -> None:
    """A label if the node has none yet, else its word."""
    children, tokens, labels = _lists(tree)
    if labels[node] is None:
        if not piece.isdecimal():
            raise _fault("a whole number as label", f"{piece!r} at character {at}", text)
        labels[node] = int(piece)
    elif tokens[node] is not None or children[node]:
        raise _fault("one word or some brackets in a node", f"{piece!r} beside them at character {at}", text)
    else:
        tokens[node] = token(piece)


def _check_whole(tree: Tree, node: int, at: int, text: str) -> None:
    children, tokens, labels = _lists(tree)
    if labels[node] is None:
        raise _fault("a whole number as label", f"none before character {at}", text)
    if (tokens[node] is None) != bool(children[node]):
        what = "neither" if tokens[node] is None else "both"
        raise _fault("one word or some brackets in a node", f"{what} before character {at}", text)


def _lists(tree: Tree) -> Any:
    """The fields, which are lists while a tree is parsed."""
    return tree


def _fault(expected: str, got: str, text: str) -> ValueError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ValueError(
        f"text: expected {expected}, got {got} of {shown!r}. "
        "Write each node as (label word) or (label child child), such as (3 (2 a) (2 film))"
    )
