"""Where the time of `poise audit` goes: attacks and model calls, and the audit's own work beside them.

    python benchmarks/audit_share.py [--check] [--options "--samples 100"] [--threads 1] [--json FILE]

Runs one audit in this process (by default on the embedded digits, with every default of the command) and charges each
moment to one phase. `attacks`: everything inside `poise.attack`. `model`: forward and backward passes outside it, such
as what defences are fitted on and the checks ask. `metrics`: the metrics with their bootstrap intervals, the distances
of images, the deferral tables. `report`: the page. `files`: tables and images written to disk. `checks`: what the
checks of the evaluation compute themselves. `load`: model, data, fitting of defences. `imports`: modules
loaded on the way. `rest`: what is left. The audit's own work is metrics, report, files, checks and rest; it is to
stay under 5 % of the run time, imports left out (they are counted by benchmarks/startup.py). `--check` exits 1
where it does not. Shares are of wall time; those of processor time stand beside them, for a machine that others share.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from poise import attacks, report
from poise.cli.app import run
from poise.cli.progress import Bars
from poise.experiments import audit, files, rows, summary
from poise.experiments.run_folder import RunFolder
from poise.experiments.trust import by_temperature
from poise.targets import FunctionTarget, HttpTarget, ModuleTarget, OnnxTarget

LIMIT = 0.05
OWN = ("metrics", "report", "files", "checks", "rest")
"""The phases that are the audit's own work."""


class Clock:
    """Charges time to the innermost phase that is open; inside an attack everything is the attack's."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self._open = ["rest"]
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def charge(self) -> None:
        """Charges what has passed since the last call."""
        now = self._now()
        wall, cpu = (new - old for new, old in zip(now, self._since, strict=True))
        total = self.spent.setdefault(self._open[-1], [0.0, 0.0])
        total[0], total[1], self._since = total[0] + wall, total[1] + cpu, now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges what happens within to `name`."""
        self.charge()
        self._open.append("attacks" if self._open[-1] == "attacks" else name)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, charged to a phase."""

        def timed(*args: Any, **keywords: Any) -> Any:
            with self.phase(name):
                return function(*args, **keywords)

        return timed

    def watch(self, name: str, owner: ModuleType | type, attribute: str) -> None:
        """Charges a function or method to a phase, under every name by which poise's modules hold it."""
        function = getattr(owner, attribute)
        timed = self.wrap(name, function)
        holders = [module for key, module in sys.modules.items() if key.split(".")[0] == "poise"]
        for holder in [owner, *(holders if isinstance(owner, ModuleType) else [])]:
            for key, value in list(vars(holder).items()):
                if value is function:
                    setattr(holder, key, timed)

    def watch_imports(self) -> None:
        """Charges the loading of modules to `imports`."""
        import importlib._bootstrap_external as loader

        execute = loader._LoaderBasics.exec_module
        loader._LoaderBasics.exec_module = self.wrap("imports", execute)


def measured(options: list[str]) -> dict[str, list[float]]:
    """Seconds by phase of one audit: wall and processor."""
    clock = Clock()
    clock.watch("attacks", attacks, "attack")
    for kind in (ModuleTarget, FunctionTarget, OnnxTarget, HttpTarget):
        for attribute in ("query", "gradient"):
            if attribute in vars(kind):
                clock.watch("model", kind, attribute)
    for name, owner, attributes in (
        ("load", audit, ("load", "prepare")),
        ("metrics", audit, ("clean_figures",)),
        ("metrics", rows, ("similarity", "with_scores")),
        ("metrics", summary, ("summarise", "measure", "query_views", "deferral_section")),
        ("metrics", Bars, ("end",)),
        ("checks", summary, ("trust",)),
        ("checks", by_temperature, ("store_illusion",)),
        ("report", summary, ("write_gallery",)),
        ("report", report, ("write",)),
        ("files", RunFolder, ("write_rows", "write_curve", "write_images", "write_trace", "rows", "has")),
        ("files", files, ("write_json",)),
    ):
        for attribute in attributes:
            clock.watch(name, owner, attribute)
    clock.watch_imports()
    with tempfile.TemporaryDirectory() as folder:
        code = run(["audit", "--quiet", *options, "--out", str(Path(folder, "run"))], sys.stderr)
    clock.charge()
    if code:
        sys.exit(code)
    return clock.spent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where the share is above its limit")
    parser.add_argument("--options", default="", help="options of `poise audit`, in one string")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spent = measured(shlex.split(given.options))
    totals = [sum(times[at] for name, times in spent.items() if name != "imports") for at in (0, 1)]
    print(f"\n{'phase':10} {'wall s':>8} {'share':>7} {'cpu s':>8} {'share':>7}")
    for name, times in sorted(spent.items(), key=lambda item: -item[1][0]):
        shares = [f"{'' if name == 'imports' else format(times[at] / totals[at], '7.1%'):>7}" for at in (0, 1)]
        print(f"{name:10} {times[0]:8.2f} {shares[0]} {times[1]:8.2f} {shares[1]}")
    own, outside = (
        [sum(spent.get(name, [0.0, 0.0])[at] for name in names) / totals[at] for at in (0, 1)]
        for names in (OWN, (*OWN, "load"))
    )
    print(f"outside attacks and model calls: {outside[0]:.1%} of wall time, {outside[1]:.1%} of processor time")
    print(f"the audit's own work: {own[0]:.1%} of wall time, {own[1]:.1%} of processor time (limit {LIMIT:.0%})")
    if given.json:
        found = {
            "options": given.options, "threads": given.threads, "torch": torch.__version__, "limit": LIMIT,
            "own": {"wall": own[0], "cpu": own[1]}, "outside": {"wall": outside[0], "cpu": outside[1]},
            "seconds": {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in spent.items()},
        }  # fmt: skip
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(given.check and own[0] >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
