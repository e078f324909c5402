"""Figures of training-time defences, for tools/render.py; published values stand in brackets."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "training"
PRINTED = ROOT / "src" / "poise" / "experiments" / "published.csv"
PUBLISHED = {
    "standard": "none",
    "at": "AT",
    "trades": "TRADES",
    "caat": "CAAT",
    "uat-gap": "UAT-Gap",
    "uat-smooth": "UAT-Smooth",
    "dca": "DCA",
    "sam": "SAM",
}
"""Our name to the papers'."""

ATTACKS = {"dropout": "Dropout", "adaptive": "Adaptive", "confsmooth": "ConfSmooth", "pgd": "PGD"}
OURS = ("standard-under",)


def _rows(name: str) -> dict[str, list[dict[str, Any]]]:
    """Recipe to its rows, one per seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]:
        found.setdefault(row["recipe"], []).append(row)
    return found


def _published(paper: str, table: str, model: str, dataset: str = "CIFAR-10") -> dict[tuple[str, str, str], str]:
    """(defence, attack, metric) to the printed value."""
    wanted = {"paper": paper, "table": table, "model": model, "dataset": dataset}
    with PRINTED.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    return {(row["defence"], row["attack"], row["metric"]): row["value"] for row in rows}


def _mean(rows: list[dict[str, Any]], attack: str, metric: str) -> str:
    """The mean over seeds, with the standard deviation where there are several."""
    values = [row["clean"][metric] if attack == "clean" else row["attacks"][attack][metric] for row in rows]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _bold(cells: dict[str, str], best: Callable[[list[float]], float]) -> dict[str, str]:
    """The best of a column in bold."""
    value = best([float(cell.split(" ")[0]) for cell in cells.values()])
    return {name: f"**{cell}**" if float(cell.split(" ")[0]) == value else cell for name, cell in cells.items()}


def confidence(name: str) -> str:
    """Mean confidence before and after each underconfidence attack (UAT, Table 3)."""
    columns = (
        {"clean": "none"} | {key: value for key, value in ATTACKS.items() if key != "pgd"} | dict.fromkeys(OURS, "")
    )
    return _by_attack(name, columns, "mean confidence", ("confidence", "T3", "avg_confidence"), max)


def accuracy(name: str) -> str:
    """Accuracy on clean images and under PGD (UAT, Table 4), and the passes that an epoch takes."""
    found, printed = _rows(name), _published("uat", "T4", "ResNet-18")
    columns = {"clean": ("none", "accuracy"), "pgd": ("PGD", "adv_accuracy")}
    cells = {at: _bold({recipe: _mean(rows, at, "accuracy") for recipe, rows in found.items()}, max) for at in columns}
    body = []
    for recipe, rows in found.items():
        line = [f"`{recipe}`"]
        for at, (attack, metric) in columns.items():
            known = printed.get((PUBLISHED.get(recipe, "?"), attack, metric))
            line.append(cells[at][recipe] + (f" ({float(known):.3f})" if known and "resnet" in name else ""))
        body.append([*line, f"{rows[0]['passes']:.0f}", str(len(rows))])
    return markdown_table(["accuracy", "clean", "PGD, 20 steps", "forward passes per image", "seeds"], body)


def errors(name: str) -> str:
    """ECE before and after each attack (UAT, Table S2)."""
    columns = {"clean": "none"} | ATTACKS | {"sa-mma": "", "standard": ""}
    return _by_attack(name, columns, "ECE", ("ece", "S2", "ece"), min)


def _by_attack(
    name: str, columns: dict[str, str], head: str, what: tuple[str, str, str], best: Callable[[list[float]], float]
) -> str:
    """Recipes against attacks: our metric, and in brackets the published one of a table (of larger networks alone)."""
    metric, table, published = what
    found, printed = _rows(name), _published("uat", table, "ResNet-18")
    cells = {at: _bold({recipe: _mean(rows, at, metric) for recipe, rows in found.items()}, best) for at in columns}
    body = []
    for recipe in found:
        line = [f"`{recipe}`"]
        for at, attack in columns.items():
            known = printed.get((PUBLISHED.get(recipe, "?"), attack, published))
            line.append(cells[at][recipe] + (f" ({float(known):.3f})" if known and "resnet" in name else ""))
        body.append(line)
    return markdown_table([head, *(at if at == "clean" else f"`{at}`" for at in columns)], body)


def calibration(name: str) -> str:
    """ECE before and after SA-MMA of the training rows of the calibration paper's Table 4."""
    found, printed = _rows(name), _published("calibration-attacks", "T4", "ResNet-50", "CIFAR-100")
    body = []
    for recipe, rows in found.items():
        known = PUBLISHED.get(recipe, "?")
        if (known, "SA-MMA", "ece") not in printed:
            continue
        ours = [_mean(rows, "clean", "accuracy"), _mean(rows, "clean", "ece"), _mean(rows, "sa-mma", "ece")]
        keys = (("none", "accuracy"), ("none", "ece"), ("SA-MMA", "ece"))
        pairs = zip(ours, keys, strict=True)
        body.append(
            [f"`{recipe}`", *(f"{cell} ({printed[known, attack, metric]})" for cell, (attack, metric) in pairs)]
        )
    return markdown_table(["", "accuracy", "ECE, clean", "ECE, SA-MMA"], body)


