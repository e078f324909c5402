"""Makes examples/notebook/confidence.ipynb from the cells of confidence.py beside it, executed in order.

    python tools/notebook.py [--check]

The .py file is the source: `# %%` begins a cell of code, `# %% [markdown]` one of text. `--check` changes nothing: it
runs the cells and exits 1 where the notebook holds other cells or printed other text.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "notebook" / "confidence.py"
NOTEBOOK = SOURCE.with_suffix(".ipynb")


def cells(text: str) -> list[Any]:
    """The cells of a file in percent format, without outputs."""
    found = []
    for part in text.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            lines = (line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
            cell = nbformat.v4.new_markdown_cell("\n".join(lines))
        else:
            cell = nbformat.v4.new_code_cell(body.strip())
        cell["id"] = f"cell-{len(found)}"  # the same in every build
        found.append(cell)
    return found


def executed() -> Any:
    """The notebook, every cell run in a kernel of its own."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = nbformat.v4.new_notebook(cells=cells(SOURCE.read_text(encoding="utf-8")), metadata={"kernelspec": kernel})
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(SOURCE.parent)}}).execute()
    for cell in book.cells:
        cell.metadata = {}  # no times
    book.metadata = {"kernelspec": kernel}
    return book


def shown(book: Any) -> list[tuple[str, str]]:
    """Source and printed text of every cell."""
    return [
        (cell.source, "".join(out.text for out in cell.get("outputs", ()) if out.output_type == "stream"))
        for cell in book.cells
    ]


def main() -> int:
    book = executed()
    if "--check" not in sys.argv:
        nbformat.write(book, NOTEBOOK)
        print(f"written  {NOTEBOOK.name}: {len(book.cells)} cells")
        return 0
    held = nbformat.read(NOTEBOOK, as_version=4)
    if shown(held) != shown(book):
        for ours, theirs in zip(shown(book), shown(held), strict=False):
            if ours != theirs:
                print(f"another cell: {theirs!r} is held, {ours!r} found", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
