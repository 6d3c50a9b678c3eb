"""The geometry of convolutional cells: the sizes of frames and states, and where kernels are placed on them."""

from dataclasses import dataclass

from .. import check
from ..arrays import Sizes


@dataclass(frozen=True)
class Geometry:
    """The sizes of the input frames of a cell, and how it convolves them; one entry for each axis of space.

    The convolution of inputs has a padding (None: as much as keeps the size), a stride and a dilation; that of states
    keeps their size, and has a dilation of its own.
    """

    space: tuple[int, ...]
    padding: tuple[int, ...] | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    recurrent_dilation: tuple[int, ...]

    def hidden_space(self, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The size of a state: of frames convolved with this kernel. Raises where a frame is smaller than the kernel.

        With no padding given it is size / stride, rounded up.
        """
        if self.padding is None:
            return tuple(-(-size // stride) for size, stride in zip(self.space, self.stride, strict=True))
        spans = tuple(dilation * (size - 1) + 1 for size, dilation in zip(kernel, self.dilation, strict=False))
        padded = tuple(size + 2 * padding for size, padding in zip(self.space, self.padding, strict=True))
        if any(span > size for span, size in zip(spans, padded, strict=False)):
            raise ValueError(
                f"kernel_size: expected kernels of at most the size of a frame, {padded} with its padding, got "
                f"{kernel}, which spans {spans} at dilation={self.dilation}. "
                "Reduce kernel_size or dilation, or leave out padding, which then keeps the size of frames"
            )
        sizes = zip(padded, spans, self.stride, strict=False)
        return tuple((size - span) // stride + 1 for size, span, stride in sizes)


def check_geometry(
    space: Sizes,
    kernel_size: Sizes,
    padding: Sizes | None,
    stride: Sizes,
    dilation: Sizes,
    recurrent_dilation: Sizes,
) -> tuple[Geometry, tuple[int, ...]]:
    """The geometry, and the size of the kernels; raise unless all fit each other and kernel sizes are odd."""
    space = check.shape("space", space)
    if not space:
        raise ValueError(
            "space: expected at least one axis, got (). "
            "Pass the sizes of a frame, such as (8, 8), or use LSTM or GRU for vectors"
        )
    kernel = _for_each_axis("kernel_size", kernel_size, space)
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(
            f"kernel_size: expected odd sizes, got {kernel_size!r}. An even kernel has no middle, and would shift the "
            "state by half a position at every step. "
            "Make each even size one larger or smaller"
        )
    if isinstance(padding, str):
        raise TypeError(
            f"padding: expected a number of zeros for each axis, got {padding!r}. "
            "Leave it out to keep the size of frames ('same' in other libraries), or pass 0 for no padding ('valid')"
        )
    geometry = Geometry(
        space,
        None if padding is None else _for_each_axis("padding", padding, space, least=0),
        _for_each_axis("stride", stride, space),
        _for_each_axis("dilation", dilation, space),
        _for_each_axis("recurrent_dilation", recurrent_dilation, space),
    )
    geometry.hidden_space(kernel)
    return geometry, kernel


def _for_each_axis(name: str, value: Sizes, space: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
    """`value` as a tuple with an entry for each axis of space; an integer stands for all of them."""
    axes = check.shape(name, value, least)
    if not isinstance(value, tuple):
        axes *= len(space)
    if len(axes) != len(space):
        raise ValueError(
            f"{name}: expected an entry for each axis of space={space}, got {value!r}. "
            f"Pass {len(space)} of them, or one integer for all axes"
        )
    return axes
