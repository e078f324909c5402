"""Table 2 of the calibration attacks on a ResNet-20: which detector notices which attack, and what transfers.

    python benchmarks/detect.py --out DIR [--json results/detect.json] [--samples 500] [--budget 1000]

500 CIFAR-10 test images and 5,000 training images for class means, all decoded from the same JPEG copies (quality 75):
only 300 test images are there without loss, fewer than the table's 500, and the two must not be mixed. The published
figures (ResNet-50, CIFAR-100) are written beside ours. A run that was interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from poise.cli.progress import Bars
from poise.experiments.audit_spec import make_spec
from poise.experiments.detect import run_detect
from poise.experiments.detect_spec import RECIPES, DetectOptions

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"
PER_CLASS = 500
DETECTORS = ("lid", "mahalanobis", "input-mfs", "lid-apart", "layer-mfs")
MAGNITUDES = (0.0, 0.002, 0.0005)
"""Of the seven published ones, three: each costs a pass per layer, image and version."""

PUBLISHED = {"LID": "lid", "MD": "mahalanobis", "SpectralDefense": "input-mfs"}


def reference(folder: Path) -> Path:
    """The first images of every training class as an archive."""
    path = folder / "reference.npz"
    if path.exists():
        return path
    with zipfile.ZipFile(SHARED / "data" / "cifar10_train_jpeg75.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        taken = [name for one in classes for name in [at for at in names if at.split("/")[-2] == one][:PER_CLASS]]
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in taken])
    labels = np.array([classes.index(name.split("/")[-2]) for name in taken])
    np.savez(path, images=images, labels=labels, class_names=np.array(classes))
    return path


def published() -> dict[str, Any]:
    """The paper's figures for CIFAR-100: detector, attack, then auroc and accuracy."""
    found: dict[str, Any] = {}
    with (SHARED / "published" / "published.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["paper"], row["table"], row["dataset"]) == ("calibration-attacks", "T2", "CIFAR-100"):
                name = PUBLISHED[row["defence"].removeprefix("detector-")]
                metric = {"detection_auc": "auroc", "detection_accuracy": "accuracy"}[row["metric"]]
                found.setdefault(name, {}).setdefault(row["attack"].lower(), {})[metric] = float(row["value"])
    return found


def short(result: dict[str, Any]) -> dict[str, Any]:
    """What the page needs: all figures of a detector on its own attack, and the area alone on the others."""
    spec, found = result["spec"], {}
    for name, one in result["detectors"].items():
        own = {
            recipe: {metric: {k: round(v, 4) for k, v in at.items()} for metric, at in held["tested"][recipe].items()}
            for recipe, held in one["trained"].items()
        }
        areas = {
            recipe: {other: round(at["auroc"]["value"], 4) for other, at in held["tested"].items()}
            for recipe, held in one["trained"].items()
        }
        chosen = {recipe: held["chosen"] for recipe, held in one["trained"].items()}
        converged = all(held["converged"] for held in one["trained"].values())
        found[name] = {
            "fit": one["fit"], "test": one["test"], "layers": one["layers"], "chosen": chosen, "converged": converged,
            "own": own, "transfer": areas,
        }  # fmt: skip
    return {
        "poise": result["poise"],
        "created": result["created"],
        "model": "ResNet-20",
        "data": "CIFAR-10 test images at JPEG quality 75",
        "samples": result["samples"],
        "reference": {"data": "CIFAR-10 training images at JPEG quality 75", "samples": result["reference"]["samples"]},
        "spec": {key: spec[key] for key in ("eps", "norm", "budget", "steps", "seed", "bootstrap")},
        "fingerprints": result["fingerprints"],
        "attacks": {
            recipe: {key: round(value, 4) if isinstance(value, float) else value for key, value in about.items()}
            for recipe, about in result["attacks"].items()
        },
        "detectors": found,
        "published": published(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--budget", type=int, default=1000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    spec = make_spec(
        model=f"builtin:resnet20-cifar10?weights={SHARED}/data/checkpoints/cifar10_resnet20.safetensors",
        data=f"npz:{SHARED}/data/cifar10_test_jpeg75.npz", recipes=RECIPES, defences=("none",), eps=0.05, steps=10,
        samples=given.samples, budget=given.budget, batch_size=250,
    )  # fmt: skip
    options = DetectOptions(reference=f"npz:{reference(given.out)}", detectors=DETECTORS, magnitudes=MAGNITUDES)
    with Bars(Console(stderr=True), silent=False) as bars:
        result = run_detect(spec, options, given.out / "run", resume=True, listener=bars)
    if given.json:
        given.json.write_text(json.dumps(short(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
