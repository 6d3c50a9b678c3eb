"""Recursive networks: a tree cell runs from the leaves of trees to their roots."""

from .cell import AbstractAffineTreeCell as AbstractAffineTreeCell
from .cell import AbstractTreeCell as AbstractTreeCell
from .child_sum_tree_lstm import ChildSumTreeLSTM as ChildSumTreeLSTM
from .nary_tree_lstm import NaryTreeLSTM as NaryTreeLSTM
from .pack import TreeBucket as TreeBucket
from .pack import Trees as Trees
from .pack import pack_trees as pack_trees
from .recurse import recurse as recurse
from .recursive_network import RecursiveNetwork as RecursiveNetwork
from .rntn import RNTN as RNTN
from .tree import Tree as Tree
from .tree import parse_tree as parse_tree
