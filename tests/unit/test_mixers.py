"""Matrix mixers equal the equations of their papers, in NumPy and in float64, given the same weights."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import export, symbolic_shape

import rnnjax
from rnnjax.engines import Chunked
from rnnjax.networks import MixerState
from rnnjax.networks.mixers import matrix_mixer

T = 11
Array = Any  # of NumPy


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def normalised(x: Array) -> Array:
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def root_mean_square_norm(x: Array, weight: Any) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(weight)


def linear(projection: Any, xs: Array) -> Array:
    """Of a matrix, or of two."""
    if hasattr(projection, "down"):
        return linear(projection.up, linear(projection.down, xs))
    return xs @ np.asarray(projection.weight) + (0 if projection.bias is None else np.asarray(projection.bias))


class Steps:
    """Queries, keys and values of a sequence before their maps, in heads, and the window after it."""

    def __init__(self, layer: Any, state: MixerState, xs: Array):
        projected = xs @ np.asarray(layer.input_weight)
        self.window: Any = None
        if layer.convolution is not None:
            weight, bias, before = layer.convolution.weight, layer.convolution.bias, np.asarray(state.inputs)
            padded = np.concatenate([before, projected])
            self.window = padded[len(padded) - len(before) :]
            ages = [padded[len(before) - age :][: len(xs)] * np.asarray(weight[age]) for age in range(len(weight))]
            projected = sum(ages) + (0 if bias is None else np.asarray(bias))
        n, shared, K, V = layer.micro_steps, layer.key_heads, layer.key_size, layer.value_size
        query, key, value = np.split(projected, np.cumsum([shared * K, n * shared * K]), axis=1)
        repeat = lambda array: np.repeat(array, layer.heads // shared, axis=-2)  # noqa: E731
        self.query = repeat(query.reshape(-1, shared, K))
        self.key = repeat(key.reshape(-1, n, shared, K))
        self.value = value.reshape(-1, n, layer.heads, V)


def delta(S: Array, decay: Array, key: Array, value: Array, strength: float) -> Array:
    """(I - b k k') diag(a) S + b k v', of one head, as it is written."""
    decays = np.diag(np.broadcast_to(decay, key.shape))
    return (np.eye(len(key)) - strength * np.outer(key, key)) @ decays @ S + strength * np.outer(key, value)


def recur(S: Array, steps: int, advance: Callable[[int, int, Array], Array], query: Array) -> tuple[Array, Array]:
    """Every step of every head by `advance(t, n, S)`: the last state and what the queries read."""
    S, reads = np.array(S), np.zeros((steps, len(S), S.shape[2]))
    for t in range(steps):
        for n in range(len(S)):
            S[n] = advance(t, n, S[n])
            reads[t, n] = S[n].T @ query[t, n]
    return S, reads


def delta_rule(layer: Any, state: MixerState, xs: Array, decay: Array, gate: Array) -> tuple[MixerState, Array]:
    """DeltaNet, its gated forms, and its products: `decay` [T, N, K] or [T, N, 1], `gate` [T, N, V]."""
    made = Steps(layer, state, xs)
    query, key, value = normalised(silu(made.query)), normalised(silu(made.key)), silu(made.value)
    twice = layer.write.activation.function.__name__ == "twice_sigmoid"
    strength = (2 if twice else 1) * sigmoid(linear(layer.write.projection, xs)).reshape(key.shape[:3])

    def advance(t: int, n: int, S: Array) -> Array:
        for j in range(layer.micro_steps):
            S = delta(S, decay[t, n] if j == 0 else 1.0, key[t, j, n], value[t, j, n], strength[t, j, n])
        return S

    S, reads = recur(state.S, len(xs), advance, query / np.sqrt(layer.key_size))
    ys = root_mean_square_norm(reads, layer.norm.weight) * gate
    return MixerState(made.window, S), ys.reshape(len(xs), -1) @ np.asarray(layer.output_weight)


def delta_net(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    return delta_rule(layer, state, xs, np.ones((len(xs), layer.heads, 1)), np.ones(()))


def gated(layer: Any, state: MixerState, xs: Array, activation: Callable) -> tuple[MixerState, Array]:
    step_sizes = softplus(linear(layer.decay.projection, xs)).reshape(len(xs), layer.heads, -1)
    decay = np.exp(-np.exp(np.asarray(layer.decay.log_rate))[:, None] * step_sizes)
    gate = activation(linear(layer.gate.projection, xs)).reshape(len(xs), layer.heads, -1)
    return delta_rule(layer, state, xs, decay, gate)


def gated_delta_net(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    return gated(layer, state, xs, silu)


def kda(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    return gated(layer, state, xs, sigmoid)


def mamba2(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    made = Steps(layer, state, xs)
    C, B, u = silu(made.query), silu(made.key)[:, 0], silu(made.value)[:, 0]
    d, A = softplus(linear(layer.write.projection, xs)), np.exp(np.asarray(layer.decay.log_rate))
    S, reads = recur(
        state.S, len(xs), lambda t, n, S: np.exp(-A[n] * d[t, n]) * S + d[t, n] * np.outer(B[t, n], u[t, n]), C
    )
    ys = (reads + np.asarray(layer.skip.weight)[:, None] * u).reshape(len(xs), -1)
    gated = ys * silu(linear(layer.gate.projection, xs))
    weight = np.asarray(layer.norm.weight).reshape(2, -1)  # two groups
    normed = root_mean_square_norm(gated.reshape(len(xs), *weight.shape), weight)
    return MixerState(made.window, S), normed.reshape(len(xs), -1) @ np.asarray(layer.output_weight)


def gla(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    made = Steps(layer, state, xs)
    a = sigmoid(linear(layer.decay.projection, xs)).reshape(made.query.shape) ** (1 / 16)
    S, reads = recur(
        state.S,
        len(xs),
        lambda t, n, S: a[t, n][:, None] * S + np.outer(made.key[t, 0, n], made.value[t, 0, n]),
        made.query / np.sqrt(layer.key_size),
    )
    gate = silu(linear(layer.gate.projection, xs)).reshape(reads.shape)
    ys = (root_mean_square_norm(reads, layer.norm.weight) * gate).reshape(len(xs), -1)
    return MixerState(None, S), ys @ np.asarray(layer.output_weight)


def hgrn2(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    made = Steps(layer, state, xs)
    f = 0.2 + 0.8 * sigmoid(made.key)[:, 0]
    S, reads = recur(
        state.S,
        len(xs),
        lambda t, n, S: np.diag(f[t, n]) @ S + np.outer(1 - f[t, n], made.value[t, 0, n]),
        silu(made.query) / np.sqrt(layer.key_size),
    )
    ys = root_mean_square_norm(reads.reshape(len(xs), -1), layer.norm.weight)
    return MixerState(None, S), ys @ np.asarray(layer.output_weight)


def linear_attention(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    """As a weighted mean of all values so far, of which the state given has some."""
    made = Steps(layer, state, xs)
    phi = lambda x: np.where(x > 0, x + 1, np.exp(x))  # noqa: E731
    query, key, value = phi(made.query), phi(made.key)[:, 0], made.value[:, 0]
    S = np.asarray(state.S) + np.einsum("tnk,tnv->nkv", key, np.concatenate([value, np.ones_like(value[..., :1])], -1))
    scores = np.einsum("tnk,snk->tsn", query, key) * np.tri(len(xs))[:, :, None]
    given = np.einsum("tnk,nkv->tnv", query, np.asarray(state.S))
    sums = given[..., :-1] + np.einsum("tsn,snv->tnv", scores, value)
    ys = sums / (given[..., -1:] + scores.sum(1)[..., None] + 1e-6)
    return MixerState(None, S), ys.reshape(len(xs), -1) @ np.asarray(layer.output_weight)


def ret_net(layer: Any, state: MixerState, xs: Array) -> tuple[MixerState, Array]:
    """In the paper's parallel form, of queries and keys that are rotated by their positions; it starts from zero."""
    made = Steps(layer, state, xs)
    steps, K = np.arange(len(xs)), layer.key_size
    angles = steps[:, None] * 10000.0 ** (-2 * np.arange(K // 2) / K)[None]

    def rotated(vectors: Array) -> Array:
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = np.split(vectors, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)

    query, key, value = rotated(made.query), rotated(made.key[:, 0]), made.value[:, 0]
    decay = 1 - 2.0 ** (-5 - np.arange(layer.heads))
    distance = steps[:, None] - steps
    powers = np.where(distance[..., None] >= 0, decay ** np.maximum(distance, 0)[..., None], 0)
    reads = np.einsum("tnk,snk,tsn,snv->tnv", query, key, powers, value) / np.sqrt(K)
    gate = silu(linear(layer.gate.projection, xs)).reshape(reads.shape)
    ys = (root_mean_square_norm(reads, layer.norm.weight) * gate).reshape(len(xs), -1)
    turned = (key[..., : K // 2] + 1j * key[..., K // 2 :]) * np.exp(-1j * angles[-1])
    S = np.einsum("snk,sn,snv->nkv", turned, powers[-1], value)
    return MixerState(None, S), ys @ np.asarray(layer.output_weight)


EQUATIONS = {
    "linear_attention": linear_attention,
    "ret_net": ret_net,
    "gla": gla,
    "hgrn2": hgrn2,
    "mamba2": mamba2,
    "delta_net": delta_net,
    "gated_delta_net": gated_delta_net,
    "kda": kda,
    "delta_product": gated_delta_net,
}


def state_of(name: str) -> MixerState:
    """A state with sums of features that are positive; the equations of RetNet start from zero."""
    state = jax.tree.map(np.asarray, grid.random_state(grid.build(name)))
    scale = 0 if name == "ret_net" else 1
    return state._replace(S=scale * (np.abs(state.S) if name == "linear_attention" else state.S))


@lru_cache
def evaluated(engine: rnnjax.AbstractEngine) -> dict[str, Any]:
    """The last states and outputs of all layers, as one compiled program."""
    given = {name: (grid.build(name), state_of(name)) for name in EQUATIONS}
    one = lambda given, xs: rnnjax.unroll(given[0], given[1], xs, engine=engine)  # noqa: E731
    run = lambda given, xs: {name: one(each, xs) for name, each in given.items()}  # noqa: E731
    return eqx.filter_jit(run)(given, grid.inputs(T))


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("engine", [rnnjax.Scan(), pytest.param(Chunked(4), marks=pytest.mark.slow)])
def test_values_are_those_of_the_equations(name, engine):
    expected = EQUATIONS[name](grid.build(name), state_of(name), np.asarray(grid.inputs(T)))
    grid.assert_close(evaluated(engine)[name], expected)


@pytest.mark.parametrize("name", EQUATIONS)
def test_narrow_weights_have_wide_states_and_coefficients(name, monkeypatch):
    coefficients, found = [], matrix_mixer.check_rows
    monkeypatch.setattr(
        matrix_mixer, "check_rows", lambda *given: coefficients.append(found(*given)) or coefficients[-1]
    )
    layer, xs = grid.build(name, "bfloat16"), grid.inputs(T, dtype="bfloat16")
    state, ys = eqx.filter_eval_shape(rnnjax.unroll, layer, None, xs)
    assert ys.dtype == "bfloat16"
    assert {np.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves((state.S, coefficients))} == {np.dtype("float32")}


def saturated() -> dict[str, Any]:
    """Layers of which one rate, of forgetting a state, overflows."""
    mixer, rate = partial(grid.build, dtype="float32"), lambda layer: layer.decay.log_rate
    layers = {
        "rwkv6": (rnnjax.networks.RWKV6(4, head_size=2, key=grid.KEY), lambda layer: layer.decay.offset),
        "mamba2": (mixer("mamba2"), rate),
        "kda": (mixer("kda"), rate),
        "s6": (mixer("s6"), lambda cell: cell.log_rate),
    }
    return {name: eqx.tree_at(at, layer, at(layer).at[0].set(1e4)) for name, (layer, at) in layers.items()}


def test_gradients_are_finite_where_a_state_is_forgotten_at_once():
    def loss(layers: dict[str, Any]) -> Any:
        xs = {name: jnp.ones((3, *layer.input_type().shape), "float32") for name, layer in layers.items()}
        made = [rnnjax.unroll(layer, None, xs[name], engine=rnnjax.Scan()) for name, layer in layers.items()]
        return sum(leaf.sum() for leaf in jax.tree.leaves(made))

    for path, leaf in jax.tree.leaves_with_path(eqx.filter_jit(eqx.filter_grad(loss))(saturated())):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


def test_the_feature_map_of_linear_attention_keeps_small_values_and_slopes():
    xs = jnp.asarray([-80, -18, -1, 0, 2], "float32")
    got, slope = jax.jvp(rnnjax.networks.mixers.positive_elu, (xs,), (np.ones_like(xs),))
    np.testing.assert_allclose(got, np.where(xs > 0, 1 + xs, np.exp(xs)), rtol=1e-6)
    np.testing.assert_allclose(slope, np.exp(np.minimum(xs, 0)), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ret_net", "mamba2", "kda"])
def test_narrow_weights_have_the_values_and_gradients_of_wide_ones(name):
    grid.assert_close(grid.rounded(name, Chunked(4))["bfloat16"], grid.expected_rounded(name)["bfloat16"], "bfloat16")


def test_a_classifier_and_a_language_model_are_made_of_residual_mixers():
    """Traced without running: the gradients have the form of the models."""
    network = rnnjax.Stack([rnnjax.residual(rnnjax.networks.GatedDeltaNet(8, heads=2, key=grid.KEY)) for _ in range(2)])
    model = rnnjax.models.LanguageModel(13, network, key=grid.KEY)
    classifier = rnnjax.models.Classifier(network, eqx.nn.Linear(8, 3, key=grid.KEY, dtype="float32"))
    loss = lambda models, tokens, xs: models[0].logits(models[0].initial(), tokens)[1].sum() + models[1](xs).sum()  # noqa: E731
    shapes = jax.ShapeDtypeStruct((5,), "int32"), jax.ShapeDtypeStruct((5, 8), "float32")
    gradient = eqx.filter_eval_shape(eqx.filter_grad(loss), (model, classifier), *shapes)
    assert jax.tree.structure(gradient) == jax.tree.structure(eqx.filter((model, classifier), eqx.is_inexact_array))


@pytest.mark.usefixtures("annotations_unchecked")
def test_any_number_of_steps():
    """None at all, and a number that is known only when an exported program runs."""
    layer = grid.build("delta_product")
    run = jax.jit(lambda xs: rnnjax.unroll(layer, None, xs, engine=rnnjax.Scan()))
    _, ys = jax.eval_shape(run, grid.inputs(0))
    assert ys.shape == (0, grid.I)
    (steps,) = symbolic_shape("T")
    exported = export(run)(jax.ShapeDtypeStruct((steps, grid.I), "float64"))
    assert [str(size) for size in exported.out_avals[-1].shape] == ["T", str(grid.I)]
