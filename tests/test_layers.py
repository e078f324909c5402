"""Dependencies point one way (DESIGN, section 3), and importing poise does nothing but import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "poise"

BASE = {"errors", "types", "rng", "table", "spec"}
PARTS = BASE | {"constraints", "objectives", "targets"}
ATTACKS = PARTS | {"searches", "attacks"}
DEFENSES = {"errors", "types", "files"}
LIBRARY = ATTACKS | {
    "recipebook",
    "peers",
    "illusion",
    "defenses",
    "detectors",
    "training",
    "certify",
    "models",
    "data",
    "metrics",
}
REPORT = {"errors", "table", "metrics", "files"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "table": {"errors"},
    "spec": {"errors"},
    "types": {"errors"},
    "rng": {"errors"},
    "constraints": BASE,
    "objectives": BASE,
    "targets": BASE,
    "searches": PARTS,
    "attacks": PARTS | {"searches"},
    "peers": ATTACKS,
    "recipebook": ATTACKS | {"peers"},
    "defenses": DEFENSES,
    "detectors": DEFENSES | {"rng", "targets"},
    "training": ATTACKS | {"recipebook", "defenses", "models", "data", "files"},
    "certify": ATTACKS | {"recipebook", "defenses", "metrics"},
    "illusion": ATTACKS | {"recipebook", "defenses"},
    "data": {"errors", "types", "rng"},
    "models": {"errors", "types", "targets", "data", "files"},
    "metrics": {"errors"},
    "report": REPORT,
    "checks": LIBRARY,
    "experiments": LIBRARY | {"checks", "report", "poise", "files"},
    "serve": LIBRARY | {"experiments"},
    "interop": LIBRARY | {"experiments", "report", "files"},
    "cli": LIBRARY | {"checks", "report", "experiments", "poise", "serve"},
    "poise": LIBRARY | {"checks", "report"},
}
"""Which parts each part may import, besides itself; "poise" is the package's own __init__ and its public names."""

WITHOUT_TORCH = {"errors", "files", "table", "spec", "metrics", "report"}
"""Parts that read numbers and tables only."""


def unit_of(module: str) -> str:
    """poise.searches.square → searches; poise → poise."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "poise"


def imported(module: str, source: str, known: set[str]) -> Iterator[str]:
    """Absolute names of all modules that the source imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            if base == "poise":  # from poise import table: a part, or one of the public names
                yield from (f"poise.{name.name}" if name.name in known else "poise" for name in node.names)
            else:
                yield base


def violations(files: dict[str, str]) -> list[str]:
    """One line for every import that points the wrong way, in modules given as name → source."""
    known = {unit_of(module) for module in files}
    found = [f"{unit}: not in the table of layers" for unit in sorted(known - set(MAY_IMPORT))]
    for module, source in files.items():
        unit = unit_of(module)
        for name in imported(module, source, known):
            root = name.split(".")[0]
            if root == "poise" and unit_of(name) != unit and unit_of(name) not in MAY_IMPORT.get(unit, set()):
                found.append(f"{module} imports {name}")
            if root in ("torch", "torchvision", "torchmetrics") and unit in WITHOUT_TORCH:
                found.append(f"{module} imports {name}")
    return found


def package() -> dict[str, str]:
    modules = {}
    for file in SOURCE.rglob("*.py"):
        parts = ("poise", *file.relative_to(SOURCE).with_suffix("").parts)
        modules[".".join(part for part in parts if part != "__init__")] = file.read_text()
    return modules


def test_no_import_points_the_wrong_way() -> None:
    modules = package()
    assert len(modules) > 50
    assert violations(modules) == []


