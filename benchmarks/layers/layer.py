"""The noun *layer*: one library's recurrent layer, as programs that do the same work."""

import abc
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import GATES, Case
from benchmarks.measure import Contestant, compile_program

FORWARD, GRADIENT, STEP = "forward", "gradient", "step"
STEPS = 20  # that a call makes: a single one is too short to be timed


class Work(NamedTuple):
    """What every layer is given: the case, the arrays, and what to make of them.

    forward   all outputs [B, T, H] and the last state, nothing kept for a gradient
    gradient  the loss sum(y * cotangent), and its derivatives by weights, biases, inputs and initial state
    step      T = 1: STEPS steps from Python, each from the state that the one before has returned
    """

    case: Case
    direction: str
    xs: np.ndarray  # [B, T, I]
    state: tuple[np.ndarray, ...]  # h, and c of an LSTM: [B, H]
    cotangent: np.ndarray  # [B, T, H]


def draw_work(case: Case, direction: str) -> Work:
    """Random inputs, initial state and cotangent, in float32; a layer converts them to what it takes."""
    random = np.random.default_rng(0)
    shapes = [(case.B, case.T, case.I), (case.B, case.T, case.H)] + [(case.B, case.H)] * (1 + (case.cell == "LSTM"))
    xs, cotangent, *state = (random.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return Work(case, direction, xs, tuple(state), cotangent)


def operations(case: Case, direction: str) -> int:
    """Floating point operations of the matrix products, those of the units not counted.

    A multiplication and an addition for every entry of W and R, at every step. A gradient takes three times as many:
    each product once more by the weight's transpose and once more for the weight's gradient.
    """
    forward = 2 * case.T * case.B * (case.I + case.H // case.heads) * GATES[case.cell] * case.H
    return 3 * forward if direction == GRADIENT else forward


def carried(step: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
    """A call of STEPS steps, of which each waits for the state of the one before, as a user does for every result."""
    held = [state]

    def call() -> Any:
        for _ in range(STEPS):
            held[0] = jax.block_until_ready(step(held[0]))
        return held[0]

    return call


class AbstractLayer(abc.ABC):
    """A library's layers. A subclass names them, and prepares one to be called."""

    peer: ClassVar[str | None]  # the library's name; None for rnnjax
    package: ClassVar[str]  # whose version is recorded
    directions: ClassVar[tuple[str, ...]] = (FORWARD, GRADIENT)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)  # that are measured here

    @abc.abstractmethod
    def names(self) -> Mapping[str, str]:
        """The library's name of its layer, by our name of the cell; cells that it does not have are missing."""

    @abc.abstractmethod
    def prepare(self, work: Work) -> Contestant:
        """The layer of `work`, ready to be called."""

    def contestant(self, work: Work) -> Contestant:
        """The same, with the library's name and version."""
        return self.prepare(work)._replace(peer=self.peer, peer_version=version(self.package) if self.peer else None)

    def refusal(self, case: Case, direction: str) -> str | None:
        """Why there is nothing to measure; None if there is."""
        if case.cell not in self.names():
            return f"{self.peer} has no {case.cell} cell"
        if direction not in self.directions:
            return f"{self.peer} has no {direction}"
        if case.dtype not in self.dtypes:
            return f"{self.peer} is measured in {' and '.join(self.dtypes)} alone"
        return None


class Pure(NamedTuple):
    """A layer as a pure function: `ys, last = function(weights, state, xs)`, with its weights and its initial state."""

    function: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    weights: Any
    state: Any


class AbstractJaxLayer(AbstractLayer):
    """A layer of a library on top of JAX: a pure function, which is differentiated and compiled here."""

    @abc.abstractmethod
    def pure(self, case: Case, state: tuple[jax.Array, ...]) -> Pure:
        """The layer as a function of all arrays to differentiate by; `state` as in `Work`."""

    def prepare(self, work: Work) -> Contestant:
        function, weights, state = self.pure(work.case, tuple(map(jnp.asarray, work.state)))

        def loss(weights: Any, state: Any, xs: jax.Array, cotangent: jax.Array) -> jax.Array:
            return jnp.sum(function(weights, state, xs)[0] * cotangent)

        xs, cotangent = (jnp.asarray(array, work.case.dtype) for array in (work.xs, work.cotangent))
        arguments, name = (weights, state, xs), self.names()[work.case.cell]
        if work.direction == FORWARD:
            return compile_program(name, function, *arguments)
        return compile_program(name, jax.value_and_grad(loss, (0, 1, 2)), *arguments, cotangent)
