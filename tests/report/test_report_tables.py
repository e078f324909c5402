"""The scoreboard, Markdown, CSV and the terminal's table."""

from __future__ import annotations

import csv as csv_reader
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from poise.report import csv, markdown, terminal
from poise.report.facts import board_lead, costs_told, facts, keys
from poise.report.tables import scoreboard


@pytest.fixture
def summary(colour_run: Path) -> dict[str, Any]:
    return dict(json.loads((colour_run / "summary.json").read_text()))


def test_scoreboard_puts_the_two_views_of_a_defence_side_by_side(summary: dict[str, Any]) -> None:
    summary["rows"] = summary["rows"][::-1]
    board = scoreboard(summary)
    assert board.columns[0] == ("none", "aware")
    for defence, span in board.groups[1:]:
        place = board.columns.index((defence, "aware"))
        assert span == 2
        assert board.columns[place + 1] == (defence, "unaware")


def test_scoreboard_cells_are_the_rows(summary: dict[str, Any]) -> None:
    board = scoreboard(summary)
    for row in summary["rows"]:
        cells = board.cells[board.recipes.index(row["recipe"])][board.columns.index((row["defence"], row["view"]))]
        assert cells is not None
        for name in ("ece_after", "ks_after", "brier_after"):
            given = row["metrics"][name]["value"]
            assert float(cells[name].text) == pytest.approx(given, abs=0.0051)
            assert cells[name].shade == pytest.approx(given, abs=5e-4)
        low, high = (float(text) for text in cells["ece_after"].interval.strip("[]").split(", "))
        assert [low, high] == pytest.approx([row["metrics"]["ece_after"][k] for k in ("low", "high")], abs=0.0051)


def test_an_attack_that_was_not_run_is_no_cell(summary: dict[str, Any]) -> None:
    gone = summary["rows"].pop()
    board = scoreboard(summary)
    assert (
        board.cells[board.recipes.index(gone["recipe"])][board.columns.index((gone["defence"], gone["view"]))] is None
    )


def test_more_queries_are_shaded_less(summary: dict[str, Any]) -> None:
    rows = summary["rows"][:2]
    for row, queries in zip(rows, (10, 900), strict=True):
        row["metrics"]["queries_mean_all"]["value"] = queries
    cheap, dear = scoreboard(summary).cells[0][:2]
    assert cheap is not None
    assert dear is not None
    assert cheap["queries_mean_all"].shade > dear["queries_mean_all"].shade


def test_markdown_is_a_rectangle(summary: dict[str, Any]) -> None:
    summary["rows"][0]["recipe"] = "a|b\nc"
    lines = markdown(summary).splitlines()
    assert len(lines) == 2 + len(summary["rows"])
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {10}
    assert "a&#124;b c" in lines[2]


def test_csv_round_trip(summary: dict[str, Any]) -> None:
    summary["rows"][0]["defence"] = 'a "quoted", name'
    rows = list(csv_reader.DictReader(io.StringIO(csv(summary))))
    assert len(rows) == sum(len(row["metrics"]) for row in summary["rows"])
    assert rows[0]["defence"] == 'a "quoted", name'
    for line in rows[:30]:
        entry = summary["rows"][0]["metrics"][line["metric"]]
        assert {key: line[key] for key in ("value", "low", "high")} == {
            key: "" if entry[key] is None else repr(entry[key]) for key in ("value", "low", "high")
        }
        if line["metric"] == list(summary["rows"][0]["metrics"])[-1]:
            break


def test_terminal_table_when_piped(summary: dict[str, Any]) -> None:
    text = terminal.text(summary)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith("target   ")
    assert lines[1].startswith("clean    accuracy ")
    body = lines[4 : 4 + len(summary["rows"])]
    for line, row in zip(body, summary["rows"], strict=True):
        figures = row["metrics"]
        assert line.startswith(row["recipe"])
        assert f"{figures['ece_before']['value']:.3f} → {figures['ece_after']['value']:.3f} [" in line
        wrong, right = (figures[f"accepted_{name}_after"]["value"] * 100 for name in ("wrong", "right"))
        assert line.endswith(f"{wrong:.1f} / {right:.1f} %")
    assert len({line.index(" → ") for line in body}) == 1, "the numbers of a column stand under each other"
    assert lines[-1].startswith("! black box stronger than white box: sa-mma reaches ECE 0.61")
    assert lines[-1].endswith("(see report, checks)")


