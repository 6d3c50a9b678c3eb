"""Which tier runs a cell on a device: the first that its sizes fit into."""

from ..contract import Pointwise, Weights, carried
from ..pointwise.step import translate
from .block import Block
from .cluster import Cluster
from .device import Device
from .tier import AbstractTier


def plan(pointwise: Pointwise, weights: Weights, device: Device, whole_grid: bool) -> AbstractTier | str:
    """The tier for such a cell, or the reason why none of them takes it."""
    step = translate(pointwise, carried(weights))
    if isinstance(step, str):
        return f"The GPU kernel has no program for it: {step}."
    block = Block.fit(pointwise, step, weights, device)
    cluster, grid = (Cluster.fit(pointwise, step, weights, device, whole_grid=each) for each in (False, True))
    reasons = []
    for tier in (block, cluster, *([grid] if whole_grid else [])):
        if isinstance(tier, AbstractTier):
            return tier
        reasons.append(tier)
    more = " GPU(whole_grid=True) would." if isinstance(grid, AbstractTier) else ""
    return f"The GPU kernel does not take it: as one block of threads, {'; '.join(reasons)}.{more}"
