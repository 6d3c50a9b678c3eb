"""Folders of runs: NAME-1, NAME-2 and so on, each with a `plan.json`."""

from pathlib import Path


def newest(runs: Path, name: str) -> Path:
    """The run begun last."""
    found = sorted(runs.glob(f"{name}-*/plan.json"), key=lambda plan: plan.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"--runs: expected a run in {runs}, found none. Train one first: leave out --resume")
    return found[-1].parent


def next_folder(runs: Path, name: str) -> Path:
    """A folder for a new run."""
    names = [path.name.removeprefix(f"{name}-") for path in runs.glob(f"{name}-*")]
    return runs / f"{name}-{max((int(one) for one in names if one.isdigit()), default=0) + 1}"
