"""How strong the standard attack is: beside every other white-box recipe at the same number of gradient calls.

    python benchmarks/strength.py [--json FILE] [--eps 0.03] [--networks NAME,...] [--parts main,ablation,light]

The first 200 lossless CIFAR-10 test images (100 for the parts ablation and light), on four networks that no constant of
`standard` was chosen on: ResNet-20 and ResNet-56 with standard training, two small networks with adversarial training.
(The constants were chosen on ResNet-32 and on `cnn_a_mix`, with JPEG copies of other test images and with training
images.) ECE is given as a share of the bound 1 - accuracy / K, with percentile intervals of 2,000 bootstrap resamples.
Rows are written as they come; rows that the file holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import poise
from poise.constraints import Linf
from poise.objectives import MMA, OCA, UCA, ConfSmooth, KeepLabel, MinConfidence, Objective
from poise.searches import PGD, AdaptivePGD, Cascade, ConfidencePGD, MomentumPGD, Search

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
NETWORKS = {
    "ResNet-20": "builtin:resnet20-cifar10?weights={}/checkpoints/cifar10_resnet20.safetensors",
    "ResNet-56": "builtin:resnet56-cifar10?weights={}/checkpoints/cifar10_resnet56.safetensors",
    "CNN-A, adversarial": "builtin:cnn-a-cifar10?weights={}/checkpoints/cifar10_cnn_a_adv.safetensors",
    "ResNet-2b, adversarial": "builtin:resnet2b-cifar10?weights={}/checkpoints/cifar10_resnet2b_adv.safetensors",
}
RECIPES = ("standard", "confsmooth", "adaptive", "pgd-mma", "pgd-uca", "apgd-mma", "newtonfool", "ace")
PARTS = {"main": 200, "ablation": 100, "light": 100}
"""Images by part."""

ABLATED = ("ResNet-20", "CNN-A, adversarial")
LIGHT = ("standard-light", "sa-mma-confsmooth", "sa-mma")
Row = dict[str, Any]


def miscalibration(under: Objective) -> Objective:
    """The goal of `standard` with another way to lower the confidence."""
    return KeepLabel(MMA(under=under, over=OCA(tol=1e-3, follow="cross-entropy")))


def ablations(steps: int, eps: float) -> dict[str, tuple[Objective, Search]]:
    """`standard`'s white-box part with one thing changed at a time."""
    goal, walk = miscalibration(MinConfidence()), ConfidencePGD(steps=steps)
    landing = Cascade(
        (ConfidencePGD(steps=steps * 7 // 10), ConfidencePGD(steps=steps - steps * 7 // 10, start="best", scale=0.05))
    )
    return {
        "one walk": (goal, walk),
        "walk and landing": (goal, landing),
        "random start": (goal, ConfidencePGD(steps=steps - 1, start="random")),
        "pace near for all": (goal, ConfidencePGD(steps=steps, pace="near")),
        "pace far for all": (goal, ConfidencePGD(steps=steps, pace="far")),
        "the other pace": (goal, ConfidencePGD(steps=steps, pace="other")),
        "penalty weight 0.01": (miscalibration(MinConfidence(weight=0.01)), walk),
        "penalty weight 1": (miscalibration(MinConfidence(weight=1.0)), walk),
        "penalty weight 10": (miscalibration(MinConfidence(weight=10.0)), walk),
        "loss ConfSmooth": (miscalibration(ConfSmooth()), walk),
        "loss of UCA (gap)": (miscalibration(UCA(tol=0)), walk),
        "constant step eps/4": (goal, PGD(steps=steps, step=eps / 4, undo=False)),
        "constant step eps/4, a lost label is undone": (goal, PGD(steps=steps, step=eps / 4)),
        "momentum 1, step eps/10": (goal, MomentumPGD(steps=steps, step=eps / 10)),
        "step-back (AdaptivePGD)": (goal, AdaptivePGD(steps=steps, step=eps * (5 / 255) / 0.03)),
    }


@dataclass(frozen=True)
class Bench:
    """One network on the images under attack."""

    name: str
    eps: float
    target: poise.Target
    images: torch.Tensor
    labels: torch.Tensor

    def row(self, part: str, name: str, steps: int, result: poise.AttackResult, seconds: float) -> Row:
        table = result.table
        confidence = table["confidence_after"].to_numpy()
        right = (table["prediction_after"] == table["label"]).to_numpy().astype(np.float64)
        kept = bool((table["prediction_after"] == table["prediction_before"]).all())
        bound = poise.metrics.mma_bound(float(right.mean()), self.target.num_classes)
        interval = poise.metrics.Bootstrap(resamples=2000, seed=0).interval(share_of_bound, confidence, right)
        return {
            "network": self.name,
            "part": part,
            "name": name,
            "steps": steps,
            "samples": table.height,
            "eps": self.eps,
            "accuracy": float(right.mean()),
            "bound": bound,
            "ece": poise.metrics.ece(confidence, right),
            "share": float(interval.value),
            "low": float(interval.low),
            "high": float(interval.high),
            "confidence_right": float(confidence[right == 1].mean()),
            "gradients": float(table["gradients"].mean()),
            "queries": float(table["queries"].mean()),
            "labels_kept": kept,
            "seconds": round(seconds, 1),
        }


def share_of_bound(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """ECE over the bound 1 - accuracy / 10, along the last axis."""
    found: NDArray[np.float64] = poise.metrics.ece(confidence, right) / (1 - right.mean(axis=-1) / 10)
    return found


def jobs(bench: Bench, part: str) -> Iterator[tuple[str, int, Any]]:
    """Name, steps and a call that attacks, of everything in one part."""

    def named(name: str, **setting: int) -> Any:
        return lambda: poise.run_recipe(name, bench.target, bench.images, bench.labels, eps=bench.eps, **setting)

    if part == "main":
        for steps in (20, 100):
            for name in RECIPES:
                yield name, steps, named(name, steps=steps, budget=steps + 2 if name != "ace" else 20)
    if part == "light" and bench.name in ABLATED:
        for name in LIGHT:
            yield name, 1000, named(name, budget=1000)
    if part == "ablation" and bench.name in ABLATED:
        for steps in (20, 100):
            for name, (objective, search) in ablations(steps, bench.eps).items():
                given = bench.target, objective, search, Linf(bench.eps), bench.images, bench.labels
                yield name, steps, lambda given=given: poise.attack(*given, budget=10_000)


def load(name: str, samples: int, eps: float) -> Bench:
    target = poise.models.load(NETWORKS[name].format(SHARED))
    data = poise.data.load(f"npz:{SHARED}/cifar10_test_lossless_subset.npz")[:samples]
    images, labels, _ = next(iter(data.batches(samples)))
    return Bench(name, eps, target, images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("strength.json"))
    parser.add_argument("--eps", type=float, default=0.03)
    parser.add_argument("--networks", default=",".join(NETWORKS).replace(", ", "; "))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(row["network"], row["part"], row["name"], row["steps"]) for row in rows}
    for network in options.networks.split(","):
        for part in options.parts.split(","):
            bench = load(network.replace("; ", ", "), PARTS[part], options.eps)
            for name, steps, run in jobs(bench, part):
                if (bench.name, part, name, steps) in done:
                    continue
                began = time.perf_counter()
                row = bench.row(part, name, steps, run(), time.perf_counter() - began)
                rows.append(row)
                share = f"ECE {row['ece']:.3f} = {row['share']:.4f} of the bound"
                print(f"{bench.name:24} {part:9} {name:36} {steps:5} {share}", flush=True)
                unfinished = options.json.with_suffix(".part")
                unfinished.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                unfinished.replace(options.json)


if __name__ == "__main__":
    main()
