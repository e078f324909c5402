"""What starting costs, counted in modules, which a busy machine cannot change. benchmarks/startup.py takes times."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from cli_cases import poise

from poise.cli import app, defend, detect
from poise.defenses.export import OPSET
from poise.detectors import DETECTORS
from poise.experiments import defend as comparing
from poise.experiments import defend_export, detect_spec
from poise.experiments.audit_spec import DIGITS
from poise.experiments.certify_spec import DIGITS as DIGITS_CERTIFIED

COMPUTING = {"torch", "torchvision", "numpy", "scipy", "sklearn", "polars", "plotly", "jinja2", "httpx", "safetensors"}
COMPUTING |= {"lightning_fabric", "onnx", "onnxruntime", "timm", "transformers", "ray", "art"}
"""What no help needs. The parser itself brings rich, and pydantic for options of some types."""

RUN = """
import io, json, sys
from contextlib import redirect_stdout
from poise.cli.app import run
with redirect_stdout(io.StringIO()) as out:
    code = run(sys.argv[1:], sys.stderr)
print(json.dumps({"code": code, "out": out.getvalue(), "modules": sorted(sys.modules)}))
"""

SEVERAL = """
import io, json, sys
from contextlib import redirect_stdout
from poise.cli.app import run
found = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out:
        code = run(words, sys.stderr)
    found.append({"code": code, "out": out.getvalue(), "modules": sorted(sys.modules)})
print(json.dumps({"found": found}))
"""
"""One after the other: what the first ones import, the others are seen with as well."""

_FOLDER = Path(app.__file__).parent

HELPS = [["--help"], [], ["--version"], *([name, "--help"] for name in app.COMMANDS)]
HELPS += [["defend", part, "--help"] for part in ("fit", "compare", "export")]


def _fresh(source: str, *words: str) -> dict[str, object]:
    """What the source prints, as JSON, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _roots(seen: dict[str, object]) -> set[str]:
    return {name.split(".")[0] for name in seen["modules"]}


def test_no_help_computes_anything() -> None:
    found = _fresh(SEVERAL, json.dumps(HELPS))["found"]
    for words, seen in zip(HELPS, found, strict=True):
        assert seen["code"] == 0, words
        assert seen["out"], words
        assert not COMPUTING & _roots(seen), words


def test_the_list_of_commands_imports_no_command() -> None:
    """One line of the table per command, and nothing of the commands, of rich or of pydantic."""
    seen = _fresh(RUN, "--help")
    modules = {f"poise.cli.{module}" for module, _ in app.COMMANDS.values()} | {"poise.cli.options"}
    assert not modules & set(seen["modules"])
    assert not {"rich", "pydantic"} & _roots(seen)
    for name, (_, summary) in app.COMMANDS.items():
        line = next(line for line in seen["out"].splitlines() if line.startswith(f"  {name} "))
        shown = line.split(maxsplit=1)[1]
        assert summary.startswith(shown.removesuffix("..."))
        assert len(shown) > 30


def test_a_command_imports_its_own_module_alone() -> None:
    seen = _fresh(RUN, "train", "--help")
    others = {f"poise.cli.{module}" for module, _ in app.COMMANDS.values()} - {"poise.cli.train"}
    assert "poise.cli.train" in seen["modules"]
    assert not others & set(seen["modules"])


def test_a_command_that_computes_is_noticed() -> None:
    """`list recipes` needs torch, and the same count must say so."""
    seen = _fresh(RUN, "list", "recipes")
    assert {"torch", "polars"} <= _roots(seen)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_table_says_what_the_module_says(name: str) -> None:
    module = import_module(f"poise.cli.{app.COMMANDS[name][0]}")
    assert app.COMMANDS[name][1] == module.HELP.split("\n\n")[0]
    done = poise(name, "--help")
    assert done.code == 0
    assert done.out.splitlines()[0].startswith(f"Usage: poise {name} ")


def test_every_module_of_a_command_is_in_the_table() -> None:
    """A module says in its first words which command it is."""
    words = (re.match(r'"""poise (\w+): ', path.read_text(encoding="utf-8")) for path in _FOLDER.glob("*.py"))
    assert {word[1] for word in words if word} == set(app.COMMANDS)


def test_a_line_in_the_table_adds_a_command(monkeypatch) -> None:
    """A module with sub-commands, and one with a function of its own name."""

    def novelty(count: int = 1) -> None:
        typer.echo(f"new {count}")

    module = type(sys)("poise.cli.novelty")
    module.HELP, module.novelty = "Something new.", novelty
    monkeypatch.setitem(sys.modules, "poise.cli.novelty", module)
    monkeypatch.setitem(app.COMMANDS, "newer", ("novelty", "Something new."))
    monkeypatch.setattr(app.app, "registered_commands", [*app.app.registered_commands])
    app.app.command("newer", help="Something new.")(app._not_loaded)
    assert "  newer    Something new.\n" in poise("--help").out
    assert (poise("newer", "--count", "3").out, poise("newer", "--count", "x").code) == ("new 3\n", 2)
    module.app = typer.Typer(add_completion=False, rich_markup_mode=None)
    module.app.callback()(lambda: None)
    module.app.command("part")(novelty)
    assert poise("newer", "part").out == "new 1\n"


def test_what_the_helps_say_of_defaults_is_so() -> None:
    """The commands repeat some names, so that their help needs no torch."""
    assert (defend.RECIPES, defend.SAMPLES) == (comparing.RECIPES, defend_export.SAMPLES)
    assert defend.OPSET == OPSET
    assert detect.RECIPES == detect_spec.RECIPES
    assert tuple(DETECTORS) == detect.DETECTORS
    assert DIGITS == DIGITS_CERTIFIED == defend.DIGITS


USED = """
import json, sys
import poise
before = sorted(sys.modules)
listed = dir(poise)
exec(sys.argv[1])
print(json.dumps({"before": before, "modules": sorted(sys.modules), "listed": listed, "all": poise.__all__}))
"""


def test_import_poise_imports_nothing_of_others() -> None:
    seen = _fresh(USED, "")
    assert not {name.split(".")[0] for name in seen["before"]} & (COMPUTING | {"rich", "pydantic", "typer"})
    assert [name for name in seen["before"] if name.startswith("poise.")] == []
    assert set(seen["all"]) <= set(seen["listed"])


def test_an_attack_imports_torch_and_polars_and_no_more() -> None:
    """What most scripts use; a client for HTTP, regressions and figures wait until they are asked for."""
    seen = _fresh(
        USED,
        "from poise import ModuleTarget, attack, run_recipe, recipes, objectives, searches, constraints, types;"
        "from poise.constraints import Linf; from poise.defenses import AAA, TemperatureScaling",
    )
    assert {"torch", "polars", "numpy"} <= _roots(seen)
    assert not _roots(seen) & (COMPUTING - {"torch", "polars", "numpy", "scipy", "safetensors"} | {"pydantic", "typer"})


@pytest.mark.parametrize(
    ("used", "module"),
    [
        ("from poise.targets import HttpTarget", "httpx"),
        ("import poise.targets as t; t.HttpTarget", "httpx"),
        ("poise.report.write", "plotly"),
        ("poise.metrics.ece", "numpy"),
    ],
)
def test_names_come_when_they_are_used(used: str, module: str) -> None:
    seen = _fresh(USED, used)
    assert module in seen["modules"]
    assert module not in seen["before"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import poise as library
    from poise import targets

    for part in (library, targets):
        with pytest.raises(AttributeError, match=f"module '{part.__name__}' has no attribute 'nothing'"):
            part.nothing  # noqa: B018
    assert "HttpTarget" in dir(targets)