def test_terminal_table_loses_no_digit_when_narrow(summary: dict[str, Any]) -> None:
    def printed(narrow: bool) -> str:
        out = io.StringIO()
        Console(file=out, width=80, color_system=None).print(terminal.table(summary, narrow=narrow))
        return out.getvalue()

    assert "…" in printed(narrow=False), "the wide table does not fit in 80 columns"
    assert "…" not in printed(narrow=True)
    text = printed(narrow=True)
    for row in summary["rows"]:
        assert f"{row['metrics']['ece_after']['value']:.3f}" in text
        assert f"{row['metrics']['confidence_after']['value'] * 100:.1f} %" in text
    assert max(map(len, terminal.text(summary, width=80).splitlines()[2:-1])) <= 80


def test_terminal_names_are_no_markup(summary: dict[str, Any]) -> None:
    summary["rows"][0]["recipe"] = "[bold]x[/bold]"
    assert "[bold]x[/bold]" in terminal.text(summary)


def test_undefined_metrics_are_dashes(summary: dict[str, Any]) -> None:
    for entry in summary["rows"][0]["metrics"].values():
        entry.update(value=None, low=None, high=None)
    assert "– → –" in terminal.text(summary)
    assert "None" not in terminal.text(summary) + markdown(summary)
    assert scoreboard(summary).cells[0][0]["ece_after"].text == "–"  # type: ignore[index]


def test_best_defence_is_the_mildest_worst_case(summary: dict[str, Any]) -> None:
    """Independent: the worst ECE per defence over label-keeping recipes and aware attackers, then the least."""
    keeps = {name for name, about in summary["recipes"].items() if about["keeps_label"]}
    table: dict[str, list[float]] = {}
    for row in summary["rows"]:
        if row["defence"] != "none" and row["view"] == "aware" and row["recipe"] in keeps:
            table.setdefault(row["defence"], []).append(row["metrics"]["ece_after"]["value"])
    best = min(table, key=lambda name: max(table[name]))
    assert keys(summary)[-1].figure == best
    assert f"{max(table[best]):.2f}" in keys(summary)[-1].note
    assert f"{best} is best" in board_lead(summary)


def test_a_defence_that_does_not_help_is_not_praised(summary: dict[str, Any]) -> None:
    for row in summary["rows"]:
        if row["defence"] != "none":
            row["metrics"]["ece_after"]["value"] = 0.9
    assert keys(summary)[-1].figure == "none helps"
    assert "no defence helps" in board_lead(summary)


def test_without_defences(grey_run: Path) -> None:
    summary = json.loads((grey_run / "summary.json").read_text())
    assert keys(summary)[-1].note == "no defence was tried"
    assert board_lead(summary).endswith("no defence was tried.")


def test_unaware_attackers_do_not_make_a_defence_look_good(summary: dict[str, Any]) -> None:
    """The broken twin of the rule above: with the unaware rows counted as aware, another defence would win."""
    aware = keys(summary)[-1].figure
    for row in summary["rows"]:
        row["view"] = {"aware": "unaware", "unaware": "aware"}[row["view"]] if row["defence"] != "none" else "aware"
    assert keys(summary)[-1].figure != aware


def test_facts_leave_out_what_is_missing(summary: dict[str, Any]) -> None:
    names = dict(facts(summary))
    assert names["fingerprint of weights"].startswith("sha256:")
    assert names["seed"] == "0"
    for key in ("fingerprints", "versions", "seconds", "created"):
        del summary[key]
    summary["target"].pop("parameters")
    fewer = dict(facts(summary))
    assert {"took", "made", "versions", "parameters"} & set(fewer) == set()
    assert "None" not in fewer.values()


def test_costs_are_told() -> None:
    told = costs_told({"wrong_accepted": 10.0, "deferred": 0.5, "right_accepted": 0.0})
    assert told == "wrong accepted 10, deferred 0.5, right accepted 0"


def test_fake_metrics_agree_with_the_library(summary: dict[str, Any], colour_run: Path) -> None:
    """The summaries of these tests hold what `poise.metrics` finds in the samples."""
    from poise import metrics
    from poise.report.folder import read

    for row in summary["rows"][:3]:
        part = read(colour_run).blocks[row["recipe"], row["defence"], row["view"]].attacked
        assert row["metrics"]["ece_after"]["value"] == pytest.approx(
            metrics.ece(part.confidence, part.correct), abs=1e-12
        )
        assert row["metrics"]["ks_after"]["value"] == pytest.approx(
            metrics.ks_error(part.confidence, part.correct), abs=1e-12
        )
        assert np.isclose(row["metrics"]["accuracy_after"]["value"], part.correct.mean())
