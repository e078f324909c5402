"""What the commands print: lists, help, version, tables that survive a pipe, JSON and nothing else."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import polars as pl
import pytest
from cli_cases import fast, poise
from rich.console import Console

import poise as library
from poise.cli import progress
from poise.cli.app import run
from poise.cli.listing import KINDS
from poise.cli.progress import Bars
from poise.recipebook import PEERS, recipe
from poise.recipebook.queries import SCORES

EXPECTED = {
    "recipes": {"sa-uca", "sa-oca", "sa-mma", "sa-rca", "pgd-mma", "adaptive", "confsmooth", "square", "pgd", "fgsm"},
    "objectives": {"UCA", "OCA", "MMA", "RCA", "ConfSmooth", "Margin", "CrossEntropy", "KeepLabel"},
    "searches": {"Square", "PGD", "DropoutPGD", "AdaptivePGD"},
    "defenses": {"none", "ts", "cs"},
    "detectors": {"lid", "mahalanobis"},
    "training": {"standard", "at", "trades", "uat-smooth", "uat-standard"},
    "models": {"builtin:digits", "py:FILE:FACTORY?num_classes=N"},
    "data": {"builtin:digits", "npz:FILE", "folder:DIR", "idx:DIR"},
    "experiments": {"calibration/t1", "uat/s3", "aaa/fig2", "thresholding/fig1", "illusion/high-t"},
}


def _assert_plain(text: str) -> None:
    """Fit for a pipe: no control codes, no line of only spaces, no spaces at a line's end."""
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.strip(), "an empty line"
        assert line == line.rstrip(), "spaces at the end"


def test_the_kinds_are_those_of_the_help() -> None:
    assert set(KINDS) == set(EXPECTED)
    assert all(kind in poise("list", "--help").out for kind in KINDS)


@pytest.mark.parametrize("kind", EXPECTED)
def test_list(kind: str) -> None:
    text, as_json = poise("list", kind), poise("list", kind, "--json")
    assert (text.code, text.err, as_json.code, as_json.err) == (0, "", 0, "")
    _assert_plain(text.out)
    found = json.loads(as_json.out)
    assert set(found) >= EXPECTED[kind]
    lines = text.out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert all(line.endswith(about) and about.strip() for line, about in zip(lines, found.values(), strict=True))
    starts = {line.index(about, len(name)) for line, (name, about) in zip(lines, found.items(), strict=True)}
    assert len(starts) == 1, "the second column is not aligned"


def test_every_listed_recipe_and_defence_is_one_that_runs() -> None:
    listed = json.loads(poise("list", "recipes", "--json").out)
    composed = {name for name in listed if name.endswith("-GOAL")}
    assert set(listed) - composed == set(library.recipes()) | set(PEERS)
    assert composed == {f"{search}-GOAL" for search in SCORES}
    for name in composed:
        goals = listed[name].split("GOAL: ")[1].split(", ")
        assert all(recipe(name.replace("GOAL", goal)).keeps_label for goal in goals)
    extras = {name: peer.attack.extra for name, peer in PEERS.items()}
    assert {name: line[:-1].split("; needs extra ")[1] for name, line in listed.items() if "; needs" in line} == extras
    assert set(json.loads(poise("list", "defenses", "--json").out)) == set(library.defenses.summaries())


def test_version() -> None:
    done = poise("--version")
    assert (done.code, done.out, done.err) == (0, f"{library.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", library.__version__)


@pytest.mark.parametrize("command", ["audit", "attack", "list"])
def test_help_has_an_example_that_parses(command: str) -> None:
    done = poise(command, "--help")
    assert (done.code, done.err) == (0, "")
    examples = re.findall(rf"^ +poise ({command} .*)$", done.out, flags=re.MULTILINE)
    assert examples
    assert "Example" in done.out
    known = set(re.findall(r"--[a-z-]+", done.out))
    for example in examples:
        assert set(re.findall(r"--[a-z-]+", example)) <= known


def test_no_command_shows_the_commands() -> None:
    for words in ([], ["--help"]):
        done = poise(*words)
        assert (done.code, done.err) == (0, "")
        assert all(command in done.out for command in ("audit", "attack", "list"))


