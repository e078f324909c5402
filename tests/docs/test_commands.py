"""README and docs: every command, option and name exists, every block of a known language is what it says it is."""

from __future__ import annotations

import io
import re
import shlex
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import poise
from poise.cli.app import UsageError, app, run
from poise.defenses import make_any
from poise.experiments import Gate
from poise.experiments.bench import catalog
from poise.experiments.bench.spec import read_bench_spec
from poise.experiments.costs import read_costs
from poise.targets.http import read_endpoint
from poise.training import training_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "py", "pycon", "console", "sh", "toml", "yaml", "dockerfile", "text"}
"""`test_documentation` runs python, `test_troubleshooting` console and pycon; py needs what the tests do not have, and
must compile; text is an answer and no command."""

COMMANDS = ("audit", "attack", "train", "detect", "certify", "bench", "serve", "list", "defend")
NAME = re.compile(r"[a-z][a-z0-9/-]*")
CHEAP = re.compile(r"poise (list \w+|bench list|defend fit ts --model builtin:digits .*|\w[\w ]* --help|--version)")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, *languages: str) -> list[str]:
    return [body for _, language, body in FENCE.findall(text(page)) if language in languages]


def commands(words: str) -> list[str]:
    """The commands of poise in a text: in blocks, indented or fenced, and in inline code."""
    joined = re.sub(r"\s*\\\n\s*", " ", words)
    block = re.findall(r"^(?:    |\$ |[\w \-./]*-- )? *(poise (?:--|[a-z]).*)$", joined, re.MULTILINE)
    inline = re.findall(r"`(?:[\w ]+-- )?(poise [^`]+)`", joined)
    found = [re.split(r"\s+#|\s*;|\s+\||\s+&&|\s{5,}", line)[0].strip() for line in [*block, *inline]]
    return [line for line in found if line.split()[1].strip("`.,") in COMMANDS or line.split()[1].startswith("--")]


def refusal(line: str) -> str | None:
    """What the command line's own parser has against a command; nothing is run. A command's bare name passes."""
    command, rest, name = typer.main.get_command(app), shlex.split(line)[1:], "poise"
    context: Any = None
    try:
        while rest:
            context = command.make_context(name, rest, parent=context)
            rest = [*context._protected_args, *context.args]
            if not rest or not hasattr(command, "resolve_command"):
                return None
            name, command, rest = command.resolve_command(context, rest)
        return None
    except typer.Exit:
        return None
    except UsageError as error:
        return str(error.format_message())


def unknown(line: str) -> list[str]:
    """Names in a command that poise does not have: recipes, defences, specs."""
    words = shlex.split(line)
    options = dict(pairwise(words))
    names = {
        poise.recipe: [*options.get("--recipes", "").split(","), *(words[2:3] if words[1] == "attack" else [])],
        make_any: [*options.get("--defenses", "").split(","), *(words[3:4] if words[1:3] == ["defend", "fit"] else [])],
        catalog.find: [word for word in words[3:4] if words[1] == "bench" and "/" in word],
    }
    return [name for known, given in names.items() for name in given if NAME.fullmatch(name) and not has(known, name)]


def has(known: Callable[[str], object], name: str) -> bool:
    try:
        known(name)
    except poise.PoiseError:
        return name == "all"
    return True


ALL = sorted({(page, line) for page in PAGES for line in commands(text(page))})


def test_commands_are_found() -> None:
    assert commands("    poise audit --out a \\\n      --resume ; echo $?\n\n`poise list data`") == [
        "poise audit --out a --resume",
        "poise list data",
    ]
    assert commands("kubectl exec -it x -- \\\n  poise bench run a/b --ray auto") == ["poise bench run a/b --ray auto"]
    assert len(ALL) > 100


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_poise_takes(page: str) -> None:
    provoked = set(re.findall(r"^\$ (poise .*)$", "".join(fences(page, "console")), re.MULTILINE))
    lines = [line for at, line in ALL if at == page and line not in provoked]
    found = {line: (refusal(line.replace("…", "x")), unknown(line)) for line in lines}
    assert {line: wrong for line, wrong in found.items() if wrong != (None, [])} == {}


def test_an_option_and_a_name_that_do_not_exist_are_found() -> None:
    assert "--bugdet" in (refusal("poise audit --bugdet 3") or "")
    assert refusal("poise defend fitt") is not None
    assert refusal("poise bench run --help") is None
    assert refusal("poise --help") is None
    assert unknown("poise audit --recipes sa-mna,sa-mma --defenses ts,tz") == ["sa-mna", "tz"]
    assert unknown("poise bench run calibration/t99") == ["calibration/t99"]


@pytest.mark.parametrize("line", sorted({line for _, line in ALL if CHEAP.fullmatch(line)}))
def test_cheap_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    errors = io.StringIO()
    assert run(shlex.split(line)[1:], errors) == 0, errors.getvalue()


def validated(path: Path, table: dict[str, Any]) -> object:
    """Reads a TOML block as poise reads such a file, told by its keys."""
    readers: dict[str, Callable[[Path], object]] = {
        "url": read_endpoint,
        "grid": read_bench_spec,
        "wrong_accepted": read_costs,
        "method": lambda file: training_recipe(str(file)),
    }
    return next((read for key, read in readers.items() if key in table), Gate.read)(path)


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "toml")])
def test_toml_blocks_are_files_that_poise_reads(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in fences(page, "toml"):
        for name in re.findall(r"\$\{(\w+)\}", block):
            monkeypatch.setenv(name, "secret")
        (tmp_path / "block.toml").write_text(block, encoding="utf-8")
        validated(tmp_path / "block.toml", tomllib.loads(block))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_checked(page: str) -> None:
    assert {language for _, language, _ in FENCE.findall(text(page))} <= LANGUAGES
    for block in fences(page, "yaml"):
        assert yaml.safe_load(block)
    for block in fences(page, "py"):
        compile(block, page, "exec")


def test_extras_and_make_targets_exist() -> None:
    whole = "\n".join(map(text, PAGES))
    extras = set(tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"])
    named = {name for group in re.findall(r"poise\[([\w,]+)\]", whole) for name in group.split(",")}
    assert named - extras == set()
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([a-z]+)", whole, re.MULTILINE)) - targets == set()
