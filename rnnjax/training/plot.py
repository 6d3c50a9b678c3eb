"""Loss curves as pictures. Needs matplotlib, which the library itself does not."""

from pathlib import Path

from matplotlib.figure import Figure

from .log import read_metrics


def draw_curve(metrics: str | Path, picture: str | Path, *, scale: float = 1.0, unit: str = "loss") -> None:
    """Draw training and validation loss over steps, times `scale`, from a `metrics.jsonl` to a PNG."""
    lines = read_metrics(metrics)
    if not lines:
        raise ValueError(
            f"metrics: expected at least one line in {metrics}, found none. "
            "Pass the metrics.jsonl of a run that has recorded some steps"
        )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("validation", "held out")):
        points = [(line["step"], line[name] * scale) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="steps", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
