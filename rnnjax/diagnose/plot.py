"""Plots of the diagnosis. They need matplotlib, which the library itself does not."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from .. import check
from ..arrays import States
from ..checked import Checked
from .fixed_point_table import FixedPoints

MARKS = {  # of each kind of fixed points
    "stable": {"marker": "o", "color": "black"},
    "saddle": {"marker": "x", "color": "tab:red"},
    "unstable": {"marker": "o", "color": "tab:red"},
    "slow": {"marker": ".", "color": "tab:orange"},
}


def draw_spectrum(axes: Axes, singular_values: Checked[ArrayLike]) -> None:
    """Singular values of each step's Jacobian, [T, D], over time: the largest, the median and the smallest."""
    values = _over_time("singular_values", singular_values, 2)
    for label, curve in (("largest", values.max(1)), ("median", np.median(values, 1)), ("smallest", values.min(1))):
        axes.plot(np.arange(1, len(curve) + 1), _positive(curve), label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="step", ylabel="singular values of a step", yscale="log")
    axes.legend()


def draw_gradient_by_lag(axes: Axes, gradients: Checked[Mapping[str, ArrayLike]]) -> None:
    """Norms of the gradient by lag, [lags + 1], one curve for each name, relative to the gradient at lag 0."""
    if not isinstance(gradients, Mapping):
        raise TypeError(
            f"gradients: expected a name for each curve, {{name: norms}}, got {type(gradients).__name__}. "
            "Write {'LSTM': norms}"
        )
    for label, norms in gradients.items():
        norms = _over_time(f"gradients[{label!r}]", norms, 1)
        if not 0 < norms[0] < np.inf:
            raise ValueError(
                f"gradients[{label!r}]: expected a gradient at lag 0 to take shares of, got {norms[0]}. "
                "Check that the loss depends on the last step and is finite"
            )
        axes.plot(_positive(norms / norms[0]), label=label)
    axes.set(xlabel="steps back from the loss", ylabel="gradient, of that at the end", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_gates(axes: Any, gates: Checked[ArrayLike], names: Sequence[str]) -> None:
    """Gates over time, [T, K, H], one image for each of the K `names`, units upwards; dark is closed, light is open."""
    values, axes = _over_time("gates", gates, 3), np.ravel(axes)
    if not len(axes) == len(names) == values.shape[1]:
        raise ValueError(
            f"names: expected {values.shape[1]}, and as many axes, got {len(names)} and {len(axes)}. "
            "Pass one name and one of the axes for each gate"
        )
    for index, (one, label) in enumerate(zip(axes, names, strict=True)):
        one.imshow(values[:, index].T, aspect="auto", origin="lower", vmin=0, vmax=1, interpolation="nearest")
        one.set(xlabel="step", ylabel="unit", title=label)


def draw_alignment(
    axes: Axes,
    weights: Checked[ArrayLike],
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> None:
    """Attention weights [target steps, source steps], targets downwards; `sources` and `targets` are their words."""
    values = _over_time("weights", weights, 2)
    for name, words, size in (("targets", targets, values.shape[0]), ("sources", sources, values.shape[1])):
        if words is not None and len(words) != size:
            raise ValueError(
                f"{name}: expected {size} words, one per step, got {len(words)}. "
                "Pass the words of the steps that the weights are for, or cut the weights to them"
            )
    axes.imshow(values, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    if sources is not None:
        axes.set_xticks(range(len(sources)), sources, rotation=90)
    if targets is not None:
        axes.set_yticks(range(len(targets)), targets)
    axes.set(xlabel="source", ylabel="target")


def draw_fixed_points(axes: Axes, points: FixedPoints, trajectories: States) -> None:
    """Points and trajectories in the first principal components of the trajectories: three on 3D axes, else two.

    trajectories   states of the cell with two leading axes, B and T, on every array
    """
    like = jax.tree.map(lambda leaf: (*leaf.shape[1:],), points.states)
    if jax.tree.map(lambda leaf: np.shape(leaf)[2:], trajectories) != like or jax.tree.leaves(trajectories)[0].ndim < 2:
        raise ValueError(
            f"trajectories: expected states [B, T, ...] like those of the points, {check.show(points.states)}, "
            f"got {check.show(trajectories)}. Pass the states that AllStates puts out, mapped over sequences"
        )
    rows = _as_vectors(trajectories, 2)
    flat = rows.reshape(-1, rows.shape[-1])
    mean = flat.mean(0)
    dimensions = 3 if axes.name == "3d" else 2
    if min(flat.shape) < dimensions:
        raise ValueError(
            f"trajectories: expected at least {dimensions} states of at least {dimensions} numbers, got {len(flat)} "
            f"states of {flat.shape[1]}. Pass axes of fewer dimensions, or plot the numbers over time"
        )
    components = np.linalg.svd(flat - mean, full_matrices=False)[2][:dimensions]
    for trajectory in (rows - mean) @ components.T:
        axes.plot(*trajectory.T, color="tab:blue", linewidth=0.5, alpha=0.4)
    for kind, mark in MARKS.items():
        found = (_as_vectors(points.of_kind(kind), 1) - mean) @ components.T
        if len(found):
            axes.scatter(*found.T, label=f"{kind}, {len(found)}", zorder=3, **mark)
    third = {"zlabel": "component 3"} if axes.name == "3d" else {}
    axes.set(xlabel="component 1", ylabel="component 2", **third)
    if len(points):
        axes.legend()


def _as_vectors(states: States, leading: int) -> np.ndarray:
    """The arrays of a state side by side, after so many leading axes; a complex one as its two real parts."""
    arrays: list[np.ndarray] = [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
    reals = [part for leaf in arrays for part in ((np.real(leaf), np.imag(leaf)) if np.iscomplexobj(leaf) else (leaf,))]
    rows = [part.reshape(*part.shape[:leading], math.prod(part.shape[leading:])) for part in reals]
    return np.concatenate(rows, -1)


def _positive(curve: np.ndarray) -> np.ndarray:
    """The curve with NaN in place of zeros, which a logarithmic axis cannot show."""
    return np.where(curve > 0, curve, np.nan)


def _over_time(name: str, values: Any, rank: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != rank or values.size == 0:
        raise ValueError(
            f"{name}: expected an array of rank {rank} that is not empty, got {list(values.shape)}. "
            f"Pass the values of one sequence: of a batch, {name}[0]"
        )
    return values
