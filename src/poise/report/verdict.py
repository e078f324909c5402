"""The verdict: two sentences in plain words, made from the figures of the summary."""

from __future__ import annotations

from poise.report.folder import Summary
from poise.report.words import (
    FEW,
    MOVED,
    Row,
    base_rows,
    error,
    keeps_label,
    percent,
    power,
    threshold,
    value,
    worst,
)


def verdict(summary: Summary) -> str:
    """Two sentences: how far an attacker moves the confidence, and what that does at the threshold.

    The first names the recipe's power that raises the ECE of the undefended model most, label-keeping recipes before
    those that change labels; the second compares the cases accepted automatically (confidence > threshold).

    Args:
        summary: `summary.json` of a run.

    Returns:
        text of two sentences on one line.

    >>> metrics = {"accuracy_before": .9, "accuracy_after": .9, "ece_before": .02, "ece_after": .6, "labels_changed": 0,
    ...     "confidence_right_before": .97, "confidence_right_after": .31, "accepted_right_before": .8,
    ...     "accepted_right_after": .2, "accepted_wrong_before": .01, "accepted_wrong_after": .01}
    >>> row = {"recipe": "sa-uca", "defence": "none", "view": "aware", "n": 500,
    ...     "metrics": {name: {"value": number} for name, number in metrics.items()}}
    >>> summary = {"rows": [row], "recipes": {"sa-uca": {"keeps_label": True}}, "bound": {"none": .91},
    ...     "spec": {"budget": 1000}, "data": {"samples": 500}, "threshold": .9}
    >>> print(verdict(summary).split(". ")[0])
    Without changing a single predicted label, an attacker with 1,000 queries lowers the confidence on correctly
    classified images from 97 % to 31 % (ECE 0.020 → 0.60; the bound is 0.91)
    """
    rows = base_rows(summary)
    row = worst([row for row in rows if keeps_label(summary, row) and _moved(row)])
    if row is not None:
        first = _confidence_sentence(summary, row)
    else:
        row = worst([row for row in rows if not keeps_label(summary, row) and _moved(row)])
        first = _label_sentence(summary, row) if row is not None else _still_sentence(summary, rows)
    return f"{_caution(summary, first)} {_threshold_sentence(summary, row, rows)}"


def _moved(row: Row) -> bool:
    names = ("ece", "confidence_right", "confidence_wrong", "accuracy")
    return any(abs(_change(row, name)) >= MOVED for name in names)


def _change(row: Row, name: str) -> float:
    before, after = value(row, f"{name}_before"), value(row, f"{name}_after")
    return 0.0 if before is None or after is None else after - before


def _span(row: Row, name: str) -> str:
    return f"from {percent(value(row, f'{name}_before'))} to {percent(value(row, f'{name}_after'))}"


def _ece(summary: Summary, row: Row) -> str:
    """The ECE before and after; the bound holds for attacks that keep the labels only."""
    bound = summary["bound"].get(row["defence"])
    tail = "" if bound is None or not keeps_label(summary, row) else f"; the bound is {error(float(bound))}"
    return f"ECE {error(value(row, 'ece_before'))} → {error(value(row, 'ece_after'))}{tail}"


def _confidence_sentence(summary: Summary, row: Row) -> str:
    changed = value(row, "labels_changed") or 0.0
    how = (
        f"Changing {percent(changed)} of the predicted labels"
        if changed
        else "Without changing a single predicted label"
    )
    moves = []
    for name, group in (("confidence_right", "correctly"), ("confidence_wrong", "wrongly")):
        change = _change(row, name)
        if abs(change) >= MOVED:
            verb = "lowers" if change < 0 else "raises"
            moves.append((verb, f"the confidence on {group} classified images {_span(row, name)}"))
    if not moves:
        told = f"moves the mean confidence {_span(row, 'confidence')}"
    elif len(moves) == 2 and moves[0][0] == moves[1][0]:
        told = f"{moves[0][0]} {moves[0][1]} and {_again(moves[1][1])}"
    else:
        told = " and ".join(f"{verb} {what if k == 0 else _again(what)}" for k, (verb, what) in enumerate(moves))
    return f"{how}, an attacker with {power(summary, row)} {told} ({_ece(summary, row)})."


def _again(what: str) -> str:
    """The same without repeating the nouns."""
    return what.replace("the confidence on", "that on").replace("classified images", "classified ones")


def _label_sentence(summary: Summary, row: Row) -> str:
    kept = any(keeps_label(summary, other) for other in base_rows(summary))
    lead = "No recipe moved the confidence under an unchanged label, but by" if kept else "By"
    return (
        f"{lead} changing predicted labels, an attacker with {power(summary, row)} takes the accuracy"
        f" {_span(row, 'accuracy')} and the mean confidence {_span(row, 'confidence')} ({_ece(summary, row)})."
    )


def _still_sentence(summary: Summary, rows: list[Row]) -> str:
    row = worst(rows)
    told = "" if row is None else f" ({_ece(summary, row)})"
    if len(rows) == 1:
        return (
            f"The one recipe that was run, {rows[0]['recipe']}, moved neither confidence nor accuracy by a point{told}."
        )
    return f"None of the {len(rows)} recipes that were run moved confidence or accuracy by a point{told}."


def _caution(summary: Summary, sentence: str) -> str:
    n = int(summary["data"]["samples"])
    if n >= FEW:
        return sentence
    lead = (
        "On a single image, which proves little: " if n == 1 else f"On only {n} images, so take the figures as rough: "
    )
    return lead + sentence[0].lower() + sentence[1:]


def _threshold_sentence(summary: Summary, row: Row | None, rows: list[Row]) -> str:
    lead = f"At your threshold {threshold(float(summary['threshold']))},"
    row = row or worst(rows) or rows[0]
    right, wrong = (value(row, f"accepted_{name}_before") for name in ("right", "wrong"))
    right_after, wrong_after = (value(row, f"accepted_{name}_after") for name in ("right", "wrong"))
    if right is None or wrong is None or right_after is None or wrong_after is None:
        return f"{lead} this run does not say how many cases are accepted automatically."
    if right + wrong == 0 == right_after + wrong_after:
        return f"{lead} no case is accepted automatically, attacked or not."
    loss = 1 - right_after / right if right > 0 else 0.0
    if keeps_label(summary, row) and loss >= 0.005:
        share = "all" if loss == 1 else f"{percent(loss)} of"
        told = f"{share} the right answers that were accepted automatically would be sent to a person"
    elif abs(right_after - right) >= 0.0005:
        verb = "fall" if right_after < right else "rise"
        told = (
            f"right answers accepted automatically {verb} from {percent(right)} to {percent(right_after)} of all cases"
        )
    else:
        told = f"{percent(right)} of all cases would be accepted automatically and rightly, attacked or not"
    return f"{lead} {told}, and {_wrong(wrong, wrong_after)}{_worse_elsewhere(row, wrong_after, rows)}."


def _wrong(before: float, after: float) -> str:
    if percent(before) == percent(after):
        return "no wrong ones, attacked or not" if after == 0 else f"wrong ones accepted stay at {percent(after)}"
    verb = "rise" if after > before else "fall"
    return f"wrong ones accepted {verb} from {percent(before)} to {percent(after)} of all cases"


def _worse_elsewhere(row: Row, wrong_after: float, rows: list[Row]) -> str:
    other = max(rows, key=lambda r: value(r, "accepted_wrong_after") or 0.0)
    most = value(other, "accepted_wrong_after") or 0.0
    if other is row or most < wrong_after + MOVED:
        return ""
    return f" (with {other['recipe']} they reach {percent(most)})"
