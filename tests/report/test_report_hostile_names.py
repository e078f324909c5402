"""Names that are markup or formulas: on pages, in Markdown, in CSV, on a terminal. Nothing of them is obeyed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import fake_run
import polars as pl
import pytest
from mutations import FORMULA, MARKUP, NAMES
from selenium import webdriver

import leaderboard_cases
from poise import report
from poise.cli.app import run as command
from poise.errors import InputError, brief, one_of
from poise.experiments import leaderboard
from poise.experiments.bench.result import _as_it_was, as_csv
from poise.report import tables
from poise.report.leaderboard import markdown, write
from poise.report.words import FORMULA as STARTS

SCRIPTS = (
    MARKUP, "<script>document.title='pwned'</script>", "\"'><svg onload=document.title='pwned'>", "javascript:alert(1)",
    "]]><!--<img src=x onerror=document.title='pwned'>-->", "{{ constructor.constructor('alert(1)')() }}",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit in which every name that somebody else chooses is a script; with its page."""
    home = fake_run.build(
        tmp_path_factory.mktemp("hostile") / "run",
        fake_run.Spec(n=30, recipes=("sa-mma", "sa-oca"), models=fake_run.MODELS[:2]),
    )
    renamed = {"sa-mma": SCRIPTS[0], "sa-oca": FORMULA}
    summary = json.loads((home / "summary.json").read_text())
    summary["target"] |= {"model": SCRIPTS[1], "description": SCRIPTS[2]}
    summary["data"] |= {"name": SCRIPTS[3], "class_names": [SCRIPTS[at % len(SCRIPTS)] for at in range(10)]}
    summary["recipes"] = {
        renamed[name]: about | {"summary": SCRIPTS[4], "paper": SCRIPTS[5]}
        for name, about in summary["recipes"].items()
    }
    summary["checks"] = [{"name": SCRIPTS[2], "status": "warned", "figure": SCRIPTS[0], "advice": SCRIPTS[1]}]
    summary["command"] = " ".join(SCRIPTS)
    for row in summary["rows"]:
        row["recipe"] = renamed[row["recipe"]]
    (home / "summary.json").write_text(json.dumps(summary))
    for path in (*home.glob("samples/*.parquet"), *home.glob("curves/*.parquet"), home / "gallery.parquet"):
        pl.read_parquet(path).with_columns(pl.col("recipe").replace(renamed)).write_parquet(path)
    (home / "audit.toml").write_text("\n".join(f"# {text}" for text in SCRIPTS))
    report.write(home)
    return home


@pytest.fixture(scope="module")
def hostile_board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = leaderboard.entries_from(leaderboard_cases.summary(), name=SCRIPTS[0], author=SCRIPTS[2], note=SCRIPTS[1])
    groups = [group.plain() for group in leaderboard.rank(entries)]
    page = tmp_path_factory.mktemp("board") / "board.html"
    assert "<img" not in markdown(groups)
    return write(groups, page, costs=leaderboard.COSTS.model_dump(), threshold=leaderboard.THRESHOLD)


@pytest.mark.parametrize("page", ["run", "board"])
def test_a_page_with_hostile_names_executes_nothing(
    browser: webdriver.Chrome, hostile_run: Path, hostile_board: Path, page: str
) -> None:
    file = hostile_run / "report.html" if page == "run" else hostile_board
    browser.get(file.as_uri())
    assert browser.title != "pwned"
    assert not browser.execute_script("return document.querySelectorAll('img[src=x], svg[onload], [onerror]').length")
    links = browser.execute_script("return [...document.links].map((link) => link.protocol)")
    assert set(links) <= {"file:", "https:", "http:", "data:"}
    shown = browser.execute_script("return document.body.textContent")
    assert SCRIPTS[0] in shown, "it is shown, as text"
    assert not [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]


def test_a_spreadsheet_computes_nothing(hostile_run: Path) -> None:
    summary = report.read_summary(hostile_run)
    for line in csv.reader(io.StringIO(tables.csv(summary))):
        assert not [cell for cell in line[:3] if cell.startswith(STARTS)]
    assert "'=HYPERLINK" in tables.csv(summary)


def test_results_keep_their_names_through_a_csv() -> None:
    table = pl.DataFrame({"name": [*(name for name in NAMES if "\ud800" not in name), "'=1", None], "value": -1.5})
    text = as_csv(table)
    assert not [row[0] for row in csv.reader(io.StringIO(text)) if row[0].startswith(STARTS)]
    back = _as_it_was(pl.read_csv(io.StringIO(text), schema_overrides={"name": pl.String}))
    assert back["name"].fill_null("").to_list() == table["name"].fill_null("").to_list()
    assert back["value"].to_list() == table["value"].to_list()


def test_markdown_shows_markup_as_text(hostile_run: Path) -> None:
    text = tables.markdown(report.read_summary(hostile_run))
    assert "<" not in text
    assert "&lt;/script>" in text


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_one_line_that_a_terminal_only_shows(name: str) -> None:
    for error in (one_of("recipe", name, ["sa-mma"]), InputError(brief(name))):
        assert str(error).isprintable() or not str(error)
        assert len(str(error)) < 500


def test_the_command_shows_no_control_characters() -> None:
    errors = io.StringIO()
    assert command(["audit", "--model", "npz:\x1b]0;owned\x07"], errors) == 2
    assert errors.getvalue().rstrip("\n").isprintable()
