"""The record of coverage: parts are summed from coverage's own report, and too little of the whole is an error."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "results" / "coverage.json"
TOOL = runpy.run_path(str(ROOT / "tools" / "coverage_table.py"))


def about(lines: int, run: int, branches: int = 0, taken: int = 0) -> dict[str, dict[str, int]]:
    counted = zip(TOOL["COUNTS"].values(), (lines, run, branches, taken), strict=True)
    return {"summary": dict(counted) | {"missing_lines": lines - run}}


REPORT = {
    "files": {
        "src/poise/rng.py": about(10, 9, 4, 3),
        "/somewhere/else/src/poise/types.py": about(5, 5),
        "src/poise/data/uri.py": about(20, 20, 8, 8),
        "src\\poise\\data\\idx.py": about(10, 0, 2, 0),
        "src/poise/searches/decision/sign_opt.py": about(7, 0),
    }
}


def test_files_are_summed_by_part() -> None:
    found = TOOL["totals"](REPORT)
    assert list(found) == ["all", "data", "poise", "searches"]
    assert found["all"] == {"lines": 52, "lines_run": 34, "branches": 14, "branches_taken": 11}
    assert found["data"] == {"lines": 30, "lines_run": 20, "branches": 10, "branches_taken": 8}
    assert found["poise"] == {"lines": 15, "lines_run": 14, "branches": 4, "branches_taken": 3}
    assert TOOL["shares"](found["searches"]) == (0.0, 1.0), "nothing run; of no branches, all"


@pytest.mark.skipif(not RECORD.is_file(), reason="not measured yet: make coverage")
def test_the_committed_record_adds_up_and_is_high_enough() -> None:
    parts = json.loads(RECORD.read_text(encoding="utf-8"))["parts"]
    whole = parts.pop("all")
    assert whole == {name: sum(part[name] for part in parts.values()) for name in whole}
    assert all(
        part["lines_run"] <= part["lines"] and part["branches_taken"] <= part["branches"] for part in parts.values()
    )
    folders = {path.parent.name for path in (ROOT / "src" / "poise").glob("*/__init__.py")}
    assert set(parts) - {"poise"} <= folders, "a part that is gone; run: make coverage"
    lines, branches = TOOL["shares"](whole)
    assert lines >= TOOL["LINES"]
    assert branches >= TOOL["BRANCHES"]


@pytest.mark.parametrize(("taken", "code"), [(8, 1), (9, 0)])
def test_too_little_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: int, code: int
) -> None:
    record: dict[str, Any] = {"parts": TOOL["totals"]({"files": {"src/poise/rng.py": about(100, 95, 10, taken)}})}
    monkeypatch.setitem(TOOL["main"].__globals__, "measured", lambda data: record)
    assert TOOL["main"](tmp_path / ".coverage", tmp_path / "record.json") == code
    assert capsys.readouterr().out == f"lines 95.00% (at least 95%), branches {taken}0.00% (at least 90%)\n"
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8")) == record
