"""How much of src/ the tests reach, and the table of it in CONTRIBUTING.md.

    coverage run -m pytest && coverage combine           # make coverage does all of it
    python tools/coverage_table.py --json results/coverage.json

Reads the data file of coverage in the repository and writes the totals of each part of the package; exit code 1 where
the whole is below LINES or BRANCHES.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
LINES, BRANCHES = 0.95, 0.90
COUNTS = {
    "lines": "num_statements",
    "lines_run": "covered_lines",
    "branches": "num_branches",
    "branches_taken": "covered_branches",
}


def totals(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Counts by part of the package, and of the whole, from coverage's JSON; files at the top are `poise` itself."""
    parts: dict[str, Counter[str]] = {}
    for path, about in report["files"].items():
        inside = path.replace("\\", "/").rpartition("src/poise/")[2]
        part = inside.split("/")[0] if "/" in inside else "poise"
        counted = parts.setdefault(part, Counter())
        counted.update({name: about["summary"][key] for name, key in COUNTS.items()})
    whole = sum(parts.values(), Counter())
    return {name: {key: counted[key] for key in COUNTS} for name, counted in [("all", whole), *sorted(parts.items())]}


def measured(data: Path) -> dict[str, Any]:
    """The record, from the data file."""
    from coverage import Coverage

    with tempfile.TemporaryDirectory() as folder:
        found = Coverage(data_file=str(data), config_file=str(ROOT / "pyproject.toml"))
        found.load()
        found.json_report(outfile=f"{folder}/report.json")
        report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    versions = {name: version(name) for name in ("coverage", "pytest", "torch")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **versions},
        "parts": totals(report),
    }


def shares(counts: dict[str, int]) -> tuple[float, float]:
    """Share of the lines run and of the branches taken; of none, all."""
    pairs = (("lines_run", "lines"), ("branches_taken", "branches"))
    lines, branches = (counts[reached] / counts[there] if counts[there] else 1.0 for reached, there in pairs)
    return lines, branches


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table() -> str:
    """A row for the whole and one for each part, the least covered first."""
    path = RESULTS / "coverage.json"
    if not path.is_file():
        return "Not measured yet: `make coverage`.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = dict(found["parts"])
    rows = [("**all**", parts.pop("all"))]
    rows += [(f"`{name}`", parts[name]) for name in sorted(parts, key=lambda name: (shares(parts[name]), name))]
    body = []
    for name, counts in rows:
        lines, branches = shares(counts)
        taken = _percent(branches) if counts["branches"] else "–"
        body.append([name, f"{counts['lines']:,}", _percent(lines), f"{counts['branches']:,}", taken])
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    table = markdown_table(["part", "lines", "run", "branches", "taken"], body)
    return f"Measured on {found['date']} ({versions}):\n\n{table}"


FIGURES: dict[str, Callable[[], str]] = {"coverage": _table}


def main(data: Path, out: Path | None) -> int:
    """Measures and says so; the exit code."""
    record = measured(data)
    lines, branches = shares(record["parts"]["all"])
    print(f"lines {lines:.2%} (at least {LINES:.0%}), branches {branches:.2%} (at least {BRANCHES:.0%})")
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(lines < LINES or branches < BRANCHES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".coverage", help="coverage's data file")
    parser.add_argument("--json", type=Path, help="where the record is kept")
    given = parser.parse_args()
    sys.exit(main(given.data, given.json))