def test_the_table_itself_points_one_way() -> None:
    """No two parts may import each other, directly or round a corner; torch-free parts see torch-free ones alone."""
    reach: dict[str, set[str]] = {}

    def below(unit: str, path: tuple[str, ...] = ()) -> set[str]:
        assert unit not in path, f"circle: {' → '.join((*path, unit))}"
        if unit not in reach:
            direct = MAY_IMPORT[unit] - {"poise"}
            reach[unit] = direct.union(*(below(other, (*path, unit)) for other in direct))
        return reach[unit]

    for unit in MAY_IMPORT:
        below(unit)
    assert set(MAY_IMPORT) >= set().union(*MAY_IMPORT.values())
    for unit in WITHOUT_TORCH:
        assert reach[unit] <= WITHOUT_TORCH


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("poise.objectives.bad", "from poise.searches.base import Ask", "poise.searches.base"),
        ("poise.objectives.bad", "import poise.attacks", "poise.attacks"),
        ("poise.objectives.bad", "from poise import searches", "poise.searches"),
        ("poise.objectives.bad", "from poise import attack", "poise"),
        ("poise.objectives.bad", "from ..searches import Square", "poise.searches"),
        ("poise.objectives.bad", "def f():\n    from poise.targets import Target", "poise.targets"),
        ("poise.constraints.bad", "from poise.objectives import UCA", "poise.objectives"),
        ("poise.searches.bad", "from poise.recipebook import recipes", "poise.recipebook"),
        ("poise.metrics.bad", "import torch", "torch"),
        ("poise.metrics.bad", "from torch.nn import functional", "torch.nn"),
        ("poise.metrics.bad", "from poise.types import Outputs", "poise.types"),
        ("poise.report.bad", "from torch import Tensor", "torch"),
        ("poise.report.bad", "from poise.targets import ModuleTarget", "poise.targets"),
        ("poise.defenses.bad", "from poise.attacks import attack", "poise.attacks"),
        ("poise.experiments.bad", "from poise.cli import main", "poise.cli"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, expected: str) -> None:
    files = dict.fromkeys(package(), "") | {module: source}
    assert violations(files) == [f"{module} imports {expected}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("poise.searches.good", "from poise.objectives.base import Bound\nimport torch\nfrom .base import Ask"),
        ("poise.report.good", "import numpy\nfrom poise import metrics\nfrom poise.errors import InputError"),
        ("poise.cli.good", "from poise import __version__, report"),
    ],
)
def test_what_is_allowed_is_allowed(module: str, source: str) -> None:
    assert violations(dict.fromkeys(package(), "") | {module: source}) == []


def test_a_part_that_nobody_placed_is_found() -> None:
    assert violations({"poise.novelty.thing": ""}) == ["novelty: not in the table of layers"]


OBSERVE = """
import json, logging, os, random, sys
import jinja2, numpy as np, plotly.subplots, polars, scipy, sklearn.calibration, torch  # what these do is theirs

def state():
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],
        "random": str(random.getstate()),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "handlers": len(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "environment": dict(os.environ),
        "hook": str(sys.excepthook),
    }

before = state()
import poise
for name in poise.__all__:
    getattr(poise, name)
after = state()
changed = [name for name in before if before[name] != after[name]]
roots = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"changed": changed, "modules": roots, "public": sorted(poise.__all__)}))
"""

HEAVY = {"torchvision", "timm", "ray", "transformers", "datasets", "onnx", "onnxruntime", "lightning_fabric", "fastapi"}
HEAVY |= {
    "uvicorn",
    "art",
    "foolbox",
    "torchattacks",
    "torchmetrics",
    "matplotlib",
    "pytorch_grad_cam",
    "selenium",
    "hypothesis",
    "pytest",
}


def test_import_poise_has_no_side_effects(tmp_path: Path) -> None:
    """In a fresh interpreter with warnings as errors, with every public name used: nothing printed, written, seeded."""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OBSERVE], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    seen = json.loads(line)
    assert seen["changed"] == []
    assert not HEAVY & set(seen["modules"])
    assert list(tmp_path.iterdir()) == []


def test_what_reads_numbers_only_loads_no_torch() -> None:
    """`import poise`, its metrics and its report; and that loading torch would be noticed."""
    watch = "import poise, poise.metrics, poise.report, poise.table; import sys; print('torch' in sys.modules)"
    for extra, expected in (("", "False"), ("import poise.types; ", "True")):
        done = subprocess.run([sys.executable, "-c", extra + watch], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_public_names_are_few_and_exist() -> None:
    import poise

    assert len(poise.__all__) <= 30
    assert all(hasattr(poise, name) for name in poise.__all__)
    assert list(poise.__all__) == sorted(poise.__all__)
    wanted = {"attack", "run_recipe", "recipes", "ModuleTarget"}
    assert wanted <= set(poise.__all__)
    assert all(hasattr(poise, part) for part in ("objectives", "constraints", "searches", "metrics", "defenses"))
    assert hasattr(poise.models, "load")
    assert hasattr(poise.data, "load")
