"""Every public name has an example that runs: in its docstring (doctests run), or in a Python block of a page."""

from __future__ import annotations

import inspect
import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import poise

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}
PACKAGES = sorted(name for name in poise.__all__ if inspect.ismodule(getattr(poise, name)))


def python(text: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


BLOCKS = python("\n".join(PAGES.values()))


def found(path: str) -> Any:
    """What a dotted path names; of a function and a module of one name, the function."""
    home, _, name = path.rpartition(".")
    try:
        return getattr(import_module(home), name)
    except (ImportError, AttributeError):
        return import_module(path)


def docstrings(thing: Any) -> str:
    """Of a class, those of its methods, too."""
    own = thing.__doc__ if inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing) else ""
    parts = list(vars(thing).values()) if inspect.isclass(thing) else []
    return "\n".join([own or "", *((getattr(part, "__doc__", "") or "") for part in parts)])


def used(name: str, text: str) -> bool:
    """Whether Python code imports the name or takes it from a module."""
    imported = rf"^from \S+ import \(?(?:[^()\n]*\W)?{name}\b"
    return re.search(rf"{imported}|\.{name}\b", text, re.MULTILINE) is not None


def without_example(paths: list[str]) -> list[str]:
    return [
        path for path in paths if ">>>" not in docstrings(found(path)) and not used(path.rpartition(".")[2], BLOCKS)
    ]


def rendered() -> list[str]:
    return sorted({name for text in PAGES.values() for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)})


def test_every_public_name_has_an_example() -> None:
    assert without_example([f"poise.{name}" for name in poise.__all__]) == []


def test_every_name_that_a_page_renders_has_an_example() -> None:
    assert without_example(rendered()) == []


def test_a_name_without_an_example_is_found() -> None:
    assert without_example(["poise.targets.meter.Meter", "poise.constraints.Linf"]) == ["poise.targets.meter.Meter"]
    assert not used("Plain", "Plain words and PlainText\nfrom poise import Plainly")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_public_package_is_rendered(package: str) -> None:
    names = set(getattr(getattr(poise, package), "__all__", ()))
    assert names - {path.rpartition(".")[2] for path in rendered()} == set()


def test_examples_are_shown_as_code() -> None:
    fenced = runpy.run_path(str(ROOT / "tools" / "docstring_examples.py"))["fenced"]
    assert fenced("Adds.\n\n>>> 1 + 1\n2\n\nMore.") == "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."
    assert fenced("Example:\n    >>> f(\n    ...     1)\n    2") == (
        "Example:\n    ```pycon\n    >>> f(\n    ...     1)\n    2\n    ```"
    )
    assert fenced("No example, 2 >> 1.") == "No example, 2 >> 1."
