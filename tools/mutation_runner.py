"""A pytest plugin: tests the mutants of one area, each in a child of its own that is forked after the collection.

    python -m pytest -p mutation_runner TESTS   # with MUTATION_NAMES and MUTATION_RESULTS, as tools/mutation.py sets

First a child runs every test without a mutant and notes how long each took and which mutated functions it called. Tests
that fail even so, because mutmut's wrappers stand around the functions, are named and left out. A mutant is then given
the tests that call its function, fastest first, until one fails. Every test has a limit of CPU time, ten times what it
took plus five seconds; a mutant that exceeds it is ended by the kernel and counts as killed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mutmut.mutation import trampoline

ROOM = 4 << 30
"""Bytes of address space that a child may take beyond what its parent has."""


@dataclass
class Case:
    """A test, and what it did without a mutant."""

    item: pytest.Item
    seconds: float
    calls: frozenset[str]


@dataclass
class Reports:
    """Notes whether a test has failed."""

    failed: bool = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest three times for each test."""
        self.failed = self.failed or report.failed


@dataclass
class Runner:
    """Runs the tests of the session once without a mutant and then for every name."""

    names: list[str]
    results: Path
    reports: Reports
    cases: list[Case] = field(default_factory=list)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of pytest's own loop."""
        trials = self.results.with_suffix(".trials")
        if _child(lambda: self._without(session.items, trials)) != 0:
            raise pytest.UsageError("the tests cannot be run without a mutant")
        rows = [json.loads(line) for line in trials.read_text(encoding="utf-8").splitlines()]
        cases = list(zip(session.items, rows, strict=True))
        unfit = [item.nodeid for item, (failed, _, _) in cases if failed]
        self.results.with_suffix(".unfit").write_text(json.dumps(unfit), encoding="utf-8")
        self.cases = [Case(item, seconds, frozenset(calls)) for item, (failed, seconds, calls) in cases if not failed]
        self.cases.sort(key=lambda case: case.seconds)
        for name in self.names:
            self._try(name)
        return True

    def _without(self, items: list[pytest.Item], trials: Path) -> int:
        called: set[str] = set()
        trampoline.record_trampoline_hit = lambda name, caller=None: called.add(name)  # type: ignore[assignment]
        os.environ["MUTANT_UNDER_TEST"] = "stats"
        with trials.open("w", encoding="utf-8") as file:
            for at, item in enumerate(items):
                called.clear()
                began = time.process_time()
                failed = self._fails(item, items[at + 1] if at + 1 < len(items) else None)
                file.write(json.dumps([failed, time.process_time() - began, sorted(called)]) + "\n")
        return 0

    def _try(self, name: str) -> None:
        began, function = time.perf_counter(), name.partition("__mutmut_")[0]
        cases = [case for case in self.cases if function in case.calls]
        note = self.results.with_suffix(".note")
        note.write_text("", encoding="utf-8")
        code = _child(lambda: self._with(name, cases, note)) if cases else 0
        outcome = {0: "survived", 1: "killed"}.get(code, "timed out" if -code in LIMITS else "crashed")
        by, seconds = note.read_text(encoding="utf-8"), round(time.perf_counter() - began, 2)
        row: dict[str, Any] = {
            "name": name, "outcome": outcome, "by": by.strip(), "tests": len(cases), "seconds": seconds,
        }  # fmt: skip
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _with(self, name: str, cases: list[Case], note: Path) -> int:
        os.environ["MUTANT_UNDER_TEST"] = name
        space = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (space + ROOM, space + ROOM))
        for at, case in enumerate(cases):
            note.write_text(case.item.nodeid, encoding="utf-8")
            signal.setitimer(signal.ITIMER_PROF, 5 + 10 * case.seconds)
            signal.setitimer(signal.ITIMER_REAL, 120 + 40 * case.seconds)  # a test that waits for ever uses no CPU time
            if self._fails(case.item, cases[at + 1].item if at + 1 < len(cases) else None):
                return 1
        note.write_text("", encoding="utf-8")
        return 0

    def _fails(self, item: pytest.Item, after: pytest.Item | None) -> bool:
        self.reports.failed = False
        item.ihook.pytest_runtest_protocol(item=item, nextitem=after)
        return self.reports.failed


LIMITS = (signal.SIGPROF, signal.SIGALRM)


def _child(work: Any) -> int:
    """The exit code of work in a forked child, or minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1  # whatever leaves work early is a failure
        try:
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def pytest_configure(config: pytest.Config) -> None:
    """Takes over where a plan is given."""
    names = json.loads(Path(os.environ["MUTATION_NAMES"]).read_text(encoding="utf-8"))
    reports = Reports()
    config.pluginmanager.register(reports, "mutation-reports")
    config.pluginmanager.register(Runner(names, Path(os.environ["MUTATION_RESULTS"]), reports), "mutation-runner")
