"""One process of a job, as `launch` starts it: `... join LAUNCHER ENDED ADDRESS PROCESSES NUMBER SCRIPT ...`."""

import os
import runpy
import sys
import threading
import time
import traceback
from pathlib import Path

import jax


def main() -> None:
    """Join the job, and run the script as if it had been started by itself.

    A process that fails exits at once: Python's normal exit would wait for the others, which wait for this one.
    """
    launcher, ended, address, processes, number, *command = sys.argv[1:]
    threading.Thread(target=_leave_with, args=(int(launcher),), daemon=True).start()
    own = [int(number)] if int(processes) > 1 else None  # one GPU, or every process would use all of them
    jax.distributed.initialize(
        address,
        int(processes),
        int(number),
        own,
        coordinator_bind_address=address,  # this machine alone: anyone who can connect may stop the job
    )
    sys.argv = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code in (None, 0):
            Path(ended).touch()  # from now on it waits for the others
        if end.code not in (None, 0):
            _leave(end.code)
    except BaseException:
        traceback.print_exc()
        _leave(1)
    else:
        Path(ended).touch()


def _leave(code: object) -> None:
    """End this process with an exit code, or with a message, as `sys.exit` does."""
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_with(launcher: int) -> None:
    """End this process when the launcher has ended: nothing else would."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
