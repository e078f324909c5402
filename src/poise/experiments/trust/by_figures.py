"""Checks that need no more than the summary's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poise.experiments.trust.base import Check, goal, wants_miscalibration, whitebox
from poise.recipebook import recipe as recipe_named

MORE = 0.01
"""A black-box attack that does better than the white-box ones by more than this shows that gradients mislead."""

MISLED = 0.02
"""An attacker who knows the defence and does worse than one who does not by more than this was misled by it."""

HIDDEN = 0.1
"""A defence that loses more than this to being known is no defence against who knows it."""

Row = dict[str, Any]


def clean_calibration(figures: dict[str, Any]) -> Check:
    """The model is calibrated before any attack."""
    ece = figures["ece_before"]["value"]
    return Check(
        "clean calibration",
        ece > 0.1,
        f"clean ECE {ece:.3f}",
        "The model is miscalibrated before any attack; read the change, not the attacked figure alone, "
        "and calibrate it first.",
    )


def sample_size(undefended: list[Row]) -> Check:
    """The intervals are narrow enough to compare models."""
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


@dataclass(frozen=True, slots=True)
class _Measure:
    """How the attacks of one goal are compared: a metric, what it is called, and whether more of it is stronger."""

    metric: str
    name: str
    sign: int


_MEASURES = {
    "underconfidence": _Measure("confidence_after", "mean confidence", -1),
    "overconfidence": _Measure("confidence_after", "mean confidence", 1),
    "miscalibration": _Measure("ece_after", "ECE", 1),
    "wrong labels": _Measure("accuracy_after", "accuracy", -1),
}


def black_against_white(undefended: list[Row]) -> Check:
    """No goal is reached better without gradients than with them: they include what a black box sees."""
    name, told, misled = "black box against white box", [], False
    for wanted, measure in _MEASURES.items():
        best: dict[bool, tuple[float, str]] = {}
        for row in undefended:
            if goal(row["recipe"]) == wanted:
                kind, strength = whitebox(row["recipe"]), measure.sign * row["metrics"][measure.metric]["value"]
                best[kind] = max(best.get(kind, (-2.0, "")), (strength, row["recipe"]))
        if len(best) == 2:
            (white, white_name), (black, black_name) = best[True], best[False]
            misled = misled or black > white + MORE
            told.append(
                f"{wanted}: best black box {black_name} reaches {measure.name} {abs(black):.3f}, "
                f"best white box {white_name} {abs(white):.3f}"
            )
    if not told:
        return Check(name, False, "no goal was attacked both with and without gradients", "")
    return Check(
        name,
        misled,
        "; ".join(told),
        "A white-box attack that loses to a black-box one was misled by its gradients or stalled, and understates the "
        "risk; take the black-box figure, the recipe standard, and more --steps.",
    )


def _ece_by_view(rows: list[Row], view: str) -> dict[tuple[str, str], float]:
    return {
        (row["recipe"], row["defence"]): row["metrics"]["ece_after"]["value"]
        for row in rows
        if row["view"] == view and wants_miscalibration(row["recipe"])
    }


def aware_against_unaware(rows: list[Row]) -> Check:
    """An attacker who knows the defence can always show it the images made against the bare model."""
    aware, unaware = (_ece_by_view(rows, view) for view in ("aware", "unaware"))
    misled = [
        f"{recipe} × {defence}: {found:.3f} unaware, {aware[recipe, defence]:.3f} aware"
        for (recipe, defence), found in unaware.items()
        if found > aware[recipe, defence] + MISLED
    ]
    return Check(
        "aware against unaware",
        bool(misled),
        "; ".join(misled) or "no defence held better against the attacker who knows it",
        "The defence misleads the search rather than removing the risk; take the worse of the two columns.",
    )


def hidden_defence(rows: list[Row]) -> Check:
    """How much of each defence is lost once the worst attack knows it."""
    aware, unaware = (_ece_by_view(rows, view) for view in ("aware", "unaware"))
    found = {}
    for defence in dict.fromkeys(defence for _, defence in unaware):
        seen, unseen = (max(ece for (_, d), ece in part.items() if d == defence) for part in (aware, unaware))
        if seen > unseen + HIDDEN:
            found[defence] = f"{defence} leaves {unseen:.3f} unaware, {seen:.3f} aware"
    return Check(
        "defence the attack did not see",
        bool(found),
        "; ".join(found.values()) or "no defence does much better against who does not know it",
        "The defence looks strong only while the attacker does not know it; quote the aware column alone.",
    )


def labels_kept(rows: list[Row]) -> Check:
    """Label-keeping attacks keep every label."""
    kept = [row for row in rows if row["view"] == "aware" and recipe_named(row["recipe"]).keeps_label]
    worst = max((row["metrics"]["labels_changed"]["value"] for row in kept), default=0.0)
    return Check(
        "labels kept",
        worst > 0,
        f"{worst:.1%} of the labels changed at worst",
        "A label-keeping attack must change none; please report this as a defect.",
    )
