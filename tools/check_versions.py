"""Tests the core with the oldest and with the newest versions of its dependencies, and records which those were.

    python tools/check_versions.py --json results/versions.json                  # both, one after the other
    python tools/check_versions.py --json results/versions.json --only newest    # one, the other's record stays

`oldest` takes constraints-min.txt, `newest` whatever the package index has now; torch, whose builds differ between
machines and take gigabytes, is in both that of constraints-min.txt or constraints.txt. Each is a wheel of this tree in
a new virtual environment outside the project: the tests below and an audit of the builtin default run there. Exit code
0 where all passed; what was installed and what came out is written in either case, for the table in RELEASE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from check_dist import ROOT, build, environment, tree

TESTS = (
    "tests/metrics", "tests/defenses", "tests/constraints", "tests/objectives", "tests/test_rng.py",
    "tests/test_attack.py", "tests/test_files.py", "tests/test_types.py", "tests/test_spec.py",
    "tests/searches/test_pgd.py", "tests/searches/test_square.py", "tests/searches/test_driver.py",
    "tests/targets/test_module.py", "tests/targets/test_journal.py", "tests/targets/test_views.py",
    "tests/data/test_npz.py", "tests/data/test_uri.py", "tests/data/test_dataset.py",
    "tests/cli/test_cli_audit.py", "tests/cli/test_cli_errors.py", "tests/cli/test_cli_budget.py",
    "tests/experiments/test_audit_files.py", "tests/experiments/test_audit_resume.py",
    "tests/experiments/test_audit_rows.py", "tests/experiments/test_audit_summary.py",
)  # fmt: skip
"""Tests of what needs core dependencies alone."""

WITHOUT = (
    "--ignore=tests/metrics/test_metrics_torchmetrics.py", "--ignore=tests/defenses/test_export.py",
    "-k", "not relplot and not library and not startup",
)  # fmt: skip
"""References and ONNX, which are no core dependencies, and messages about libraries that are there."""

TOOLS = ("pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.100")
AUDIT = "audit --model builtin:digits --data builtin:digits --samples 50 --budget 50 --recipes standard-light,sa-mma"

SHOW = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def dependencies() -> list[str]:
    """The names of the core dependencies, as pyproject.toml orders them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[<>=~! ]", line)[0] for line in project["dependencies"]]


def arguments(which: str) -> list[str]:
    """What `pip install` is given beside the wheel."""
    if which == "oldest":
        return ["--constraint", str(ROOT / "constraints-min.txt")]
    pinned = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    return ["--upgrade", "--upgrade-strategy", "eager", pinned[0]]


def check(which: str, wheel: Path, work: Path) -> dict[str, Any]:
    """Installs, tests and audits; returns the record."""
    began, folder = time.perf_counter(), work / f"{which}-folder"
    python = environment(work / which, wheel, *arguments(which))
    shown = subprocess.run([python, "-c", SHOW, *dependencies()], capture_output=True, text=True, check=True).stdout
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLS], check=True)
    again = subprocess.run([python, "-c", SHOW, *dependencies()], capture_output=True, text=True, check=True).stdout
    assert shown == again, "the tools of the tests must not change what is tested"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "POISE", "VIRTUAL"))}
    here = {**kept, "XDG_CACHE_HOME": str(work / f"{which}-cache"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [python, "-m", "pytest", "-q", "-n", "2", *TESTS, *WITHOUT]
    tested = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True)
    closing = tested.stdout.strip().splitlines()[-1]
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)", closing)}
    folder.mkdir()
    audited = subprocess.run(
        [python.parent / "poise", *AUDIT.split(), "--out", "run"], cwd=folder, env=here, capture_output=True, text=True
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", tested.stdout, re.MULTILINE)
    record = {
        "python": platform.python_version(),
        "versions": json.loads(shown),
        "tests": {name: counts.get(name, 0) for name in ("passed", "failed", "skipped")},
        "failed": failed,
        "audit": audited.returncode,
        "passed": tested.returncode == 0 and audited.returncode == 0,
        "seconds": round(time.perf_counter() - began),
    }
    print(f"{which}: {closing.strip('= ')}; audit exit code {audited.returncode}")
    for line in [*failed, *audited.stderr.splitlines()[-3:]] if not record["passed"] else []:
        print(f"  {line}", file=sys.stderr)
    return record


def main(out: Path, only: str | None) -> int:
    """Checks and writes; returns the exit code."""
    records: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if only and out.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="poise-versions-") as name:
        work = Path(name)
        _, wheel = build(tree(), work / "dist", work)
        for which in ("oldest", "newest") if only is None else (only,):
            records[which] = check(which, wheel, work)
            out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0 if all(record["passed"] for record in records.values()) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "versions.json", dest="out")
    parser.add_argument("--only", choices=("oldest", "newest"))
    given = parser.parse_args()
    sys.exit(main(given.out, given.only))
