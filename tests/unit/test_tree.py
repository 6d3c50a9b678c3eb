"""Recursive networks: cells against a recursion in NumPy, batches against single trees, schedules, errors, a model."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import common.treebank
import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sentiment_sequence
import sentiment_trees

import rnnjax
from rnnjax.trees import Tree, TreeBucket, pack_trees, parse_tree, recurse
from rnnjax.trees.pack import round_up
from rnnjax.trees.schedule import schedule

I, H, K, V, C = 3, 4, 3, 7, 3  # noqa: E741
SOUND = Tree([[1, 2], [], []], [None, 0, 1], [0, None, 2])
BUCKET = TreeBucket(leaves=80, steps=20)  # one for all, so that few programs are compiled
TABLE = np.random.default_rng(1).normal(size=(V, I))
CELLS = ("child_sum", "nary", "recursive", "rntn")


@grid.once
def key() -> jax.Array:
    return jax.random.key(11)


def make(name: str, arity: int = K, dtype: str = "float64") -> Any:
    """The cell as it is drawn."""
    kinds = {"nary": rnnjax.trees.NaryTreeLSTM, "recursive": rnnjax.trees.RecursiveNetwork, "rntn": rnnjax.trees.RNTN}
    if name == "child_sum":
        return rnnjax.trees.ChildSumTreeLSTM(I, H, key=key(), dtype=jnp.dtype(dtype))
    return kinds[name](I, H, arity=arity, key=key(), dtype=jnp.dtype(dtype))


@grid.once
def build(name: str) -> Any:
    """The cell, its biases made random."""
    cell = make(name)
    bias = np.random.default_rng(11).normal(size=cell.bias.shape)
    return eqx.tree_at(lambda cell: cell.bias, cell, grid.place(bias))


def grow(random: np.random.Generator, *, bare: bool) -> Tree:
    """A tree of up to twenty nodes, numbered at random; where not `bare`, inner nodes may have tokens, leaves none."""
    count = int(random.integers(1, 21))
    children: list[list[int]] = [[] for _ in range(count)]
    names = random.permutation(count)
    for node in range(1, count):
        free = [above for above in range(node) if len(children[names[above]]) < K]
        children[names[random.choice(free)]].append(int(names[node]))
    tokens = [int(random.integers(V)) for _ in range(count)]
    reads = [not below if bare else random.random() < 0.7 for below in children]
    labels = [int(random.integers(C)) if random.random() < 0.7 else None for _ in range(count)]
    return Tree(children, [token if read else None for token, read in zip(tokens, reads, strict=True)], labels)


def forest(count: int, *, bare: bool = False) -> list[Tree]:
    random = np.random.default_rng(5)
    return [grow(random, bare=bare) for _ in range(count)]


def pack_up(trees: list[Tree], **options: Any) -> rnnjax.trees.Trees:
    return pack_trees(trees, **{"vocabulary_size": V, "classes": C, "arity": K, "width": 4} | options)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(cell: Any, tree: Tree, table: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """h and c of each node, by the equations of the papers, one product of a matrix and a vector at a time."""
    states = {}

    def climb(node: int) -> None:
        for child in tree.children[node]:
            climb(child)
        token = tree.tokens[node]
        x = np.zeros(I) if token is None else table[token]
        states[node] = node_by_hand(cell, x, [states[child] for child in tree.children[node]])

    climb(root_of(tree))
    return states


def node_by_hand(cell: Any, x: np.ndarray, below: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """h and c of a node from those of its children."""
    hs, cs = [h for h, _ in below], [c for _, c in below]
    W, R, b = (np.asarray(weight) for weight in (cell.input_weight, cell.recurrent_weight, cell.bias))
    us = np.split(x @ W + b, len(cell.gates))
    if isinstance(cell, rnnjax.trees.ChildSumTreeLSTM):
        total = sum(hs, np.zeros(H))
        forget = [sigmoid(us[1] + np.split(h @ R, 4)[1]) for h in hs]
        i, g, o = (us[gate] + np.split(total @ R, 4)[gate] for gate in (0, 2, 3))
    elif isinstance(cell, rnnjax.trees.NaryTreeLSTM):
        vs = np.split(np.concatenate([*hs, np.zeros((cell.arity - len(hs)) * H)]) @ R, cell.arity + 3)
        forget = [sigmoid(us[1] + vs[1 + of]) for of in range(len(hs))]
        i, g, o = us[0] + vs[0], us[2] + vs[-2], us[3] + vs[-1]
    else:
        p = np.concatenate([*hs, np.zeros((cell.arity - len(hs)) * H)])
        n = us[0] + p @ R
        if isinstance(cell, rnnjax.trees.RNTN):
            n = n + np.array([p @ np.asarray(cell.tensor)[:, :, unit] @ p for unit in range(H)])
        return np.tanh(n), np.zeros(H)
    c = sum((f * c for f, c in zip(forget, cs, strict=True)), np.zeros(H)) + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def root_of(tree: Tree) -> int:
    return (set(range(len(tree.children))) - {child for below in tree.children for child in below}).pop()


@lru_cache
def program() -> Any:
    """All states; and by cell and table the gradient of the sum over slots of weight * (h + 2 c)."""

    @eqx.filter_jit
    def values_and_slope(cell: Any, table: jax.Array, trees: rnnjax.trees.Trees, weights: jax.Array) -> Any:
        @partial(eqx.filter_value_and_grad, has_aux=True)
        def objective(arguments: Any) -> Any:
            states = recurse(arguments[0], trees, arguments[1])
            each = sum((1 + number) * leaf.sum(-1) for number, leaf in enumerate(states))
            return jnp.sum(weights * each), states

        (_, states), slope = objective((cell, table))
        return states, slope

    return values_and_slope


def values_and_slope(cell: Any, table: np.ndarray, trees: rnnjax.trees.Trees, weights: np.ndarray) -> Any:
    """What the one program gives, as arrays of NumPy."""
    return jax.tree.map(np.asarray, program()(cell, table, trees, weights))


def assert_close(got: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


# Cells


def weighted(
    cell: Any, table: np.ndarray, packed: rnnjax.trees.Trees, trees: list[Tree], weights: np.ndarray
) -> complex:
    """What `values_and_slope` differentiates, by hand."""
    states = [by_hand(cell, tree, table) for tree in trees]
    terms = ((weights[slot], *states[packed.tree[slot]][packed.node[slot]]) for slot in np.flatnonzero(weights))
    return sum(weight * np.sum(h + 2 * c) for weight, h, c in terms)


@pytest.mark.parametrize(("name", "bare"), [*((name, False) for name in CELLS), ("nary", True)])
def test_every_state_is_that_of_a_recursion_by_hand_and_so_is_the_gradient(name, bare):
    """The gradient along a random direction of each weight, and of the table, is a step in the complex plane."""
    cell, trees = build(name), forest(6, bare=bare)
    packed = pack_up(trees, bucket=BUCKET)
    assert packed.bare == bare
    weights = np.where(packed.node % 3 == 0, np.cos(np.arange(len(packed.node))), 0.0)
    weights[packed.roots] = 1.5
    states, slopes = values_and_slope(cell, TABLE, packed, weights)
    slots = np.flatnonzero(packed.node >= 0)
    assert len(slots) == sum(len(tree.children) for tree in trees)
    by_papers = [by_hand(cell, tree, TABLE) for tree in trees]
    for slot in slots:
        by_paper = by_papers[packed.tree[slot]][packed.node[slot]]
        for field, expected in zip(states, by_paper, strict=False):  # not all have a c
            np.testing.assert_allclose(field[slot], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(states.h[packed.node < 0], 0)
    assert [packed.node[slot] for slot in packed.roots] == [root_of(tree) for tree in trees]
    leaves, structure = jax.tree.flatten((cell, TABLE))
    for number, slope in enumerate(jax.tree.leaves(slopes)):
        direction = np.random.default_rng(number).normal(size=slope.shape)
        moved = [np.asarray(leaf) + (1e-30j * direction if at == number else 0) for at, leaf in enumerate(leaves)]
        along = weighted(*jax.tree.unflatten(structure, moved), packed, trees, weights).imag / 1e-30
        np.testing.assert_allclose(np.sum(slope * direction), along, rtol=1e-11, atol=1e-12)


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["recursive", *slow("child_sum", "nary")])
def test_a_tree_on_a_chain_is_the_network_along_time(name):
    """One chain of nine steps and one of five; the first word is the leaf."""
    along_time = (rnnjax.Elman if name == "recursive" else rnnjax.LSTM)(I, H, key=key(), dtype=jnp.float64)
    tree_cell, lengths, starts = make(name, arity=1), (9, 5), (0, 9)
    chains = [
        Tree([[], *([node] for node in range(length - 1))], range(start, start + length))
        for start, length in zip(starts, lengths, strict=True)
    ]
    xs = np.random.default_rng(3).normal(size=(sum(lengths), I))
    packed = pack_trees(chains, vocabulary_size=len(xs), arity=1, width=2)
    order = np.argsort(packed.tree * 100 + packed.node)[-len(xs) :]  # empty slots have -1 and come first

    def with_weights(cell: Any, W: jax.Array, R: jax.Array, b: jax.Array) -> Any:
        return eqx.tree_at(lambda cell: (cell.input_weight, cell.recurrent_weight, cell.bias), cell, (W, R, b))

    def by_trees(weights: Any) -> Any:
        W, R, b, xs = weights
        h = recurse(with_weights(tree_cell, W, R, b), packed, xs).h[order]
        return jnp.sum(jnp.sin(h)), h

    def by_time(weights: Any) -> Any:
        *weights, xs = weights
        cell, parts = with_weights(along_time, *weights), jnp.split(xs, [9])
        h = jnp.concatenate([rnnjax.unroll(cell, None, part, engine=rnnjax.Scan())[1] for part in parts])
        return jnp.sum(jnp.sin(h)), h

    weights = along_time.input_weight, along_time.recurrent_weight, along_time.bias, xs
    both = jax.jit(lambda weights: [jax.value_and_grad(way, has_aux=True)(weights) for way in (by_trees, by_time)])
    assert_close(*both(weights))


def test_eight_bits_of_mantissa_store_weights_and_carry_none():
    cell, packed = make("nary", dtype="bfloat16"), pack_up(forest(6), bucket=BUCKET)
    table, weights = TABLE.astype(jnp.bfloat16), np.ones(len(packed.node))
    _, gradient = eqx.filter_eval_shape(program(), cell, table, packed, weights.astype("float32"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"bfloat16"}
    states = eqx.filter_jit(recurse)(cell, packed, table)
    assert {leaf.dtype.name for leaf in states} == {"float32"}
    wide = jax.tree.map(lambda leaf: grid.place(np.asarray(leaf).astype("float64")), cell)
    np.testing.assert_allclose(states.h, values_and_slope(wide, TABLE, packed, weights)[0].h, atol=0.02)


# Batches


def test_a_hundred_trees_at_once_are_a_hundred_trees_one_by_one():
    cell, trees = build("nary"), forest(100)
    packed = pack_up(trees, width=16)
    signs = np.random.default_rng(0).normal(size=len(packed.node))
    states, expected = values_and_slope(cell, TABLE, packed, signs)
    total = jax.tree.map(np.zeros_like, expected)
    for number, tree in enumerate(trees):
        single = pack_up([tree._replace(labels=None)], classes=None, bucket=BUCKET)
        single = eqx.tree_at(lambda single: single.roots, single, np.zeros(6, np.int32))  # to the shape of the others
        here, there = np.flatnonzero(packed.tree == number), np.flatnonzero(single.tree == 0)
        here, there = here[packed.node[here].argsort()], there[single.node[there].argsort()]
        weights = np.zeros(len(single.node))
        weights[there] = signs[here]
        alone, slope = values_and_slope(cell, TABLE, single, weights)
        np.testing.assert_allclose(states.h[here], alone.h[there], rtol=1e-12, atol=1e-14)
        total = jax.tree.map(np.add, total, slope)
    assert_close(expected, total)


def test_one_program_serves_all_batches_of_a_bucket():
    traced, cell = [], build("recursive")

    @eqx.filter_jit
    def count(trees: rnnjax.trees.Trees) -> jax.Array:
        traced.append(1)
        return recurse(cell, trees, jnp.asarray(TABLE)).h

    for trees in (forest(6), forest(12)[6:], forest(20)[14:]):
        count(pack_up(trees, bucket=BUCKET))
    assert len(traced) == 1
    assert [round_up(size) for size in (0, 1, 7, 8, 9, 33, 479, 480)] == [0, 1, 7, 8, 10, 40, 512, 512]
    assert pack_up(forest(20)).leaves == round_up(sum(not below for tree in forest(20) for below in tree.children))


def test_not_a_number_in_one_tree_touches_no_other():
    """Nor does one in a row of the table that nothing reads: neither the empty slots nor the nodes without a token."""
    cell = build("nary")
    trees = [Tree([[1, 2], [], []], [None, 0, 1]), Tree([[1, 2, 3], [], [], []], [4, 2, 3, 2]), *[SOUND] * 4]
    packed = pack_up(trees, bucket=BUCKET)
    other = np.where(packed.tree == 1, 1.0, 0.0)
    not_a_number = lambda *rows: np.where(np.isin(np.arange(V), rows)[:, None], np.nan, TABLE)  # noqa: E731
    states, (by_cell, by_table) = values_and_slope(cell, TABLE, packed, other)
    spoiled, (_, by_spoiled) = values_and_slope(cell, not_a_number(0, 6), packed, other)
    assert np.isnan(spoiled.h[packed.tree == 0]).any()
    np.testing.assert_array_equal(spoiled.h[packed.tree == 1], states.h[packed.tree == 1])
    np.testing.assert_array_equal(by_spoiled[2:5], by_table[2:5])
    assert_close(values_and_slope(cell, not_a_number(6), packed, other), (states, (by_cell, by_table)))


def test_weights_and_batches_are_mapped():
    cell, batches = build("recursive"), [pack_up(trees, bucket=BUCKET) for trees in (forest(6), forest(12)[6:])]
    weights, static = eqx.partition(cell, eqx.is_array)
    many = jax.tree.map(lambda leaf: np.stack([leaf, -np.asarray(leaf)]), weights)
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def objective(weights: Any, trees: rnnjax.trees.Trees) -> jax.Array:
        return jnp.sum(recurse(eqx.combine(weights, static), trees, jnp.asarray(TABLE)).h)

    mapped = jax.tree.map(np.asarray, jax.jit(jax.vmap(jax.grad(objective)))(many, both))
    for number, trees in enumerate(batches):
        part = partial(jax.tree.map, lambda leaf, number=number: leaf[number])
        one = eqx.combine(jax.tree.map(grid.place, part(many)), static)
        assert_close(part(mapped), values_and_slope(one, TABLE, trees, np.ones(len(trees.node)))[1][0])


# Schedules


@pytest.mark.parametrize("width", [1, 2, 5, 100])
def test_no_schedule_is_shorter(width):
    """Hu 1961: nodes of depth d and more leave d steps after them, so that this many steps are needed, and taken."""
    parents, depths, inner = [], [], []
    for tree in forest(9):
        start = len(parents)
        above = {child: node for node, below in enumerate(tree.children) for child in below}
        for node, below in enumerate(tree.children):
            depth, at = 0, node
            while at in above:
                depth, at = depth + 1, above[at]
            parents.append(above[node] + start if node in above else -1)
            depths.append(depth)
            inner.append(bool(below))
    steps = schedule(parents, depths, inner, width)
    when = {node: number for number, step in enumerate(steps) for node in step}
    assert sorted(when) == [node for node, has_children in enumerate(inner) if has_children]
    assert all(len(step) <= width for step in steps)
    assert all(when[node] < when[parents[node]] for node in when if parents[node] >= 0)
    least = [
        depth + -(-sum(depths[node] >= depth for node in when) // width) for depth in {depths[node] for node in when}
    ]
    assert len(steps) == max(least)


# What is no tree


UNSOUND = [
    pytest.param([], "trees: expected at least one", id="no trees"),
    pytest.param([SOUND, Tree([], [])], "at least one node in tree 1, got none", id="empty"),
    pytest.param([SOUND, Tree([[], [2], [1]], [0] * 3)], r"tree 1, got a cycle among its nodes \[1, 2\]", id="cycle"),
    pytest.param([Tree([[1], [0]], [0] * 2)], r"tree 0, got a cycle among its nodes \[0, 1\]", id="all a cycle"),
    pytest.param([Tree([[1] * 4, []], [0] * 2)], "at most arity=3 of node 0 of tree 0, got 4", id="arity"),
    pytest.param([Tree([[1, 2], [2], []], [0] * 3)], "one parent of node 2 of tree 0, got nodes 0 and 1", id="parents"),
    pytest.param([Tree([[1, 1], []], [0] * 2)], "one parent of node 1 of tree 0", id="twice"),
    pytest.param([SOUND, Tree([[], []], [0] * 2)], r"one root in tree 1, got nodes \[0, 1\]", id="roots"),
    pytest.param([Tree([[1, 3], []], [0] * 2)], "nodes from 0 to 1 below node 0 of tree 0, got 3", id="child"),
    pytest.param([Tree([[-1], []], [0] * 2)], "nodes from 0 to 1 below node 0 of tree 0, got -1", id="negative"),
    pytest.param([SOUND._replace(tokens=[0, V, 0])], "tokens: expected 0 to 6 at node 1 of tree 0, got 7", id="token"),
    pytest.param([SOUND, SOUND._replace(labels=[0, 0, -1])], "labels: .* node 2 of tree 1, got -1", id="label"),
    pytest.param([SOUND._replace(tokens=[0])], "tokens: expected one for each of the 3 nodes of tree 0", id="tokens"),
    pytest.param([SOUND._replace(labels=[0])], "labels: expected one for each of the 3 nodes of tree 0", id="labels"),
    pytest.param([SOUND._replace(labels=[None] * 3)], "labels: expected a label at some node", id="all masked"),
]


@pytest.mark.parametrize(("trees", "message"), UNSOUND)
def test_what_is_no_tree_is_named(trees, message):
    with pytest.raises(ValueError, match=message):
        pack_up(trees)


def test_other_arguments_that_do_not_fit_are_named():
    packed = pack_up([SOUND])
    for error, arguments, message in (
        (TypeError, (rnnjax.GRU(I, H, key=key()), packed, TABLE), "cell: expected a tree cell, .* got GRU"),
        (TypeError, (build("nary"), [SOUND], TABLE), "trees: expected what `pack_trees` returns, got list"),
        (ValueError, (build("nary"), pack_up([SOUND], arity=2), TABLE), "trees: expected an arity of 3"),
        (ValueError, (build("nary"), packed, TABLE[:-1]), r"table: expected \[7, 3\] .* got \[6, 3\]"),
        (TypeError, (build("nary"), packed, TABLE.astype("float32")), "table: expected float64"),
    ):
        with pytest.raises(error, match=message):
            recurse(*arguments)
    with pytest.raises(ValueError, match="bucket: expected room for 2 leaves and 1 steps"):
        pack_up([SOUND], bucket=TreeBucket(1, 1))
    with pytest.raises(TypeError, match=r"tokens: expected an integer or None at node 0 of tree 0, got 1\.5"):
        pack_up([SOUND._replace(tokens=[1.5, 0, 0])])
    with pytest.raises(TypeError, match="expected a Tree as tree 1, got tuple"):
        pack_up([SOUND, ((), ())])


# Brackets


def test_brackets_are_read():
    words = {"very": 0, "good": 1, "1\u00a01\\/2": 2}
    tree = parse_tree(" (3 (2 very) (4 (3 good)\n(2 1\u00a01\\/2)))", words.__getitem__)
    assert tree == Tree([[1, 2], [], [3, 4], [], []], [None, 0, None, 1, 2], [3, 2, 4, 3, 2])
    assert parse_tree("(0 good)", words.__getitem__) == Tree([[]], [1], [0])
    pack_trees([tree], vocabulary_size=3, classes=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a tree, got the end"),
        ("(2 (1 a) (0 b)", "1 more closing brackets, got the end"),
        ("(2 a) (1 b)", "one tree, got another one at character 6"),
        ("(2 a))", r"an opening bracket first, got '\)' at character 5"),
        ("a", "an opening bracket first, got 'a'"),
        ("(good)", "a whole number as label, got 'good' at character 1"),
        ("((1 a) (2 b))", "a whole number as label, got none before character 12"),
        ("(2 a b)", "one word or some brackets in a node, got 'b' beside them at character 5"),
        ("(2 (1 a) b)", "got 'b' beside them"),
        ("(2 a (1 b))", "got both before character 10"),
        ("(2)", "got neither before character 2"),
    ],
)
def test_brackets_that_do_not_fit_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_tree(text, lambda _: 0)


# A model


@grid.once
def classifier(dropout: float = 0.5) -> rnnjax.models.TreeClassifier:
    """A model that drops units where it has a key."""
    return rnnjax.models.TreeClassifier(V, C, build("nary"), key=key(), dropout=dropout)


class Judged(NamedTuple):
    """What a model makes of a batch: with a key only `dropped`."""

    loss: jax.Array
    carry: Any
    gradient: rnnjax.models.TreeClassifier
    logits: jax.Array
    right_roots: tuple[jax.Array, jax.Array]
    dropped: jax.Array


@lru_cache
def judge() -> Any:
    """The one program for all that is asked of a model."""

    @eqx.filter_jit
    def judged(model: rnnjax.models.TreeClassifier, packed: rnnjax.trees.Trees, key: jax.Array) -> Judged:
        mean = eqx.filter_value_and_grad(rnnjax.models.tree_loss, has_aux=True)
        (loss, carry), gradient = mean(model, None, packed, None)
        logits = model.logits(packed)
        right_roots = rnnjax.models.count_right_roots(logits, packed)
        return Judged(loss, carry, gradient, logits, right_roots, model.logits(packed, key=key))

    return lambda model, packed: jax.tree.map(np.asarray, judged(model, packed, key()))


def test_the_loss_is_the_mean_over_the_nodes_that_have_a_label():
    trees = forest(6)
    packed = pack_up(trees, bucket=BUCKET)
    bias = grid.place(np.linspace(-1.0, 1.0, C))
    model = eqx.tree_at(lambda model: model.output.bias, classifier(), bias)
    got, losses, right = judge()(model, packed), [], 0
    by_papers = [by_hand(model.cell, tree, np.asarray(model.embedding.weight)) for tree in trees]
    assert (packed.node >= 0).sum() == sum(len(tree.children) for tree in trees)
    for slot in np.flatnonzero(packed.node >= 0):
        tree, node = trees[packed.tree[slot]], packed.node[slot]
        h, _ = by_papers[packed.tree[slot]][node]
        logits = h @ np.asarray(model.output.weight).T + np.asarray(bias)
        np.testing.assert_allclose(got.logits[slot], logits, rtol=1e-12, atol=1e-14)  # nothing is dropped
        if (label := tree.labels[node]) is not None:
            losses.append(np.log(np.exp(logits).sum()) - logits[label])
            right += node == root_of(tree) and logits.argmax() == label
    assert got.carry is None
    np.testing.assert_allclose(got.loss, np.mean(losses), rtol=1e-12)
    at_roots = [tree.labels[root_of(tree)] is not None for tree in trees]
    assert tuple(map(int, got.right_roots)) == (right, sum(at_roots))


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    got = judge()(classifier(), pack_up(forest(6), classes=None, bucket=BUCKET))
    assert got.loss == 0
    assert [np.abs(leaf).max() for leaf in jax.tree.leaves(got.gradient)] == [0] * 6


@pytest.mark.parametrize("name", ["nary", *slow("child_sum", "recursive", "rntn")])
def test_a_tree_of_one_node_is_its_leaf(name):
    tree = Tree([[]], [2], [1])
    packed = pack_up([tree, tree])
    at_roots = np.bincount(packed.roots, minlength=len(packed.node)).astype(float)
    states, (_, by_table) = values_and_slope(build(name), TABLE, packed, at_roots)
    np.testing.assert_allclose(states.h[packed.roots], [by_hand(build(name), tree, TABLE)[0][0]] * 2, rtol=1e-12)
    assert np.flatnonzero(np.abs(by_table).sum(1)).tolist() == [2]


def test_a_class_that_is_none_of_the_models_is_no_loss():
    packed = pack_up([*forest(5), Tree([[]], [0], [C])], classes=C + 1, bucket=BUCKET)
    assert np.isnan(judge()(classifier(), packed).loss)


def test_units_are_dropped_by_a_key():
    got = judge()(classifier(), pack_up(forest(6), bucket=BUCKET))
    assert not np.allclose(got.logits, got.dropped)


@pytest.mark.slow
def test_a_classifier_learns_its_trees():
    packed = pack_up(forest(6), bucket=BUCKET)
    with jax.numpy_dtype_promotion("standard"):
        fitted = rnnjax.training.fit(
            classifier(0.0),
            rnnjax.models.tree_loss,
            lambda _: packed,
            optax.adam(0.05),
            steps=60,
            key=key(),
            progress=False,
        )
    learned = eqx.tree_at(lambda model: model.dropout, fitted.model, classifier().dropout)  # which is off without a key
    before, after = (judge()(model, packed).loss for model in (classifier(), learned))
    assert after < before / 2


# The example


@pytest.fixture
def small(monkeypatch):
    """The example scaled down."""
    for name, value in {"EMBEDDING": 4, "UNITS": 8, "B": 4, "WIDTH": 4, "LEARNING_RATE": 0.2, "DROPOUT": 0.0}.items():
        monkeypatch.setattr(sentiment_trees, name, value)


@pytest.fixture
def treebank(tmp_path, monkeypatch):
    folder = tmp_path / "sst"
    folder.mkdir()
    (folder / "train.txt").write_text("(4 (2 so) (3 good))\n(0 (2 so) (1 bad))\n(2 (2 so) (2 so))\n" * 4)
    (folder / "dev.txt").write_text("(4 (2 so) (3 good))\n(0 (2 so) (1 bad))\n")
    (folder / "test.txt").write_text("(4 (2 so) (3 good))\n(2 (1 bad) (3 good))\n(1 (1 dire) (2 so))\n" * 2)
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))


@pytest.mark.usefixtures("treebank")
def test_sentiment_is_read():
    binary = common.treebank.read_task("binary")
    assert [len(trees) for trees in binary[1:4]] == [8, 2, 4]
    assert binary.training[0] == Tree([[1, 2], [], []], [None, 1, 2], [1, None, 1])
    assert binary.test[1] == Tree([[1, 2], [], []], [None, common.treebank.UNKNOWN, 1], [0, 0, None])
    sequences = sentiment_sequence.read(common.treebank.read_task("fine").training)
    assert (sequences.xs[0, :3].tolist(), sequences.lengths[0], sequences.targets[0]) == ([1, 2, 0], 2, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("as_it_comes", "small", "treebank")
def test_sentiment_is_learned(capsys):
    (record,) = sentiment_trees.run(sentiment_trees.parse(["--epochs", "12"]))
    assert len(record["curve"]) == 12
    assert record["curve"][-1][0] == 1
    assert "SST, fine: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("as_it_comes", "small", "treebank")
def test_sentiment_is_learned_as_a_sequence(monkeypatch, capsys):
    for name, value in (("B", 4), ("EMBEDDING", 8), ("UNITS", 8), ("DROPOUT", 0.0), ("LEARNING_RATE", 0.05)):
        monkeypatch.setattr(sentiment_sequence, name, value)
    task = common.treebank.read_task("binary")
    monkeypatch.setattr(sentiment_sequence, "read_task", lambda _: task._replace(test=task.held_out * 2))
    (record,) = sentiment_sequence.run(sentiment_sequence.parse(["--task", "binary", "--epochs", "10"]))
    assert record["test"] == 1
    assert "% of 4 test sentences" in capsys.readouterr().out


def test_expressions_have_their_values():
    task = common.treebank.expressions(np.random.default_rng(1))
    names = ["0", "1", "&", "|", "^"]

    def text(tree: Tree, node: int) -> str:
        parts = [text(tree, child) for child in tree.children[node]]
        return f"({names[tree.tokens[node]].join(parts)})" if parts else names[tree.tokens[node]]

    for tree in task.test:
        assert tree.labels == [eval(text(tree, node)) for node in range(len(tree.children))]
    assert max(len(tree.children) for tree in task.training) == 31


def test_a_treebank_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="RNNJAX_DATA: expected sst in"):
        common.treebank.read_task("fine")
