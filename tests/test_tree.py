"""Recursive networks: cells against a recursion in NumPy, batches against single trees, schedules, errors, a model."""

from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import Bucket, Tree, pack, parse_tree, recurse
from rnnjax.trees.schedule import schedule

I, H, K, V, C = 3, 4, 3, 7, 3  # noqa: E741
KEY = jax.random.key(11)
CELLS = {
    "child_sum": rnnjax.ChildSumTreeLSTM(I, H, key=KEY, dtype=jnp.float64),
    "nary": rnnjax.NaryTreeLSTM(I, H, arity=K, key=KEY, dtype=jnp.float64),
    "recursive": rnnjax.RecursiveNetwork(I, H, arity=K, key=KEY, dtype=jnp.float64),
    "rntn": rnnjax.RNTN(I, H, arity=K, key=KEY, dtype=jnp.float64),
}
TABLE = jax.random.normal(jax.random.key(1), (V, I), jnp.float64)


@lru_cache
def build(name: str) -> Any:
    """The cell, its biases made random."""
    cell = CELLS[name]
    return eqx.tree_at(lambda cell: cell.bias, cell, jax.random.normal(KEY, cell.bias.shape, jnp.float64))


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


def pack_up(trees: list[Tree], **options: Any) -> rnnjax.Trees:
    return pack(trees, **{"vocabulary_size": V, "classes": C, "arity": K, "width": 4} | options)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(cell: Any, tree: Tree, table: np.ndarray, node: int) -> tuple[np.ndarray, np.ndarray]:
    """h and c of a node, by the equations of the papers, one product of a matrix and a vector at a time."""
    below = [by_hand(cell, tree, table, child) for child in tree.children[node]]
    hs, cs = [h for h, _ in below], [c for _, c in below]
    x = np.zeros(I) if tree.tokens[node] is None else table[tree.tokens[node]]
    W, b = np.asarray(cell.input_weight), np.asarray(cell.bias)
    us = [x @ W[:, gate] + b[gate] for gate in range(W.shape[1])]
    if isinstance(cell, rnnjax.ChildSumTreeLSTM):
        R = np.asarray(cell.recurrent_weight)
        total = sum(hs, np.zeros(H))
        forget = [sigmoid(us[1] + h @ R[:, 1]) for h in hs]
        i, g, o = (us[gate] + total @ R[:, gate] for gate in (0, 2, 3))
    elif isinstance(cell, rnnjax.NaryTreeLSTM):
        R = np.asarray(cell.recurrent_weight)
        forget = [sigmoid(us[1] + sum(h @ R[place, :, 1 + of] for place, h in enumerate(hs))) for of in range(len(hs))]
        i, g, o = (
            us[gate] + sum((h @ R[place, :, row] for place, h in enumerate(hs)), np.zeros(H))
            for gate, row in ((0, 0), (2, K + 1), (3, K + 2))
        )
    else:
        R = np.asarray(cell.recurrent_weight)
        n = us[0] + sum((h @ R[place, :, 0] for place, h in enumerate(hs)), np.zeros(H))
        if isinstance(cell, rnnjax.RNTN):
            p = np.concatenate([*hs, np.zeros((K - len(hs)) * H)])
            n = n + np.array([p @ np.asarray(cell.tensor)[:, :, unit] @ p for unit in range(H)])
        return np.tanh(n), np.zeros(H)
    c = sum((f * c for f, c in zip(forget, cs, strict=True)), np.zeros(H)) + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def in_jax(cell: Any, table: jax.Array, tree: Tree, node: int) -> Any:
    """The state of a node by a recursion in Python, for JAX to differentiate."""
    below = [in_jax(cell, table, tree, child) for child in tree.children[node]]
    below += [cell.absent()] * (K - len(below))
    children = jax.tree.map(lambda *leaves: jnp.stack(leaves), *below)
    token = tree.tokens[node]
    x = jnp.zeros((1, I)) if token is None else table[token][None]
    v = cell.combine(children, jnp.arange(K) < len(tree.children[node]))
    return cell.pointwise(cell.project(x)[0], v, children)


def root_of(tree: Tree) -> int:
    return (set(range(len(tree.children))) - {child for below in tree.children for child in below}).pop()


run = eqx.filter_jit(recurse)


