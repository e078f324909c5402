"""Figures of detectors, for tools/render.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"
TITLES = {
    "lid": "LID",
    "mahalanobis": "Mahalanobis",
    "input-mfs": "Spectral, image",
    "layer-mfs": "Spectral, layers",
    "lid-apart": "LID, apart",
}
IN_THE_PAPER = ("lid", "mahalanobis", "input-mfs")
ACCURACY = {"lid": "detection_accuracy", "mahalanobis": "detection_accuracy", "input-mfs": "accuracy_at_half"}
BOXES = {"black box": ("square", "sa-uca", "sa-oca", "sa-mma"), "white box": ("pgd", "pgd-uca", "pgd-oca", "pgd-mma")}


def _read() -> Any:
    return json.loads((RESULTS / "detect.json").read_text(encoding="utf-8"))


def table_2() -> str:
    """AUROC and accuracy in percent of each detector on the attack it was fitted on, with the published figures."""
    found, body = _read(), []
    for recipes in BOXES.values():
        for recipe in recipes:
            cells = []
            for name in IN_THE_PAPER:
                own, other = found["detectors"][name]["own"][recipe], found["published"][name][recipe]
                cells.append(f"**{100 * own['auroc']['value']:.1f}** / {100 * own[ACCURACY[name]]['value']:.1f}")
                cells.append(f"{100 * other['auroc']:.1f} / {100 * other['accuracy']:.1f}")
            body.append([f"`{recipe}`", *cells])
    head = ["AUROC / accuracy, %", *(cell for name in IN_THE_PAPER for cell in (TITLES[name], "paper"))]
    return markdown_table(head, body)


def intervals() -> str:
    """Every detector on the attack it was fitted on, with 95 % intervals."""
    found = _read()
    metrics = {"auroc": "AUROC", "auroc_clean": "against clean alone", "fpr_at_95_tpr": "FPR at 95 % TPR"}
    body = [
        [TITLES[name], f"`{recipe}`"]
        + [f"{at[metric]['value']:.3f} [{at[metric]['low']:.2f}, {at[metric]['high']:.2f}]" for metric in metrics]
        for name, one in found["detectors"].items()
        for recipe, at in one["own"].items()
    ]
    return markdown_table(["detector", "attack", *metrics.values()], body, "llr")


def transfer(name: str) -> str:
    """AUROC of a detector fitted on one attack (rows) and tested on another (columns)."""
    areas = _read()["detectors"][name]["transfer"]
    body = [[f"`{fitted}`", *(f"{area:.3f}" for area in row.values())] for fitted, row in areas.items()]
    return markdown_table([f"{TITLES[name]}, fitted on", *(f"`{recipe}`" for recipe in areas)], body)


def attacks() -> str:
    """What each attack did to the images."""
    body = [
        [
            f"`{recipe}`", f"{100 * at['labels_changed']:.1f}", f"{100 * at['unchanged']:.1f}", f"{at['rms']:.4f}",
            f"{at['confidence_before']:.3f} → {at['confidence_after']:.3f}", f"{at['queries']:,.0f}",
        ]
        for recipe, at in _read()["attacks"].items()
    ]  # fmt: skip
    head = ["attack", "labels changed, %", "images unchanged, %", "RMS of the change", "confidence", "queries, mean"]
    return markdown_table(head, body)


def drop() -> str:
    """AUROC of the original attack minus the mean of its three versions, in points; ours and the paper's."""
    found, body = _read(), []
    for box, (original, *versions) in BOXES.items():
        cells = []
        for name in IN_THE_PAPER:
            own = {recipe: at["auroc"]["value"] for recipe, at in found["detectors"][name]["own"].items()}
            other = {recipe: at["auroc"] for recipe, at in found["published"][name].items()}
            lost = (area[original] - sum(area[at] for at in versions) / len(versions) for area in (own, other))
            cells += [f"{100 * points:.1f}" for points in lost]
        body.append([box, *cells])
    head = ["AUROC lost, points", *(cell for name in IN_THE_PAPER for cell in (TITLES[name], "paper"))]
    return markdown_table(head, body)


def about() -> str:
    """What was run, in a sentence."""
    found = _read()
    spec, sizes = found["spec"], {name: (at["fit"], at["test"]) for name, at in found["detectors"].items()}
    return (
        f"{found['model']}, {found['samples']} {found['data']}, {found['reference']['samples']:,} "
        f"{found['reference']['data']} for class means; {spec['norm']} eps {spec['eps']:g}, {spec['steps']} gradient "
        f"steps, at most {spec['budget']:,} queries per image. LID and Mahalanobis are fitted on "
        f"{sizes['lid'][0]} images and tested on {sizes['lid'][1]}, the Fourier detectors on {sizes['input-mfs'][0]} "
        f"and {sizes['input-mfs'][1]}. The paper: ResNet-50, CIFAR-100, eps 0.05.\n"
    )


FIGURES: dict[str, Callable[[], str]] = {
    "detect-about": about,
    "detect-table": table_2,
    "detect-drop": drop,
    "detect-attacks": attacks,
    "detect-intervals": intervals,
    "detect-transfer-mahalanobis": lambda: transfer("mahalanobis"),
    "detect-transfer-input-mfs": lambda: transfer("input-mfs"),
    "detect-transfer-lid": lambda: transfer("lid"),
}
