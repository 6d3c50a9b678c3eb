"""What the test suite costs: programs compiled and seconds, file by file, of the quick tier and of the whole."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.command_line import command_line, option

from benchmarks import report
from benchmarks.report import JSON, ROOT

TIERS = {"quick": (), "whole": ("--all",)}


parse = command_line(
    __doc__,
    JSON,
    option("--tiers", nargs="+", choices=TIERS, default=["quick"]),
    option("--cache", action="store_true", help="use the cache of compiled programs, cold or warm"),
)


def main() -> None:
    options = parse()
    print(report.heading(), flush=True)
    records = [record_of(tier, options.cache) for tier in options.tiers]
    report.write(options.json, records)


def record_of(tier: str, cache: bool) -> dict[str, Any]:
    """Run a tier as README does."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadgroup", f"--report={found}"]
        start = time.perf_counter()
        environment = os.environ | ({} if cache else {"RNNJAX_TEST_CACHE": "off"})
        ended = subprocess.run([*command, *TIERS[tier]], cwd=ROOT, env=environment)
        seconds = time.perf_counter() - start
        files = json.loads(found.read_text())
    programs = sum(file["programs"] for file in files.values())
    print(f"{tier}: {seconds:.0f} s, {programs} programs, load {load:.1f} before, exit {ended.returncode}", flush=True)
    made = {"tier": tier, "cache": cache, "seconds": round(seconds, 1), "programs": programs, "load_before": load}
    return {**made, "exit": ended.returncode, "files": files, **report.machine()}


if __name__ == "__main__":
    main()
