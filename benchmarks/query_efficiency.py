"""How many queries a black-box attack on the calibration needs: `learned-squares` beside `sa-mma`, and its ablation.

    python benchmarks/query_efficiency.py [--json FILE] [--networks NAME,...] [--seeds 0,1,2]

The lossless CIFAR-10 test images (the first of the 300, as many as NETWORKS says), linf 0.05, at most 1,000 queries per
image. No constant of `learned-squares` was chosen on these networks or on these images: that was done on ResNet-32 and
on `cnn_a_mix`, with JPEG copies of other test images. For every checkpoint the best confidence so far of every image
is kept; intervals are percentiles of bootstrap resamples of images, the same ones for both attacks. "Queries to reach"
an ECE is the first number of queries at which the curve is there, between checkpoints by linear interpolation. SA-MMA's
ECE after 1,000 queries counts as reached by itself after 1,000. Rows that the file holds already are not run again.
The part `gratings` counts the labels that each grating takes, and what the way back leaves of the confidence.
The part `surrogate` gives `learned-squares` a network of the attacker's own (SURROGATES), for the first queries;
`surrogate-end` does so for all of them (a walk through the surrogate takes several times the victim's own time).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import poise
from poise.attacks import Watch
from poise.constraints import Box, Linf
from poise.recipebook import Setting
from poise.searches import Cascade, Gratings, Search, Square
from poise.searches.gratings import WAVES, grating

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
NETWORKS = {
    "ResNet-20": ("builtin:resnet20-cifar10?weights={}/checkpoints/cifar10_resnet20.safetensors", 100),
    "ResNet-56": ("builtin:resnet56-cifar10?weights={}/checkpoints/cifar10_resnet56.safetensors", 50),
    "ResNet-2b, adversarial": ("builtin:resnet2b-cifar10?weights={}/checkpoints/cifar10_resnet2b_adv.safetensors", 100),
}
"""Where the network is, and how many images it is attacked on: what one CPU core does in reasonable time."""

SURROGATES = {
    "ResNet-20": ("ResNet-32", "builtin:resnet32-cifar10?weights={}/checkpoints/cifar10_resnet32.safetensors"),
    "ResNet-56": ("ResNet-32", "builtin:resnet32-cifar10?weights={}/checkpoints/cifar10_resnet32.safetensors"),
    "ResNet-2b, adversarial": (
        "CNN-A, adversarial", "builtin:cnn-a-cifar10?weights={}/checkpoints/cifar10_cnn_a_adv.safetensors"
    ),
}  # fmt: skip
"""The attacker's own network, trained by somebody else on the same training images."""

ABLATED = ("ResNet-20", "ResNet-2b, adversarial")
OURS, THEIRS = "learned-squares", "sa-mma"
CHECKPOINTS = (1, *range(5, 100, 5), *range(100, 200, 10), *range(200, 400, 25), *range(400, 1001, 50))
BUDGET, EPS, RESAMPLES = 1000, 0.05, 1000
ABLATION_BUDGET = 200
SURROGATE_BUDGETS = {"surrogate": 60, "surrogate-end": BUDGET}
PLAIN = Square(p=0.1, horizon=1000, strict=False)
GRATINGS, LEARNED = poise.recipes()[OURS].search(Setting(Linf(EPS))).stages
START = LEARNED.square


def ours(*, gratings: Gratings = GRATINGS, **changed: Any) -> Search:
    """The search of the recipe `learned-squares`, one thing of it changed."""
    return Cascade((gratings, replace(LEARNED, **changed)))


ABLATIONS: dict[str, Search] = {
    "learned-squares": ours(),
    "patterns instead of gratings": replace(LEARNED, square=replace(START, start="clean")),
    "the finest grating alone": ours(gratings=Gratings(waves=WAVES[:1])),
    "one query on the way back": ours(gratings=Gratings(halvings=1)),
    "no model": ours(warm_up=10**6),
    "no gratings, no model": PLAIN,
    "two squares per query": ours(squares=2),
    "four squares per query": ours(squares=4),
    "p = 0.1": ours(square=replace(START, p=0.1)),
    "p = 0.4": ours(square=replace(START, p=0.4)),
    "squares shrink twice as fast": ours(square=replace(START, horizon=1000)),
    "a lost label is undone": ours(square=replace(START, strict=True)),
    "4 x 4 tiles": ours(side=4),
}
"""One thing changed at a time; all follow the loss of `standard`."""

Row = dict[str, Any]
Curves = NDArray[np.float64]


def ece_curve(confidence: Curves, right: NDArray[np.float64]) -> NDArray[np.float64]:
    """(q,) ECE at every checkpoint; confidence (q, n)."""
    return np.array([float(poise.metrics.ece(at, right)) for at in confidence])


