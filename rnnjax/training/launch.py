"""Several processes on this machine as one job: `python -m rnnjax.training.launch --processes 2 script.py arguments`.

Every process runs the same script, and has joined JAX's distributed runtime when it begins: `jax.devices()` are those
of all processes, `jax.process_index()` tells them apart, and a mesh over all devices makes `fit` data parallel. On CPUs
arrays travel by gloo; of the machine's GPUs each process takes the one of its number. What process 0 prints is shown as
it is, what the others print with their numbers before it.

It needs a POSIX system, such as Linux or macOS.

The first process that fails, or is killed, ends the job: the others are stopped, which of them it was and how it ended
is said on stderr, and the exit status is 1. Run the script again from its last checkpoint: see `fit(..., resume=True)`.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

GRACE = 2.0  # seconds between being asked to end and being killed
SETTLING = 0.5  # seconds in which all processes that one failure ends have ended


def main() -> None:
    """Parse the command line, run the job, and exit as it did."""
    parser = argparse.ArgumentParser(prog="python -m rnnjax.training.launch", description="One job of many processes.")
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many, on this machine")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="end the job then; default: never")
    parser.add_argument("script", help="what each of them runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    options = parser.parse_args()
    if os.name != "posix":
        parser.error("expected a POSIX system, such as Linux or macOS. Start the processes by another launcher here")
    if options.processes < 1:
        parser.error(f"--processes: expected 1 or more, got {options.processes}")
    if not Path(options.script).is_file():
        parser.error(f"script: expected a Python file, found none at {options.script}")
    signal.signal(signal.SIGTERM, _terminated)
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: expected a positive number of seconds, got {options.limit}")
    sys.exit(launch(options.processes, [options.script, *options.arguments], options.limit))


def launch(processes: int, command: Sequence[str], limit: float | None = None) -> int:
    """Run `command`, a script and its arguments, in so many processes: 0 once all have ended well, else 1.

    With a limit of so many seconds, a job that has not ended by then is stopped, and the processes that ran are named.
    """
    port = _reserve_port()
    address = f"127.0.0.1:{port.getsockname()[1]}"
    end = None if limit is None else time.monotonic() + limit
    ended: SimpleQueue[int] = SimpleQueue()
    children, shown, marks = [], [], tempfile.mkdtemp()
    try:
        for number in range(processes):
            children.append(
                _start(number, [str(os.getpid()), f"{marks}/{number}", address, str(processes), str(number), *command])
            )
            shown.append(_begin(_show, number, children[number]))
            _begin(_await, number, children[number], ended)
        for _ in children:
            try:
                number = ended.get(timeout=end and max(0.0, end - time.monotonic()))
            except Empty:
                return _end_late(children, limit, Path(marks))
            status = children[number].returncode
            shown[number].join(GRACE)  # but no longer: its own children may go on
            if status:
                number = _cause(children, number)
                status = children[number].returncode
                _stop(children)
                print(
                    f"launch: process {number} of {processes} {_describe(status)}; the others were stopped. "
                    "Checkpoints are whole: run again from the last one",
                    file=sys.stderr,
                )
                return 1
        return 0
    finally:
        _stop(children)
        port.close()
        shutil.rmtree(marks, ignore_errors=True)


def _end_late(children: Sequence[subprocess.Popen[str]], limit: float | None, marks: Path) -> int:
    """Say which processes have outlived the limit; the caller stops them. One whose script ended waits."""
    alive = [str(number) for number, child in enumerate(children) if child.poll() is None]
    running = [number for number in alive if not (marks / number).exists()] or alive
    print(
        f"launch: process {' and '.join(running)} of {len(children)} still ran after --limit {limit:g} seconds and was "
        "stopped. Checkpoints are whole: run again from the last one",
        file=sys.stderr,
    )
    return 1


def _begin(task: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=task, args=arguments, daemon=True)
    thread.start()
    return thread


def _start(number: int, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """One process, the first of a group of its own: what it starts is stopped along with it."""
    command = [sys.executable, "-m", "rnnjax.training.join", *arguments]
    heard = {} if number == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    return subprocess.Popen(command, text=True, start_new_session=True, **heard)


def _show(number: int, child: subprocess.Popen[str]) -> None:
    """Show what a process prints, and what its own children do, which may outlive it."""
    for line in child.stdout or ():
        print(f"[{number}] {line}", end="", flush=True)


def _await(number: int, child: subprocess.Popen[str], ended: SimpleQueue[int]) -> None:
    """Say when a process has ended."""
    child.wait()
    ended.put(number)


def _cause(children: Sequence[subprocess.Popen[str]], first: int) -> int:
    """The process to blame: one that was killed or stopped, even if another, which failed without it, ended `first`."""
    time.sleep(SETTLING)
    numbers = range(len(children))
    killed = [number for number in numbers if (children[number].poll() or 0) < 0]
    stopped = [number for number in numbers if children[number].poll() is None and _is_stopped(children[number].pid)]
    return next(iter(killed + stopped), first)


def _is_stopped(process: int) -> bool:
    """Whether a signal has stopped the process, which Linux alone tells."""
    try:
        described = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return described.rpartition(")")[2].split()[0] in ("T", "t")


def _stop(children: Sequence[subprocess.Popen[str]]) -> None:
    """End those that still run, and all that they and others have started: by request, and then by force."""
    for child in children:
        _signal(child, signal.SIGTERM)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        _signal(child, signal.SIGKILL)
        child.wait()


def _signal(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _describe(status: int | None) -> str:
    """How a process ended that did not end well."""
    if status is None:
        return "was stopped by a signal"
    if status > 0:
        return f"failed with exit status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _reserve_port() -> socket.socket:
    """A free port, kept so that no other program takes it before the coordinator does, which may share it."""
    holder = socket.socket()
    if hasattr(socket, "SO_REUSEPORT"):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def _terminated(number: int, frame: object) -> NoReturn:
    del frame
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