@eqx.filter_jit
def slope(cell: Any, table: jax.Array, trees: rnnjax.Trees, weights: jax.Array) -> Any:
    """The gradient by cell and table of the sum over the states' fields, weighted slot by slot."""

    def objective(arguments: Any) -> jax.Array:
        cell, table = arguments
        states = recurse(cell, trees, table)
        return sum(
            jnp.sum(weights[:, None] * leaf * (1 + number)) for number, leaf in enumerate(jax.tree.leaves(states))
        )

    return eqx.filter_grad(objective)((cell, table))


def assert_close(got: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


# Cells


@pytest.mark.parametrize("bare", [False, True], ids=["words_anywhere", "words_at_leaves"])
@pytest.mark.parametrize("name", CELLS)
def test_every_state_is_that_of_a_recursion_by_hand(name, bare):
    cell, trees = build(name), forest(12, bare=bare)
    packed = pack_up(trees)
    assert packed.bare == bare
    states = run(cell, packed, TABLE)
    slots = [(slot, packed.tree[slot], packed.node[slot]) for slot in np.flatnonzero(packed.node >= 0)]
    assert len(slots) == sum(len(tree.children) for tree in trees)
    for slot, tree, node in slots:
        h, c = by_hand(cell, trees[tree], np.asarray(TABLE), node)
        np.testing.assert_allclose(states.h[slot], h, rtol=1e-12, atol=1e-14)
        if hasattr(states, "c"):
            np.testing.assert_allclose(states.c[slot], c, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(states.h[packed.node < 0], 0)
    assert [packed.node[slot] for slot in packed.roots] == [root_of(tree) for tree in trees]


@pytest.mark.parametrize("bare", [False, True], ids=["words_anywhere", "words_at_leaves"])
@pytest.mark.parametrize("name", CELLS)
def test_the_gradient_is_that_of_the_recursion(name, bare):
    cell, trees = build(name), forest(3, bare=bare)
    packed = pack_up(trees)
    weights = np.zeros(len(packed.node))
    weights[packed.roots] = [1.0, -0.5, 2.0]

    @eqx.filter_jit
    @eqx.filter_grad
    def expected(arguments: Any) -> jax.Array:
        states = [in_jax(*arguments, tree, root_of(tree)) for tree in trees]
        parts = [
            weight * sum(jnp.sum(leaf * (1 + number)) for number, leaf in enumerate(jax.tree.leaves(state)))
            for weight, state in zip((1.0, -0.5, 2.0), states, strict=True)
        ]
        return sum(parts, jnp.zeros(()))

    assert_close(slope(cell, TABLE, packed, jnp.asarray(weights)), expected((cell, TABLE)))


CHAINS = {
    "child_sum": (
        rnnjax.LSTM(I, H, key=KEY, dtype=jnp.float64),
        rnnjax.ChildSumTreeLSTM(I, H, key=KEY, dtype=jnp.float64),
        lambda R: R[0],
    ),
    "nary": (
        rnnjax.LSTM(I, H, key=KEY, dtype=jnp.float64),
        rnnjax.NaryTreeLSTM(I, H, arity=1, key=KEY, dtype=jnp.float64),
        lambda R: R,
    ),
    "recursive": (
        rnnjax.Elman(I, H, key=KEY, dtype=jnp.float64),
        rnnjax.RecursiveNetwork(I, H, arity=1, key=KEY, dtype=jnp.float64),
        lambda R: R,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_tree_on_a_chain_is_the_network_along_time(name):
    """One chain of nine steps and one of five; the first word is the leaf."""
    along_time, tree_cell, reshape = CHAINS[name]
    lengths = (9, 5)
    xs = jax.random.normal(jax.random.key(3), (sum(lengths), I), jnp.float64)
    starts = (0, 9)
    chains = [
        Tree([[], *([node] for node in range(length - 1))], range(start, start + length))
        for start, length in zip(starts, lengths, strict=True)
    ]
    packed = pack(chains, vocabulary_size=len(xs), arity=1, width=2)
    order = np.argsort(packed.tree * 100 + packed.node)[-len(xs) :]  # empty slots have -1 and come first

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def by_trees(weights: Any) -> Any:
        W, R, b, xs = weights
        cell = eqx.tree_at(
            lambda cell: (cell.input_weight, cell.recurrent_weight, cell.bias), tree_cell, (W, reshape(R), b)
        )
        h = recurse(cell, packed, xs).h[order]
        return jnp.sum(jnp.sin(h)), h

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def by_time(weights: Any) -> Any:
        W, R, b, xs = weights
        cell = eqx.tree_at(lambda cell: (cell.input_weight, cell.recurrent_weight, cell.bias), along_time, (W, R, b))
        h = jnp.concatenate([rnnjax.unroll(cell, None, part, engine=rnnjax.Scan())[1] for part in jnp.split(xs, [9])])
        return jnp.sum(jnp.sin(h)), h

    weights = along_time.input_weight, along_time.recurrent_weight, along_time.bias, xs
    assert_close(by_trees(weights), by_time(weights))


def test_eight_bits_of_mantissa_store_weights_and_carry_none():
    cell = rnnjax.NaryTreeLSTM(I, H, arity=K, key=KEY, dtype=jnp.bfloat16)
    packed = pack_up(forest(4))
    states = run(cell, packed, TABLE.astype(jnp.bfloat16))
    assert {leaf.dtype.name for leaf in states} == {"float32"}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), cell)
    np.testing.assert_allclose(states.h, run(wide, packed, TABLE).h, atol=0.05)
    gradient = slope(cell, TABLE.astype(jnp.bfloat16), packed, jnp.ones(len(packed.node), jnp.float32))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"bfloat16"}


# Batches


def test_a_hundred_trees_at_once_are_a_hundred_trees_one_by_one():
    cell, trees = build("nary"), forest(100)
    packed = pack_up(trees, width=16)
    signs = np.random.default_rng(0).normal(size=len(packed.node))
    states = run(cell, packed, TABLE)
    gradients = []
    for number, tree in enumerate(trees):
        single = pack_up([tree._replace(labels=None)], classes=None, bucket=Bucket(leaves=20, steps=20))
        here = np.flatnonzero(packed.tree == number)
        there = np.array([np.flatnonzero(single.node == node)[0] for node in packed.node[here]])
        np.testing.assert_allclose(states.h[here], run(cell, single, TABLE).h[there], rtol=1e-12, atol=1e-14)
        weights = np.zeros(len(single.node))
        weights[there] = signs[here]
        gradients.append(slope(cell, TABLE, single, jnp.asarray(weights)))
    assert_close(slope(cell, TABLE, packed, jnp.asarray(signs)), jax.tree.map(lambda *parts: sum(parts), *gradients))


def test_one_program_serves_all_batches_of_a_bucket():
    traced = []

    @eqx.filter_jit
    def count(trees: rnnjax.Trees) -> jax.Array:
        traced.append(1)
        return recurse(build("recursive"), trees, TABLE).h

    for trees in (forest(6), forest(7)[1:], [Tree([[]], [0])] * 6):
        packed = pack_up([tree._replace(labels=None) for tree in trees], classes=None, bucket=Bucket(60, 40))
        count(eqx.tree_at(lambda trees: trees.tokens, packed, packed.tokens) if not packed.bare else packed)
    assert len(traced) <= 2  # words anywhere, and words at leaves alone
    few, more = pack_up(forest(20)), pack_up(forest(21))
    assert few.children.shape[0] % 2 == 0  # rounded up
    assert few.tokens.shape == more.tokens.shape


def test_not_a_number_in_one_tree_touches_no_other():
    cell = build("child_sum")
    first, second = Tree([[1, 2], [], []], [None, 0, 1]), Tree([[1, 2, 3], [], [], []], [4, 2, 3, 2])
    packed = pack([first, second], vocabulary_size=V, arity=K, width=4)
    spoiled = TABLE.at[jnp.array([0, 6])].set(jnp.nan)
    other = packed.tree == 1
    assert np.isnan(run(cell, packed, spoiled).h[packed.tree == 0]).any()
    np.testing.assert_array_equal(run(cell, packed, spoiled).h[other], run(cell, packed, TABLE).h[other])
    by_table = [slope(cell, table, packed, jnp.asarray(other * 1.0))[1] for table in (spoiled, TABLE)]
    np.testing.assert_array_equal(by_table[0][2:5], by_table[1][2:5])
    unread = slope(cell, TABLE.at[6].set(jnp.nan), packed, jnp.ones(len(other)))
    assert_close(unread, slope(cell, TABLE, packed, jnp.ones(len(other))))


def test_weights_and_batches_are_mapped():
    cell, batches = (
        build("rntn"),
        [pack_up(forest(3), bucket=Bucket(40, 20)), pack_up(forest(6)[3:], bucket=Bucket(40, 20))],
    )
    weights, static = eqx.partition(cell, eqx.is_array)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), weights)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    objective = lambda weights, trees: jnp.sum(recurse(eqx.combine(weights, static), trees, TABLE).h ** 2)  # noqa: E731
    mapped = jax.jit(jax.vmap(jax.grad(objective)))(many, both)
    single = jax.jit(jax.grad(objective))
    for number, trees in enumerate(batches):
        expected = single(jax.tree.map(lambda leaf: leaf[number], many), trees)  # noqa: B023
        assert_close(jax.tree.map(lambda leaf: leaf[number], mapped), expected)  # noqa: B023


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


