"""What an adversarial epoch costs beyond the model: against as many bare forward and backward passes, in one run.

    python benchmarks/training_speed.py [--check] [--pairs 5] [--batches 2] [--batch-size 128] [--threads 1]
                                        [--json FILE]

ResNet-20 for CIFAR-10 on random images. An epoch of a recipe (reading, augmentation, attack, loss, step, counting,
without checkpoints) and bare passes (forward, cross-entropy, backward to the parameters) are timed in turn, B A B …;
the figure is the median of the pairs' ratios. The limit for an attack of T steps is 1.15 (1 + T) bare passes.
`--check` exits 1 where it is missed. The last rows compare seconds per epoch of two recipes, measured in the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

import poise
from poise.data import from_arrays
from poise.training import training_recipe
from poise.training.loop import Job, Trainer

LIMIT = 1.15
PASSES = {"standard": 1, "at": 11, "uat-gap": 11, "uat-smooth": 6, "uat-standard": 6, "caat": 22, "trades": 12}
"""Recipe to its passes with gradients per image: those of the loss, and the steps of the attack."""

COMPARED = (("uat-smooth", "at"), ("uat-standard", "uat-smooth"), ("uat-gap", "at"))


def epoch(name: str, images: np.ndarray, labels: np.ndarray, batch_size: int) -> Callable[[], None]:
    """Trains one epoch of the recipe, from new weights; validation is left out."""
    recipe = training_recipe(name, {"epochs": 1, "batch_size": batch_size})
    data = from_arrays(images, labels, class_names=[str(at) for at in range(10)])

    def run() -> None:
        fabric = Fabric(accelerator="cpu", devices=1)
        fabric.launch()
        target = poise.models.blank("builtin:resnet20-cifar10", num_classes=10)
        trainer = Trainer(fabric, Job(target, recipe, data, data[:1], workers=1))
        began = time.perf_counter()
        trainer.run()
        run.seconds = time.perf_counter() - began  # type: ignore[attr-defined]

    return run


def bare(images: np.ndarray, labels: np.ndarray, batch_size: int) -> float:
    """Seconds of one forward and backward pass over all images."""
    target = poise.models.blank("builtin:resnet20-cifar10", num_classes=10)
    module = target.module.train()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255).contiguous()
    y = torch.from_numpy(labels)
    began = time.perf_counter()
    for part, answer in zip(x.split(batch_size), y.split(batch_size), strict=True):
        module.zero_grad()
        F.cross_entropy(module(part), answer).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (given.batches * given.batch_size, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images))
    seconds: dict[str, list[float]] = {name: [] for name in PASSES}
    ratios: dict[str, list[float]] = {name: [] for name in PASSES}
    for pair in range(given.pairs + 1):
        for name, passes in PASSES.items():
            run = epoch(name, images, labels, given.batch_size)
            before = bare(images, labels, given.batch_size)
            run()
            after = bare(images, labels, given.batch_size)
            if pair:  # the first warms up
                took = run.seconds  # type: ignore[attr-defined]
                seconds[name].append(took)
                ratios[name].append(took / (passes * (before + after) / 2))
    rows: list[dict[str, Any]] = []
    for name, found in ratios.items():
        rows.append(
            {
                "what": name,
                "passes": PASSES[name],
                "ratio": statistics.median(found),
                "low": min(found),
                "high": max(found),
                "limit": LIMIT if PASSES[name] > 1 else None,
            }
        )
    for one, other in COMPARED:
        pairs = [left / right for left, right in zip(seconds[one], seconds[other], strict=True)]
        rows.append(
            {"what": f"{one} / {other}", "ratio": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}
        )
    for row in rows:
        limit = f"limit {row['limit']}" if row.get("limit") else ""
        print(f"{row['what']:28} {row['ratio']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]  {limit}")
    if given.json:
        about = {key: getattr(given, key) for key in ("pairs", "batches", "batch_size", "threads")}
        given.json.write_text(json.dumps({"about": about, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    missed = [row["what"] for row in rows if row.get("limit") and row["ratio"] > row["limit"]]
    if given.check and missed:
        sys.exit(f"over the limit: {', '.join(missed)}")


if __name__ == "__main__":
    main()
