"""The fixture in a test run of its own: what passes, what fails and with which words; the examples are real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from poise.interop.pytest_plugin import Audited

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import pytest

@pytest.fixture(scope="module")
def audit(poise_audit):
    return poise_audit("builtin:digits", "builtin:digits", recipes=("sa-mma",), samples=16, budget=20, bootstrap=20)

def test_kept(audit):
    audit.check(most={"ece_after": 1.0}, least={"accuracy_after": 0.0})
    assert audit.value("accuracy_after", "sa-mma") == audit.value("accuracy_before", "sa-mma")
    assert [row["defence"] for row in audit.summary["rows"]] == ["none"]
    assert (audit.folder / "summary.json").is_file()

def test_broken(audit):
    audit.check(most={"ece_after": 0.0001}, least={"accuracy_after": 1.1})

def test_broken_file(audit, tmp_path):
    (tmp_path / "gate.toml").write_text("ece_after = 0.0001")
    audit.check(tmp_path / "gate.toml")

def test_unknown_metric(audit):
    audit.check(most={"ece_afer": 0.3})

def test_unknown_row(audit):
    audit.value("ece_after", "sa-mm")

def test_no_limit(audit):
    audit.check()

def test_unknown_option(poise_audit):
    poise_audit("builtin:digits", "builtin:digits", sample=3)
"""


def pytest_run(folder: Path, *files: str) -> str:
    """What a fresh pytest says of these files; the plugin is found by its entry point where poise is installed so."""
    known = any(point.value == "poise.interop.pytest_plugin" for point in entry_points(group="pytest11"))
    plugin = [] if known else ["-p", "poise.interop.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--basetemp", str(folder / "t")]
    done = subprocess.run(
        [*command, *plugin, *files],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    return done.stdout


def test_limits_in_a_suite_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "test_gate.py").write_text(TESTS)
    shutil.copy(ROOT / "examples" / "pytest" / "test_confidence.py", tmp_path)
    told = pytest_run(tmp_path, "test_gate.py", "test_confidence.py")
    assert re.search(r"^6 failed, 3 passed", told, re.MULTILINE), told
    for line in (
        r"^sa-mma × none: ece_after must be at most 0.0001, got 0\.\d+$",
        r"^sa-mma × none: accuracy_after must be at least 1.1, got (0\.\d+|1)$",
        r"^report: .*report\.html$",
        r"gate: metric: .* got 'ece_afer' \(did you mean ece_after",
        r"poise_audit: row: .* got 'sa-mm × none' \(did you mean sa-mma × none\?",
        r"poise_audit: check needs a gate file, or most= and least=, and not both",
        r"InputError: sample: extra inputs are not permitted, got 3",
    ):
        assert re.search(line, told, re.MULTILINE), (line, told)
    assert all(Path(page).is_file() for page in re.findall(r"^report: (.*)$", told, re.MULTILINE))


def test_the_entry_point_names_the_fixture() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module = import_module(stated["project"]["entry-points"]["pytest11"]["poise"])
    assert hasattr(module, "poise_audit")


def test_the_plugin_keeps_other_peoples_test_runs_fast() -> None:
    """It is loaded by every test run in the environment: nothing heavy before the fixture is used."""
    code = (
        "import sys, pytest; import poise.interop.pytest_plugin; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_limit_on_what_is_undefined_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {"recipe": "pgd", "defence": "none", "view": "aware", "metrics": {"ece_after": {"value": None}}}
    audit = Audited({"rows": [row]}, tmp_path)
    monkeypatch.setattr(Audited, "report", lambda self: "page")
    assert audit.value("ece_after", "pgd") is None
    with pytest.raises(pytest.fail.Exception, match="pgd × none: ece_after must be at most 1, got undefined"):
        audit.check(most={"ece_after": 1.0})
