"""A process that saves one model after the other to one file, again and again, and is killed: fifty times.

`python saving_run.py PATH TIMES` prints, for each kill, the number of the model that was found. A child of its own is
forked each time, which has imported everything already. It is killed while it saves for at least the second time.
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


def save_for_ever(path: Path, number: int, saved: int) -> None:
    while True:
        rnnjax.save(path, model(number))
        os.write(saved, b".")
        number += 1


def kill_once(path: Path, number: int) -> int:
    """The number of the model in the file after a kill at a random moment; the first that is saved has `number`."""
    said, saved = os.pipe()
    begun, child = time.perf_counter(), os.fork()
    if child == 0:
        save_for_ever(path, number, saved)
    os.read(said, 1)
    duration = time.perf_counter() - begun  # of a save, on a machine that may do much else
    time.sleep(random.SystemRandom().uniform(0, duration))
    os.kill(child, signal.SIGKILL)
    os.close(said)
    os.close(saved)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    found = rnnjax.load(path, model(0))  # which checks the digest
    assert (found["weight"] == found["number"]).all()
    return found["number"]


def main(path: Path, times: int) -> None:
    rnnjax.save(path, model(1))
    number = 1
    for _ in range(times):
        number = kill_once(path, number + 1)
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
