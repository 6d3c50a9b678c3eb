"""The recurrences of mixers beside the plain functions of flash-linear-attention, for `benchmarks.oracles.fla`."""
# pyright: reportMissingImports=false

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.oracles.fla_source import Source
from benchmarks.oracles.reference import difference, show
from rnnjax import AbstractEngine, unroll
from rnnjax.cells import Matrix
from rnnjax.networks.mixers import Projected
from rnnjax.networks.mixers.folding import fold_rows, last_micro_steps, recurrence_of, spread

B, T, N, K, V, n = 2, 21, 3, 5, 4, 2
Inputs = dict[str, Any]


class Recurrence(NamedTuple):
    """Which inputs it has, the function of the clone, and how that and ours are called with them."""

    inputs: str
    file: str
    name: str
    theirs: Callable[[Callable[..., Any], Inputs], tuple[Any, Any]]
    ours: Callable[[Inputs], dict[str, Any]]
    micro_steps: int = 1


def heads_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2)


def with_names(naive: Callable[..., Any], inputs: Inputs) -> tuple[Any, Any]:
    """Inputs by their names; the state as the initial one, if it is given."""
    given = {name: value for name, value in inputs.items() if name != "S"}
    return naive(**given, initial_state=inputs["S"], output_final_state=True)


def delta_rule(naive: Callable[..., Any], inputs: Inputs) -> tuple[Any, Any]:
    given = map(heads_first, (inputs[name] for name in ("q", "k", "v", "beta")))
    o, S = naive(*given, initial_state=inputs["S"])
    return heads_first(o), S


def delta_product(naive: Callable[..., Any], inputs: Inputs) -> tuple[Any, Any]:
    """The plain function leaves queries as they are."""
    given = {name: value for name, value in inputs.items() if name not in "qS"}
    return naive(
        inputs["q"] * K**-0.5, **given, scale=None, cu_seqlens=None, initial_state=inputs["S"], num_householder=n
    )


def gate(inputs: Inputs) -> dict[str, Any]:
    """exp(g), for each head or each key."""
    g = jnp.exp(inputs["g"] if "g" in inputs else inputs["gk"])
    return {"decay": g if g.ndim == 3 else g[..., None]}


def rule(inputs: Inputs) -> dict[str, Any]:
    strength = inputs["beta"].reshape(T, -1, 1)
    return (gate(inputs) if "g" in inputs else {}) | {"write": strength, "erase": strength}


def vector_rule(inputs: Inputs) -> dict[str, Any]:
    return gate(inputs) | {"write": inputs["w"], "erase": inputs["b"]}


NONE: Callable[[Inputs], dict[str, Any]] = lambda _: {}  # noqa: E731
RECURRENCES = {
    "linear attention": Recurrence("qkv", "linear_attn", "naive_recurrent_linear_attn", with_names, NONE),
    "simple GLA": Recurrence("qkvg", "simple_gla", "naive_recurrent_simple_gla", with_names, gate),
    "gated linear attention": Recurrence("qkvG", "gla", "naive_recurrent_gla", with_names, gate),
    "delta rule": Recurrence("qkve", "delta_rule", "delta_rule_recurrence", delta_rule, rule),
    "gated delta rule": Recurrence("qkvge", "gated_delta_rule", "naive_recurrent_gated_delta_rule", with_names, rule),
    "Kimi delta rule": Recurrence("qkvDe", "kda", "naive_recurrent_kda", with_names, rule),
    "gated delta rule 2": Recurrence("qkvDbw", "gdn2", "naive_recurrent_gdn2", with_names, vector_rule),
    "gated delta product": Recurrence(
        "qkvge", "gated_delta_product", "naive_recurrent_gated_delta_product", delta_product, rule, n
    ),
}
NAMES = {"G": "gk", "D": "g", "e": "beta"}


def draw(letters: str, micro_steps: int, dtype: str) -> Inputs:
    """Random inputs [B, T, N, ..] and a state; keys of norm one, decays and strengths in (0, 1)."""
    generator = np.random.default_rng(1)
    m = micro_steps
    shapes = {"q": (T, N, K), "k": (m * T, N, K), "v": (m * T, N, V), "g": (T, N), "e": (m * T, N)}
    shapes |= {"G": (T, N, K), "D": (T, N, K), "b": (T, N, K), "w": (T, N, V)}

    def one(letter: str) -> np.ndarray:
        drawn = generator.normal(size=(B, *shapes[letter]))
        if letter == "k":
            drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
        return -np.log1p(np.exp(drawn)) if letter in "gGD" else 1 / (1 + np.exp(-drawn)) if letter in "ebw" else drawn

    inputs = {NAMES.get(letter, letter): one(letter).astype(dtype) for letter in letters}
    return inputs | {"S": generator.normal(size=(B, N, K, V)).astype(dtype)}


def ours(case: Recurrence, inputs: Inputs, engine: AbstractEngine) -> tuple[jax.Array, jax.Array]:
    """What the queries read, and the last state, of one sequence."""
    m = case.micro_steps
    rows = lambda array: array.reshape(T, m * N, -1)  # noqa: E731
    made = {"decay": None, "write": None, "erase": None} | case.ours(inputs)
    projected = Projected(inputs["q"], inputs["q"], rows(inputs["k"]), rows(inputs["v"]), made["write"])
    steps = spread(projected, made["decay"], made["erase"], K**-0.5, N, m)
    state, reads = unroll(recurrence_of(steps, None), Matrix(inputs["S"]), fold_rows(steps), engine=engine)
    return last_micro_steps(reads, m), state.S


def compare_all(source: Source, dtype: str, engine: AbstractEngine) -> Iterator[dict[str, Any]]:
    """The records of all recurrences, one after the other."""
    return (compare(source, name, dtype, engine) for name in RECURRENCES)


def compare(source: Source, name: str, dtype: str, engine: AbstractEngine) -> dict[str, Any]:
    """The record of one recurrence and dtype: the gradient is that of a weighted sum of outputs and last states."""
    case = RECURRENCES[name]
    inputs = draw(case.inputs, case.micro_steps, dtype)
    naive = source.function(f"ops/{case.file}/naive.py", case.name)
    given = {key: torch.tensor(value, requires_grad=True) for key, value in inputs.items()}
    made = case.theirs(naive, dict(given))
    weights = [np.cos(np.arange(part.numel())).reshape(part.shape).astype(dtype) for part in made]
    pairs = zip(made, weights, strict=True)
    torch.stack([(part * torch.tensor(weight)).sum() for part, weight in pairs]).sum().backward()

    @jax.jit
    def run(inputs: Inputs) -> tuple[Any, Any]:
        def loss(inputs: Inputs) -> tuple[jax.Array, Any]:
            made = jax.vmap(lambda inputs: ours(case, inputs, engine))(inputs)
            sums = [jnp.sum(part * weight) for part, weight in zip(made, weights, strict=True)]
            return sums[0] + sums[1], made

        return jax.grad(loss, has_aux=True)(inputs)

    gradient, (ys, S) = run(inputs)
    expected_ys, expected_S = (part.detach().numpy() for part in made)
    record: dict[str, Any] = {"layer": name, "dtype": dtype, "reference": f"ops/{case.file}/naive.py"}
    record |= {"outputs": difference(ys, expected_ys), "states": difference(S, expected_S)}
    return show(
        record | {"gradients": difference(gradient, {key: np.asarray(value.grad) for key, value in given.items()})}
    )
