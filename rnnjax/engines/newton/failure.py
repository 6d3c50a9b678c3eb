"""Why a sequence was not solved, in words: found when the program runs, and written when the error is raised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Int

from ...arrays import States
from ...runtime_error import error_by_number_where
from .solver import Settings, Solution

TOO_FEW, TOO_LITTLE, OVERFLOWN = range(3)  # iterations; damping; from the last on, at which iteration


@dataclass(frozen=True)
class Messages(Sequence[str]):
    """The message for each reason. Of a batch, the reason with the highest number is raised."""

    cell: str
    settings: Settings

    def __len__(self) -> int:
        return OVERFLOWN + self.settings.iterations + 1

    def __getitem__(self, reason: Any) -> str:
        _, iterations, _, damping, axis = self.settings
        instead = "fall_back=True, or use Scan()" if axis is None else "or use Sharded(Scan(), ...)"
        more = "Pass damping=0.1" if damping is None else "Pass a larger `damping`"
        if reason == TOO_FEW:
            damp = "" if damping else "damping=0.1, "
            return (
                f"Newton did not solve {self.cell} within {iterations} iterations. Pass more `iterations`, a larger "
                f"`tolerance`, {damp}{instead}. Newton.solve returns the residual."
            )
        if reason == TOO_LITTLE:
            return (
                f"Newton overflowed on {self.cell}: its steps are not finite with damping={damping}. {more}, {instead}."
            )
        iteration = reason - OVERFLOWN
        if iteration == 0:
            return (
                f"Newton cannot start on {self.cell}: its first steps, or their derivatives, are not finite. "
                "Check that its weights are finite, scale weights or inputs down, or use Scan()."
            )
        return (
            f"Newton overflowed on {self.cell} at iteration {iteration} of at most {iterations}, where products of "
            f"Jacobians along time grow without bound. {more}, {instead}."
        )


def insist(solution: Solution, cell: str, settings: Settings) -> States:
    """The states. Raises at run time unless they have converged."""
    messages = Messages(cell, settings)
    if settings.axis is not None:  # the parts of time agree on the reason, so that all devices raise
        return eqx.branched_error_if(solution.states, ~solution.converged, _reason(solution, settings), messages)
    return error_by_number_where(solution.states, ~solution.converged, _reason(solution, settings), messages)


def _reason(solution: Solution, settings: Settings) -> Int[Array, "..."]:
    """The number of the message; the least one where there is none. By `lax`, which adds the least to a program."""
    taken = solution.iterations
    stopped = jax.lax.convert_element_type(taken < settings.iterations, taken.dtype)  # TOO_LITTLE, else TOO_FEW
    reason = jax.lax.select(jax.lax.is_finite(solution.residual), stopped, taken + OVERFLOWN)
    return jax.lax.select(solution.converged, jax.lax.full_like(taken, TOO_FEW), reason)
