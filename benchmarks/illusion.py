"""What a served temperature hides from which attack, and what an attacker's own temperature brings back.

    python benchmarks/illusion.py [--json FILE] [--samples 100] [--threads 1]

ResNet-20 and an adversarially trained network for CIFAR-10, served as softmax(z / T) for T = 1e-3, 1, 1e3 and 1e6,
labels unchanged. Accuracy (attacks on the label) or mean confidence (attacks on the confidence) at linf 8/255, judged
on the model as served. `cal` and `opt` follow PGD through the temperature that calibrates, or that serves the attack
best, on 64 other images. "At 1" is the confidence that the found images have on the bare model: what an attack did.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import poise
from poise.constraints import Linf
from poise.illusion import illusion_of_robustness
from poise.objectives import UCA, KeepLabel, Margin, ProbabilityMargin
from poise.recipebook import Setting
from poise.searches import Square

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
NETWORKS = {
    "ResNet-20": "builtin:resnet20-cifar10?weights={}/checkpoints/cifar10_resnet20.safetensors",
    "CNN-A, adversarial": "builtin:cnn-a-cifar10?weights={}/checkpoints/cifar10_cnn_a_adv.safetensors",
}
TEMPERATURES = (1e-3, 1.0, 1e3, 1e6)
EPS = 8 / 255
QUERIES = 200
Row = dict[str, Any]


class Served(nn.Module):
    """A model whose logits are divided by a temperature."""

    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        self.module, self.temperature = module, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) / self.temperature


def row(name: str, served: float, bare: poise.ModuleTarget, data: tuple[Tensor, ...]) -> Row:
    """All attacks on one network at one served temperature."""
    images, labels, others, their_labels = data
    target = poise.ModuleTarget(Served(bare.module, served), num_classes=bare.num_classes)
    found = illusion_of_robustness(target, images, labels, Linf(EPS), validation=(others, their_labels))
    result: Row = {"network": name, "served": served, "clean": found.clean_accuracy, "found": found.found}
    for which in ("plain", "cal", "opt"):
        one = getattr(found, which)
        result[f"pgd, {which}"] = {"accuracy": one.accuracy, "temperature": one.temperature, "recovered": one.recovered}
    for label, objective in (("square, logit margin", Margin()), ("square, probability margin", ProbabilityMargin())):
        table = poise.attack(
            target, objective, Square(start="stripes"), Linf(EPS), images, labels, budget=QUERIES
        ).table
        result[label] = {"accuracy": float((table["prediction_after"] == table["label"]).mean())}
    for label, attack in (
        ("sa-uca", lambda: poise.attack(target, KeepLabel(UCA()), Square(), Linf(EPS), images, labels, budget=QUERIES)),
        ("standard-under", lambda: standard(target, images, labels)),
    ):
        after = attack()
        ids = torch.arange(len(images))
        seen = bare.query(after.images, ids).confidence.mean()
        table = after.table
        result[label] = {
            "confidence": float(table["confidence_after"].mean()),
            "clean": float(table["confidence_before"].mean()),
            "at 1": float(seen),
        }
    return result


def standard(target: poise.ModuleTarget, images: Tensor, labels: Tensor) -> poise.AttackResult:
    """The white-box part of the standard attack on the confidence."""
    setting = Setting(Linf(EPS), budget=21, steps=20)
    return poise.recipe("standard-under").run(target, images, labels, setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    whole = poise.data.load(f"npz:{SHARED}/cifar10_test_lossless_subset.npz")
    images, labels, _ = next(iter(whole[: given.samples].batches(given.samples)))
    others, their_labels, _ = next(iter(whole[given.samples : given.samples + 64].batches(64)))
    rows = []
    for name, uri in NETWORKS.items():
        bare = poise.models.load(uri.format(SHARED))
        assert isinstance(bare, poise.ModuleTarget)
        for served in TEMPERATURES:
            rows.append(row(name, served, bare, (images, labels, others, their_labels)))
            print(json.dumps(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"samples": given.samples, "eps": EPS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
