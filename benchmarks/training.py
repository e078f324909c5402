"""Trains a network by many recipes and seeds, attacks every one of them, and writes a row per network.

    python benchmarks/training.py experiments/training/NAME.toml [--data DIR] [--device cuda] [--workers 8]
        [--recipes at,uat-smooth] [--seeds 0] [--set epochs=1] [--json results/training/NAME.json]

`--data` holds the archives that `tools/prepare_data.py` makes. Networks that the file has rows of already are not
trained again, so a run that was broken off goes on.

Attacks, as the UAT paper sets them: Dropout, Adaptive and ConfSmooth with 20 steps in the ball of `attack_eps`; PGD for
a wrong label with 20 steps in that of `pgd_eps`. Then SA-MMA with `square_queries` queries, and `standard` with 100
steps for the lowest confidence (`standard-under`) and for maximum miscalibration (`standard`), in the ball of
`attack_eps`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

import poise
from poise import metrics
from poise.constraints import Linf
from poise.defenses import TemperatureScaling
from poise.errors import PoiseError
from poise.experiments.served import behind
from poise.experiments.train import run_train
from poise.experiments.train_spec import make_train_spec
from poise.objectives import UCA, ConfSmooth, CrossEntropy, KeepLabel
from poise.searches import PGD, AdaptivePGD, DropoutPGD
from poise.training import training_recipe

STEPS, LONG = 20, 100
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where the archives lie, where networks are trained, in which precision, and what is changed in every recipe."""

    data: str
    device: str
    precision: str
    changes: Row


def attacked(study: Row, target: poise.ModuleTarget, images: torch.Tensor, labels: torch.Tensor) -> Row:
    """Name of an attack to accuracy, mean confidence and ECE after it; all images count."""
    eps, step = _number(study["attack_eps"]), _number(study["attack_step"])
    pgd_eps, pgd_step = _number(study["pgd_eps"]), _number(study["pgd_step"])
    ball = Linf(eps)
    dropout, adaptive = DropoutPGD(STEPS, step, mask_target="step"), AdaptivePGD(STEPS, step)
    pgd = PGD(STEPS, pgd_step, random_start=True, undo=False)
    composed = {
        "dropout": (KeepLabel(UCA()), dropout, ball),
        "adaptive": (KeepLabel(UCA()), adaptive, ball),
        "confsmooth": (KeepLabel(ConfSmooth()), adaptive, ball),
        "pgd": (CrossEntropy(), pgd, Linf(pgd_eps)),
    }
    tables = {name: poise.attack(target, *parts, images, labels).table for name, parts in composed.items()}
    named = {
        "sa-mma": (None, study["square_queries"]),
        "standard-under": (LONG, LONG + 2),
        "standard": (LONG, LONG + 2),
    }
    for name, (steps, budget) in named.items():
        tables[name] = poise.run_recipe(name, target, images, labels, eps=eps, steps=steps, budget=budget).table
    return _summed(tables)


def calibrated(study: Row, target: poise.ModuleTarget, held_out: poise.data.Dataset, test: poise.data.Dataset) -> Row:
    """The same after temperature scaling on held-out images: what was only a matter of the scale of the logits."""
    answer = target.query(held_out.images.to(target.device), held_out.ids)
    scaling = TemperatureScaling().fit(answer.logits.cpu(), held_out.labels)
    served = behind(target, scaling)
    ball, step = Linf(_number(study["attack_eps"])), _number(study["attack_step"])
    pgd = PGD(STEPS, _number(study["pgd_step"]), random_start=True, undo=False)
    composed = {
        "confsmooth": (KeepLabel(ConfSmooth()), AdaptivePGD(STEPS, step), ball),
        "pgd": (CrossEntropy(), pgd, Linf(_number(study["pgd_eps"]))),
    }
    tables = {name: poise.attack(served, *parts, test.images, test.labels).table for name, parts in composed.items()}
    return {"temperature": float(scaling.temperature), **_summed(tables)}


def _summed(tables: dict[str, pl.DataFrame]) -> Row:
    """Clean figures, and those after each attack."""
    found = {}
    for name, table in tables.items():
        right = (table["prediction_after"] == table["label"]).to_numpy().astype(float)
        confidence = table["confidence_after"].to_numpy()
        found[name] = _figures(confidence, right) | {"queries": float(table["queries"].to_numpy().mean())}
    first = tables["pgd"]
    clean = (first["prediction_before"] == first["label"]).to_numpy().astype(float)
    return {"clean": _figures(first["confidence_before"].to_numpy(), clean), "attacks": found}


