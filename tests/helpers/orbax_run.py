"""A run that keeps its checkpoints by Orbax, killed again and again at random moments and resumed, and then ended.

`python orbax_run.py FOLDER TIMES` runs in `FOLDER/killed`, and once more, undisturbed and with one file, in
`FOLDER/straight`. It prints, for each kill, the steps of the checkpoints that it left, and the folders that were not
finished. A child of its own is forked each time, which has imported everything already, but has no device yet.
"""

import json
import os
import random
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.training import Fitted, Orbax, fit

KEEP = 2
BY_ORBAX = {"store": Orbax(KEEP), "resume": True}
STEPS_EACH = 4  # at most, before a child waits for its kill


def noise(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(300).astype(np.float32)


def pull(model: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    """A loss that pulls the weights to a batch, to random numbers and to a carry that decays."""
    target = batch + jax.random.normal(key, batch.shape) + carry
    return 0.5 * jnp.sum((model["w"] - target) ** 2), 0.9 * carry + batch


def model() -> dict[str, jax.Array]:
    return {"w": jnp.zeros(300, jnp.float32)}


def train(folder: Path, steps: int, last: int | None = None, **options: Any) -> Fitted:
    """The run, in which each step is a checkpoint; before step `last` it waits for ten minutes, and then gives up."""

    def batches(step: int) -> np.ndarray:
        if step == last:
            time.sleep(600)
            os._exit(1)
        return noise(step)

    settings = {"key": jax.random.key(4), "carry": jnp.zeros(300, jnp.float32), "every": 1, "progress": False}
    validate = lambda model: float(np.abs(np.asarray(model["w"])).sum())  # noqa: E731
    optimiser = optax.adam(0.1)
    return fit(model(), pull, batches, optimiser, steps=steps, folder=folder, validate=validate, **settings, **options)


def fork(folder: Path, steps: int, last: int | None = None, **options: Any) -> int:
    child = os.fork()
    if child == 0:
        train(folder, steps, last, **options)
        sys.exit()
    return child


def kill_once(folder: Path, steps: int, last: int) -> None:
    """Kill a child at a random moment after it has written one of the lines of metrics that it is to write."""
    metrics = folder / "metrics.jsonl"
    lines = lambda: metrics.read_bytes().count(b"\n") if metrics.exists() else 0  # noqa: E731
    begun = lines()
    child = fork(folder, steps, last, **BY_ORBAX)
    wanted = begun + random.SystemRandom().randrange(0, STEPS_EACH)
    while lines() < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.SystemRandom().uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder: Path, times: int) -> None:
    import_module("orbax.checkpoint")
    import_module("tqdm")
    import_module("filelock")
    steps = (times + 1) * STEPS_EACH
    for kill in range(times):
        kill_once(folder / "killed", steps, (kill + 1) * STEPS_EACH)
        names = [each.name for each in (folder / "killed" / "checkpoint").glob("*")]
        kept = sorted(int(name) for name in names if name.isdecimal())
        print(json.dumps({"kept": kept, "partial": [name for name in names if not name.isdecimal()]}), flush=True)
    for child in (fork(folder / "killed", steps, **BY_ORBAX), fork(folder / "straight", steps)):
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(Path(sys.argv[1]), int(sys.argv[2]))
