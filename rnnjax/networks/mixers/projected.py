"""What a matrix mixer computes its coefficients from, and the linear maps that such modules are made of."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType, Inputs, carry_dtype
from ...named import as_module


class Projected(NamedTuple):
    """One sequence in a mixer, after projection, convolution and maps; M rows are one for each micro-step and head."""

    x: Inputs
    query: Inexact[Array, "T N K"]
    key: Inexact[Array, "T M K"]
    value: Inexact[Array, "T M V"]
    write: Float[Array, "T M S"] | None = None  # the strength of writing; None while it is computed, or if it is one


Coefficient = Callable[[Projected], Inexact[Array, "T M S"]]  # S is 1 or a size


class Linear(eqx.Module):
    """x W + b over time, in float32 or wider: the pre-activations of coefficients."""

    weight: Float[Array, "I O"]
    bias: Float[Array, " O"] | None

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        key: PRNGKeyArray,
        bias: Float[Array, " O"] | None = None,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw W [I, O] by `input_initialiser`; `bias` is b, None for none."""
        check.sizes(input_size=input_size, output_size=output_size)
        check.dtype(dtype)
        drawn = input_initialiser(key, (input_size, output_size), carry_dtype(dtype))
        self.weight = random.array(random.known(drawn), dtype)
        self.bias = bias

    def __call__(self, xs: Inputs) -> Float[Array, "T O"]:
        wide = carry_dtype(self.weight.dtype)
        product = jnp.matmul(xs, self.weight, preferred_element_type=wide)
        return product if self.bias is None else product + self.bias.astype(wide)[None]


class LowRank(eqx.Module):
    """(x W) P + b over time, of rank R: W [I, R], P [R, O]."""

    down: Linear
    up: Linear

    def __init__(
        self,
        input_size: int,
        rank: int,
        output_size: int,
        *,
        key: PRNGKeyArray,
        bias: Float[Array, " O"] | None = None,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw W and P by `input_initialiser`; `bias` is b, None for none."""
        down, up = random.split(key, 2)
        options = {"input_initialiser": input_initialiser, "dtype": dtype}
        self.down = Linear(input_size, rank, key=down, **options)
        self.up = Linear(rank, output_size, key=up, bias=bias, **options)

    def __call__(self, xs: Inputs) -> Float[Array, "T O"]:
        return self.up(self.down(xs).astype(xs.dtype))


class Gate(eqx.Module):
    """activation(projection(x)) over time, with a row for each head: a strength, a decay or an output gate.

    projection    a `Linear` or a `LowRank`, or any function [T, I] -> [T, M S]
    activation    a function of each number
    rows          M, the number of heads, or of micro-steps times heads
    """

    projection: Callable[[Inputs], Float[Array, "T MS"]]
    activation: Callable[[Array], Array] = eqx.field(converter=as_module)
    rows: int = eqx.field(static=True)

    def __call__(self, projected: Projected) -> Float[Array, "T M S"]:
        return by_row(self.activation(self.projection(projected.x)), self.rows)


def by_row(array: Float[Array, "T MS"], rows: int) -> Float[Array, "T M S"]:
    """A view in which each row has an axis of its own."""
    steps, columns = array.shape
    if columns % rows:
        raise ValueError(
            f"projection: expected a multiple of {rows} columns, as many for each row, got {columns}. "
            f"Pass a projection to {-(-columns // rows) * rows} columns, say, or another number of rows"
        )
    return array.reshape(steps, rows, columns // rows)


def written(projected: Projected) -> Float[Array, "T M S"]:
    """The strength of writing, as the strength of erasing: the delta rule."""
    if projected.write is None:
        raise ValueError("erase: expected a mixer with `write` for written, got write=None. Pass write, too")
    return projected.write
