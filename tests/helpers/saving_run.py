"""A process that saves one model after the other to one file, again and again, and is killed: fifty times.

`python saving_run.py PATH TIMES` prints, for each kill, which model was found: a line `found N`. A child of its own is
forked each time, which has imported everything already.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import rnnjax

SIZE = 300_000  # numbers: a write takes some milliseconds


def model(number: int) -> dict[str, Any]:
    """Arrays of NumPy, so that no thread of JAX is there to be forked."""
    return {"weight": np.full(SIZE, number, np.float32), "number": number}


def save_for_ever(path: Path) -> None:
    for number in range(2, 1_000_000):
        rnnjax.save(path, model(number))


def kill_once(path: Path) -> int:
    """The number of the model in the file after a kill at a random moment."""
    child = os.fork()
    if child == 0:
        save_for_ever(path)
    time.sleep(random.SystemRandom().uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    found = rnnjax.load(path, model(0))  # which checks the digest
    assert (found["weight"] == found["number"]).all()
    return found["number"]


def main(path: Path, times: int) -> None:
    rnnjax.save(path, model(1))
    for _ in range(times):
        print("found", kill_once(path), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
