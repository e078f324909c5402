"""Query attacks against bare forward passes of as many images, and against one image at a time, in one run.

    python benchmarks/query_speed.py [--samples 200] [--budget 60] [--pairs 5] [--threads 2] [--json FILE]

CIFAR-10's ResNet-20, linf 8/255, a margin that does not stop, so that every image is asked for to the end of the
budget. Per attack: time of bare passes of as many points, batch by batch, over the attack's own time (median of
alternating pairs), and how many times less time an image takes than in a loop of one image after the other. ART's
SimBA, which takes one image at a time, stands beside ours per query. Exit code 1 below 90 %, or below 2.5 times.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import poise
from poise.constraints import Linf
from poise.objectives import Margin
from poise.recipebook import Setting as Budget
from poise.recipebook import recipe
from poise.searches import Search
from poise.targets import ModuleTarget
from query_attacks import SHARED, Setting

EPS, SHARE, FASTER, ALONE = 8 / 255, 0.9, 2.5, 8
ATTACKS = ("square", "simba", "signhunter", "nes", "spsa", "bandits")


def attacked(target: ModuleTarget, search: Search, images: Tensor, labels: Tensor, budget: int) -> tuple[float, int]:
    """Seconds, and points that were asked for."""
    began = time.perf_counter()
    result = poise.attack(target, Margin(stop=False), search, Linf(EPS), images, labels, budget=budget)
    return time.perf_counter() - began, int(result.table["queries"].sum())


@torch.no_grad()
def bare(module: torch.nn.Module, images: Tensor, points: int) -> float:
    """Seconds of bare passes of so many images."""
    began = time.perf_counter()
    for start in range(0, points, len(images)):
        module(images[: points - start])
    return time.perf_counter() - began


def measure(setting: Setting, name: str, budget: int, pairs: int) -> dict[str, Any]:
    search = recipe(name).search(Budget(Linf(EPS), budget))
    module, shares, seconds = setting.bare.module.eval(), [], []
    attacked(setting.bare, search, setting.images, setting.labels, 5)
    for _ in range(pairs):
        taken, points = attacked(setting.bare, search, setting.images, setting.labels, budget)
        shares.append(bare(module, setting.images, points) / taken)
        seconds.append(taken)
    single = ModuleTarget(setting.bare.module, num_classes=10, batch_size=1)
    alone, _ = attacked(single, search, setting.images[:ALONE], setting.labels[:ALONE], budget)
    faster = (alone / ALONE) / (statistics.median(seconds) / len(setting.images))
    return {"attack": name, "share": statistics.median(shares), "shares": shares, "faster": faster, "points": points}


def art_simba(setting: Setting, budget: int) -> float | None:
    """Seconds per query of ART's SimBA; None where ART is missing."""
    if find_spec("art") is None:
        return None
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")
    calls = 0

    class Counted(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += len(x)
            answer: Tensor = setting.bare.module(x)
            return answer.softmax(dim=1)

    np.random.seed(0)  # noqa: NPY002  # ART draws from the global generator
    shape = tuple(setting.images.shape[1:])
    classifier = estimators.PyTorchClassifier(Counted(), torch.nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0))
    attack = evasion.SimBA(classifier, attack="dct", max_iter=budget, epsilon=0.2, freq_dim=32, verbose=False)
    began = time.perf_counter()
    attack.generate(setting.images[:ALONE].numpy(), torch.nn.functional.one_hot(setting.labels[:ALONE], 10).numpy())
    return (time.perf_counter() - began) / calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of checkpoints and images")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(given.shared, given.samples)
    rows = [measure(setting, name, given.budget, given.pairs) for name in ATTACKS]
    for row in rows:
        print(f"{row['attack']:12} {row['share']:.1%} of the forward rate, {row['faster']:.1f} times one by one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = art_simba(setting, given.budget)
    found: dict[str, Any] = {"torch": torch.__version__, "threads": given.threads, "rows": rows, "art_simba": None}
    if theirs is None:
        print("ART is not installed and left out")
    else:
        simba = recipe("simba").search(Budget(Linf(EPS), given.budget))
        taken, points = attacked(setting.bare, simba, setting.images, setting.labels, given.budget)
        found["art_simba"] = theirs / (taken / points)
        print(f"ART's SimBA takes {found['art_simba']:.1f} times as long per query as ours")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    slow = [row["attack"] for row in rows if row["share"] < SHARE or row["faster"] < FASTER]
    print(f"too slow: {', '.join(slow)}" if slow else "everything holds")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
