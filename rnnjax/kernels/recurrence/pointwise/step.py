"""The elementwise step of a cell, and its transposed derivative, as expressions of one unit."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ....refusal import Refusal
from ..contract import Pointwise
from .expressions import Graph
from .primitives import TranslationError
from .trace import trace


class PreActivation(NamedTuple):
    """A row of the gate buffer: the gate it belongs to, and which of the two products are added to it."""

    gate: int
    input: bool
    recurrent: bool


class Step(NamedTuple):
    """`pointwise` of one unit, and its transposed derivative, where the two products of a gate
    share one pre-activation if they can.

    forward    pre_activations[C], before[F], unit_parameters[K]
               -> after[F]
    backward   pre_activations[C], before[F], dafter[F], unit_parameters[K]
               -> dpre_activations[C], dbefore[F], dunit_parameters[K]

    The inputs of `graph` are these names, each with a row; the rows of the outputs are nodes of it.
    """

    pre_activations: tuple[PreActivation, ...]
    graph: Graph
    after: tuple[int, ...]
    dpre_activations: tuple[int, ...]
    dbefore: tuple[int, ...]
    dunit_parameters: tuple[int, ...]

    @property
    def by_input(self) -> tuple[int, ...]:
        """The pre-activations that the product with the input adds to, in the order of the gates."""
        return tuple(number for number, pre_activation in enumerate(self.pre_activations) if pre_activation.input)

    @property
    def by_state(self) -> tuple[int, ...]:
        """The pre-activations that the product with the state adds to, in the order of the gates."""
        return tuple(number for number, pre_activation in enumerate(self.pre_activations) if pre_activation.recurrent)

    def sums(self, us: Sequence[Array], vs: Sequence[Array]) -> list[Array]:
        """The pre-activations, from u and v of all gates."""
        added = {(True, True): lambda u, v: u + v, (True, False): lambda u, _: u, (False, True): lambda _, v: v}
        return [
            added[pre_activation.input, pre_activation.recurrent](us[pre_activation.gate], vs[pre_activation.gate])
            for pre_activation in self.pre_activations
        ]

    def forward(
        self, pre_activations: Sequence[Array], before: Sequence[Array], unit_parameters: Sequence[Array]
    ) -> list[Array]:
        """The fields of the state after a step; all arrays have one shape."""
        return self.graph.evaluate(
            self.after, _named(pre_activations=pre_activations, before=before, unit_parameters=unit_parameters)
        )

    def backward(
        self,
        pre_activations: Sequence[Array],
        before: Sequence[Array],
        dafter: Sequence[Array],
        unit_parameters: Sequence[Array],
    ) -> tuple[list[Array], list[Array], list[Array]]:
        """The cotangents of pre-activations, state before and unit parameters."""
        inputs = _named(pre_activations=pre_activations, before=before, dafter=dafter, unit_parameters=unit_parameters)
        results = iter(self.graph.evaluate((*self.dpre_activations, *self.dbefore, *self.dunit_parameters), inputs))
        counts = len(self.dpre_activations), len(self.dbefore), len(self.dunit_parameters)
        dpre_activations, dbefore, dunit_parameters = (list(islice(results, count)) for count in counts)
        return dpre_activations, dbefore, dunit_parameters

    def operations(self) -> frozenset[str]:
        """The operations that a kernel needs for both halves."""
        needed = self.graph.users((*self.after, *self.dpre_activations, *self.dbefore, *self.dunit_parameters))
        return frozenset(self.graph.nodes[number].operation for number in needed) - {"input", "constant"}


def _named(**arrays: Sequence[Array]) -> dict[Hashable, Array]:
    return {(name, row): array for name, rows in arrays.items() for row, array in enumerate(rows)}


@lru_cache
def translate(pointwise: Pointwise, dtype: np.dtype) -> Step | Refusal:
    """The step of `pointwise` in the dtype that states are carried in, or why there is none."""
    try:
        return _in_pre_activations(*_expressions(pointwise, dtype))
    except TranslationError as error:
        return Refusal(str(error))


def _expressions(pointwise: Pointwise, dtype: np.dtype) -> tuple[Graph, dict[str, list[int]]]:
    """The rows of the state after a step and of all cotangents, as nodes of the inputs' rows."""
    graph, outputs = Graph(dtype), {}
    for function, inputs in _functions(pointwise):
        outputs |= trace(graph, function, inputs)
    return graph, outputs


def _functions(pointwise: Pointwise) -> list[tuple[Callable[..., dict[str, Array]], dict[str, int]]]:
    """`pointwise` and its transposed derivative, each with the rows of its inputs."""
    rows = {
        "unit_parameters": pointwise.unit_parameters.num_leaves,
        "u": pointwise.gates,
        "v": pointwise.gates,
        "before": pointwise.fields,
    }
    return [
        (lambda **arguments: {"after": pointwise.of_unit(**arguments)}, rows),
        (partial(_transposed, pointwise), rows | {"dafter": pointwise.fields}),
    ]


def _transposed(pointwise: Pointwise, dafter: Float[Array, " F"], **inputs: Float[Array, " _"]) -> dict[str, Array]:
    """The cotangents of the inputs, each named `d` and the input."""
    _, pull = jax.vjp(lambda inputs: pointwise.of_unit(**inputs), inputs)
    (cotangents,) = pull(dafter)
    return {f"d{name}": cotangent for name, cotangent in cotangents.items()}


def _in_pre_activations(graph: Graph, rows: dict[str, list[int]]) -> Step:
    """One pre-activation for a gate if only the sum of its u and v is used, so that cotangents agree; else two."""
    users = graph.users(number for outputs in rows.values() for number in outputs)
    pre_activations, replaced, dpre_activations, sums = [], {}, [], Graph(graph.dtype)
    for gate, (du, dv) in enumerate(zip(rows["du"], rows["dv"], strict=True)):
        u, v = graph.input(("u", gate)), graph.input(("v", gate))
        total = graph.node("add", u, v)
        summed = du == dv and {*users.get(u, ()), *users.get(v, ())} <= {total}
        parts = [(total, True, True, du)] if summed else [(u, True, False, du), (v, False, True, dv)]
        for number, by_input, by_state, cotangent in parts:
            replaced[number] = sums.input(("pre_activations", len(pre_activations)))
            pre_activations.append(PreActivation(gate, by_input, by_state))
            dpre_activations.append(cotangent)
    numbers = graph.into(sums, replaced)
    after, dpre_activations, dbefore, dunit_parameters = (
        tuple(numbers[number] for number in row)
        for row in (rows["after"], dpre_activations, rows["dbefore"], rows["dunit_parameters"])
    )
    return Step(tuple(pre_activations), sums, after, dpre_activations, dbefore, dunit_parameters)
