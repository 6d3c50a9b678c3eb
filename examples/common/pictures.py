"""Pictures: a figure of matplotlib, saved where the user asked for it."""

from pathlib import Path

from matplotlib.figure import Figure


def save(figure: Figure, picture: Path, dpi: int = 120) -> None:
    """Write `figure` to `picture`, whose folder is made if it is missing, and say so."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=dpi)
    print(f"wrote {picture}")