def reached(curve: NDArray[np.float64], level: float) -> float:
    """Queries at which the curve over CHECKPOINTS first is at level; infinite where it never is."""
    at = np.flatnonzero(curve >= level)
    if not len(at):
        return float("inf")
    i = int(at[0])
    if i == 0:
        return float(CHECKPOINTS[0])
    share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(CHECKPOINTS[i - 1] + share * (CHECKPOINTS[i] - CHECKPOINTS[i - 1]))


def attacked(target: poise.Target, images: torch.Tensor, labels: torch.Tensor, run: Callable[[Watch], Any]) -> Row:
    """Confidences (q, n) at the checkpoints, and what does not change with them."""
    began = time.perf_counter()
    result = run(Watch(checkpoints=CHECKPOINTS))
    table, curve = result.table, result.curve
    counts = sorted(set(curve["queries"].to_list()))
    confidence = [curve.filter(curve["queries"] == count)["confidence"].round(5).to_list() for count in counts]
    right = (table["prediction_before"] == table["label"]).to_list()
    kept = bool((table["prediction_after"] == table["prediction_before"]).all())
    bound = float(poise.metrics.mma_bound(float(np.mean(right)), target.num_classes))
    ece = [round(float(value), 5) for value in ece_curve(np.array(confidence), np.array(right, dtype=np.float64))]
    seconds = round(time.perf_counter() - began, 1)
    asked = float(table["queries"].mean())
    return {
        "samples": len(right), "bound": bound, "labels_kept": kept, "queries_mean": asked, "seconds": seconds,
        "checkpoints": counts, "ece": ece, "right": right, "confidence": confidence,
    }  # fmt: skip


Figures = Callable[[Curves, Curves, NDArray[np.float64]], dict[str, float]]
"""What is read off our mean curve, theirs, and what was right (n,), of one resample."""


def resampled(ours: list[Row], theirs: list[Row], figures: Figures) -> Row:
    """Figures over all seeds: of the mean curve of each attack, images resampled in pairs."""
    right = np.array(ours[0]["right"], dtype=np.float64)
    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {}

    def once(pick: NDArray[np.int64]) -> None:
        one, other = (
            np.mean([ece_curve(np.array(row["confidence"])[:, pick], right[pick]) for row in rows], axis=0)
            for rows in (ours, theirs)
        )
        for name, value in figures(one, other, right[pick]).items():
            found.setdefault(name, []).append(float(value))

    once(np.arange(len(right)))
    for _ in range(RESAMPLES):
        once(generator.integers(0, len(right), len(right)))
    return {
        name: [_finite(values[0]), *(_finite(v) for v in np.percentile(values[1:], [2.5, 97.5], method="nearest"))]
        for name, values in found.items()
    }


def compared(one: Curves, other: Curves, right: NDArray[np.float64]) -> dict[str, float]:
    """Queries of both to the three levels, and the shares of the bound at the end."""
    bound = float(poise.metrics.mma_bound(float(right.mean()), 10))
    values = {"share ours": one[-1] / bound, "share theirs": other[-1] / bound, "ece theirs": other[-1]}
    values |= {f"{who} {level}": reached(curve, level) for who, curve in (("ours", one), ("theirs", other))
               for level in (0.2, 0.3)}  # fmt: skip
    values["ours last"], values["theirs last"] = reached(one, float(other[-1])), float(BUDGET)
    values["theirs near last"] = reached(other, 0.98 * float(other[-1]))
    values["ratio"] = BUDGET / values["ours last"]
    return values


def first_queries(one: Curves, other: Curves, right: NDArray[np.float64]) -> dict[str, float]:
    """As `compared`, where ours was broken off early: only its queries to reach the levels."""
    last = reached(one, float(other[-1]))
    return {"0.2": reached(one, 0.2), "0.3": reached(one, 0.3), "last": last, "ratio": BUDGET / last}


def at_the_end(one: Curves, other: Curves, right: NDArray[np.float64]) -> dict[str, float]:
    """The share of the bound that ours comes to after all queries."""
    return {"share": one[-1] / float(poise.metrics.mma_bound(float(right.mean()), 10))}


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def load(name: str) -> tuple[poise.Target, torch.Tensor, torch.Tensor]:
    weights, count = NETWORKS[name]
    target = poise.models.load(weights.format(SHARED))
    data = poise.data.load(f"npz:{SHARED}/cifar10_test_lossless_subset.npz")[:count]
    images, labels, _ = next(iter(data.batches(count)))
    return target, images, labels


