"""A guard against slow inner loops that holds on a noisy machine: Square and PGD against bare passes.

    python benchmarks/guard.py [--rounds 20] [--whole] [--repeat 1] [--json FILE]

Counts: what one more query takes, from two attacks of different length: calls of the model, and beyond those of a bare
pass the calls of Python and C functions (`sys.setprofile`) and the tensor operations (a dispatch mode). They are the
same in every run, so the model may be called once and 15 % more of the rest is a finding: work done image by image
shows here at once, long before a clock sees it. What they do not see is arithmetic without calls and slower operations.

Time: processor time of a short attack over that of bare passes of the same images, one torch thread. Both are run in
turn, and the ratio is that of their minima: what else the machine does only adds time, so both minima come from its
quietest moments; rounds go on until the limit holds or 20 are over, since a slowdown stays in all of them and a
disturbance does not. The limit is wide; it is for what the counts do not see.

Exit code 1 where a limit is missed. After a change that is meant to cost more, raise LIMITS and say why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import poise
from poise.constraints import Linf
from poise.objectives import CrossEntropy, Margin
from poise.searches import PGD, Square

BATCH, QUERIES, STEPS, ROUNDS = 64, 6, 3, 20


Step = Callable[[int], None]
"""A run of so many queries, gradient steps or bare passes."""


@dataclass(frozen=True)
class Cost:
    """Of one attack: time over that of bare passes; per query calls of the model, and what comes beyond a bare pass."""

    ratio: float
    passes: float
    calls: float
    operations: float


LIMITS = {
    "square": Cost(ratio=3.0, passes=1, calls=257, operations=76),
    "pgd": Cost(ratio=2.5, passes=1, calls=256, operations=70),
}
"""The most that is allowed."""


def network() -> nn.Module:
    """Three convolutions with small outputs: quick, and much arithmetic for little memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        ).eval()  # fmt: skip


class Guard:
    """The two attacks and their bare passes, on fixed random images; what is counted does not depend on their side."""

    def __init__(self, side: int = 32) -> None:
        self.target = poise.ModuleTarget(network(), num_classes=10, batch_size=BATCH)
        self.images = torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.labels = torch.zeros(BATCH, dtype=torch.long)

    def square(self, queries: int) -> None:
        self._attack(Margin(stop=False), Square(p=0.05), queries)

    def pgd(self, steps: int) -> None:
        self._attack(CrossEntropy(), PGD(steps=steps, undo=False), steps + 1)

    def forward(self, count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                self.target.module(self.images)

    def both_ways(self, count: int) -> None:
        for _ in range(count):
            points = self.images.clone().requires_grad_(True)
            torch.autograd.grad(self.target.module(points).sum(), points)
        self.forward(1)

    def _attack(self, objective: object, search: object, budget: int) -> None:
        poise.attack(
            self.target, objective, search, Linf(8 / 255), self.images, self.labels, budget=budget  # type: ignore[arg-type]
        )  # fmt: skip


def processor_seconds(call: Step, count: int) -> float:
    began = time.process_time()
    call(count)
    return time.process_time() - began


def time_ratio(attack: Step, bare: Step, count: int, rounds: int, enough: float = 0) -> float:
    """The least time of the attack over the least of the bare passes, in turn; 0 without rounds.

    Ends early where the ratio is `enough`: a slowdown stays in every round, a disturbance does not.
    """
    if rounds:
        attack(2)
        bare(2)
    bares, attacks, ratio = [], [], 0.0
    for number in range(rounds):
        bares.append(processor_seconds(bare, count))
        attacks.append(processor_seconds(attack, count))
        ratio = min(attacks) / min(bares)
        if number >= 2 and ratio <= enough:
            break
    return ratio


class _Operations(TorchDispatchMode):
    """Counts the tensor operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Step, count: int) -> int:
    """Tensor operations of one call."""
    with _Operations() as mode:
        call(count)
    return mode.count


@contextmanager
def _calls() -> Iterator[list[int]]:
    found, before = [0], sys.getprofile()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            found[0] += 1

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def calls(call: Step, count: int) -> int:
    """Calls of Python and C functions that one call makes."""
    with _calls() as found:
        call(count)
    return found[0]


def passes(call: Step, count: int, module: nn.Module) -> int:
    """How often one call asks the model."""
    found = [0]

    def note(*_: Any) -> None:
        found[0] += 1

    hook = module.register_forward_pre_hook(note)
    try:
        call(count)
    finally:
        hook.remove()
    return found[0]


def per_query(counted: Callable[[Step, int], int], call: Step) -> float:
    """What one more query or step adds on average, late enough that what is made ahead has its full length."""
    few, many = 18, 50
    call(few)  # caches are filled
    return (counted(call, many) - counted(call, few)) / (many - few)


def _ratio(name: str, attack: Step, bare: Step, count: int, rounds: int, *, whole: bool) -> float:
    return time_ratio(attack, bare, count, rounds, 0 if whole else LIMITS[name].ratio)


def _counts(guard: Guard, attack: Step, bare: Step) -> tuple[float, float, float]:
    return (
        per_query(partial(passes, module=guard.target.module), attack),
        per_query(calls, attack) - per_query(calls, bare),
        per_query(operations, attack) - per_query(operations, bare),
    )


def measure(rounds: int = ROUNDS, *, whole: bool = False) -> dict[str, Cost]:
    """The cost of both attacks, one torch thread; without rounds what is counted alone, `whole`: all the rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed, counted = Guard(), Guard(side=8)
        return {
            "square": Cost(
                _ratio("square", timed.square, timed.forward, QUERIES, rounds, whole=whole),
                *_counts(counted, counted.square, counted.forward),
            ),
            "pgd": Cost(
                _ratio("pgd", timed.pgd, timed.both_ways, STEPS, rounds, whole=whole),
                *_counts(counted, counted.pgd, counted.both_ways),
            ),
        }
    finally:
        torch.set_num_threads(threads)


def missed(found: dict[str, Cost]) -> list[str]:
    """The limits that do not hold, a line each."""
    return [
        f"{name}: {what} {value:.2f}, at most {getattr(LIMITS[name], what):g}"
        for name, cost in found.items()
        for what, value in asdict(cost).items()
        if value > getattr(LIMITS[name], what)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="most times that attack and bare passes are run in turn"
    )
    parser.add_argument("--whole", action="store_true", help="run all rounds, even where a limit holds after a few")
    parser.add_argument("--repeat", type=int, default=1, help="measure so often, to see the spread")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    found = [measure(given.rounds, whole=given.whole) for _ in range(given.repeat)]
    for name, limit in LIMITS.items():
        ratios = sorted(one[name].ratio for one in found)
        span = f"{ratios[0]:.3f}" if len(ratios) == 1 else f"{ratios[0]:.3f} to {ratios[-1]:.3f} in {len(ratios)} runs"
        cost = found[0][name]
        print(
            f"{name:7} time {span} (limit {limit.ratio:g}); per query {cost.passes:g} passes, {cost.calls:g} function "
            f"calls ({limit.calls:g}), {cost.operations:g} tensor operations ({limit.operations:g})"
        )
    bad = sorted({line for one in found for line in missed(one)})
    print("\n".join(f"MISSED {line}" for line in bad) or "every limit holds")
    if given.json is not None:
        runs = [{name: asdict(cost) for name, cost in one.items()} for one in found]
        about = {"torch": torch.__version__, "loadavg": os.getloadavg(), "rounds": given.rounds}
        limits = {name: asdict(limit) for name, limit in LIMITS.items()}
        given.json.write_text(json.dumps({"about": about, "limits": limits, "runs": runs}, indent=1) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