def _figures(confidence: np.ndarray, right: np.ndarray) -> Row:
    kept = confidence[right == 1]
    return {
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "confidence_right": float(kept.mean()) if len(kept) else None,
        "ece": float(metrics.ece(confidence, right)),
    }


def _number(value: str | float) -> float:
    return float(Fraction(value)) if isinstance(value, str) else value


def network(study: Row, name: str, seed: int, place: Place) -> Row:
    """Trains and attacks one network; one that cannot be trained has a row that says why."""
    try:
        return _network(study, name, seed, place)
    except PoiseError as error:
        return {"recipe": name, "seed": seed, "failed": str(error)}


def _network(study: Row, name: str, seed: int, place: Place) -> Row:
    own = dict(study["recipes"][name])
    recipe = training_recipe(own.pop("recipe", name), study["all"] | own | place.changes)
    spec = make_train_spec(
        recipe=recipe,
        model=study["model"],
        data=study["train"].format(data=place.data),
        seed=seed,
        device=place.device,
        precision=place.precision,
        workers=1,
    )
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        summary = run_train(spec, Path(folder, "run"))
        trained = time.perf_counter() - began
        target = poise.models.load(summary["address"], device=place.device, batch_size=study["samples"])
        test = poise.data.load(study["test"].format(data=place.data), samples=study["samples"])
        found = attacked(study, target, test.images, test.labels)
        held_out = poise.data.split(poise.data.load(spec.data), (1 - spec.val_share, spec.val_share), seed=seed)[1]
        found["calibrated"] = calibrated(study, target, held_out[:1000], test)
    last = summary["last"]
    return {
        "recipe": name,
        "seed": seed,
        "epochs": summary["epochs"],
        "kept_epoch": summary["best"]["epoch"],
        "passes": last["passes"],
        "train_images": summary["data"]["train"],
        "test_images": len(test),
        "device": torch.cuda.get_device_name() if place.device.startswith("cuda") else place.device,
        "precision": place.precision,
        "seconds": {"training": trained, "attacks": time.perf_counter() - began - trained},
        "val_accuracy": summary["best"]["val_accuracy"],
        **found,
    }


def _begin() -> None:
    torch.set_num_threads(1)


def rows(study: Row, jobs: list[tuple[str, int]], place: Place, workers: int) -> Iterator[Row]:
    """A row per network, as they are done."""
    if workers == 1:
        yield from (network(study, name, seed, place) for name, seed in jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as pool:
        asked = [pool.submit(network, study, name, seed, place) for name, seed in jobs]
        yield from (done.result() for done in as_completed(asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", default="runs/data", help="folder of the prepared archives")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true", help="of the training; attacks are in float32")
    parser.add_argument("--workers", type=int, default=1, help="networks at a time, each in a process of its own")
    parser.add_argument("--recipes", help="these alone, separated by commas")
    parser.add_argument("--seeds", help="these alone, separated by commas")
    parser.add_argument("--set", action="append", default=[], help="KEY=NUMBER: change a field of all recipes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    study = tomllib.loads(given.study.read_text(encoding="utf-8"))
    changes = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    names = given.recipes.split(",") if given.recipes else list(study["recipes"])
    seeds = [int(seed) for seed in given.seeds.split(",")] if given.seeds else study["seeds"]
    kept = json.loads(given.json.read_text())["rows"] if given.json and given.json.exists() else []
    have = {(row["recipe"], row["seed"]) for row in kept}
    jobs = [(name, seed) for seed in seeds for name in names if (name, seed) not in have]
    about = {key: value for key, value in study.items() if key not in ("all", "recipes")}
    place = Place(given.data, given.device, given.precision, changes)
    for row in rows(study, jobs, place, given.workers):
        if "failed" in row:
            print(f"{row['recipe']:22} seed {row['seed']}  FAILED: {row['failed']}", flush=True)
            continue
        kept.append(row)
        shown = {name: round(found["confidence"], 3) for name, found in row["attacks"].items()}
        print(
            f"{row['recipe']:22} seed {row['seed']}  accuracy {row['clean']['accuracy']:.3f}, PGD "
            f"{row['attacks']['pgd']['accuracy']:.3f}  confidence {row['clean']['confidence']:.3f} -> {shown}  "
            f"{row['seconds']['training']:.0f} + {row['seconds']['attacks']:.0f} s",
            flush=True,
        )
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            order = {name: at for at, name in enumerate(study["recipes"])}
            kept.sort(key=lambda row: (order.get(row["recipe"], 0), row["seed"]))
            given.json.write_text(
                json.dumps({"study": about, "all": study["all"], "changes": changes, "rows": kept}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
