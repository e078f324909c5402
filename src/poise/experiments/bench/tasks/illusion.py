"""Is a model's robustness an illusion of its temperature? (Raina et al., arXiv 2402.17509, carried over to images)."""

from __future__ import annotations

from scipy.stats import binomtest

from poise.errors import InputError
from poise.experiments.bench.plan import UNATTACKED, Shard
from poise.experiments.bench.tasks import measured, packing
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.illusion import Adversary, Illusion, illusion_of_robustness
from poise.recipebook import ball

STEPS = 20
ATTACKS = {"PGD": "plain", "PGD, cal": "cal", "PGD, opt": "opt"}
"""Rows of the table and the parts of `Illusion` behind them: the attack as it stands, and through two temperatures."""


def illusion(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """metrics.parquet: `accuracy` and `avg_confidence` before any attack; `adv_accuracy`, `avg_confidence`,
    `temperature` (the attacker's own), `recovered` and `p_value` of "PGD", "PGD, cal" and "PGD, opt".

    The model is attacked as it is served: behind the cell's defence, whose `temperature` is a fixed one. The attacker
    is always PGD on the cross-entropy with the profile's steps (20); the spec needs no attacks. Options: `validation`,
    the number of images, right after the attacked ones, on which both temperatures are chosen; without it they are
    chosen on the attacked images. All images of a cell must be one shard, since they share the temperatures.

    Intervals of accuracies are exact binomial ones (Clopper and Pearson).
    """
    settings = shard.settings
    samples = len(bench.attacked(settings))
    if shard.start > 0 or (shard.stop is not None and shard.stop < samples):
        raise InputError(f"illusion: shard must hold all {samples} images of a cell, got {shard.start}:{shard.stop}")
    bare = bench.model(shard, inputs)
    target = bench.defended(shard, bare, inputs)
    images, labels, _ = next(iter((part := bench.part(shard, bare)).batches(max(len(part), 1))))
    held = None
    if count := settings["options"].get("validation"):
        whole = bench.images(settings["data"])
        rest = whole[samples:][: int(count)]
        if len(rest) < int(count):
            raise InputError(f"validation: must be images beyond the attacked ones, {len(rest)} are left, got {count}")
        held = (rest.images, rest.labels)
    found = illusion_of_robustness(
        target, images, labels, ball(settings["norm"], settings["eps"]), validation=held,
        steps=settings["steps"] or STEPS, seed=settings["seed"],
    )  # fmt: skip
    threat = {"norm": settings["norm"], "eps": settings["eps"], "queries": None}
    rows = list(_clean(found))
    for name, part_name in ATTACKS.items():
        rows += _attacked(found, name, getattr(found, part_name), threat)
    return {"metrics.parquet": packing.table(measured.table(rows))}


def _clean(found: Illusion) -> list[measured.Row]:
    return [
        UNATTACKED | {"metric": "accuracy", **_share(found.clean_accuracy, found.samples)},
        UNATTACKED | {"metric": "avg_confidence", **_plain(found.clean_confidence, found.samples)},
    ]


def _attacked(found: Illusion, name: str, one: Adversary, threat: measured.Row) -> list[measured.Row]:
    keys = {"attack": name, **threat}
    rows = [
        keys | {"metric": "adv_accuracy", **_share(one.accuracy, found.samples)},
        keys | {"metric": "avg_confidence", **_plain(one.confidence, found.samples)},
        keys | {"metric": "temperature", **_plain(one.temperature, found.samples)},
        keys | {"metric": "p_value", **_plain(one.p_value, found.samples)},
    ]
    if one.recovered is not None:
        rows.append(keys | {"metric": "recovered", **_plain(one.recovered, found.samples)})
    return rows


def _share(value: float, n: int) -> measured.Row:
    limits = binomtest(round(value * n), n).proportion_ci(0.95)
    return {"value": value, "low": float(limits.low), "high": float(limits.high), "n": n}


def _plain(value: float, n: int) -> measured.Row:
    return {"value": value, "low": None, "high": None, "n": n}
