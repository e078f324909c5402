"""Gates: what a limit file says, and which rows break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poise.errors import InputError
from poise.experiments import Failure, Gate
from poise.experiments.measure import METRICS


def _row(recipe: str, defence: str, view: str = "aware", **figures: float | None) -> dict[str, Any]:
    metrics = {name: {"value": figures.get(name, 0.5), "low": None, "high": None} for name in METRICS}
    return {"recipe": recipe, "defence": defence, "view": view, "n": 9, "metrics": metrics}


SUMMARY = {
    "rows": [
        _row("sa-mma", "none", ece_after=0.6, accuracy_after=0.9),
        _row("sa-mma", "ts", ece_after=0.4, accuracy_after=0.8),
        _row("sa-mma", "ts", "unaware", ece_after=0.99, accuracy_after=0.01),
        _row("pgd", "none", ece_after=0.3, accuracy_after=0.0, queries_mean_success=None),
        _row("pgd", "ts", ece_after=0.1, accuracy_after=0.2),
    ]
}


def _read(tmp_path: Path, text: str) -> Gate:
    path = tmp_path / "gate.toml"
    path.write_text(text, encoding="utf-8")
    return Gate.read(path)


def _broken(tmp_path: Path, text: str) -> list[str]:
    return [str(failure) for failure in _read(tmp_path, text).failures(SUMMARY)]


@pytest.mark.parametrize("text", ["ece_after = 0.3", "[max]\nece_after = 0.3"])
def test_at_most(tmp_path: Path, text: str) -> None:
    """0.3 itself keeps the limit; the unaware row is no one's promise."""
    assert _broken(tmp_path, text) == [
        "sa-mma × none: ece_after must be at most 0.3, got 0.6",
        "sa-mma × ts: ece_after must be at most 0.3, got 0.4",
    ]


def test_at_least(tmp_path: Path) -> None:
    assert _broken(tmp_path, "[min]\naccuracy_after = 0.8") == [
        "pgd × none: accuracy_after must be at least 0.8, got 0",
        "pgd × ts: accuracy_after must be at least 0.8, got 0.2",
    ]


def test_both_sides_of_one_metric(tmp_path: Path) -> None:
    text = "ece_after = 0.5\n[min]\nece_after = 0.2"
    assert [failure.split(":")[0] for failure in _broken(tmp_path, text)] == ["sa-mma × none", "pgd × ts"]


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ('recipes = ["pgd"]', ["pgd × none"]),
        ('defences = ["ts"]', ["sa-mma × ts"]),
        ('recipes = ["sa-mma"]\ndefences = ["none"]', ["sa-mma × none"]),
        ("recipes = []", ["sa-mma × none", "sa-mma × ts", "pgd × none"]),
    ],
)
def test_filters(tmp_path: Path, filters: str, rows: list[str]) -> None:
    assert [line.split(":")[0] for line in _broken(tmp_path, f"{filters}\nece_after = 0.2")] == rows


def test_nothing_broken(tmp_path: Path) -> None:
    assert _broken(tmp_path, "ece_after = 0.6\n[min]\naccuracy_after = 0") == []


def test_an_undefined_figure_breaks_its_limit(tmp_path: Path) -> None:
    told = "pgd × none: queries_mean_success must be at least 0.1, got undefined"
    assert _broken(tmp_path, "[min]\nqueries_mean_success = 0.1") == [told]


def test_failures_carry_their_numbers(tmp_path: Path) -> None:
    failure = _read(tmp_path, 'recipes = ["pgd"]\nece_after = 0.2').failures(SUMMARY)[0]
    assert failure == Failure("pgd", "none", "ece_after", 0.3, 0.2, "at most")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ece_afer = 0.3", r"gate: metric: must be one of the known names, got 'ece_afer' \(did you mean ece_after"),
        ("[maximum]\nece_after = 0.3", "gate: metric: .* got 'maximum'"),
        ("", "must set at least one limit such as ece_after = 0.3, got none"),
        ("[max]\n[min]", "must set at least one limit"),
        ('recipes = ["pgd"]', "must set at least one limit"),
        ("ece_after = nan", "ece_after must be a number, got nan"),
        ("ece_after = inf", "ece_after must be a number, got inf"),
        ("ece_after = true", "ece_after must be a number, got True"),
        ('ece_after = "0.3"', "ece_after must be a number, got '0.3'"),
        ("max = 0.3", "max must be a table of limits, got 0.3"),
        ("min = [0.3]", "min must be a table of limits"),
        ('recipes = "pgd"\nece_after = 1', "recipes must be a list of names, got 'pgd'"),
        ("defences = [1]\nece_after = 1", "defences must be a list of names"),
        ("ece_after = 0.5\n[max]\nece_after = 0.3", "must set a limit once, got ece_after at the top and in"),
        ("ece_after 0.3", "must be a readable TOML file"),
    ],
)
def test_what_a_gate_refuses(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        _read(tmp_path, text)


def test_a_gate_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="must be a readable TOML file"):
            Gate.read(path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="must be a readable TOML file"):
        Gate.read(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('recipes = ["pgd", "sa-uca", "sa-oca"]', "recipes must be among those that are run, got sa-uca, sa-oca"),
        ('defences = ["cs"]', "defences must be among those that are run, got cs"),
    ],
)
def test_a_gate_on_what_is_not_run(tmp_path: Path, text: str, told: str) -> None:
    gate = _read(tmp_path, f"{text}\nece_after = 1")
    with pytest.raises(InputError, match=told):
        gate.failures(SUMMARY)
    with pytest.raises(InputError, match=told):
        gate.check(("sa-mma", "pgd"), ("none", "ts"))
    gate.check(("sa-mma", "pgd", "sa-uca", "sa-oca"), ("none", "ts", "cs"))
