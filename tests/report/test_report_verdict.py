"""The verdict: two sentences whose figures are those of the summary, in every case that can occur."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from poise.report import verdict

MMA = {
    "accuracy_before": 0.978,
    "accuracy_after": 0.978,
    "ece_before": 0.015,
    "ece_after": 0.61,
    "confidence_before": 0.974,
    "confidence_after": 0.32,
    "confidence_right_before": 0.9712,
    "confidence_right_after": 0.3149,
    "confidence_wrong_before": 0.61,
    "confidence_wrong_after": 0.97,
    "accepted_right_before": 0.95,
    "accepted_right_after": 0.038,
    "accepted_wrong_before": 0.004,
    "accepted_wrong_after": 0.012,
    "labels_changed": 0.0,
}
STILL = {name: MMA[name.replace("_after", "_before")] for name in MMA}


def row(recipe: str, figures: dict[str, float | None], defence: str = "none", view: str = "aware") -> dict[str, Any]:
    metrics = {name: {"value": number, "low": None, "high": None} for name, number in figures.items()}
    return {"recipe": recipe, "defence": defence, "view": view, "n": 497, "metrics": metrics}


def summary(*rows: dict[str, Any], n: int = 497, budget: int = 1000) -> dict[str, Any]:
    recipes = {
        "sa-mma": {"whitebox": False, "keeps_label": True},
        "sa-oca": {"whitebox": False, "keeps_label": True},
        "pgd-uca": {"whitebox": True, "keeps_label": True},
        "pgd": {"whitebox": True, "keeps_label": False},
    }
    return {
        "rows": list(rows),
        "recipes": recipes,
        "data": {"samples": n},
        "spec": {"budget": budget},
        "bound": {"none": 0.9022, "aaa": 0.91},
        "threshold": 0.9,
    }


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.])\s+(?=[A-Z])", text)


def test_the_example_of_the_product_description() -> None:
    first, second = sentences(verdict(summary(row("sa-mma", MMA))))
    assert first == (
        "Without changing a single predicted label, an attacker with 1,000 queries lowers the confidence on correctly"
        " classified images from 97 % to 31 % and raises that on wrongly classified ones from 61 % to 97 %"
        " (ECE 0.015 → 0.61; the bound is 0.90)."
    )
    assert second == (
        "At your threshold 0.90, 96 % of the right answers that were accepted automatically would be sent to a person,"
        " and wrong ones accepted rise from 0.4 % to 1.2 % of all cases."
    )


def test_the_worst_label_keeping_recipe_speaks() -> None:
    mild = MMA | {"ece_after": 0.3, "confidence_right_after": 0.6}
    flips = MMA | {"ece_after": 0.95, "accuracy_after": 0.0, "labels_changed": 0.97}
    text = verdict(summary(row("sa-oca", mild), row("pgd", flips), row("sa-mma", MMA)))
    assert "ECE 0.015 → 0.61" in text


def test_defended_rows_do_not_speak_for_the_undefended_model() -> None:
    text = verdict(summary(row("sa-mma", MMA | {"ece_after": 0.4}), row("sa-mma", MMA, "aaa")))
    assert "ECE 0.015 → 0.40" in text


def test_a_run_of_one_defence_only() -> None:
    text = verdict(summary(row("sa-mma", MMA | {"ece_after": 0.2}, "aaa", "unaware"), row("sa-mma", MMA, "aaa")))
    assert "ECE 0.015 → 0.61; the bound is 0.91" in text


def test_only_underconfidence() -> None:
    down = MMA | {"confidence_wrong_after": 0.3, "accepted_wrong_after": 0.0, "accepted_right_after": 0.0}
    first, second = sentences(verdict(summary(row("pgd-uca", down))))
    assert "an attacker with the model's gradients lowers the confidence on correctly classified images" in first
    assert "and that on wrongly classified ones from 61 % to 30 %" in first
    assert "raises" not in first
    assert second.endswith(
        "all the right answers that were accepted automatically would be sent to a person,"
        " and wrong ones accepted fall from 0.4 % to 0 % of all cases."
    )


def test_only_overconfidence() -> None:
    up = STILL | {"ece_after": 0.02, "confidence_wrong_after": 0.97, "accepted_wrong_after": 0.012}
    first, second = sentences(verdict(summary(row("sa-oca", up))))
    assert "raises the confidence on wrongly classified images from 61 % to 97 %" in first
    assert "correctly" not in first
    assert "95 % of all cases would be accepted automatically and rightly, attacked or not" in second


def test_nothing_moved() -> None:
    first, second = sentences(verdict(summary(row("sa-mma", STILL), row("pgd", STILL))))
    assert first == (
        "None of the 2 recipes that were run moved confidence or accuracy by a point"
        " (ECE 0.015 → 0.015; the bound is 0.90)."
    )
    assert second == (
        "At your threshold 0.90, 95 % of all cases would be accepted automatically and rightly, attacked or not,"
        " and wrong ones accepted stay at 0.4 %."
    )
    assert verdict(summary(row("sa-mma", STILL))).startswith("The one recipe that was run, sa-mma, moved neither")


def test_only_misclassification() -> None:
    flips = MMA | {"accuracy_after": 0.05, "confidence_after": 0.9, "labels_changed": 0.9, "accepted_wrong_after": 0.8}
    first, second = sentences(verdict(summary(row("pgd", flips))))
    assert first.startswith(
        "By changing predicted labels, an attacker with the model's gradients takes the accuracy from 98 % to 5 %"
        " and the mean confidence from 97 % to 90 %"
    )
    assert "right answers accepted automatically fall from 95 % to 3.8 % of all cases" in second
    assert "bound" not in first, "it holds for unchanged labels only"
    assert "sent to a person" not in second, "a case whose label changed may be accepted, wrongly"
    assert "rise from 0.4 % to 80 % of all cases" in second


def test_misclassification_speaks_when_the_label_keepers_did_nothing() -> None:
    flips = MMA | {"accuracy_after": 0.05}
    first = verdict(summary(row("sa-mma", STILL), row("pgd", flips)))
    assert first.startswith("No recipe moved the confidence under an unchanged label, but by changing predicted labels")


def test_a_worse_share_of_wrong_ones_elsewhere_is_named() -> None:
    flips = MMA | {"accuracy_after": 0.05, "accepted_wrong_after": 0.43}
    text = verdict(summary(row("sa-mma", MMA), row("pgd", flips)))
    assert text.endswith("to 1.2 % of all cases (with pgd they reach 43 %).")
    assert "with pgd" not in verdict(summary(row("sa-mma", MMA), row("pgd", flips | {"accepted_wrong_after": 0.012})))


def test_labels_that_did_change_are_not_denied() -> None:
    text = verdict(summary(row("sa-mma", MMA | {"labels_changed": 0.004})))
    assert text.startswith("Changing 0.4 % of the predicted labels, an attacker")
    assert "Without" not in text


@pytest.mark.parametrize(
    ("n", "start"), [(1, "On a single image, which proves little: without"), (12, "On only 12 images")]
)
def test_few_images(n: int, start: str) -> None:
    text = verdict(summary(row("sa-mma", MMA), n=n))
    assert text.startswith(start)
    assert len(sentences(text)) == 2


def test_one_query() -> None:
    assert "with 1 query lowers" in verdict(summary(row("sa-mma", MMA), budget=1))


@pytest.mark.parametrize("name", ["confidence_wrong_before", "confidence_wrong_after", "ece_before", "accuracy_after"])
def test_an_undefined_metric_does_not_break_it(name: str) -> None:
    text = verdict(summary(row("sa-mma", MMA | {name: None})))
    assert len(sentences(text)) == 2
    assert "None" not in text
    assert "nan" not in verdict(summary(row("sa-mma", MMA | {name: float("nan")})))


def test_nothing_accepted_at_all() -> None:
    none = MMA | dict.fromkeys([name for name in MMA if name.startswith("accepted")], 0.0)
    assert verdict(summary(row("sa-mma", none))).endswith("no case is accepted automatically, attacked or not.")


def test_no_shares_in_the_summary() -> None:
    bare = {name: number for name, number in MMA.items() if not name.startswith("accepted")}
    assert "does not say how many" in verdict(summary(row("sa-mma", bare)))


def test_it_changes_nothing() -> None:
    given = summary(row("sa-mma", MMA))
    before = copy.deepcopy(given)
    verdict(given)
    assert given == before


def test_the_figures_are_the_summarys() -> None:
    """Each percentage of the verdict is one of the summary's; a summary with other figures has others."""
    text = verdict(summary(row("sa-mma", MMA)))
    assert set(re.findall(r"[\d.]+ %", text)) == {"97 %", "31 %", "61 %", "96 %", "0.4 %", "1.2 %"}
    other = verdict(summary(row("sa-mma", MMA | {"confidence_right_after": 0.5})))
    assert other != text
    assert "to 50 %" in other
