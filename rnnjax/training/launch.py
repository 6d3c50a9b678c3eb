"""Several processes on this machine as one job: `python -m rnnjax.training.launch --processes 2 script.py arguments`.

Every process runs the same script, after it has joined JAX's distributed runtime: `jax.devices()` are those of all
processes, `jax.process_index()` is the process' number, and a mesh over all devices makes `fit` data parallel. On CPUs
arrays are sent by gloo; each process uses the GPU with its number. The output of process 0 is shown as it is, that of
the others with their numbers before each line.

If a process fails or is killed, the job ends: the others are stopped, its number and its end are printed on stderr, and
the exit status is 1. Run the script again from its last checkpoint: see `fit(..., resume=True)`. It needs a POSIX
system, such as Linux or macOS.
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

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
SETTLING = 0.5  # seconds after which all processes that one failure ends have ended


def main() -> None:
    """Parse the command line, run the job, and exit with its status."""
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
    """Run `command`, a script and its arguments, in `processes` processes: 0 if all succeed, else 1.

    A job that has not ended after `limit` seconds is stopped, and the processes that still ran are printed.
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
            shown[number].join(GRACE)  # but no longer: its own children may still run
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
    """Print which processes still ran at the limit; the caller stops them. Those whose script has ended only wait."""
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
    """Start one process in a process group of its own, so that its children are stopped together with it."""
    command = [sys.executable, "-m", "rnnjax.training.join", *arguments]
    output = {} if number == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    return subprocess.Popen(command, text=True, start_new_session=True, **output)


def _show(number: int, child: subprocess.Popen[str]) -> None:
    """Show the output of a process and of its children, which may outlive it."""
    for line in child.stdout or ():
        print(f"[{number}] {line}", end="", flush=True)


def _await(number: int, child: subprocess.Popen[str], ended: SimpleQueue[int]) -> None:
    """Put the number of a process into `ended` when it has ended."""
    child.wait()
    ended.put(number)


def _cause(children: Sequence[subprocess.Popen[str]], first: int) -> int:
    """The process that caused the failure: one that was killed or stopped, even if another one ended `first`."""
    time.sleep(SETTLING)
    numbers = range(len(children))
    killed = [number for number in numbers if (children[number].poll() or 0) < 0]
    stopped = [number for number in numbers if children[number].poll() is None and _is_stopped(children[number].pid)]
    return next(iter(killed + stopped), first)


def _is_stopped(process: int) -> bool:
    """Whether a signal has stopped the process; false on systems other than Linux."""
    try:
        described = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return described.rpartition(")")[2].split()[0] in ("T", "t")


def _stop(children: Sequence[subprocess.Popen[str]]) -> None:
    """End the processes that still run, and the children of all: with SIGTERM, then with SIGKILL."""
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
    """How a process failed, in words."""
    if status is None:
        return "was stopped by a signal"
    if status > 0:
        return f"failed with exit status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _reserve_port() -> socket.socket:
    """A free port, bound so that no other program takes it before the coordinator, which may share it."""
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
