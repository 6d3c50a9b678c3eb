"""What the suite costs: the programs it compiles and the seconds it takes, file by file, as a pytest plugin."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import pytest

COMPILED = "/jax/core/compile/backend_compile_duration"  # read from the cache of programs or not
SHOWN = 10


class Meter:
    """Counts in every process of the suite; the one that the user started adds up and reports."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.file = "collection"
        self.programs: dict[str, int] = defaultdict(int)
        self.compiling: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, event: str, duration: float, **_: Any) -> None:
        if event == COMPILED:
            self.programs[self.file] += 1
            self.compiling[self.file] += duration

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.file = nodeid.partition("::")[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["compiled"] = dict(self.programs), dict(self.compiling)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker is done."""
        programs, compiling = getattr(node, "workeroutput", {}).get("compiled", ({}, {}))
        for file in programs:
            self.programs[file] += programs[file]
            self.compiling[file] += compiling[file]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        files = self._files()
        terminalreporter.section(f"{sum(file['programs'] for file in files.values())} programs compiled")
        for name, file in list(files.items())[:SHOWN]:
            seconds, compiling, programs = file.values()
            terminalreporter.line(f"{seconds:7.1f} s, of which {compiling:6.1f} s for {programs:5d} programs  {name}")
        if path := self.config.getoption("--report"):
            Path(path).write_text(json.dumps(files, indent=1) + "\n")

    def _files(self) -> dict[str, dict[str, Any]]:
        """The cost of each file, the most expensive first."""
        names = sorted({*self.seconds, *self.programs}, key=lambda name: -self.seconds[name])
        return {
            name: {
                "seconds": round(self.seconds[name], 2),
                "compiling": round(self.compiling[name], 2),
                "programs": self.programs[name],
            }
            for name in names
        }
