"""What starting costs: `poise --help`, `import poise` and the help of every command, beside torch's own import.

    python benchmarks/startup.py [--check] [--pairs 7] [--only TEXT] [--json results/startup.json]

Every measurement is a process of its own, from its start to its end. Each is taken in turn with `python -c "import
torch"`, A B A B …, the order swapped from pair to pair, so that what else the machine does hits both; one pair before
warms the file cache up. Other work can only add time, so the minimum is the cost; the median and the median of the
pairs' ratios stand beside it. Limits: `poise --help` and `--version` under 0.7 s, `import poise`, alone and with torch,
under torch's own import + 0.3 s. What the names of an attack and all public names cost on first use is shown without a
limit. Where torch's import takes more than 1.5 times its processor time, the machine is busy with other things: then
the processor times are held against the limits, and the row says "cpu". `--check` exits 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import poise
from poise.cli.app import COMMANDS

PYTHON = sys.executable
POISE = str(Path(sys.executable).with_name("poise"))
TORCH = [PYTHON, "-c", "import torch"]

HELP_LIMIT = 0.7
"""Seconds of `poise --help`."""

OVER_TORCH = 0.3
"""Seconds that `import poise` may take over `import torch`."""


class Case(NamedTuple):
    """What is measured: a command line, and its limit in seconds, over torch's own import where `over` is true."""

    name: str
    words: list[str]
    limit: float | None = None
    over: bool = False


def cases() -> list[Case]:
    """Everything that is measured."""
    every = "for name in poise.__all__: getattr(poise, name)"
    return [
        Case("poise --help", [POISE, "--help"], HELP_LIMIT),
        Case("poise --version", [POISE, "--version"], HELP_LIMIT),
        Case("import poise", [PYTHON, "-c", "import poise"], OVER_TORCH, over=True),
        Case("import torch, poise", [PYTHON, "-c", "import torch, poise"], OVER_TORCH, over=True),
        Case(
            "poise.attack, run_recipe, ModuleTarget",
            [PYTHON, "-c", "import poise; poise.attack, poise.run_recipe, poise.ModuleTarget"],
        ),
        Case("every public name of poise", [PYTHON, "-c", f"import poise\n{every}"]),
        *(Case(f"poise {name} --help", [POISE, name, "--help"]) for name in COMMANDS),
        Case("poise list recipes", [POISE, "list", "recipes"]),
    ]


class Row(NamedTuple):
    """Seconds of a case and of torch's import, and the median of the pairs' ratios."""

    case: Case
    minimum: float
    median: float
    torch_minimum: float
    torch_median: float
    ratio: float
    cpu: float
    torch_cpu: float

    @property
    def busy(self) -> bool:
        """Other processes take so much of the machine that wall times say nothing."""
        return self.torch_minimum > 1.5 * self.torch_cpu

    @property
    def limit(self) -> float | None:
        """In seconds of the whole process; of its processor time where the machine is busy."""
        torch_own = self.torch_cpu if self.busy else self.torch_minimum
        return None if self.case.limit is None else self.case.limit + (torch_own if self.case.over else 0.0)

    @property
    def met(self) -> bool:
        return self.limit is None or (self.cpu if self.busy else self.minimum) < self.limit


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and processor time of one process that must succeed."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(case: Case, pairs: int) -> Row:
    """The case and torch's import in turn."""
    times = []
    for pair in range(pairs + 1):
        if pair % 2:
            other, ours = seconds(TORCH), seconds(case.words)
        else:
            ours, other = seconds(case.words), seconds(TORCH)
        times.append((*ours, *other))
    walls, cpus, torch_walls, torch_cpus = zip(*times[1:], strict=True)
    return Row(
        case,
        min(walls),
        statistics.median(walls),
        min(torch_walls),
        statistics.median(torch_walls),
        statistics.median(ours / other for ours, other in zip(walls, torch_walls, strict=True)),
        min(cpus),
        min(torch_cpus),
    )


def show(row: Row) -> None:
    limit = "" if row.limit is None else f"{row.limit:.2f}" + " cpu" * row.busy + ("" if row.met else " MISSED")
    print(
        f"{row.case.name:40} {row.minimum:7.2f} {row.median:7.2f} {row.torch_minimum:10.2f} {row.torch_median:10.2f} "
        f"{row.ratio:6.2f} {row.cpu:6.2f} {row.torch_cpu:10.2f} {limit:>6}",
        flush=True,
    )


def as_json(rows: list[Row], pairs: int) -> dict[str, object]:
    """What is kept of a run."""
    table = [
        {
            "what": row.case.name,
            "minimum": round(row.minimum, 3),
            "median": round(row.median, 3),
            "torch_minimum": round(row.torch_minimum, 3),
            "torch_median": round(row.torch_median, 3),
            "ratio": round(row.ratio, 3),
            "cpu": round(row.cpu, 3),
            "torch_cpu": round(row.torch_cpu, 3),
            "busy": row.busy,
            "limit": None if row.limit is None else round(row.limit, 3),
        }
        for row in rows
    ]
    return {"poise": poise.__version__, "python": sys.version.split()[0], "pairs": pairs, "rows": table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs per row")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    print("seconds of a whole process")
    head = f"{'':40} {'minimum':>7} {'median':>7} {'torch min.':>10} {'torch med.':>10} {'ratio':>6} {'cpu':>6}"
    print(f"{head} {'torch cpu':>10} {'limit':>6}")
    rows = []
    for case in cases():
        if given.only in case.name:
            rows.append(measure(case, given.pairs))
            show(rows[-1])
    if given.json:
        given.json.write_text(json.dumps(as_json(rows, given.pairs), indent=1) + "\n", encoding="utf-8")
    return int(given.check and not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
