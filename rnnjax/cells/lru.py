"""The linear recurrent unit: complex, diagonal, initialised on a ring."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, InputWeight, Units, carry_dtype
from ..cell import Shapes
from .state_space import AbstractStateSpaceCell, OutputWeight, draw_output, draw_skip, join, read_size


class LRU(AbstractStateSpaceCell):
    """Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences", arXiv:2303.06349.

        h_t = lambda * h_{t-1} + exp(log_gamma) * (B x_t)        lambda = exp(-exp(nu) + i exp(theta))
        y_t = Re(C h_t) + D x_t

    H complex units; the recurrence is stable for any weights, since |lambda| <= 1. Initially lambda is uniform on the
    ring between r_min and r_max, at angles up to max_phase, and gamma = sqrt(1 - |lambda|^2), so that the size of the
    state does not depend on |lambda|; gamma is then trained as a weight of its own. B and C are stored as real and
    imaginary parts: every weight is real, so that any optimiser can be used. There is no bias and no nonlinearity: put
    one between layers. Over T steps an angle, and any error in it, is multiplied by T: for long sequences train theta,
    nu and log_gamma at a lower rate than the other weights.
    """

    input_weight: InputWeight
    output_weight: OutputWeight
    nu: Float[Array, " H"]
    theta: Float[Array, " H"]
    log_gamma: Float[Array, " H"]
    skip: Float[Array, " I"] | None
    initial_state: Float[Array, " PH"] | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        output_size: int | None = None,
        skip: bool = True,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        output_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights.

        output_size     O, the size of y; None: I
        skip            whether there is a D; it is a vector, so that O must be I
        r_min, r_max    the ring of lambda: 0 <= r_min <= r_max <= 1. For long sequences, use r_min near 1
        max_phase       the largest angle of lambda, in radians. For long sequences, use a small one
        *_initialiser   of each part of B (then divided by sqrt 2, as |B|^2 has two parts) and of C
        The other arguments are as in `LSTM`.
        """
        output_size = read_size(input_size, output_size, skip)
        check.sizes(input_size=input_size, hidden_size=hidden_size, output_size=output_size)
        check.flags(skip=skip, learn_initial=learn_initial)
        check.dtype(dtype)
        check_ring(r_min, r_max, max_phase)
        keys = random.split(key, 5)
        parts = initialise.input_weight(input_initialiser, keys[0], input_size, "ri", hidden_size, carry_dtype(dtype))
        self.input_weight = random.array(random.known(parts) / math.sqrt(2), dtype)
        self.output_weight = draw_output(output_initialiser, keys[1], hidden_size, output_size, dtype)
        log_radius = draw_log_radius(keys[2], hidden_size, r_min, r_max)
        share = 1 - random.uniform(keys[3], (hidden_size,), jnp.float32)  # (0, 1]: an angle of zero has no theta
        xp = random.numpy_for(share)
        self.nu = random.array(xp.log(-log_radius), dtype)
        self.theta = random.array(xp.log(max_phase * share), dtype)
        self.log_gamma = random.array(0.5 * xp.log(-xp.expm1(2 * log_radius)), dtype)
        self.skip = draw_skip(keys[4], input_size, skip, dtype)
        self.initial_state = random.zeros(2 * hidden_size, dtype) if learn_initial else None

    @property
    def weight_shapes(self) -> Shapes:
        units = {name: (self.input_weight.shape[-1] // 2,) for name in ("nu", "theta", "log_gamma")}
        return super().weight_shapes | units

    def coefficients(self, u: Float[Array, "2 H"]) -> tuple[Units, Units]:
        carried = carry_dtype(u.dtype)
        polar = jax.lax.complex(-jnp.exp(self.nu.astype(carried)), jnp.exp(self.theta.astype(carried)))
        return jnp.exp(polar), join(jnp.exp(self.log_gamma.astype(carried))[None] * u.astype(carried))


def draw_log_radius(key: PRNGKeyArray, hidden_size: int, r_min: float, r_max: float) -> random.Drawn:
    """log |lambda|, uniform in the area of the ring, but not 0 or 1, where nu would be infinite."""
    share = random.uniform(key, (hidden_size,), jnp.float32)
    xp, squared = random.numpy_for(share), r_min**2 + share * (r_max**2 - r_min**2)
    return 0.5 * xp.log(xp.clip(squared, 1e-12, 1 - 1e-7))


def check_ring(r_min: float, r_max: float, max_phase: float) -> None:
    """Raise unless the ring is inside the unit circle."""
    for name, value in (("r_min", r_min), ("r_max", r_max)):
        check.number(name, value)
    if not 0 <= r_min <= r_max <= 1:
        raise ValueError(
            f"r_min: expected 0 <= r_min <= r_max <= 1, got r_min={r_min!r} and r_max={r_max!r}. "
            "Pass the inner and the outer radius of the ring of eigenvalues, such as 0.9 and 0.999"
        )
    check_phase(max_phase)


def check_phase(max_phase: float) -> None:
    """Raise unless it is an angle."""
    if not 0 < check.number("max_phase", max_phase) <= 2 * math.pi:
        raise ValueError(
            f"max_phase: expected an angle above 0 and up to 2 pi, in radians, got {max_phase!r}. "
            "Pass 2 * math.pi for eigenvalues at all angles"
        )
