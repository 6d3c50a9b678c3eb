"""Calls of several libraries in one process, timed in turn, each after the threads of the one before are idle."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

ROUNDS = 3  # at least
WARM = 20.0  # milliseconds of calls that are not timed, before one that is
LONG = 1500.0  # milliseconds; a call that takes longer is warm soon after its beginning
PAUSE = 0.01  # seconds
AT_REST = 0.1  # of one core
PATIENCE = 1.0  # seconds


def take_turns(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """The milliseconds of every call, round by round, for about `seconds`; in a round each has its turn.

    After a pause the first calls find cold memory, and threads that have slept: Linux may wake two of them on one core,
    and takes milliseconds to see that the other is idle. So a turn is some calls, of which the last is timed.
    """
    is_long = [all(milliseconds_of(call) > LONG for _ in range(2)) for call in calls]  # a first call may take longer
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < ROUNDS or time.perf_counter() < end:
        for call, long, milliseconds in zip(calls, is_long, times, strict=True):
            rest()
            if not long:
                warm_up(call)
            milliseconds.append(milliseconds_of(call))
    return times


def warm_up(call: Callable[[], Any]) -> None:
    """At least one call."""
    spent = 0.0
    while spent < WARM:
        spent += milliseconds_of(call)


def milliseconds_of(call: Callable[[], Any]) -> float:
    """The time of one call, until all of its results are available."""
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
