"""Which tier runs a cell on a device: the first that its sizes fit into."""

from ..contract import Pointwise, Weights, carried
from ..pointwise.step import translate
from .block import Block
from .cluster import Cluster
from .device import Device
from .tier import AbstractTier


def plan(pointwise: Pointwise, weights: Weights, device: Device) -> AbstractTier | str:
    """The tier for such a cell, or the reason why none of them takes it."""
    step = translate(pointwise, carried(weights))
    if isinstance(step, str):
        return f"The GPU kernel has no program for it: {step}."
    reasons = []
    for kind in (Block, Cluster):
        tier = kind.fit(pointwise, step, weights, device)
        if isinstance(tier, AbstractTier):
            return tier
        reasons.append(tier)
    return f"The GPU kernel does not take it: as one block of threads, {'; '.join(reasons)}."
