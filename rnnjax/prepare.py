"""Weights packed once, ahead of all calls: cells and networks that are run one step at a time."""

from typing import Any, TypeVar, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .arrays import DType, carry_dtype
from .cell import AbstractCell, describe
from .checked import Checked
from .engines.fused import misfit
from .gated_cell import AbstractAffineCell, AbstractGatedCell
from .kernels.recurrence.prepared.cell import PreparedCell
from .weights import check_weights

Network = TypeVar("Network", bound=eqx.Module)

PROTOCOL = "input_type", "initial", "readout", "hidden"  # methods that a prepared cell has for all cells


@overload
def prepare(cell: AbstractCell, weights: DType | None = None) -> PreparedCell: ...


@overload
def prepare(cell: Network, weights: DType | None = None) -> Network: ...


def prepare(cell: Checked[eqx.Module], weights: Checked[DType | None] = None) -> Any:
    """`cell` for inference: its weights are packed now, and no later call packs them again.

        prepared = rnnjax.prepare(model, jnp.int8)
        state, ys = jax.jit(rnnjax.unroll)(prepared, state, xs)  # T = 1, or longer

    cell      a gated cell; or a network or model, in which each gated cell that `Fused` can run is prepared. The other
              cells stay as they are: `explain` names those that are prepared `Prepared...`
    weights   how W and R are stored; None: as they are. `jnp.bfloat16` halves the memory that a step of a float32 cell
              reads. `jnp.int8` quarters it: a column w is stored as round(w / s) with s = max |w| / 127, so that each
              weight is off by at most s / 2. Inputs, states and sums stay in the dtype of the state

    The result takes and returns the same states, and `unroll`, `jit`, `vmap` and `explain` take it as they take `cell`.
    It is a pytree of arrays in one layout for all machines. It has no gradient: take the gradient of `cell` itself.
    float16 is stored as float32. Prepare an ensemble by `eqx.filter_vmap(prepare)`.

    Raises a TypeError for what is no cell and no network, and a ValueError where there is no cell that can be prepared,
    with the reasons, for another dtype, and for jnp.int8 of a weight that is NaN or infinite. Where the weights are
    traced, such as under `jit`, the unit of such a weight is NaN.
    """
    if not isinstance(cell, eqx.Module):
        raise TypeError(f"cell: expected a cell or a network, got {describe(cell)}. Build an instance of a class")
    stored = _dtype(weights)
    if isinstance(cell, AbstractCell):
        reason = _unpreparable(cell)
        if reason is not None:
            raise ValueError(f"cell: expected a gated cell that can be prepared, got {reason}. Use the cell as it is")
        return _prepared(cell, stored)
    cells = [node for node in jax.tree.leaves(cell, is_leaf=_is_cell) if _is_cell(node)]
    reasons = dict.fromkeys(map(_unpreparable, cells))
    if None not in reasons:
        found = "; ".join(map(str, reasons)) or "no cell at all"
        raise ValueError(f"cell: expected a network with a gated cell, got {found}. Use the network as it is")
    leave = lambda node: not _is_cell(node) or _unpreparable(node) is not None  # noqa: E731
    return jax.tree.map(lambda node: node if leave(node) else _prepared(node, stored), cell, is_leaf=_is_cell)


def _dtype(weights: Any) -> np.dtype | None:
    if weights is None:
        return None
    for narrow in map(jnp.dtype, (jnp.bfloat16, jnp.int8)):
        if narrow == weights:
            return narrow
    raise ValueError(
        f"weights: expected None, jnp.bfloat16 or jnp.int8, got {weights!r}. Pass None to store them as they are"
    )


def _is_cell(node: object) -> bool:
    return isinstance(node, AbstractCell)


def _prepared(cell: AbstractCell, stored: np.dtype | None) -> PreparedCell:
    assert isinstance(cell, AbstractGatedCell)
    own = carry_dtype(cell.dtype) if cell.dtype == jnp.float16 else cell.dtype
    prepared = PreparedCell(cell, np.dtype(own) if stored is None else stored)
    scales = {"input_weight": prepared.weights.W_scale, "recurrent_weight": prepared.weights.R_scale}
    for weight, scale in scales.items():
        if scale is not None and not isinstance(scale, Tracer) and np.isnan(scale).any():
            raise ValueError(
                f"{weight}: expected finite weights of {describe(cell)} for weights=jnp.int8, got NaN or infinity. "
                "Look at the training that they are from, or pass weights=None to store them as they are"
            )
    return prepared


def _unpreparable(cell: AbstractCell) -> str | None:
    """What `cell` is, and why it cannot be prepared; None if it can."""
    name = describe(cell)
    if isinstance(cell, PreparedCell):
        return f"{name}, which is prepared already"
    if isinstance(cell, AbstractGatedCell) and cell.input_weight.ndim != 2:
        return f"{name} with weights of several members, which `eqx.filter_vmap(prepare)` prepares"
    check_weights(cell)
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    reason = misfit(cell, one)
    if reason is None:
        own = [name for name in PROTOCOL if getattr(type(cell), name) is not getattr(AbstractAffineCell, name)]
        reason = f"`{own[0]}` is its own" if own else None
    return None if reason is None else f"{name}, and {reason}"
