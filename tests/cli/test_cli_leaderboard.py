"""The leaderboard's command, from a real audit to the page; every mistake is one line and exit code 2."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import typer
from cli_cases import MODEL, Done, poise, scratch

import leaderboard_cases as cases
from poise.cli import app as entry_point
from poise.cli import leaderboard as command
from poise.experiments.leaderboard import read_entries

NAMED = ("--name", "Linear")


APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
"""An application of its own, so that the command is tested wherever it is mounted."""

APP.command("leaderboard", help=command.HELP)(command.leaderboard)
APP.callback()(lambda: None)


def board(folder: Path, *words: object) -> Done:
    with patch.object(entry_point, "app", APP):
        return poise("leaderboard", "--entries", folder, *words)


@cache
def audited() -> Path:
    """A finished audit of a linear model with the standard attack."""
    rng = np.random.default_rng(0)
    path, out = scratch() / "enough.npz", scratch() / "standard-run"
    np.savez(path, images=rng.integers(0, 256, (140, 6, 6), dtype=np.uint8), labels=rng.integers(0, 4, 140))
    words = "--recipes standard --defenses none --eps 0.05 --budget 400 --samples 100 --bootstrap 50 --quiet"
    done = poise("audit", "--model", MODEL, "--data", f"npz:{path}", *words.split(), "--out", out)
    assert done.code == 0, done.err
    return out


def written(folder: Path) -> Path:
    """A run folder that holds nothing but a made-up summary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(cases.made()))
    return folder


def test_from_an_audit_to_the_page(tmp_path: Path) -> None:
    folder, out = tmp_path / "entries", tmp_path / "page.html"
    done = board(folder, "--add", audited(), *NAMED, "--author", "A", "--url", "https://example.org", "--out", out)
    assert (done.code, done.err) == (0, "")
    entries = read_entries(folder)
    assert [(entry.name, entry.defence, entry.author) for entry in entries] == [("Linear", "none", "A")]
    assert [line.split()[0] for line in done.out.splitlines()] == ["entry", "page"]
    assert "py:FILE:linear?num_classes=4" in out.read_text(encoding="utf-8")
    assert str(scratch()) not in "".join(path.read_text() for path in folder.iterdir())
    assert board(folder, "--add", audited(), *NAMED).code == 0, "adding the same again replaces it"
    assert read_entries(folder) == [entry.model_copy(update={"author": None, "url": None}) for entry in entries]


def test_the_table_and_json(tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    done = board(folder, "--add", written(tmp_path / "run"), "--name", "Net")
    assert done.code == 0, done.err
    assert "cifar10, Linf 8/255, 120 images" in done.out
    assert all(len(line) <= 400 and line == line.rstrip() for line in done.out.splitlines())
    found = json.loads(board(folder, "--json").out)
    assert [entry["defence"] for entry in found[0]["entries"]] == ["ts", "none"]
    assert [entry["rank"] for entry in found[0]["entries"]] == [1, 2]
    with_page = board(folder, "--json", "--out", tmp_path / "page.html")
    assert json.loads(with_page.out) == found
    assert (tmp_path / "page.html").exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    done = board(tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "no entry in" in done.out
    assert json.loads(board(tmp_path, "--json").out) == []


def test_help_has_an_example() -> None:
    done = board(Path("entries"), "--help")
    assert done.code == 0
    assert "poise bench leaderboard --add runs/mine" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "page.txt"), "out: must end in .html, got 'page.txt'"),
        (("--name", "Net"), "name: must be given with --add RUN"),
        (("--note", "x"), "note: must be given with --add RUN"),
        (("--add", "RUN"), "name: must be given with --add, got none"),
        (("--add", "RUN", "--name", "Net", "--url", "ftp://x"), "url: must be an http:// or https:// address"),
        (("--add", "RUN", "--name", ""), "name: "),
        (("--add", "nothing", "--name", "Net"), "must be readable"),
        (("--out", "missing/page.html"), "out: 'missing/page.html' must be a place that can be written"),
        (("--nothing",), "No such option"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "RUN")
    (tmp_path / "entries").mkdir()
    done = board(tmp_path / "entries", *words)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list((tmp_path / "entries").iterdir()) == []


def test_a_damaged_entry_and_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{")
    for words in ((), ("--json",), ("--out", tmp_path / "page.html"), ("--add", written(tmp_path / "run"), *NAMED)):
        done = board(tmp_path, *words)
        assert done.code == 2
        assert "error: mine.json: " in done.err
        assert done.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "run"]
    done = board(tmp_path / "nowhere")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "entries: must be a folder of entries" in done.err
