"""The troubleshooting page: every message on it is what poise says to the command or the call above it."""

from __future__ import annotations

import doctest
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from poise.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^```console\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
MATCH = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def steps(block: str) -> list[tuple[str, str]]:
    """Commands of a block, each with what it prints."""
    return [
        (line, told) for line, _, told in (part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.M)[1:])
    ]


def said(command: str) -> str:
    """What a command says of its error; commands other than poise prepare files, in a shell."""
    if not command.startswith("poise "):
        shell = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
        subprocess.run(["bash", "-c", shell], check=True)
        return ""
    errors = io.StringIO()
    assert run(shlex.split(command)[1:], errors) == 2, command
    return next(line for line in errors.getvalue().splitlines(keepends=True) if line.startswith("poise: error:"))


def fits(want: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(want, got, MATCH)


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: steps(block)[-1][0][:60])
@pytest.mark.filterwarnings("ignore")
def test_commands_say_what_the_page_says(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, told in steps(block):
        got = said(command)
        assert fits(told, got), f"{command}\npage: {told}\nsays: {got}"


def test_calls_raise_what_the_page_says() -> None:
    text = "\n".join(re.findall(r"^```pycon\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
    case = doctest.DocTestParser().get_doctest(text, {}, "troubleshooting", None, 0)
    assert len(case.examples) > 8
    report: list[str] = []
    doctest.DocTestRunner(optionflags=MATCH).run(case, out=report.append)
    assert report == []


def test_a_message_that_poise_does_not_say_is_found() -> None:
    assert fits("poise: error: eps ... got 8.0\n", "poise: error: eps must be in [0, 1], got 8.0\n")
    assert not fits("poise: error: eps is too large\n", "poise: error: eps must be in [0, 1], got 8.0\n")
