"""The checks of the evaluation: each has a run that triggers it and one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from audit_cases import Silent, audit, model, spec, write_data

from poise.errors import RunError
from poise.experiments import run_audit
from poise.experiments.trust import by_answers, by_attack, by_figures, by_temperature
from poise.types import OutputKind, Outputs

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

NAMES = (
    "clean calibration",
    "saturation",
    "sample size",
    "randomness",
    "output kind",
    "post-hoc step",
    "gradients",
    "black box against white box",
    "aware against unaware",
    "defence the attack did not see",
    "still improving",
    "budget",
    "labels at batch size 1",
    "labels kept",
    "illusion of robustness",
)

CALM: dict[str, Any] = {"recipes": ("pgd-oca",), "eps": 0.005, "budget": 12, "batch_size": 64}
"""200 images, an attack that hardly moves them: nothing to warn of."""

TRIGGERS: list[tuple[str, dict[str, Any]]] = [
    ("saturation", {"model": model("saturated")}),
    ("sample size", {"samples": 12, "eps": 0.1, "recipes": ("sa-uca",)}),
    ("randomness", {"model": model("noisy")}),
    ("output kind", {"model": model("percent")}),
    ("output kind", {"model": model("sigmoid")}),
    ("output kind", {"model": model("softmax_twice", "")}),
    ("post-hoc step", {"model": model("rounded"), "recipes": ("sa-uca",)}),
    ("post-hoc step", {"model": model("rounded_probabilities")}),
    ("post-hoc step", {"model": model("clipped")}),
    ("gradients", {"model": model("detached")}),
    ("black box against white box", {
        "model": model("detached"), "recipes": ("pgd-uca", "sa-uca"), "eps": 0.1, "budget": 20
    }),
    ("still improving", {"recipes": ("pgd-uca",), "steps": 30, "eps": 0.1, "budget": 50}),
    ("budget", {"recipes": ("sa-uca",), "eps": 0.1, "budget": 20}),
    ("budget", {"recipes": ("pgd-uca",), "eps": 0.1, "budget": 4}),
    ("budget", {"recipes": ("standard",), "eps": 0.1, "budget": 20}),
    ("labels at batch size 1", {"model": model("batch_dependent"), "samples": 8}),
    ("illusion of robustness", {"model": model("saturated"), "eps": 0.1}),
]  # fmt: skip


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


@pytest.mark.parametrize(("name", "given"), TRIGGERS)
def test_each_check_has_a_trigger(tmp_path: Path, right: str, name: str, given: dict[str, Any]) -> None:
    assert name in _warned(_checks(tmp_path / "run", right, **given))


def test_all_triggers_are_there() -> None:
    """The others are triggered by tables made by hand, below."""
    by_hand = {"clean calibration", "aware against unaware", "defence the attack did not see", "labels kept"}
    assert {name for name, _ in TRIGGERS} == set(NAMES) - by_hand


@pytest.mark.parametrize(
    ("given", "figure"),
    [
        ({"recipes": ("sa-uca",)}, "no goal was attacked both with and without gradients"),
        ({"recipes": ("pgd",)}, "no goal was attacked both with and without gradients"),
        (
            {"recipes": ("sa-uca", "pgd-uca"), "eps": 0.1},
            "underconfidence: best black box sa-uca reaches mean confidence",
        ),
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
    check = by_figures.labels_kept([row])
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
    check = by_figures.aware_against_unaware(rows)
    assert check.warned is warned
    assert (f"{recipe} × cs: {unaware:.3f} unaware, {aware:.3f} aware" in check.figure) is warned


@pytest.mark.parametrize(
    ("aware", "unaware", "warned"), [((0.8, 0.2), (0.1, 0.3), True), ((0.3, 0.2), (0.25, 0.1), False)]
)
def test_a_defence_the_attack_did_not_see(aware, unaware, warned: bool) -> None:
    """The worst attack of each view counts; one on labels does not."""
    rows = [
        {"recipe": recipe, "defence": "aaa", "view": view, "metrics": {"ece_after": {"value": value}}}
        for view, values in (("aware", aware), ("unaware", unaware))
        for recipe, value in zip(("sa-mma", "sa-uca"), values, strict=True)
    ]
    check = by_figures.hidden_defence([*rows, {**rows[0], "recipe": "pgd", "metrics": {"ece_after": {"value": 0.99}}}])
    assert check.warned is warned
    assert ("aaa leaves 0.300 unaware, 0.800 aware" in check.figure) is warned


def _row(recipe: str, **figures: float) -> dict[str, Any]:
    return {"recipe": recipe, "metrics": {name: {"value": value} for name, value in figures.items()}}


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ([_row("confsmooth", confidence_after=0.31), _row("sa-confsmooth", confidence_after=0.19)], True),
        ([_row("confsmooth", confidence_after=0.19), _row("sa-confsmooth", confidence_after=0.31)], False),
        ([_row("pgd-oca", confidence_after=0.7), _row("sa-oca", confidence_after=0.9)], True),
        ([_row("pgd-oca", confidence_after=0.9), _row("sa-oca", confidence_after=0.7)], False),
        ([_row("pgd", accuracy_after=0.4), _row("square", accuracy_after=0.2)], True),
        ([_row("pgd", accuracy_after=0.2), _row("square", accuracy_after=0.4)], False),
        ([_row("standard", ece_after=0.5), _row("standard-light", ece_after=0.6)], True),
        # another goal, another ball, a goal that is met: not to be compared
        ([_row("confsmooth", confidence_after=0.3), _row("standard-light", ece_after=0.9)], False),
        ([_row("pgd", accuracy_after=0.4), _row("negative", accuracy_after=0.0)], False),
        ([_row("pgd-rca", ece_after=0.1, confidence_after=0.5), _row("sa-rca", ece_after=0.4)], False),
    ],
)
def test_like_is_compared_with_like(rows: list[dict[str, Any]], warned: bool) -> None:
    assert by_figures.black_against_white(rows).warned is warned


@pytest.mark.skipif(not (SHARED / "checkpoints").is_dir(), reason=f"needs the real images and weights in {SHARED}")
def test_confsmooth_loses_to_square_with_its_loss(tmp_path: Path) -> None:
    """ResNet-20, eps 0.05, 1,000 queries: the step-back stalls at the boundary, random search does not."""
    made = spec(
        f"npz:{SHARED / 'cifar10_test_lossless_subset.npz'}", defences=("none",), eps=0.05, budget=1000, samples=3,
        model=f"builtin:resnet20-cifar10?weights={SHARED / 'checkpoints' / 'cifar10_resnet20.safetensors'}",
        recipes=("confsmooth", "sa-confsmooth"),
    )  # fmt: skip
    checks = {check["name"]: check for check in audit(made, tmp_path / "run")["checks"]}
    assert checks["black box against white box"]["status"] == "warned"
    assert checks["illusion of robustness"]["status"] == "passed"


def test_calm_models_that_look_a_little_like_trouble(tmp_path: Path, right: str) -> None:
    """Log-probabilities are as good as logits, saturated probabilities lie on every grid."""
    checks = _checks(tmp_path / "logs", right, model=model("log_probabilities"))
    assert checks["output kind"]["status"] == "passed"
    assert "log-probabilities" in checks["output kind"]["figure"]
    checks = _checks(tmp_path / "sure", right, model=model("saturated"))
    assert checks["post-hoc step"]["status"] == checks["output kind"]["status"] == "passed"


@pytest.mark.parametrize("decimals", range(6))
def test_rounded_to_any_number_of_decimals(decimals: int) -> None:
    """Of scores of this size three decimals are told from float32 numbers; unrounded scores never look rounded."""
    scores = torch.randn(64, 10, generator=torch.Generator().manual_seed(decimals)) * 8
    found = by_answers.rounded(Outputs((scores * 10**decimals).round() / 10**decimals))
    assert (found or "").startswith(f"the scores lie on a grid of {decimals} decimal") is (decimals <= 3)
    assert by_answers.rounded(Outputs(scores)) is None


def test_clipped_needs_many_of_the_same_score() -> None:
    scores = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert by_answers.clipped(Outputs(scores)) is None
    assert by_answers.clipped(Outputs(scores.clamp(max=0.5))) is not None
    sure = torch.eye(4)[torch.arange(50) % 4]
    assert by_answers.clipped(Outputs(sure, OutputKind.PROBABILITIES)) is None, "certainty is no clipping"
    assert by_answers.clipped(Outputs(sure * 0.96 + 0.01, OutputKind.PROBABILITIES)) is not None


def test_rows_all_of_the_same_scores_say_nothing_of_their_kind() -> None:
    flat = Outputs(torch.full((8, 10), 0.25))
    assert by_answers.misdeclared(flat, torch.zeros(8, dtype=torch.int64)) is None


def test_an_untrained_model_is_not_called_a_softmax() -> None:
    """All logits within 1, and as few right as chance has it; one that is right would be."""
    scores = torch.rand(64, 10, generator=torch.Generator().manual_seed(0))
    assert by_answers.misdeclared(Outputs(scores), torch.arange(64) % 10) is None
    assert by_answers.misdeclared(Outputs(scores), scores.argmax(dim=1)) is not None


def test_what_is_late_and_what_moved() -> None:
    rows = pl.DataFrame({"stop": ["budget"] * 4, "improved_at": [91, 90, 100, 5], "queries": [100] * 4})
    assert by_attack.late(rows) == 0.5
    assert by_attack.late(rows.with_columns(stop=pl.lit("success"))) == 0
    curve = pl.DataFrame(
        [
            {"id": i, "queries": q, "label": 1, "prediction": 1, "confidence": c}
            for q, c in ((1, 0.9), (50, 0.8), (100, 0.7))
            for i in range(5)
        ]
    )
    assert by_attack.last_doubling(curve, 100) == ("mean confidence", pytest.approx(0.1))
    assert by_attack.last_doubling(curve, 2)[1] == pytest.approx(0.2), "all since the first query"


@pytest.mark.parametrize(
    ("recipe", "gradients", "cut"),
    [("pgd-uca", 3, True), ("standard", 19, True), ("standard", 9, False), ("sa-uca", 0, False)],
)
def test_the_budget_in_mid_step(recipe: str, gradients: int, cut: bool) -> None:
    stopped = pl.DataFrame({"queries": [20], "gradients": [gradients]})
    assert by_attack.in_mid_step(stopped, recipe) is cut


# ---- the illusion of robustness ----


def test_the_illusion_is_computed_once(tmp_path: Path, right: str, monkeypatch) -> None:
    """A run that goes on reads what lies in its folder; what is damaged there is told in one line."""
    made, calls = spec(right, defences=("none",), **{**CALM, "model": model("saturated"), "eps": 0.1}), []
    whole = by_temperature.illusion_of_robustness
    monkeypatch.setattr(by_temperature, "illusion_of_robustness", lambda *a, **k: calls.append(1) or whole(*a, **k))
    first = audit(made, tmp_path / "run")
    again = audit(made, tmp_path / "run", resume=True)
    assert calls == [1]
    assert first["checks"] == again["checks"]
    stored = json.loads((tmp_path / "run" / "illusion.json").read_text(encoding="utf-8"))
    assert stored["found"]
    assert stored["samples"] == 64
    assert stored["plain"]["accuracy"] > 0.8 > 0.2 > min(stored["cal"]["accuracy"], stored["opt"]["accuracy"])
    for damage in ("{", "{}", "[]"):
        (tmp_path / "run" / "illusion.json").write_text(damage)
        with pytest.raises(RunError, match=r"^illusion.json: '.*' is damaged \(\w+\); delete it, give --resume$"):
            audit(made, tmp_path / "run", resume=True)


@pytest.mark.parametrize(("factory", "heard"), [("saturated", 1), ("linear", 0)])
def test_a_found_illusion_is_told_at_once(tmp_path: Path, right: str, factory: str, heard: int) -> None:
    listener = Silent()
    made = spec(right, defences=("none",), **{**CALM, "model": model(factory), "eps": 0.1})
    run_audit(made, tmp_path / "run", resume=False, listener=listener)
    warnings = [line for line in listener.notes if line.startswith("WARNING: Robustness is an illusion of temperature")]
    assert len(warnings) == heard
    assert all(line.count("%") == 2 for line in warnings), "the two figures"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (model("scores_only", ""), "not tested: the attacker gets scores alone"),
        (model("through_numpy"), "not tested: the model gives no gradients"),
    ],
)
def test_no_illusion_is_looked_for_without_gradients(tmp_path: Path, right: str, address: str, reason: str) -> None:
    check = _checks(tmp_path / "run", right, model=address, recipes=("sa-oca",))["illusion of robustness"]
    assert check["status"] == "passed"
    assert check["figure"].startswith(reason)
