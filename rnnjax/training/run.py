"""A run of training: all it needs to go on, and the folder that holds it."""

import json
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Array, PyTree

from .checkpoint import load, save, write_atomically
from .devices import AbstractDevices

Metrics = dict[str, int | float]


class Run(NamedTuple):
    """All that a run needs to go on: what a checkpoint holds."""

    weights: PyTree
    optimiser: PyTree
    carry: PyTree
    step: Array
    key: Array
    best: PyTree  # the weights with the least validation loss so far
    best_loss: Array
    waited: Array  # validations since then


class Log:
    """The folder of a run: its checkpoint, and its metrics as lines of JSON."""

    def __init__(self, folder: Path, devices: AbstractDevices):
        self.folder = folder
        self.devices = devices
        self.checkpoint = folder / "checkpoint"
        self.metrics = folder / "metrics.jsonl"

    def open(self, run: Run, resume: bool) -> Run:
        """The run to go on with: the one in the folder if `resume`, else `run`, whose first checkpoint is written."""
        if not resume and self.checkpoint.exists():
            raise FileExistsError(
                f"folder: expected none with a run in it, got {self.folder}. "
                "Pass resume=True to go on with that run, or another folder; nothing was overwritten"
            )
        if resume:
            run = load(self.checkpoint, run)
        self.devices.wait()  # all have looked before anything is written
        if self.devices.writes:
            if resume:
                self._forget_after(int(run.step))
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self.metrics, b"")
                save(self.checkpoint, run)
        self.devices.wait()
        return run

    def write(self, run: Run, metrics: Metrics) -> None:
        """The metrics first, so that a checkpoint never lacks the lines that led to it."""
        whole = self.devices.gather(run)
        if self.devices.writes:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(metrics) + "\n")
            save(self.checkpoint, whole)
        self.devices.wait()

    def _forget_after(self, step: int) -> None:
        """Drop the lines of steps that the killed run took after its last checkpoint; they will be taken again."""
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(path: str | Path) -> list[Metrics]:
    """The lines of a `metrics.jsonl`; a last one that a kill cut short is left out."""
    lines = Path(path).read_text().split("\n") if Path(path).exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
