"""README and docs: every Python block runs, every figure is what results/ says, every page is in the navigation."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]


def blocks(page: str) -> str:
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text(blocks(page), encoding="utf-8")
    runpy.run_path(str(script))


def test_figures_are_what_the_results_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "render.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_figure_that_was_typed_in_is_found() -> None:
    render = runpy.run_path(str(ROOT / "tools" / "render.py"))["render"]
    block = "<!-- figure: resnet20-about -->\n\nfast and good\n\n<!-- /figure -->"
    assert "fast and good" not in render(block)
    assert render(render(block)) == render(block)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page for page in PAGES if page.startswith("docs/") and page.removeprefix("docs/") not in navigation]
    assert missing == []


def test_nothing_names_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = re.compile("|".join(f"/{name}/" for name in ("work", "root", "home/[a-z]+")))
    texts = (
        ROOT / name for name in tracked if (ROOT / name).suffix in {".py", ".md", ".toml", ".json", ".yml", ".txt", ""}
    )
    found = [
        path.name
        for path in texts
        if path.is_file() and folders.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert found == []
