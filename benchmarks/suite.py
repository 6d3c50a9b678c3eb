"""What the test suite costs: programs compiled and seconds, file by file, of the quick tier and of the whole."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks in this folder only, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure

ROOT = Path(__file__).resolve().parents[1]
TIERS = {"quick": (), "whole": ("--all",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=["quick"])
    parser.add_argument("--cache", action="store_true", help="use the cache of compiled programs, cold or warm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    options = parser.parse_args()
    print(measure.heading(), flush=True)
    records = [record_of(tier, options.cache) for tier in options.tiers]
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def record_of(tier: str, cache: bool) -> dict[str, Any]:
    """Run a tier as README does."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadgroup", f"--report={report}"]
        start = time.perf_counter()
        environment = os.environ | ({} if cache else {"RNNJAX_TEST_CACHE": "off"})
        ended = subprocess.run([*command, *TIERS[tier]], cwd=ROOT, env=environment)
        seconds = time.perf_counter() - start
        files = json.loads(report.read_text())
    programs = sum(file["programs"] for file in files.values())
    print(f"{tier}: {seconds:.0f} s, {programs} programs, load {load:.1f} before, exit {ended.returncode}", flush=True)
    made = {"tier": tier, "cache": cache, "seconds": round(seconds, 1), "programs": programs, "load_before": load}
    return {**made, "exit": ended.returncode, "files": files, **measure.machine()}


if __name__ == "__main__":
    main()
