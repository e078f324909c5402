"""What an attack costs beyond the model: its wall time against the same number of bare passes, in one run.

    python benchmarks/speed.py [--check] [--pairs 7] [--queries 8] [--threads 1] [--device cpu]
                               [--json FILE]

ResNet-20 for CIFAR-10 at batch 256. The attack and the bare passes are timed in turn, A B A B …, and the figure is the
median of the pairs' ratios, so that what else the machine does hits both. Limits: Square with every sample active 1.10
times its forward passes, gradient searches with 10 steps 1.15 times their forward and backward passes, MaxConfidence
on K = 10 1.2 times nine targeted PGD runs in one batch. A batch whose samples are all finished costs one query each.
`--check` exits 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import poise
from poise.constraints import L2, Constraint, Linf
from poise.models.builtin import BUILTIN
from poise.objectives import OCA, CrossEntropy, KeepLabel, MaxConfidence, Targeted
from poise.objectives.base import Bound, downwards
from poise.rng import Rng
from poise.searches import APGD, PGD, AdaptivePGD, ConfidencePGD, DropoutPGD, EveryClass, MomentumPGD, Search, Square
from poise.types import Access, Outputs

BATCH = 256
SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
WEIGHTS = SHARED / "checkpoints" / "cifar10_resnet20.safetensors"


class Row(NamedTuple):
    """One attack against its bare passes; seconds are medians per pass over the whole batch."""

    name: str
    passes: int
    bare: float
    attack: float
    ratio: float
    low: float
    high: float
    limit: float | None

    @property
    def met(self) -> bool:
        return self.limit is None or self.ratio <= self.limit


@dataclass(frozen=True)
class Finished:
    """A goal that every sample has reached before the attack begins."""

    access: ClassVar[Access] = Access.SCORES

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Finished(k=clean.labels, over=downwards(clean))


class _Finished(Bound):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.confidence

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.ones_like(ids, dtype=torch.bool)


def load_target(device: str) -> poise.ModuleTarget:
    """ResNet-20 with the shared checkpoint, or with random weights where that is missing (the time is the same)."""
    if WEIGHTS.exists():
        target = poise.models.load(f"builtin:resnet20-cifar10?weights={WEIGHTS}", device=device, batch_size=BATCH)
        assert isinstance(target, poise.ModuleTarget)
        return target
    entry = BUILTIN["resnet20-cifar10"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = entry.build(entry.num_classes)
    mean, std = entry.normalisation or (None, None)
    return poise.ModuleTarget(module.eval(), num_classes=10, mean=mean, std=std, device=device, batch_size=BATCH)


def forward_passes(target: poise.ModuleTarget, images: Tensor, count: int) -> None:
    """`count` bare forward passes."""
    with torch.no_grad():
        for _ in range(count):
            target.module(images)


def gradient_passes(target: poise.ModuleTarget, images: Tensor, count: int) -> None:
    """`count` bare forward and backward passes with respect to the input, and the last forward pass of PGD."""
    for _ in range(count):
        points = images.clone().requires_grad_(True)
        torch.autograd.grad(target.module(points).sum(), points)
    forward_passes(target, images, 1)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, with all that it queued on a GPU."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(
    name: str, bare: Callable[[], object], attack: Callable[[], object], *, passes: int, pairs: int, limit: float | None
) -> Row:
    """Times `bare` and `attack` in turn, the order swapped from pair to pair; one pair before that warms up."""
    times: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        if pair % 2:
            second, first = seconds(attack), seconds(bare)
        else:
            first, second = seconds(bare), seconds(attack)
        times.append((first, second))
    ratios = sorted(second / first for first, second in times[1:])
    return Row(
        name,
        passes,
        statistics.median(first for first, _ in times[1:]) / passes,
        statistics.median(second for _, second in times[1:]) / passes,
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
        limit,
    )


def measure(target: poise.ModuleTarget, *, queries: int, pairs: int) -> Iterator[Row]:
    """Every attack of the table; `queries` forward passes for Square, ten steps for the gradient searches."""
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(target.device)
    labels = target.query(images, torch.arange(BATCH)).labels

    def attacked(search: Search, constraint: Constraint, objective: object, spent: int) -> Callable[[], object]:
        def run() -> None:
            result = poise.attack(target, objective, search, constraint, images, labels, budget=spent)  # type: ignore[arg-type]
            assert result.table["queries"].min() == result.table["queries"].max() == spent, "a sample stopped early"

        return run

    never = KeepLabel(OCA(tol=0.0))
    for search, constraint, limit in (
        (Square(), Linf(8 / 255), 1.10),
        (Square(), L2(0.5), None),
    ):
        yield paired(
            f"Square, {type(constraint).__name__.lower()}",
            lambda: forward_passes(target, images, queries),
            attacked(search, constraint, never, queries),
            passes=queries,
            pairs=pairs,
            limit=limit,
        )
    for name, search_, objective, limit in (
        ("PGD", PGD(steps=10, undo=False), CrossEntropy(), 1.15),
        ("AdaptivePGD", AdaptivePGD(steps=10), never, 1.15),
        ("MomentumPGD", MomentumPGD(steps=10), CrossEntropy(), 1.15),
        ("APGD", APGD(steps=10), CrossEntropy(), 1.15),
        ("ConfidencePGD", ConfidencePGD(steps=10), never, 1.15),
    ):
        yield paired(
            f"{name}, linf, 10 steps",
            lambda: gradient_passes(target, images, 10),
            attacked(search_, Linf(8 / 255), objective, 11),
            passes=11,
            pairs=pairs,
            limit=limit,
        )
    yield max_confidence(target, images, labels, pairs=pairs)


def max_confidence(target: poise.ModuleTarget, images: Tensor, labels: Tensor, *, pairs: int) -> Row:
    """MaxConfidence on K = 10 against nine targeted PGD runs in one batch, the same number of points."""
    count = BATCH // 9
    few, truth = images[:count], labels[:count]
    many, its = few.repeat_interleave(9, dim=0), truth.repeat_interleave(9)
    search, ball = PGD(steps=10, undo=False), Linf(8 / 255)
    return paired(
        "MaxConfidence, K = 10, against 9 targeted PGD",
        lambda: poise.attack(target, Targeted(stop=False), search, ball, many, its, budget=11),
        lambda: poise.attack(target, MaxConfidence(tol=0), EveryClass(search), ball, few, truth, budget=1 + 9 * 11),
        passes=11,
        pairs=pairs,
        limit=1.2,
    )


def finished_cost(target: poise.ModuleTarget) -> int:
    """Most queries that any sample of a finished batch is charged, over all searches; 1 is right."""
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(target.device)
    labels = torch.zeros(BATCH, dtype=torch.long)
    searches: tuple[Search, ...] = (Square(), Square(start="stripes"), PGD(), DropoutPGD(), AdaptivePGD())
    counts = [
        poise.attack(target, Finished(), search, Linf(8 / 255), images, labels).table["queries"] for search in searches
    ]
    return max(int(query) for count in counts for query in count.to_list())


def show(row: Row) -> None:
    limit = "" if row.limit is None else f"{row.limit:.2f}" + ("" if row.met else " MISSED")
    print(
        f"{row.name:24} {row.passes:6d} {row.bare * 1e3:8.1f} {row.attack * 1e3:9.1f} {row.ratio:6.3f} "
        f"{row.low:6.3f}-{row.high:5.3f} {limit:>6}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs per attack")
    parser.add_argument("--queries", type=int, default=8, help="forward passes of each Square run")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; several wait on each other where cores are shared"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the ratios")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    target = load_target(given.device)
    weights = "the shared checkpoint" if WEIGHTS.exists() else "random weights (../shared is missing)"
    print(f"ResNet-20, batch {BATCH}, {weights}; {given.device}, {given.threads} threads, torch {torch.__version__}")
    print(
        f"{'attack':24} {'passes':>6} {'bare ms':>8} {'attack ms':>9} {'ratio':>6} {'range':>12} {'limit':>6}",
        flush=True,
    )
    rows = []
    for row in measure(target, queries=given.queries, pairs=given.pairs):
        show(row)
        rows.append(row)
    finished = finished_cost(target)
    print(f"queries per sample of a batch that is finished at the start: {finished} (limit 1)")
    if given.json:
        table = [{"what": row.name, "ratio": row.ratio, "limit": row.limit} for row in rows]
        found = {"torch": torch.__version__, "device": given.device, "batch": BATCH, "rows": table}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(given.check and not (all(row.met for row in rows) and finished == 1))


if __name__ == "__main__":
    sys.exit(main())
