"""The checks of the evaluation: each has a run that triggers it and one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audit_cases import audit, model, spec, write_data

from poise.experiments import trust

NAMES = (
    "clean calibration",
    "saturation",
    "sample size",
    "randomness",
    "gradients",
    "black box against white box",
    "aware against unaware",
    "convergence",
    "labels at batch size 1",
    "labels kept",
)

CALM: dict[str, Any] = {"recipes": ("pgd-oca",), "eps": 0.005, "budget": 4, "batch_size": 64}
"""200 images, an attack that hardly moves them: nothing to warn of."""

TRIGGERS: dict[str, dict[str, Any]] = {
    "saturation": {"model": model("saturated")},
    "sample size": {"samples": 12, "eps": 0.1, "recipes": ("sa-uca",)},
    "randomness": {"model": model("noisy")},
    "gradients": {"model": model("detached")},
    "black box against white box": {
        "model": model("detached"), "recipes": ("pgd-uca", "sa-uca"), "eps": 0.1, "budget": 20
    },
    "convergence": {"recipes": ("sa-uca",), "eps": 0.1, "budget": 20},
    "labels at batch size 1": {"model": model("batch_dependent"), "samples": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("trust") / "calibrated.npz", 200, seed=3)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model is always right, and so too cautious by as much as its confidence is below 1."""
    return write_data(tmp_path_factory.mktemp("trust") / "right.npz", 200, seed=3, labels="right")


def _checks(out: Path, data: str, **given: Any) -> dict[str, dict[str, str]]:
    summary = audit(spec(data, defences=("none",), **{**CALM, **given}), out)
    found = {check["name"]: check for check in summary["checks"]}
    assert tuple(found) == NAMES
    assert all(check["figure"] and "\n" not in check["figure"] + check["advice"] for check in found.values())
    return found


def _warned(checks: dict[str, dict[str, str]]) -> set[str]:
    assert all(check["advice"] for check in checks.values() if check["status"] == "warned")
    return {name for name, check in checks.items() if check["status"] == "warned"}


def test_a_calm_run_warns_of_nothing(tmp_path: Path, calibrated: str) -> None:
    """All 200 images are right or wrong as the model says; the interval of the error is as wide as their number."""
    assert _warned(_checks(tmp_path / "run", calibrated)) <= {"sample size"}


def test_a_calm_run_of_a_model_that_is_always_right(tmp_path: Path, right: str) -> None:
    assert _warned(_checks(tmp_path / "run", right)) == {"clean calibration"}


@pytest.mark.parametrize("name", TRIGGERS)
def test_each_check_has_a_trigger(tmp_path: Path, right: str, name: str) -> None:
    assert name in _warned(_checks(tmp_path / "run", right, **TRIGGERS[name]))


@pytest.mark.parametrize(
    ("given", "figure"),
    [
        ({"recipes": ("sa-uca",)}, "only one kind was run"),
        ({"recipes": ("pgd",)}, "only one kind was run"),
        ({"recipes": ("sa-uca", "pgd-uca"), "eps": 0.1}, "best black box sa-uca reaches ECE"),
    ],
)
def test_black_box_and_white_box_compared_where_both_were_run(tmp_path, right: str, given, figure: str) -> None:
    """A black box with four queries finds less than ten steps along a true gradient."""
    check = _checks(tmp_path / "run", right, **given)["black box against white box"]
    assert check["status"] == "passed"
    assert check["figure"].startswith(figure)


def test_gradients_are_not_asked_for_without_a_white_box_recipe(tmp_path: Path, right: str) -> None:
    check = _checks(tmp_path / "run", right, model=model("detached"), recipes=("sa-uca",))["gradients"]
    assert (check["status"], check["figure"]) == ("passed", "no white-box recipe was run")


def test_labels_at_batch_size_one_needs_a_recipe_that_keeps_labels(tmp_path: Path, right: str) -> None:
    check = _checks(tmp_path / "run", right, recipes=("pgd",))["labels at batch size 1"]
    assert (check["status"], check["figure"]) == ("passed", "no label-keeping recipe was run")


@pytest.mark.parametrize(
    ("recipe", "view", "share", "warned"),
    [
        ("sa-mma", "aware", 0.01, True),
        ("sa-mma", "aware", 0.0, False),
        ("sa-mma", "unaware", 0.5, False),  # a defence may move labels that its attacker did not see
        ("pgd", "aware", 0.9, False),
    ],
)
def test_labels_kept(recipe: str, view: str, share: float, warned: bool) -> None:
    """No attack of poise can trigger it, for results are verified: a table made by hand does."""
    row = {"recipe": recipe, "view": view, "metrics": {"labels_changed": {"value": share}}}
    check = trust._labels_kept([row])
    assert check.warned is warned
    assert check.plain()["status"] == ("warned" if warned else "passed")


@pytest.mark.parametrize(
    ("recipe", "aware", "unaware", "warned"),
    [
        ("sa-mma", 0.10, 0.13, True),
        ("sa-mma", 0.10, 0.11, False),  # within what two searches differ by
        ("sa-mma", 0.30, 0.10, False),
        ("pgd", 0.10, 0.90, False),  # an attack on labels does not set out to raise the error
    ],
)
def test_aware_against_unaware(recipe: str, aware: float, unaware: float, warned: bool) -> None:
    rows = [
        {"recipe": recipe, "defence": "cs", "view": view, "metrics": {"ece_after": {"value": value}}}
        for view, value in (("aware", aware), ("unaware", unaware))
    ]
    check = trust._aware_against_unaware(rows)
    assert check.warned is warned
    assert (f"{recipe} × cs: {unaware:.3f} unaware, {aware:.3f} aware" in check.figure) is warned
