"""The mutation check: the sample, the arithmetic, the tables, and what results/mutation.json holds."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"poise.part.x_{letter}__mutmut_{n}" for letter in "abcdefgh" for n in range(1, 26)]
RECORD = {
    "areas": {
        "part": {
            "mutants": 1234,
            "killed": {NAMES[0]: "tests/a.py::test_a", NAMES[1]: "tests/a.py::test_a"},
            "timed_out": {NAMES[2]: "tests/a.py::test_b"},
            "survived": [
                {"name": NAMES[3], "file": "src/poise/b.py", "line": 7, "diff": "- a | b\n+ a", "by": "",
                 "judgement": "equivalent: b is never true"},
                {"name": NAMES[4], "file": "src/poise/a.py", "line": 9, "diff": "- x\n+ y", "by": "tests/a.py::test_c",
                 "judgement": ""},
            ],
        }
    }
}  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("mutation")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("mutation_figures")


def test_the_sample_depends_on_seed_and_names_alone(tool: ModuleType) -> None:
    chosen = tool.drawn(NAMES, 0, 50)
    assert chosen == tool.drawn(random.Random(0).sample(NAMES, len(NAMES)), 0, 50)
    assert len(set(chosen)) == 50
    assert tool.drawn(NAMES, 0, 80)[:50] == chosen
    assert set(tool.drawn(NAMES, 1, 50)) != set(chosen)
    assert sorted(tool.drawn(NAMES, 0, 1000)) == sorted(NAMES)


def test_names_that_are_gone_or_new_leave_the_others_where_they_were(tool: ModuleType) -> None:
    chosen = tool.drawn(NAMES, 0, 50)
    fewer = tool.drawn([name for name in NAMES if "x_a" not in name], 0, 50)
    assert {name for name in chosen if "x_a" not in name} <= set(fewer)


@pytest.mark.parametrize(("killed", "sampled"), [(0, 10), (10, 10), (85, 100), (263, 300)])
def test_the_interval_is_scipys(figures: ModuleType, killed: int, sampled: int) -> None:
    low, high = figures.wilson(killed, sampled)
    expected = binomtest(killed, sampled).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_of_nothing_is_everything(figures: ModuleType) -> None:
    assert figures.wilson(0, 0) == (0, 1)


def test_a_score_counts_every_sampled_mutant_and_added_tests_only_now(figures: ModuleType) -> None:
    assert figures.Score.of(RECORD["areas"]["part"]) == figures.Score(sampled=5, before=3, now=4)


def test_the_tables(figures: ModuleType) -> None:
    assert figures.scores(RECORD).splitlines()[2] == (
        "| part | 1,234 | 5 | 1 | 60.0 % | **80.0 %** [38, 96] | 1 | 1 | 0 | 0 |"
    )
    assert figures.survivors(RECORD).splitlines()[2:] == [
        "| `a.py:9` | `` - x ``<br>`` + y `` | killed now by `test_c` |",
        "| `b.py:7` | `` - a \\| b ``<br>`` + a `` | equivalent: b is never true |",
    ]


def test_every_area_has_code_and_tests(tool: ModuleType) -> None:
    for area in tool.AREAS.values():
        assert [path for path in (*area.code, *area.tests) if not (ROOT / path).exists()] == []


def faults(record: dict[str, Any], tool: ModuleType, figures: ModuleType) -> list[str]:
    """Areas that lack mutants or the required score, and survivors that nobody has judged."""
    found = [f"no {name}" for name in tool.AREAS if name not in record["areas"]]
    for name, area in record["areas"].items():
        score = figures.Score.of(area)
        if score.now < tool.REQUIRED * score.sampled:
            found.append(f"{name}: {score.now} of {score.sampled}")
        found += [
            row["name"] for row in area["survived"] if not (row["by"] or row["judgement"].startswith(figures.KINDS))
        ]
    return found


def test_the_record_has_every_area_with_its_score_and_every_survivor_judged(
    tool: ModuleType, figures: ModuleType
) -> None:
    record = json.loads((ROOT / "results" / "mutation.json").read_text(encoding="utf-8"))
    assert faults(record, tool, figures) == []
    area = record["areas"].pop("driver")
    record["areas"]["metrics"]["survived"].append({"name": "new", "by": "", "judgement": ""})
    assert {"no driver", "new"} <= set(faults(record, tool, figures))
    record["areas"]["driver"] = {**area, "killed": {}}
    assert any(fault.startswith("driver: ") for fault in faults(record, tool, figures))
