"""The report: problems of training along time, in words, and remedies to try."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..arrays import PyTree, State
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from .gates import stuck
from .gradient import SequenceLoss, check_loss, gradient_by_lag
from .recurrent_weight import norm_of_the_only_way

FAINT, HUGE = 1e-3, 1e3  # times the gradient at the end: below, it has vanished; above, it has exploded
MANY = 0.5  # share of all units and steps, or of all updates


class Finding(NamedTuple):
    """One problem: its name, the observation, and what to try."""

    illness: str
    seen: str
    remedy: str


class Report(NamedTuple):
    """The result of `examine`. Its text, which a notebook shows, is the report in words; without findings: healthy."""

    name: str
    gradient: np.ndarray  # the norm of dL/ds_{T-k}, k = 0 to T
    vanishing_after: int | None  # the first lag at which a thousandth is left
    exploding_after: int | None  # the first lag at which it is a thousandfold
    stuck: float | None  # the share of units and steps at which no input can change the state
    clipped: float | None  # the share of clipped updates
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        if not self.findings:
            T = len(self.gradient) - 1
            rate = (self.gradient[-1] / self.gradient[0]) ** (1 / T)
            share = "" if self.clipped is None else f"; clipped in {self.clipped:.0%} of the updates"
            return f"{self.name}: healthy over {T} steps; going back, the gradient changes by {rate:.3g} a step{share}"
        return "\n".join(f"{self.name}: {illness}, {seen}. Try: {remedy}" for illness, seen, remedy in self.findings)

    def __repr__(self) -> str:
        return str(self)


def examine(
    loss: SequenceLoss,
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    update_norms: Checked[ArrayLike | Sequence[float] | None] = None,
    clip: float | None = None,
    engine: Checked[AbstractEngine] = Auto(),
) -> Report:
    """Run forward and backward along one sequence, and report what is wrong, if anything is.

    loss              `(last, ys) -> scalar`. Only its derivative by the last state and the last output is used, since
                      the report is about how far back the gradient reaches from the end
    cell, state, xs   as in `rnnjax.unroll`
    update_norms      the norm of the gradient at each update of a training run, if there was one
    clip              the maximal norm, as given to `optax.clip_by_global_norm`

    Problems: vanishing (less than a thousandth of the gradient is left before the first step), exploding (it grows more
    than a thousandfold), saturated (at more than half of all units and steps no input can change the state), clipped
    (more than half of the updates), silent (no gradient at the end), not finite. It cannot be jitted: the result is
    text.
    """
    clipped = _share_clipped(update_norms, clip)
    gradient = np.asarray(gradient_by_lag(_on_the_end(loss), cell, state, xs, engine=engine))
    units = stuck(cell, state, xs, engine=engine)
    report = Report(
        describe(cell),
        gradient,
        _first(gradient < FAINT * gradient[0]) if gradient[0] > 0 else None,
        _first(~(gradient <= HUGE * gradient[0])) if 0 < gradient[0] < np.inf else None,  # NaN further back, too
        None if units is None else float(units.mean()),
        clipped,
        (),
    )
    return report._replace(findings=tuple(_findings(report, norm_of_the_only_way(cell))))


def _on_the_end(loss: Any) -> Any:
    """The same loss, of whose outputs only the last is differentiated."""
    check_loss(loss)
    cut = lambda leaf: jnp.concatenate([jax.lax.stop_gradient(leaf[:-1]), leaf[-1:]])  # noqa: E731
    return lambda last, ys: loss(last, jax.tree.map(cut, ys))


def _share_clipped(update_norms: Any, clip: Any) -> float | None:
    """The share of updates whose norm was over `clip`, NaN included; None where neither was given."""
    if (update_norms is None) != (clip is None):
        raise ValueError("clip: expected together with update_norms, or neither of them. Pass both, or leave both out")
    if clip is None:
        return None
    norms = np.asarray(update_norms)
    if norms.size == 0:
        raise ValueError(
            "update_norms: expected the norm of at least one update, got none. "
            "Pass the norms of the gradients of all updates, or leave update_norms and clip out"
        )
    if not clip > 0:
        raise ValueError(
            f"clip: expected the clipping norm, above 0, got {clip}. Pass the bound given to optax.clip_by_global_norm"
        )
    return float(np.mean(~(norms <= clip)))


def _findings(report: Report, norm: float | None) -> Iterator[Finding]:
    """The problems that the report's numbers show; `norm` is the largest singular value of R, if it is known."""
    T = len(report.gradient) - 1
    if not np.isfinite(report.gradient[0]):
        yield Finding("not finite", "the gradient at the very end is NaN or infinite", FINITE)
        return
    of_R = "" if norm is None else f"; R's largest singular value is {norm:.3g}"
    if report.gradient[0] == 0:
        yield Finding("silent", "no gradient reaches the last state", "a loss on the end of the sequence")
    if report.vanishing_after is not None:
        seen = f"a thousandth is left after {report.vanishing_after} of {T} steps{of_R}"
        yield Finding("vanishing", seen, _hold(norm))
    if report.exploding_after is not None:
        seen = f"a thousandfold after {report.exploding_after} of {T} steps{of_R}"
        yield Finding("exploding", seen, _calm(norm))
    if report.stuck is not None and report.stuck > MANY:
        yield Finding("saturated", f"nothing can move its units at {report.stuck:.0%} of the steps", LOOSEN)
    if report.clipped is not None and report.clipped > MANY:
        yield Finding("clipped", f"in {report.clipped:.0%} of the updates", UNCLIP)


FINITE = "finite inputs, weights and loss; jax.config.update('jax_debug_nans', True) shows where it begins"
LOOSEN = (
    "smaller inputs (subtract their mean, divide by their deviation), smaller input weights "
    "(input_initialiser=initialise.glorot), or normalisation before the cell"
)
UNCLIP = "a larger bound, about the median of the norms; if they grow, a lower learning rate and an orthogonal R"


def _hold(norm: float | None) -> str:
    if norm is not None and norm < 0.9:
        return "recurrent_initialiser=initialise.orthogonal, all singular values 1: below 1, R forces vanishing"
    return (
        "LSTM or GRU with a larger forget bias (initialise.forget, or initialise.chrono for a known length), LRU with "
        "r_min near 1, or a way past the steps (attention, skip connections)"
    )


def _calm(norm: float | None) -> str:
    also = "optax.clip_by_global_norm, a lower learning rate, a gated cell"
    if norm is None or norm < 1.1:
        return also
    return f"R divided by its largest singular value, or drawn by initialise.orthogonal; {also}"


def _first(where: np.ndarray) -> int | None:
    """The first index at which it is true."""
    return int(np.argmax(where)) if where.any() else None
