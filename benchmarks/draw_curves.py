"""Draws the records of `benchmarks.curves`: long memory by the clock, and two tasks beside published figures."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common.command_line import command_line, option
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"


parse = command_line(
    __doc__, option("--folder", type=Path, default=RESULTS, help="holds the records, and gets the pictures")
)


def main() -> None:
    """Two pictures, from the three files of records in a folder."""
    folder = parse().folder
    memory, digits, texts = (read(folder, name) for name in ("long_memory", "pixel_digits", "shakespeare"))
    draw_memory(memory, folder / "long_memory.png")
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
    draw_digits(axes[0], digits)
    draw_texts(axes[1], texts)
    save(figure, folder / "published_curves.png")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


def draw_memory(records: list[dict[str, Any]], path: Path) -> None:
    """The loss over the seconds of training, compiling included, a panel for each task and length."""
    panels = sorted({(record["task"], record["T"]) for record in records})
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8.4, 3.4 * rows), squeeze=False)
    for axis, (task, T) in zip(axes.flat, panels, strict=False):
        for record in records:
            if (record["task"], record["T"]) == (task, T):
                axis.plot(*zip(*record["curve"], strict=True), label=record["model"])
                axis.axhline(record["ignorance"], color="grey", linewidth=0.6, linestyle=":")
        axis.set(title=f"{task}, T = {T}", xlabel="seconds of training", ylabel="loss", yscale="log")
        axis.legend(frameon=False, fontsize="small")
    save(figure, path)


def draw_digits(axis: Axes, records: list[dict[str, Any]]) -> None:
    """The share of held-out digits that is read right, after each epoch."""
    for record in records:
        epochs, shares, _ = zip(*record["curve"], strict=True)
        label = f"{record['model']}, {record['weights']:,} weights"
        axis.plot(epochs, [100 * share for share in shares], marker="o", label=label)
    published = records[0]["published"]
    axis.plot(range(1, len(published) + 1), published, marker="o", color="grey", label="LEM of 128 units, published")
    axis.set(title=records[0]["task"], xlabel="epochs", ylabel="% of held-out digits")
    axis.legend(frameon=False, fontsize="small")


def draw_texts(axis: Axes, records: list[dict[str, Any]]) -> None:
    """Nats a character of the text held out, as training goes on; a star for a published figure."""
    for record in records:
        steps, losses, _, _ = zip(*record["curve"], strict=True)
        (line,) = axis.plot(steps, losses, label=f"{record['mixer']}, width {record['width']}")
        if "published" in record:
            place = record["published_steps"], record["published"]
            axis.plot(*place, "*", color=line.get_color(), label=f"{record['mixer']}, published")
    axis.set(title=records[0]["task"], xlabel="steps", ylabel="nats a character")
    axis.legend(frameon=False, fontsize="small")


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
