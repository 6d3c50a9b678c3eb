"""The norm of the recurrent weight, for cells whose next state depends on the state through R alone."""

from functools import partial

import jax
import jax.numpy as jnp

from ..arrays import by_gate, by_head, carry_dtype, largest
from ..cell import AbstractCell
from ..checked import Checked
from ..gated_cell import AbstractGatedCell


def norm_of_the_only_way(cell: Checked[AbstractCell]) -> float | None:
    """The largest singular value of R, over all heads; None if the state has an influence other than through R."""
    if not isinstance(cell, AbstractGatedCell) or _uses_state(cell):
        return None
    by_head_and_gate = by_gate(by_head(cell.recurrent_weight.astype(carry_dtype(cell.dtype))), len(cell.gates))
    blocks = jnp.moveaxis(by_head_and_gate, 2, 1)  # [N, G, D, D]
    return float(largest(jnp.linalg.norm(blocks, 2, (2, 3)).ravel()))


def _uses_state(cell: AbstractGatedCell) -> bool:
    """Whether `pointwise` uses the state itself, and not v = R h alone."""
    state = cell.initial()
    gates = jnp.zeros((len(cell.gates), *state.h.shape), state.h.dtype)
    program = jax.make_jaxpr(partial(cell.advance, gates, gates))(state).jaxpr
    used = {id(variable) for equation in program.eqns for variable in equation.invars}
    return any(id(variable) in used or variable in program.outvars for variable in program.invars)