def test_the_table_survives_a_pipe(tmp_path: Path) -> None:
    done = poise("audit", *fast(), "--defenses", "none,cs", "--recipes", "sa-uca,pgd-uca", "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    _assert_plain(done.out)
    assert re.search(r"^target   py:.* data  8 test images$", done.out, flags=re.MULTILINE)
    rows = [line for line in done.out.splitlines() if re.match(r"(sa|pgd)-uca +(none|cs)", line)]
    assert len(rows) == 6
    assert len({line.index("→") for line in rows}) == 1, "the numbers are not aligned"
    assert done.out.splitlines()[-1] == f"report   {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("command", [["audit"], ["attack", "sa-uca"]])
def test_json_is_one_object_and_nothing_else(command: list[str], tmp_path: Path) -> None:
    options = fast() if command == ["audit"] else _without(fast(), "--recipes", "--defenses", "--bootstrap")
    done = poise(*command, *options, "--json", "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    assert done.out.isascii(), "any terminal can print it"
    assert json.loads(done.out) == json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))


def _without(options: list[str], *names: str) -> list[str]:
    drop = {at + more for name in names for at in [options.index(name)] for more in (0, 1)}
    return [word for at, word in enumerate(options) if at not in drop]


def test_attack_keeps_images_and_rows_and_writes_no_report(tmp_path: Path) -> None:
    options = _without(fast(), "--recipes", "--defenses", "--bootstrap")
    done = poise("attack", "sa-uca", *options, "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    _assert_plain(done.out)
    assert done.out.splitlines()[-1] == f"folder   {tmp_path / 'run'}"
    assert len(pl.read_parquet(tmp_path / "run" / "samples" / "*.parquet")) == 8
    assert len(list((tmp_path / "run" / "adversarial").iterdir())) == 2
    assert not (tmp_path / "run" / "report.html").exists()


def test_progress_goes_to_the_error_stream_a_line_per_attack(tmp_path: Path) -> None:
    loud = [word for word in fast() if word != "--quiet"]
    done = poise(
        "audit", *loud, "--recipes", "sa-uca,pgd", "--defenses", "none,cs", "--out", tmp_path / "run", "--json"
    )
    json.loads(done.out)
    _assert_plain(done.err)
    lines = done.err.splitlines()
    assert lines[0].startswith("8 images of npz:")
    assert [line.split("  ")[0] for line in lines[1:]] == ["sa-uca", "sa-uca × cs", "pgd", "pgd × cs"]
    assert all(re.search(r"8 images  \d+ queries  \d+ s  ECE 0\.\d{3}$", line) for line in lines[1:])


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_a_terminal(width: int, tmp_path: Path, monkeypatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    monkeypatch.setattr("poise.cli.audit.Console", lambda **_: console)
    done = poise("audit", *fast(), "--out", tmp_path / "run")
    assert done.code == 0
    lines = screen.getvalue().splitlines()
    table = lines[2 : next(at for at, line in enumerate(lines) if line.startswith("!"))]
    assert any("sa-uca" in line for line in table)
    assert max(map(len, table)) <= width
    assert not any("…" in line for line in table), "a figure was cut"


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system=None, legacy_windows=False)
    rows = pl.DataFrame(
        {"prediction_after": [1, 2], "label": [1, 1], "confidence_after": [0.9, 0.8], "queries": [1000, 1200]}
    )
    with Bars(console, silent=False) as bars:
        bars.note("a note")
        bars.begin("sa-mma", "cs", 0, 2)
        bars.advance(0.5, 1500)
        bars._bar.refresh()
        assert "1,500 queries" in screen.getvalue()
        bars.advance(2, 2000)
        bars.end(rows)
    shown = screen.getvalue()
    assert "a note" in shown
    assert "sa-mma × cs" in shown
    assert re.search(r"2/2 +1,100 queries .* ECE 0\.450", shown)


def test_silent_bars_write_nothing() -> None:
    for terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=100, legacy_windows=False)
        with Bars(console, silent=True) as bars:
            bars.note("a note")
            bars.begin("sa-mma", "none", 0, 1)
            bars.advance(1, 10)
            row = {"prediction_after": [1], "label": [1], "confidence_after": [0.9], "queries": [3]}
            bars.end(pl.DataFrame(row))
        assert screen.getvalue() == ""
    assert progress.Bars is Bars


def test_arguments_default_to_those_of_the_process(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["poise", "list", "defenses"])
    assert run(None, io.StringIO()) == 0
    assert capsys.readouterr().out.startswith("none")
