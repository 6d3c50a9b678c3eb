"""A cell whose recurrent weight obeys constraints: signs of units, missing connections."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .. import check
from ..arrays import PyTree, State
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..named import as_module
from ..network import Options
from ..unroll import unroll
from .layer import AbstractWrapper

Matrix = Float[Array, "H GH"]
Constraint = Callable[[Matrix], Matrix]


class Dale(eqx.Module):
    """Excitatory and inhibitory units (Dale's principle), as Song, Yang & Wang 2016 (PLoS Computational Biology 12).

        R[j] = |weight[j]| for the first E units j,        -E / I |weight[j]| for the other I

    Row j of R is what unit j sends. The factor balances excitation and inhibition where all weights are drawn alike; it
    is 1 where all units are of one kind. The paper rectifies the weights, which stops the gradient of negative ones.
    Rates must not be negative, or a unit's current changes its sign: pass an activation such as `jax.nn.relu`.
    """

    excitatory: int = eqx.field(static=True)

    def __init__(self, excitatory: Checked[int]):
        """`excitatory` is E, from 0 to all units."""
        check.count("excitatory", excitatory, 0)
        self.excitatory = int(excitatory)

    def __call__(self, weight: Matrix) -> Matrix:
        inhibitory = len(weight) - self.excitatory
        if inhibitory < 0:
            raise ValueError(
                f"excitatory: expected up to the {len(weight)} units of the cell, got {self.excitatory}. "
                "Pass the number of its excitatory units, or build a larger cell"
            )
        factor = self.excitatory / inhibitory if self.excitatory and inhibitory else 1.0
        signs = np.where(np.arange(len(weight)) < self.excitatory, 1.0, -factor).astype(weight.dtype)
        return jnp.abs(weight) * signs[:, None]


class ConnectionMask(eqx.Module):
    """Connections that exist: R = weight where the mask is true, else 0.

    The mask is an array of booleans, which optimisers and `rnnjax.training.fit` leave as it is; take gradients by
    `eqx.filter_grad`, since `jax.grad` refuses booleans.
    """

    mask: Bool[Array, "H GH"]

    def __init__(self, mask: Checked[ArrayLike]):
        """`mask` [H, G H]: whether a unit (row) sends to a gate of another (column): `~np.eye(H, dtype=bool)`."""
        array = np.asarray(mask)
        if array.dtype != bool or array.ndim != 2:
            raise ValueError(
                f"mask: expected booleans [H, G H], got {check.show(array)}. Pass one truth value for each entry of R"
            )
        self.mask = jnp.asarray(array)

    def __call__(self, weight: Matrix) -> Matrix:
        if weight.shape != self.mask.shape:
            raise ValueError(
                f"mask: expected {list(weight.shape)}, one value for each entry of R, got {list(self.mask.shape)}. "
                "Pass a mask of the shape of the cell's recurrent_weight"
            )
        return jnp.where(self.mask, weight, jnp.zeros_like(weight))


class Constrained(AbstractWrapper):
    """A cell whose recurrent weight is a function of the weight that is trained: R = constraints(weight).

        network = Constrained(RateRNN(2, 100, leak=0.2, key=key), Dale(80), ConnectionMask(~np.eye(100, dtype=bool)))

    R is computed once before the run, so every engine runs the cell as before, `Fused` too. Constraints are applied
    from left to right; any function of R's matrix [H, G H] is one.

    `layer` holds the weight that is trained, without the constraints. Regularisers of a step, such as `NoisyStates`,
    take `network.cell` within the loss. Do not keep what they return in the model: there the constrained weight would
    be trained freely.
    """

    layer: AbstractCell
    constraints: tuple[Constraint, ...]

    def __init__(self, cell: Checked[AbstractCell], *constraints: Checked[Constraint]):
        """Raises unless `cell` is a cell with a matrix `recurrent_weight` that fits the constraints."""
        weight: Any = getattr(cell, "recurrent_weight", None)
        if not isinstance(cell, AbstractCell) or not eqx.is_array_like(weight) or np.ndim(weight) != 2:
            raise TypeError(
                f"cell: expected a cell whose recurrent_weight is one matrix, got {describe(cell)}, "
                f"of {check.show(weight)}. Pass one of a single head and full rank, such as Elman or RateRNN"
            )
        self.layer = cell
        self.constraints = tuple(map(as_module, constraints))
        jax.eval_shape(lambda: _constrain(weight, self.constraints))  # one that does not fit raises here

    @property
    def cell(self) -> AbstractCell:
        """The cell with the constrained weight: what `rnnjax.diagnose` takes."""
        layer: Any = self.layer
        weight = _constrain(layer.recurrent_weight, self.constraints)
        return eqx.tree_at(lambda cell: cell.recurrent_weight, layer, weight)

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        return unroll(self.cell, state, xs, **options._asdict())


def _constrain(weight: Matrix, constraints: tuple[Constraint, ...]) -> Matrix:
    for constraint in constraints:
        weight = constraint(weight)
    return weight
