"""The walk through README and tutorial: what it types is what the pages print, and a command that fails is seen."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "walkthrough.py"))

PAGE = """# Page

## 1. Make

    git clone ADDRESS poise
    cd poise    # go in

Its addresses:

    builtin:digits

<!-- figure: name -->

    make nothing

<!-- /figure -->

## 2. Run

Write `limits.toml`:

```toml
a = 1
```

    python -c \\
      "print(1)"

```python
x = 1
```

```python
assert x == 1
```
"""


def test_what_a_page_says_to_do() -> None:
    found = [(action.step, action.file, action.text) for action in TOOL["actions"](PAGE)]
    assert found == [
        ("1. Make", None, "git clone ADDRESS poise"),
        ("1. Make", None, "cd poise"),
        ("2. Run", "limits.toml", "a = 1\n"),
        ("2. Run", None, 'python -c "print(1)"'),
        ("2. Run", "walk.py", "x = 1\n"),
        ("2. Run", None, "python walk.py"),
        ("2. Run", "walk.py", "x = 1\nassert x == 1\n"),
        ("2. Run", None, "python walk.py"),
    ]


def test_a_walk_in_one_shell(tmp_path: Path) -> None:
    """The folder stays, texts are replaced, commands left out, the reader's files there, and exit codes kept."""
    action, here, mine = TOOL["Action"], tmp_path / "here", tmp_path / "mine"
    here.mkdir()
    mine.mkdir()
    (mine / "own.txt").write_text("mine\n", encoding="utf-8")
    texts = ["mkdir down", "cd down", "cat own.txt limits.toml", "echo WORD > made", "exit 9", "test -e missing"]
    todo = [action("1", text) for text in texts]
    todo.insert(2, action("1", "a = 1\n", "limits.toml"))
    rows = TOOL["walk"](todo, here, {"WORD": "another"}, ["exit"], mine)
    assert [(row["command"], row["code"]) for row in rows] == [
        ("mkdir down", 0),
        ("cd down", 0),
        ("cat own.txt limits.toml", 0),
        ("echo WORD > made", 0),
        ("test -e missing", 1),
    ]
    assert all(row["seconds"] >= 0 and row["processors"] >= 0 for row in rows)
    assert (here / "down" / "made").read_text(encoding="utf-8") == "another\n"
    assert "mine\na = 1\n" in (tmp_path / "here.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TOOL["PAGES"])
def test_the_walk_sees_every_command_of_the_pages(name: str) -> None:
    """An indented line that the walk passes over is an address, or goes on with the line before."""
    page = TOOL["FIGURE"].sub("", (ROOT / TOOL["PAGES"][name]).read_text(encoding="utf-8"))
    typed = [action.text for action in TOOL["actions"](page) if action.file is None]
    lines = re.sub(r"\s*\\\n\s*", " ", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE))
    shown = [re.sub(r"\s{2,}#.*", "", line).strip() for line in re.findall(r"^    (\S.*)$", lines, re.MULTILINE)]
    passed = [line for line in shown if line not in typed]
    assert all(re.fullmatch(r"\w+:\S+", line) for line in passed), passed
    assert len(typed) > 5
