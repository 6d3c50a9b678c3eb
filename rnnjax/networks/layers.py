"""Deep networks of one cell in one call."""

from collections.abc import Callable, Sequence

from jaxtyping import PRNGKeyArray

from .. import check, random
from ..cell import AbstractCell
from ..checked import Checked
from .bidirectional import Bidirectional
from .layer import Layer, output_type
from .stack import Stack


def layers(
    cell: Callable[..., AbstractCell],
    input_size: int,
    hidden_sizes: Checked[Sequence[int]],
    *,
    key: PRNGKeyArray,
    bidirectional: bool = False,
    dropout: float = 0.0,
    **options: object,
) -> Stack:
    """A `Stack` of cells of these sizes, each fed the outputs of the one below, and each with a key of its own.

        network = layers(LSTM, 32, [64, 64], bidirectional=True, dropout=0.2, key=key)

    is a `Stack` of two `Bidirectional` layers, of 32 and 128 inputs and of 128 outputs each.

    cell            the class of the cells, or a function `(input_size, hidden_size, *, key, **options) -> cell`
    input_size      I, of the lowest layer
    hidden_sizes    H of each layer, from the lowest up
    bidirectional   whether each layer runs in both directions, their outputs side by side
    dropout         of the outputs between layers, where `unroll` is given a key
    options         handed on to every cell, such as `dtype=jnp.bfloat16` or `peepholes=True`
    """
    check.sizes(input_size=input_size)
    check.flags(bidirectional=bidirectional)
    if isinstance(hidden_sizes, int) or not len(hidden_sizes):
        raise ValueError(
            f"hidden_sizes: expected a size for each layer, at least one, got {hidden_sizes!r}. Write [64, 64]"
        )
    made: list[Layer] = []
    for hidden_size, layer_key in zip(hidden_sizes, random.split(key, len(hidden_sizes)), strict=True):
        keys = random.split(layer_key, 2) if bidirectional else [layer_key]
        cells = [cell(input_size, hidden_size, key=each, **options) for each in keys]
        made.append(Bidirectional(*cells) if bidirectional else cells[0])
        (input_size,) = output_type(made[-1]).shape
    return Stack(made, dropout=dropout)
