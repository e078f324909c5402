"""Specs as they ship, made so small that a test can run them."""

from __future__ import annotations

from pathlib import Path

from poise.experiments.bench.plan import Place, Plan
from poise.experiments.bench.run import plan_for
from poise.experiments.bench.spec import BenchSpec, Profile

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
QUERIES, IMAGES = 12, 6

TINY = """
paper = "mine"
shows = "Table 9"
title = "Mine"
setting = "none"
[table]
rows = ["attack"]
metrics = ["ece"]
[grid]
eps = ["8/255"]
attacks = [{ name = "SA-MMA", recipe = "sa-mma" }]
[full]
[[full.victims]]
dataset = "digits"
model = "CNN"
source = "builtin:digits"
data = "builtin:digits"
[small]
samples = 4
[[small.victims]]
dataset = "digits"
model = "CNN"
source = "builtin:digits"
data = "builtin:digits"
"""


class Quiet:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.ran: list[str] = []
        self.broken: dict[str, str] = {}

    def begin(self, total: int, done: int, left_out: dict[str, list[str]]) -> None:
        self.begun.append((total, done))

    def started(self, what: str) -> None: ...

    def finished(self, what: str, seconds: float) -> None:
        self.ran.append(what)

    def failed(self, what: str, reason: str) -> None:
        self.broken[what] = reason


def shrunk(spec: BenchSpec) -> BenchSpec:
    """The small profile with a handful of images, queries and epochs; every cell is still there."""
    profile = spec.small
    images = 24 if spec.task in ("detect", "explain") else IMAGES
    chosen = profile.victims[-1:] if spec.task == "detect" else profile.victims  # detectors take minutes on CIFAR-10
    victims = tuple(
        one.model_copy(update={"samples": None, "confidence": None if one.confidence is None else (0.0, 1.0)})
        for one in chosen
    )
    attacks = tuple(
        one.model_copy(update={"steps": 2, "budget": None if one.budget is None else min(one.budget, QUERIES)})
        for one in profile.attacks
    )
    training = {
        name: one.model_copy(update={"change": {**one.change, "epochs": 1, "batch_size": 300}})
        for name, one in profile.training.items()
    }
    update = {
        "samples": images, "shard": images, "budgets": (QUERIES,), "victims": victims, "attacks": attacks,
        "steps": 2, "bootstrap": 20, "training": training, "seeds": profile.seeds[:1],
        "checkpoints": tuple(at for at in profile.checkpoints if at < QUERIES),
        "options": _options(profile),
    }  # fmt: skip
    return spec.model_copy(update={"small": profile.model_copy(update=update)})


def _options(profile: Profile) -> dict[str, object]:
    small = {"n": 200, "n0": 20, "validation": 4}
    return {name: small.get(name, value) for name, value in profile.options.items()}


def plan_of(spec: BenchSpec, folder: Path = SHARED) -> Plan:
    return plan_for(spec, "small", Place(str(folder)))
