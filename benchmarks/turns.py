"""Calls of several libraries in one process, timed in turn, each once the one before has truly come to rest."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

ROUNDS = 3  # at least
BRIEF = 1500.0  # milliseconds; the first call after a pause wakes threads up and finds cold memory, and is not timed
PAUSE = 0.01  # seconds
AT_REST = 0.1  # of one core
PATIENCE = 1.0  # seconds


def take_turns(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """The milliseconds of every call: a warm-up each, then rounds in which each has its turn, for about `seconds`."""
    brief = [any(milliseconds_of(call) < BRIEF for _ in range(2)) for call in calls]  # a first call may take longer
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < ROUNDS or time.perf_counter() < end:
        for call, is_brief, milliseconds in zip(calls, brief, times, strict=True):
            rest()
            if is_brief:
                milliseconds_of(call)
            milliseconds.append(milliseconds_of(call))
    return times


def milliseconds_of(call: Callable[[], Any]) -> float:
    """How long one call takes, until all of its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)


def rest() -> None:
    """Sleep until this process uses no processor any more.

    A call is not over when its results are there. XLA gives its temporary memory back after that, in a thread of its
    own: 50 milliseconds of one core for the gigabyte of a large gradient, which halve the pace of a call next to them.
    torch's threads spin for some milliseconds before they sleep.
    """
    end = time.perf_counter() + PATIENCE
    used = AT_REST
    while used >= AT_REST and time.perf_counter() < end:
        before = time.process_time()  # of all threads
        time.sleep(PAUSE)
        used = (time.process_time() - before) / PAUSE