SOUND = Tree([[1, 2], [], []], [None, 0, 1], [0, None, 2])
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
        (TypeError, (rnnjax.GRU(I, H, key=KEY), packed, TABLE), "cell: expected a tree cell, .* got GRU"),
        (TypeError, (build("nary"), [SOUND], TABLE), "trees: expected what `pack` returns, got list"),
        (ValueError, (build("nary"), pack_up([SOUND], arity=2), TABLE), "trees: expected an arity of 3"),
        (ValueError, (build("nary"), packed, TABLE[:-1]), r"table: expected \[7, 3\] .* got \[6, 3\]"),
        (TypeError, (build("nary"), packed, TABLE.astype(jnp.float32)), "table: expected float64"),
    ):
        with pytest.raises(error, match=message):
            recurse(*arguments)
    with pytest.raises(ValueError, match="bucket: expected room for 2 leaves and 1 steps"):
        pack_up([SOUND], bucket=Bucket(1, 1))
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
    pack([tree], vocabulary_size=3, classes=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a tree, got the end"),
        ("(2 (1 a) (0 b)", "1 more closing brackets, got the end"),
        ("(2 a) (1 b)", "one tree, got another one at character 6"),
        ("(2 a))", r"an opening bracket first, got '\)' at character 5"),
        ("a", "an opening bracket first, got 'a'"),
        ("(good)", "a label, a whole number, got 'good' at character 1"),
        ("((1 a) (2 b))", "a label"),
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


def classifier(dropout: float = 0.0) -> rnnjax.TreeClassifier:
    return rnnjax.TreeClassifier(V, build("nary"), C, key=KEY, dropout=dropout)


def test_the_loss_is_the_mean_over_the_nodes_that_have_a_label():
    trees = forest(8)
    packed = pack_up(trees)
    model = eqx.tree_at(lambda model: model.output_bias, classifier(), jnp.linspace(-1.0, 1.0, C))
    losses, right = [], 0
    for tree in trees:
        for node, label in enumerate(tree.labels):
            h, _ = by_hand(model.cell, tree, np.asarray(model.embedding), node)
            scores = np.exp(h @ np.asarray(model.output_weight) + np.asarray(model.output_bias))
            if label is not None:
                losses.append(-np.log(scores[label] / scores.sum()))
                right += node == root_of(tree) and scores.argmax() == label
    loss, carry = eqx.filter_jit(rnnjax.tree_loss)(model, None, packed, None)
    assert carry is None
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)
    at_roots = [tree.labels[root_of(tree)] is not None for tree in trees]
    assert tuple(map(int, rnnjax.count_right(model.logits(packed), packed))) == (right, sum(at_roots))


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    packed = pack_up(forest(2), classes=None)
    loss, gradient = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda model: rnnjax.tree_loss(model, None, packed, None)[0])
    )(classifier())
    assert float(loss) == 0
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient))


def test_units_are_dropped_by_a_key():
    packed, model = pack_up(forest(8)), classifier(0.5)
    whole, dropped = model.logits(packed), model.logits(packed, key=KEY)
    assert (whole == classifier().logits(packed)).all()
    assert not jnp.allclose(whole, dropped)


def test_a_classifier_learns_its_trees():
    packed = pack_up(forest(10))
    with jax.numpy_dtype_promotion("standard"):
        fitted = rnnjax.fit(
            classifier(), rnnjax.tree_loss, lambda _: packed, optax.adam(0.05), steps=60, key=KEY, progress=False
        )
    before, after = (float(rnnjax.tree_loss(model, None, packed, None)[0]) for model in (classifier(), fitted.model))
    assert after < before / 2
