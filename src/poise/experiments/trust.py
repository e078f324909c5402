"""Checks of the evaluation itself: signs that a figure understates the risk, or means less than it seems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from poise.experiments.run_folder import RunFolder
from poise.objectives import RCA, KeepLabel
from poise.recipebook import recipe as recipe_named
from poise.targets import DifferentiableTarget
from poise.types import Access

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

STILL_MOVING = 0.02
"""A mean confidence that moves more than this in the second half of an attack has not converged."""

RE_PREDICTED = 32
"""Attacked images that are predicted again, one at a time."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Args:
        name: what is checked.
        warned: it found something.
        figure: what it saw.
        advice: what to do about it.
    """

    name: str
    warned: bool
    figure: str
    advice: str

    def plain(self) -> dict[str, str]:
        """As it stands in summary.json."""
        status = "warned" if self.warned else "passed"
        return {"name": self.name, "status": status, "figure": self.figure, "advice": self.advice}


def trust(prepared: Prepared, folder: RunFolder, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Every check on a complete run; `rows` are the summary's."""
    undefended = [row for row in rows if row["defence"] == "none"]
    first = undefended[0]["metrics"]
    checks = [
        _clean_calibration(first),
        _saturation(folder.rows(prepared.spec.recipes[0], "none", "aware")),
        _sample_size(undefended),
        _deterministic(prepared),
        _gradients(prepared),
        _black_against_white(undefended),
        _aware_against_unaware(rows),
        _converged(folder, prepared.spec.recipes),
        _single_predictions(prepared, folder, undefended),
        _labels_kept(rows),
    ]
    return [check.plain() for check in checks]


def _clean_calibration(figures: dict[str, Any]) -> Check:
    ece = figures["ece_before"]["value"]
    return Check(
        "clean calibration",
        ece > 0.1,
        f"clean ECE {ece:.3f}",
        "The model is miscalibrated before any attack; read the change, not the attacked figure alone, "
        "and calibrate it first.",
    )


def _saturation(rows: pl.DataFrame) -> Check:
    share = float((rows["confidence_before"] > 1 - 1e-6).to_numpy().mean())
    return Check(
        "saturation",
        share > 0.2,
        f"{share:.1%} of the clean confidences lie above 1 - 1e-6",
        "Gradients vanish and scores carry little information there; try more budget, and temperature scaling "
        "to see whether the resistance is real.",
    )


def _sample_size(undefended: list[dict[str, Any]]) -> Check:
    widths = [
        (row["metrics"]["ece_after"]["high"] - row["metrics"]["ece_after"]["low"]) / 2
        for row in undefended
        if row["metrics"]["ece_after"]["low"] is not None
    ]
    widest = max(widths, default=1.0)
    return Check(
        "sample size",
        widest > 0.05,
        f"n = {undefended[0]['n']}, attacked ECE known to ±{widest:.3f} at worst",
        "Take more samples before comparing models or setting a gate on these figures.",
    )


def _deterministic(prepared: Prepared) -> Check:
    images, _, ids = next(iter(prepared.attacked[:16].batches(16)))
    device = prepared.target.device
    with prepared.target.session(0):
        answers = [prepared.target.query(images.to(device), ids.to(device)).scores for _ in range(3)]
    spread = max(float((answer - answers[0]).abs().max()) for answer in answers[1:])
    return Check(
        "randomness",
        spread > 1e-4,
        f"the same images answered three times differ by at most {spread:.2g}",
        "The model is randomised: attacks that trust a single answer are misled; average several answers.",
    )


def _gradients(prepared: Prepared) -> Check:
    target = prepared.target
    whitebox = any(recipe_named(name).access == Access.GRADIENTS for name in prepared.spec.recipes)
    if not whitebox or not isinstance(target, DifferentiableTarget):
        return Check("gradients", False, "no white-box recipe was run", "")
    images, _, ids = next(iter(prepared.attacked[:16].batches(16)))
    with target.session(0):
        _, slopes = target.gradient(images.to(target.device), ids.to(target.device), lambda answer: answer.confidence)
    flat = int((slopes.flatten(1) == 0).all(dim=1).sum())
    return Check(
        "gradients",
        flat > 0.2 * len(images),
        f"the confidence has no gradient at all at {flat} of {len(images)} clean images",
        "White-box recipes cannot move these images, which says nothing about the model: look for a step that is "
        "detached or rounded, and take the black-box figures.",
    )


