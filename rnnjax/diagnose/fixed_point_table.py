"""Fixed points, what the eigenvalues of their Jacobians say of them, and their table."""

from collections import Counter
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Complex, Float, Int

from ..arrays import States

KINDS = {"stable": "stable", "saddle": "saddles", "unstable": "unstable", "slow": "slow"}  # one of them, and several
LONGEST = 40  # rows of a table


@dataclass(frozen=True, repr=False)
class FixedPoints:
    """K points at which a state stands still or almost, sorted by kind; its text is a table.

    name          of the cell
    states        K states along a first axis
    kinds         "stable": every eigenvalue is within the unit circle. "saddle": some are and some are not.
                  "unstable": all are outside. "slow": q is not zero but small, or an eigenvalue is on the unit circle
                  and none outside, as on a line attractor
    speeds        q of each
    eigenvalues   of the Jacobian of a step at each, the largest modulus first
    reached       for each start the number of its point, or -1 if it did not converge
    start_speeds  q where each start ended
    margin        how close to the unit circle an eigenvalue is on it, but for rounding
    """

    name: str
    states: States
    kinds: tuple[str, ...]
    speeds: Float[np.ndarray, " K"]
    eigenvalues: Complex[np.ndarray, "K D"]
    reached: Int[np.ndarray, " S"]
    start_speeds: Float[np.ndarray, " S"]
    margin: float

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def unstable(self) -> Int[np.ndarray, " K"]:
        """How many eigenvalues of each point are outside the unit circle: the dimension in which states leave it."""
        return (np.abs(self.eigenvalues) > 1 + self.margin).sum(1)

    @property
    def unconverged(self) -> Int[np.ndarray, " U"]:
        """The numbers of the starts that did not converge."""
        return np.flatnonzero(self.reached < 0)

    def of_kind(self, kind: str) -> States:
        """The states of one kind, along a first axis."""
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {list(KINDS)}, got {kind!r}. Pass one of these words")
        chosen = np.flatnonzero(np.asarray(self.kinds, dtype=object) == kind)
        return jax.tree.map(lambda leaf: leaf[chosen], self.states)

    def __str__(self) -> str:
        counts = Counter(self.kinds)
        words = [f"{counts[kind]} {kind if counts[kind] == 1 else KINDS[kind]}" for kind in KINDS if counts[kind]]
        title = f"{self.name}: {', '.join(words) if words else 'no point'}, from {len(self.reached)} starts"
        lines = [title, *self._rows(), *self._unconverged()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _rows(self) -> list[str]:
        if not len(self):
            return []
        row = "{:<9}{:>9}{:>10}{:>22}{:>17}{:>8}".format
        rows = [row("kind", "q", "unstable", "largest |eigenvalue|", "slowest, steps", "starts")]
        for point, kind in enumerate(self.kinds[:LONGEST]):
            moduli = np.abs(self.eigenvalues[point])
            starts = int((self.reached == point).sum())
            speed, unstable = f"{self.speeds[point]:.1e}", int(self.unstable[point])
            rows.append(row(kind, speed, unstable, f"{moduli[0]:.4f}", f"{_slowest(moduli):.3g}", starts))
        left = len(self) - LONGEST
        return [*rows, f"and {left} more"] if left > 0 else rows

    def _unconverged(self) -> list[str]:
        if not len(self.unconverged):
            return []
        speeds = self.start_speeds[self.unconverged]
        ends = f"q from {np.nanmin(speeds):.1e} to {np.nanmax(speeds):.1e}" if np.isfinite(speeds).any() else "q is NaN"
        count = len(self.unconverged)
        return [f"{count} of {len(self.reached)} starts did not converge, {ends}: pass more steps, or other starts"]


def classify(
    name: str,
    states: States,
    start_speeds: np.ndarray,
    chosen: np.ndarray,
    reached: np.ndarray,
    jacobians: np.ndarray,
    fixed: np.ndarray,
    margin: float,
) -> FixedPoints:
    """The points of the starts `chosen`, sorted by kind and by the largest eigenvalue.

    fixed    whether q of each is zero but for rounding
    """
    eigenvalues = np.linalg.eigvals(jacobians).astype(complex)
    eigenvalues = np.take_along_axis(eigenvalues, np.argsort(-np.abs(eigenvalues), 1, kind="stable"), 1)
    kinds = [
        _kind(np.abs(of_point), at_rest, margin) for of_point, at_rest in zip(eigenvalues, fixed.tolist(), strict=True)
    ]
    order = np.asarray(
        sorted(range(len(kinds)), key=lambda point: (list(KINDS).index(kinds[point]), -abs(eigenvalues[point, 0]))), int
    )
    place = np.argsort(order)
    return FixedPoints(
        name,
        jax.tree.map(lambda leaf: leaf[order], states),
        tuple(kinds[point] for point in order),
        start_speeds[chosen][order],
        eigenvalues[order],
        np.asarray([place[point] if point >= 0 else -1 for point in reached], int),
        start_speeds,
        margin,
    )


def _kind(moduli: np.ndarray, at_rest: bool, margin: float) -> str:
    if not at_rest:
        return "slow"
    if (moduli > 1 + margin).all():
        return "unstable"
    if (moduli > 1 + margin).any():
        return "saddle"
    return "stable" if (moduli < 1 - margin).all() else "slow"


def _slowest(moduli: np.ndarray) -> float:
    """The time constant of the mode nearest to the unit circle, in which it grows or fades e-fold."""
    with np.errstate(divide="ignore"):
        rates = np.abs(np.log(moduli))
    return float(1 / rates.min()) if rates.min() > 0 else float("inf")
