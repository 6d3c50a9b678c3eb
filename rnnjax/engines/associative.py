"""The engine `Associative`: a linear cell, parallel in time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..arrays import State, States, select
from ..cell import AbstractCell, AbstractLinearCell, Hidden, describe
from ..engine import AbstractEngine
from ..marks import Marks


class Associative(AbstractEngine):
    """`jax.lax.associative_scan` over the steps of a linear cell, as maps h -> a h + b (Blelloch 1990).

    Depth log T in place of T, for about twice the arithmetic and the memory of all T pairs (a, b). It needs an
    `AbstractLinearCell`; a nonlinear one has to go step by step.
    """

    def refusal(self, cell: AbstractCell, xs: PyTree[Array]) -> str | None:
        del xs
        if isinstance(cell, AbstractLinearCell):
            return None
        return f"Associative cannot run {describe(cell)}: it needs an AbstractLinearCell. Use Scan()."

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        assert isinstance(cell, AbstractLinearCell)
        a, b = jax.vmap(cell.coefficients)(cell.project(xs))
        ignored, reset = marks.over_time(a.shape[0])
        if ignored is not None:
            a, b = select(ignored, (jnp.ones_like(a), jnp.zeros_like(b)), (a, b))
        if reset is None:
            b = b.at[0].add(a[0] * state.h)
            _, h = jax.lax.associative_scan(_compose, (a, b))
        else:  # a step that forgets what came before: h = a * initial + b
            b = b.at[0].add(a[0] * select(reset[0], jnp.zeros_like(state.h), state.h))
            b = select(reset, a * marks.initial.h + b, b)
            _, h, _ = jax.lax.associative_scan(_compose_resets, (a, b, jnp.broadcast_to(reset[:, None], a.shape)))
        return Hidden(h[-1]), Hidden(h)


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The map `second(first(h))` of two maps h -> a h + b."""
    return second[0] * first[0], second[0] * first[1] + second[1]


def _compose_resets(
    first: tuple[Array, Array, Array], second: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """The same where `second` may forget `first`: by selection, since zero times what overflowed would be NaN."""
    before = jnp.where(second[2], jnp.zeros_like(first[1]), first[1])
    b = jnp.where(second[2], second[1], second[0] * before + second[1])
    return second[0] * first[0], b, first[2] | second[2]
