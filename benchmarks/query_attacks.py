"""Accuracy left after 100 and 1,000 queries: black-box attacks against a network with and without a defence.

    python benchmarks/query_attacks.py [--attacks square,…] [--defences none,…] [--samples 200] [--json FILE]

The setting of Tables 2 and 6 of Chen et al. 2022 on CIFAR-10: linf 8/255, logit margin, images that the undefended
network classifies correctly, a success at the first query whose label is wrong. `apgd` and `apgd-bare` need gradients:
through the defence, and images made against the undefended network. Cells that FILE holds already are not run again.

A defence that draws random numbers (RND) answers each query anew, so a lucky draw counts; "asked again" is the accuracy
of the returned images over ten fresh draws.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import poise
from poise import data, models
from poise.defenses import AAA, RandomNoise, defended
from poise.files import whole
from poise.targets import ModuleTarget

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
CHECKPOINTS = (100, 1000)
DRAWS = 10
WHITE = {"apgd": "the defended network", "apgd-bare": "the undefended network"}

DEFENCES: dict[str, Callable[[nn.Module, Tensor, Tensor], nn.Module]] = {
    "none": lambda module, logits, labels: module,
    "rnd": lambda module, logits, labels: defended(module, inference=[RandomNoise(0.02)]),
    "aaa-linear": lambda module, logits, labels: defended(module, posthoc=[AAA("linear").fit(logits, labels)]),
    "aaa-sine": lambda module, logits, labels: defended(module, posthoc=[AAA("sine").fit(logits, labels)]),
}


class Setting:
    """Network, attacked images and held-out ones."""

    def __init__(self, shared: Path, samples: int) -> None:
        address = f"builtin:resnet20-cifar10?weights={shared}/checkpoints/cifar10_resnet20.safetensors"
        self.bare = models.load(address)
        whole_set = data.load(f"npz:{shared}/cifar10_test_lossless_subset.npz")
        answers = self.bare.query(whole_set.images, whole_set.ids)
        right = (answers.labels == whole_set.labels).nonzero()[:, 0]
        self.images, self.labels, self.ids = (
            part[right[:samples]] for part in (whole_set.images, whole_set.labels, whole_set.ids)
        )
        with np.load(shared / "cifar10_test_lossless_subset.npz") as archive:
            used = archive["test_index"]
        others = data.load(f"npz:{shared}/cifar10_test_jpeg75.npz")
        held_out = others.select(np.setdiff1d(np.arange(len(others)), used)).mixed()[:1000]  # rows are test indices
        self.fit = self.bare.query(held_out.images, held_out.ids).scores, held_out.labels

    def target(self, defence: str) -> ModuleTarget:
        return ModuleTarget(DEFENCES[defence](self.bare.module, *self.fit), num_classes=10)


def accuracy(target: ModuleTarget, images: Tensor, setting: Setting, draws: int) -> float:
    """Mean accuracy over so many answers."""
    found = []
    for seed in range(draws):
        with target.session(seed):
            found.append((target.query(images, setting.ids).labels == setting.labels).double().mean())
    return float(torch.stack(found).mean())


def measure(setting: Setting, attack: str, defence: str, budget: int) -> dict[str, Any]:
    target, white = setting.target(defence), attack in WHITE
    attacked = setting.bare if attack == "apgd-bare" else target
    began = time.perf_counter()
    result = poise.run_recipe(
        "apgd" if white else attack, attacked, setting.images, setting.labels, ids=setting.ids, eps=8 / 255,
        budget=budget, steps=100 if white else None,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    when = result.table["queries_to_success"]
    left = {str(queries): float(1 - ((when <= queries).fill_null(value=False)).mean()) for queries in CHECKPOINTS}
    draws = DRAWS if defence == "rnd" else 1
    again = accuracy(target, result.images, setting, draws)
    return {
        "attack": attack, "defence": defence, "samples": len(setting.ids), "budget": budget,
        "clean": accuracy(target, setting.images, setting, draws), "left": {} if white else left, "again": again,
        "queries": float(result.table["queries"].mean()), "seconds_per_image": seconds / len(setting.ids),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", default="square,bi-square,op-square,apgd,apgd-bare")
    parser.add_argument("--defences", default=",".join(DEFENCES))
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of checkpoints and images")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    setting = Setting(given.shared, given.samples)
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json and given.json.exists() else []
    known = {(row["attack"], row["defence"], row["samples"], row["budget"]) for row in rows}
    for attack in given.attacks.split(","):
        for defence in given.defences.split(","):
            if (attack, defence, len(setting.ids), given.budget) in known:
                continue
            rows.append(row := measure(setting, attack, defence, given.budget))
            left = " ".join(f"{100 * value:5.1f} % after {queries}" for queries, value in row["left"].items())
            print(f"{attack:12} {defence:11} {left}  asked again {100 * row['again']:5.1f} %", flush=True)
            if given.json is not None:
                with whole(given.json) as temporary:
                    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
