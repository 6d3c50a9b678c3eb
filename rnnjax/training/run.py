"""The state of a run of training, which is checkpointed."""

from typing import NamedTuple

from jaxtyping import Array

from ..arrays import PyTree
from .devices import AbstractDevices


class Run(NamedTuple):
    """The state of a run, which is saved in a checkpoint."""

    weights: PyTree
    optimiser: PyTree
    carry: PyTree
    step: Array
    key: Array
    best: PyTree  # the weights with the least validation loss so far
    best_loss: Array
    waited: Array  # validations since then


def place(run: Run, devices: AbstractDevices) -> Run:
    """The run on these devices: its carry split over them, all else on each of them."""
    carry = devices.split("carry", run.carry)
    return devices.share("model", run._replace(carry=None))._replace(carry=carry)