class Record:
    """The result file: rows as they come, and the comparison made of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: Row = json.loads(path.read_text()) if path.exists() else {"rows": [], "compared": {}}

    def save(self) -> None:
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.found) + "\n", encoding="utf-8")
        unfinished.replace(self.path)

    def job(self, key: Row, run: Callable[..., Any], **setting: Any) -> None:
        """Attacks and saves, unless it is there already: `run(target, images, labels, watch=..., **setting)`."""
        if any(all(row[column] == value for column, value in key.items()) for row in self.found["rows"]):
            return
        on = load(key["network"])
        row = key | attacked(*on, lambda watch: run(*on, watch=watch, **setting))
        if key["part"] == "ablation":
            row |= {"confidence": None, "right": None}
        self.found["rows"].append(row)
        self.save()
        share = f"ECE {row['ece'][-1]:.3f} = {row['ece'][-1] / row['bound']:.3f} of the bound, {row['seconds']} s"
        print(f"{key['network']:24} {key['name']:34} seed {key['seed']}: {share}", flush=True)

    def compare(self, network: str) -> None:
        """Each of our attacks with theirs, over the seeds that both have."""
        rows = [row for row in self.found["rows"] if row["network"] == network]
        theirs = {row["seed"]: row for row in rows if (row["part"], row["name"]) == ("main", THEIRS)}
        for part, (name, figures) in COMPARED.items():
            ours = {row["seed"]: row for row in rows if (row["part"], row["name"]) == (part, OURS)}
            common = sorted(ours.keys() & theirs.keys())
            if common:
                pairs = [ours[seed] for seed in common], [theirs[seed] for seed in common]
                sizes = {"seeds": len(common), "samples": pairs[0][0]["samples"], "bound": pairs[0][0]["bound"]}
                if part in SURROGATE_BUDGETS:
                    sizes["surrogate"] = SURROGATES[network][0]
                self.found.setdefault(name, {})[network] = resampled(*pairs, figures) | sizes
                self.save()


COMPARED: dict[str, tuple[str, Figures]] = {
    "main": ("compared", compared),
    "surrogate": ("surrogates", first_queries),
    "surrogate-end": ("surrogates at the end", at_the_end),
}
"""Part to the name of its comparison with SA-MMA in the result file, and what is compared."""


def thrown(network: str) -> Row:
    """What gratings do alone: the share of labels that each takes, where the way back ends, after how many queries."""
    target, images, labels = load(network)
    ids, ball = torch.arange(len(images)), Linf(EPS)
    before = target.query(images, ids).labels
    lost = {}
    for wave in WAVES:
        x = ball.project(images + EPS * grating(wave, images), images, Box(*target.bounds))
        lost["{:g}, {:g}".format(*wave)] = float((target.query(x, ids).labels != before).double().mean())
    goal = poise.recipes()[OURS].objective
    table = poise.attack(target, goal, Gratings(), ball, images, labels, budget=BUDGET).table
    right = table["prediction_before"] == table["label"]
    ece = float(poise.metrics.ece(table["confidence_after"].to_numpy(), right.to_numpy().astype(float)))
    taking_part = table["queries"] > 1
    return {
        "samples": len(images), "lost": lost, "ece": ece,
        "bound": float(poise.metrics.mma_bound(float(right.mean()), target.num_classes)),
        "queries": float(table["queries"].filter(taking_part).mean()),
        "confidence": float(table["confidence_after"].filter(right).mean()),
    }  # fmt: skip


def named(*on: Any, name: str, **setting: Any) -> poise.AttackResult:
    return poise.run_recipe(name, *on, eps=EPS, **setting)


def composed(*on: Any, search: Search, watch: Watch) -> poise.AttackResult:
    """The goal of `learned-squares` with another search."""
    target, images, labels = on
    goal = poise.recipes()[OURS].objective
    return poise.attack(target, goal, search, Linf(EPS), images, labels, budget=ABLATION_BUDGET, watch=watch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("query_efficiency.json"))
    parser.add_argument("--networks", default=";".join(NETWORKS), help="separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default="gratings,main,ablation,surrogate,surrogate-end")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = set(options.parts.split(","))
    record = Record(options.json)
    for network in options.networks.split(";"):
        if "gratings" in parts:
            record.found.setdefault("gratings", {})[network] = thrown(network)
            record.save()
        if "main" in parts:
            for seed in map(int, options.seeds.split(",")):
                for name in (THEIRS, OURS):
                    key = {"part": "main", "network": network, "name": name, "seed": seed}
                    record.job(key, named, name=name, budget=BUDGET, seed=seed)
        for part in (part for part in SURROGATE_BUDGETS if part in parts):
            surrogate = poise.models.load(SURROGATES[network][1].format(SHARED))
            for seed in map(int, options.seeds.split(",")):
                key = {"part": part, "network": network, "name": OURS, "seed": seed}
                record.job(key, named, name=OURS, budget=SURROGATE_BUDGETS[part], seed=seed, surrogate=surrogate)
        if "ablation" in parts and network in ABLATED:
            for name, search in ABLATIONS.items():
                record.job({"part": "ablation", "network": network, "name": name, "seed": 0}, composed, search=search)
        record.compare(network)


if __name__ == "__main__":
    main()