def steps(name: str) -> str:
    """UAT-Smooth by the number of steps inside (UAT, Table S3)."""
    found, printed = _rows(name), _published("uat", "S3", "WideResNet-50")
    body = []
    for recipe, rows in found.items():
        if not recipe.startswith("uat-smooth-"):
            continue
        count = recipe.rsplit("-", 1)[1]
        key = f"UAT-Smooth:{count}steps"
        wanted = (
            ("clean", "none", "accuracy"),
            ("clean", "none", "avg_confidence"),
            ("confsmooth", "ConfSmooth", "avg_confidence"),
        )
        line = [
            f"{_mean(rows, at, metric.removeprefix('avg_'))} ({float(printed[key, attack, metric]):.2f})"
            for at, attack, metric in wanted
        ]
        body.append([count, *line, _mean(rows, "standard-under", "confidence"), _mean(rows, "pgd", "accuracy")])
    head = ["steps", "accuracy", "confidence, clean", "confidence, `confsmooth`", "confidence, `standard-under`"]
    return markdown_table([*head, "accuracy, PGD"], body)


def calibrated(name: str) -> str:
    """Behind a fitted temperature, attacked through it, beside the bare network."""
    body = []
    for recipe, rows in _rows(name).items():
        again = [row["calibrated"] | {"recipe": recipe} for row in rows if "calibrated" in row]
        if not again:
            continue
        line = [f"{statistics.mean(row['temperature'] for row in again):.2f}"]
        wanted = (("clean", "ece"), ("confsmooth", "confidence"), ("pgd", "accuracy"))
        line += [f"{_mean(rows, at, metric)} → {_mean(again, at, metric)}" for at, metric in wanted]
        body.append([f"`{recipe}`", *line])
    return markdown_table(
        ["as trained → calibrated", "T", "ECE, clean", "confidence, `confsmooth`", "accuracy, PGD"], body
    )


def speed() -> str:
    """An adversarial epoch against bare passes, and one recipe's epoch against another's."""
    rows = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))["rows"]
    body = [
        [
            f"`{row['what']}`".replace(" / ", "` / `"),
            f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            str(row.get("passes", "–")),
            f"{row['limit']:.2f}" if row.get("limit") else "–",
        ]
        for row in rows
    ]
    return markdown_table(
        ["seconds per epoch", "ratio (median) [range]", "bare passes it is divided by", "limit"], body
    )


CIFAR, MNIST, SMALL = "cifar10-resnet20", "mnist-lenet", "cifar10-cnn-a"
FIGURES: dict[str, Callable[[], str]] = {
    "training-confidence": lambda: confidence(CIFAR),
    "training-accuracy": lambda: accuracy(CIFAR),
    "training-ece": lambda: errors(CIFAR),
    "training-calibration": lambda: calibration(CIFAR),
    "training-mnist-confidence": lambda: confidence(MNIST),
    "training-mnist-accuracy": lambda: accuracy(MNIST),
    "training-mnist-ece": lambda: errors(MNIST),
    "training-small": lambda: confidence(SMALL),
    "training-small-accuracy": lambda: accuracy(SMALL),
    "training-calibrated": lambda: calibrated(SMALL),
    "training-steps": lambda: steps(SMALL),
    "training-speed": speed,
}
