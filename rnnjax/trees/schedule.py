"""The step in which each inner node is computed: Hu's schedule, on the host."""

import heapq
from collections.abc import Sequence


def schedule(parents: Sequence[int], depths: Sequence[int], inner: Sequence[bool], width: int) -> list[list[int]]:
    """The inner nodes of a forest by steps of at most `width` nodes, each of them after its children.

    parents   of each node, -1 for a root
    depths    of each node, the steps to its root
    inner     which nodes have children; leaves are ready before the first step

    Of the nodes that are ready, those farthest from their roots are computed first: if all nodes take equally long,
    there is no schedule of fewer steps (Hu 1961, "Parallel sequencing and assembly line problems"). If `width` is at
    least that of the widest level, each step is a level.
    """
    waiting = [0] * len(parents)
    for node, parent in enumerate(parents):
        if inner[node] and parent >= 0:
            waiting[parent] += 1
    ready = [(-depths[node], node) for node in range(len(parents)) if inner[node] and not waiting[node]]
    heapq.heapify(ready)
    steps = []
    while ready:
        step = [heapq.heappop(ready)[1] for _ in range(min(width, len(ready)))]
        for node in step:
            parent = parents[node]
            if parent < 0:
                continue
            waiting[parent] -= 1
            if not waiting[parent]:
                heapq.heappush(ready, (-depths[parent], parent))
        steps.append(step)
    return steps
