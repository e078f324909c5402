"""The notebook is what its cells say, and the recording is one that a player reads."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(sys, "argv", ["notebook.py", "--check"])
    return runpy.run_path(str(ROOT / "tools" / "notebook.py"))


@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_the_notebook_holds_what_its_cells_print(notebook: dict) -> None:
    assert notebook["main"]() == 0


def test_another_text_is_noticed(notebook: dict, capsys: pytest.CaptureFixture[str]) -> None:
    book = notebook["nbformat"].read(notebook["NOTEBOOK"], as_version=4)
    next(cell for cell in book.cells if cell.cell_type == "code").outputs[0].text = "200 images, typed in\n"
    scope = notebook["main"].__globals__
    scope["executed"] = lambda: book
    assert notebook["main"]() == 1
    assert "typed in" in capsys.readouterr().err


def test_the_recording_can_be_played() -> None:
    header, *lines = (ROOT / "docs" / "assets" / "poise.cast").read_text(encoding="utf-8").splitlines()
    assert json.loads(header)["version"] == 2
    times, kinds, texts = zip(*map(json.loads, lines), strict=True)
    assert list(times) == sorted(times)
    assert times[-1] < 60
    assert set(kinds) == {"o"}
    shown = "".join(texts)
    scenes = runpy.run_path(str(ROOT / "tools" / "recording.py"))["SCENES"]
    assert all(f"$ {scene}\r\n" in shown for scene in scenes)
    assert "Traceback" not in shown
