"""What detectors found, as tables for a terminal, for Markdown and for LaTeX."""

from __future__ import annotations

from typing import Any

from poise.experiments.defend_table import Block, _tex, _tex_line, cell, section

NAMES = {
    "auroc": "AUROC",
    "auroc_clean": "against clean alone",
    "detection_accuracy": "accuracy, best threshold",
    "accuracy_at_half": "accuracy at 0.5",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
}

NOTE = (
    "Each detector is fitted on one attack. LID and Mahalanobis have clean and noisy images as negatives, as is usual: "
    "0.667 of their accuracy at 0.5 needs no detector; the Fourier ones have clean images alone. Accuracy, best "
    "threshold: the largest mean of true positive and true negative rate (LID, Mahalanobis in the paper), never below "
    "0.5. Accuracy at 0.5: the share that the regression itself sorts rightly (SpectralDefense in the paper). 95 % "
    "intervals draw all versions of an image together."
)


def blocks(result: dict[str, Any]) -> list[Block]:
    """The table of every detector on the attack it was fitted on; then a transfer matrix of AUROCs per detector."""
    recipes = list(result["attacks"])
    lines = [
        (name, recipe, *(cell(found["trained"][recipe]["tested"][recipe][metric]) for metric in NAMES))
        for name, found in result["detectors"].items()
        for recipe in recipes
    ]
    held = [Block("detection of each attack", ("detector", "attack", *NAMES.values()), lines, len(NAMES))]
    if len(recipes) > 1:
        held += [_transfer(name, found, recipes) for name, found in result["detectors"].items()]
    return held


def _transfer(name: str, found: dict[str, Any], recipes: list[str]) -> Block:
    lines = [
        (learned, *(f"{found['trained'][learned]['tested'][recipe]['auroc']['value']:.3f}" for recipe in recipes))
        for learned in recipes
    ]
    return Block(
        f"{name}: AUROC by attack fitted on (rows) and tested on", ("fitted on", *recipes), lines, len(recipes)
    )


def header(result: dict[str, Any]) -> list[str]:
    """What was attacked, and what the detectors were fitted on."""
    spec, reference = result["spec"], result["reference"]
    about = "none" if reference is None else f"{reference['samples']} images of {reference['data']}"
    fits = ", ".join(f"{name} {found['fit']}/{found['test']}" for name, found in result["detectors"].items())
    return [
        f"model    {result['model']}   data  {result['data']}, {result['samples']} images",
        f"attack   {spec['norm']} {spec['eps']:.4g}, at most {spec['budget']} queries   reference  {about}",
        f"images   fitted/tested: {fits}",
    ]


def markdown(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    parts = ["# Detection of attacks", "```text\n" + "\n".join(header(result)) + "\n```"]
    parts += [section(block) for block in blocks(result)]
    return "\n\n".join([*parts, NOTE]) + "\n"


def latex(result: dict[str, Any]) -> str:
    """Everything as LaTeX tables, for the package booktabs."""
    parts = [f"% {line}" for line in header(result)]
    for block in blocks(result):
        shape = "l" * (len(block.head) - block.numbers) + "r" * block.numbers
        parts += [r"\begin{table}", rf"\caption{{{_tex(block.title)}}}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
        parts += [_tex_line(block.head), r"\midrule", *(_tex_line(cells) for cells in block.lines)]
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*parts, f"% {NOTE}"]) + "\n"
