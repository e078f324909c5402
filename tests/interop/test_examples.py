"""The GitHub workflow: valid YAML, and its one command is one that poise takes, on a model and data that are here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_cases import poise

from poise.experiments import Gate

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "github-action"


def workflow() -> dict[Any, Any]:
    found = yaml.safe_load((FOLDER / "confidence.yml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_workflow_has_what_github_asks_for() -> None:
    found = workflow()
    assert set(found) == {"name", True, "permissions", "jobs"}, "YAML reads the key on as true"
    assert set(found[True]) == {"pull_request", "schedule"}
    for job in found["jobs"].values():
        assert re.fullmatch(r"ubuntu-\w+", job["runs-on"])
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


@pytest.mark.parametrize(("limit", "code"), [("1.0", 0), ("0.0", 1)])
def test_its_command_runs_and_its_gate_decides(limit: str, code: int, tmp_path: Path) -> None:
    (line,) = (step["run"] for step in workflow()["jobs"]["audit"]["steps"] if step.get("name") == "Audit")
    program, *words = shlex.split(line)
    assert program == "poise"
    assert "\n" not in line
    gate = (FOLDER / "gate.toml").read_text(encoding="utf-8")
    (tmp_path / "gate.toml").write_text(re.sub(r"^ece_after = .*$", f"ece_after = {limit}", gate, flags=re.MULTILINE))
    here = {
        "--model": "builtin:digits", "--data": "builtin:digits", "--recipes": "sa-mma", "--samples": "16",
        "--gate": str(tmp_path / "gate.toml"), "--out": str(tmp_path / "audit"),
    }  # fmt: skip
    given = [here.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    found = poise(*given, "--budget", "20", "--bootstrap", "20")
    assert found.code == code, found.err
    assert ("ece_after must be at most 0" in found.err) == (code == 1)
    for step in workflow()["jobs"]["audit"]["steps"]:
        for kept in step.get("with", {}).get("path", "").split():
            assert (tmp_path / kept).is_file()


def test_the_gate_is_a_gate() -> None:
    gate = Gate.read(FOLDER / "gate.toml")
    assert set(gate.most) == {"ece_after"}
    assert set(gate.least) == {"accuracy_after"}
