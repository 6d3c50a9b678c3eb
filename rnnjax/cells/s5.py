"""The simplified structured state space model: a complex diagonal system in continuous time, made discrete."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, InputWeight, Units, carry_dtype
from ..cell import Shapes
from ..checked import Checked
from ..named import named
from .discretise import Discretisation, check_discretisation, discretised, zero_order_hold
from .state_space import AbstractStateSpaceCell, OutputWeight, draw_skip, join, read_size


class S5(AbstractStateSpaceCell):
    """Smith, Warrington & Linderman 2023, arXiv:2208.04933; the system h' = Lambda h + B x in steps of time.

        Lambda = -exp(log_decay) + i frequency           step = exp(log_step), for each unit
        h_t = a * h_{t-1} + (a - 1) / Lambda * (B x_t)        a = exp(Lambda step)
        y_t = 2 Re(C h_t) + D x_t

    That is the zero-order hold (ZOH), the default of `discretise`. With `rnnjax.cells.bilinear` it is the bilinear
    transform: a = (1 + z) / (1 - z), and B x_t is multiplied by step / (1 - z), where z = Lambda step / 2.

    The P = hidden_size states are P/2 complex units and their conjugates, which are not computed: y has a factor of 2
    in their place. Initially Lambda and its eigenvectors, in whose coordinates B and C are drawn, are those of HiPPO-N,
    whose states are the coefficients of the past in Legendre polynomials. With `blocks` the initial system consists of
    that many such systems of P / blocks states each. All weights are real, B and C in two parts, so that any optimiser
    can be used. There is no bias and no nonlinearity: put one between layers.

    The logarithm keeps the real parts of Lambda negative. With a `largest_real_part`, they are a weight themselves,
    clipped at that bound, as in the authors' code with `clip_eigs`: Lambda = min(real_part, bound) + i frequency.
    Beyond the bound the gradient of a unit's `real_part` is zero.
    """

    multiplicity = 2.0

    input_weight: InputWeight
    output_weight: OutputWeight
    log_decay: Float[Array, " H"] | None
    real_part: Float[Array, " H"] | None  # in place of `log_decay`, if there is a bound
    frequency: Float[Array, " H"]
    log_step: Float[Array, " H"]
    skip: Float[Array, " I"] | None
    initial_state: Float[Array, " PH"] | None
    discretise: Discretisation = eqx.field(static=True, converter=named)
    largest_real_part: float | None = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        blocks: int = 1,
        output_size: int | None = None,
        skip: bool = True,
        shortest_step: float = 0.001,
        longest_step: float = 0.1,
        discretise: Checked[Discretisation] = zero_order_hold,
        largest_real_part: Checked[float | None] = None,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        output_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        hidden_size         P, an even number of states: P/2 complex units are carried
        blocks              of the initial system; each has an even number of states
        output_size         O, the size of y; None: I
        skip                whether there is a D; it is a vector, so that O must be I
        *_step              bounds of the steps, in units of the system's time; they are log-uniform between them
        discretise          `rnnjax.cells.zero_order_hold`, `rnnjax.cells.bilinear`, or any function
                            (Lambda, step) -> (a, scale) of units, with h_t = a * h_{t-1} + scale * (B x_t)
        largest_real_part   the bound of the real parts of Lambda, such as -1e-4; None: they are -exp(log_decay)
        *_initialiser       of B and C before the change to the coordinates of the eigenvectors
        The other arguments are as in `LSTM`.
        """
        output_size = read_size(input_size, output_size, skip)
        check.sizes(input_size=input_size, hidden_size=hidden_size, blocks=blocks, output_size=output_size)
        check.flags(skip=skip, learn_initial=learn_initial)
        check_blocks(hidden_size, blocks)
        check_steps(shortest_step, longest_step)
        check_discretisation(discretise)
        keys = random.split(key, 4)
        check.dtype(dtype)
        values, vectors = initialise.hippo_normal(hidden_size // blocks)
        self.largest_real_part = check_real_part(largest_real_part, values)
        self.discretise = discretise
        check_frequencies(np.imag(values), dtype)
        drawn = carry_dtype(dtype)
        B = random.known(input_initialiser(keys[0], (input_size, hidden_size), drawn)).T
        C = random.known(output_initialiser(keys[1], (hidden_size, output_size), drawn))
        self.input_weight = random.array(in_coordinates(vectors.conj(), B).T, dtype)
        self.output_weight = random.array(in_coordinates(vectors, C), dtype)
        is_free = largest_real_part is None
        self.log_decay = random.array(np.tile(np.log(-np.real(values)), blocks), dtype) if is_free else None
        self.real_part = None if is_free else random.array(np.tile(np.real(values), blocks), dtype)
        self.frequency = random.array(np.tile(np.imag(values), blocks), dtype)
        bounds = math.log(shortest_step), math.log(longest_step)
        self.log_step = random.array(random.uniform(keys[2], (hidden_size // 2,), jnp.float32, *bounds), dtype)
        self.skip = draw_skip(keys[3], input_size, skip, dtype)
        self.initial_state = random.zeros(hidden_size, dtype) if learn_initial else None

    @property
    def weight_shapes(self) -> Shapes:
        names = "log_decay", "real_part", "frequency", "log_step"
        return super().weight_shapes | dict.fromkeys(names, (self.input_weight.shape[-1] // 2,))

    def eigenvalues(self, dtype: DType) -> Complex[Array, " H"]:
        """Lambda, from real parts in `dtype`."""
        if self.real_part is None or self.largest_real_part is None:
            assert self.log_decay is not None
            real = -jnp.exp(self.log_decay.astype(dtype))
        else:
            real = jnp.minimum(self.real_part.astype(dtype), self.largest_real_part)
        return jax.lax.complex(real, self.frequency.astype(dtype))

    def coefficients(self, u: Float[Array, "2 H"]) -> tuple[Units, Units]:
        carried = carry_dtype(u.dtype)
        step = jnp.exp(self.log_step.astype(carried))
        a, scale = discretised(self.discretise, self.eigenvalues(carried), step)
        return a, scale * join(u)


def in_coordinates(vectors: np.ndarray, matrix: random.Drawn) -> random.Drawn:
    """The rows of `matrix`, block by block of states, in the coordinates of `vectors`, [P / blocks, units]: [P, _].

    The real parts of all coordinates come first, and then the imaginary parts.
    """
    states, units = vectors.shape
    parts = np.stack([np.real(vectors), np.imag(vectors)]).astype(matrix.dtype)
    rows = matrix.reshape(-1, states, matrix.shape[-1])
    return random.numpy_for(matrix).einsum("psu,bsx->pbux", parts, rows).reshape(2 * len(rows) * units, -1)


def check_blocks(hidden_size: int, blocks: int) -> None:
    """Raise unless the states can be divided into blocks of pairs."""
    if hidden_size % (2 * blocks):
        raise ValueError(
            f"hidden_size: expected a multiple of 2 * blocks = {2 * blocks}, since states come in conjugate pairs, "
            f"got {hidden_size}. "
            f"Take {-(-hidden_size // (2 * blocks)) * 2 * blocks} units"
        )


def check_steps(shortest_step: float, longest_step: float) -> None:
    """Raise unless the bounds are positive and in order."""
    check.number("shortest_step", shortest_step)
    check.number("longest_step", longest_step)
    if not 0 < shortest_step <= longest_step < np.inf:
        raise ValueError(
            "shortest_step: expected 0 < shortest_step <= longest_step, "
            f"got shortest_step={shortest_step!r} and longest_step={longest_step!r}. "
            "Pass the bounds of the initial time steps, such as 0.001 and 0.1"
        )


def check_real_part(bound: float | None, initial: np.ndarray) -> float | None:
    """`bound` as a float. Raises unless the initial real parts are below it, and it is negative."""
    if bound is None:
        return None
    largest, value = float(np.real(initial).max()), check.number("largest_real_part", bound)
    if not largest < value < 0:
        raise ValueError(
            f"largest_real_part: expected {largest} < largest_real_part < 0, where units start at {largest}, "
            f"got {bound!r}. Pass -1e-4, or None for real parts that are not clipped"
        )
    return value


def check_frequencies(frequencies: np.ndarray, dtype: DType) -> None:
    """Raise if the frequencies, which grow with the square of a block's size, overflow in `dtype`."""
    largest = float(jnp.finfo(dtype).max)
    if frequencies.max() > largest:
        raise ValueError(
            f"dtype: expected a range that includes frequencies up to {frequencies.max():.0f}, got {jnp.dtype(dtype)}, "
            f"which ends at {largest:.0f}. Take bfloat16, or more blocks"
        )