def _black_against_white(undefended: list[dict[str, Any]]) -> Check:
    best: dict[bool, tuple[float, str]] = {}
    for row in undefended:
        found = recipe_named(row["recipe"])
        if found.keeps_label:
            kind, ece = found.access == Access.GRADIENTS, row["metrics"]["ece_after"]["value"]
            best[kind] = max(best.get(kind, (0.0, "")), (ece, row["recipe"]))
    if len(best) < 2:
        return Check("black box against white box", False, "only one kind was run", "")
    (white, white_name), (black, black_name) = best[True], best[False]
    return Check(
        "black box against white box",
        black > white + 0.01,
        f"best black box {black_name} reaches ECE {black:.3f}, best white box {white_name} {white:.3f}",
        "The white-box figures understate the risk, their gradients mislead or stall; "
        "take the black-box figure, and more --steps.",
    )


def _wants_miscalibration(recipe: str) -> bool:
    """More ECE is what the attack wants; a random goal that is met exactly can have less than one that is missed."""
    objective = recipe_named(recipe).objective
    return isinstance(objective, KeepLabel) and not isinstance(objective.objective, RCA)


def _aware_against_unaware(rows: list[dict[str, Any]]) -> Check:
    """An attacker who knows the defence can always show it the images made against the bare model."""
    ece = {(row["recipe"], row["defence"], row["view"]): row["metrics"]["ece_after"]["value"] for row in rows}
    gaps = {
        f"{recipe} × {defence}: {found:.3f} unaware, {ece[recipe, defence, 'aware']:.3f} aware": found
        - ece[recipe, defence, "aware"]
        for (recipe, defence, view), found in ece.items()
        if view == "unaware" and _wants_miscalibration(recipe)
    }
    misled = [text for text, gap in gaps.items() if gap > 0.02]
    return Check(
        "aware against unaware",
        bool(misled),
        "; ".join(misled) or "no defence held better against the attacker who knows it",
        "The defence misleads the search rather than removing the risk; take the worse of the two columns.",
    )


def _converged(folder: RunFolder, recipes: tuple[str, ...]) -> Check:
    """Which attacks still moved the mean confidence over the second half of the queries they used."""
    moving = []
    for recipe in recipes:
        used = int(folder.rows(recipe, "none", "aware")["queries"].to_numpy().max())
        means = folder.curve(recipe, "none").group_by("queries").agg(pl.col("confidence").mean()).sort("queries")
        halfway = means.filter(pl.col("queries") <= max(used // 2, 1))["confidence"][-1]
        moved = abs(float(means["confidence"][-1]) - float(halfway))
        if moved > STILL_MOVING:
            moving.append(f"{recipe} by {moved:.3f}")
    return Check(
        "convergence",
        bool(moving),
        f"over the second half of the queries the mean confidence moved: {', '.join(moving) or 'nowhere'}",
        "These attacks were stopped while they still gained: their figures understate the risk; "
        "give black-box recipes more --budget and white-box ones more --steps.",
    )


def _single_predictions(prepared: Prepared, folder: RunFolder, undefended: list[dict[str, Any]]) -> Check:
    """Labels of the strongest label-keeping attack's images, predicted one image at a time."""
    keeping = [row for row in undefended if recipe_named(row["recipe"]).keeps_label]
    if not keeping:
        return Check("labels at batch size 1", False, "no label-keeping recipe was run", "")
    strongest = max(keeping, key=lambda row: row["metrics"]["ece_after"]["value"])["recipe"]
    stored, rows = folder.images(strongest, "none", 0), folder.rows(strongest, "none", "aware")
    count = min(RE_PREDICTED, len(stored["images"]))
    device = prepared.target.device
    images = stored["images"][:count].to(device)
    again = [int(prepared.target.query(image[None], stored["ids"][:1].to(device)).labels[0]) for image in images]
    flips = sum(now != before for now, before in zip(again, rows["prediction_before"][:count], strict=True))
    return Check(
        "labels at batch size 1",
        flips > 0,
        f"{flips} of {count} images of {strongest} change their label when predicted alone",
        "Results sit on the decision boundary closer than this model's numerical noise; raise label_margin.",
    )


def _labels_kept(rows: list[dict[str, Any]]) -> Check:
    kept = [row for row in rows if row["view"] == "aware" and recipe_named(row["recipe"]).keeps_label]
    worst = max((row["metrics"]["labels_changed"]["value"] for row in kept), default=0.0)
    return Check(
        "labels kept",
        worst > 0,
        f"{worst:.1%} of the labels changed at worst",
        "A label-keeping attack must change none; please report this as a defect.",
    )
