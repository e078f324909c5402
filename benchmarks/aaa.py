"""AAA solved exactly against the published 100 Adam steps, and what it adds to a network's time, in one run.

    python benchmarks/aaa.py [--checkpoints FOLDER] [--threads 1] [--json FILE]

Both are measured on 10,000 x 100 drawn logits of two spreads, "linear" at T = 1 and 2. The published procedure is
autograd and torch.optim.Adam on the current top two, as in the paper's code; `solver="adam"` is ours: the same steps,
with the predicted class's margin and a gradient written by hand. Its objective stands for both. The share of a
network's time is that of ResNet-20 at batch 256 (weights from `--checkpoints`; random ones where the folder is
missing: the time is the same).
Exit code 1 where "exact" is less than 50 times faster than the published procedure, its Eq. 6 objective is higher
on average or on any row that can reach 0, it moves a label, or it adds more than 3 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poise import models
from poise.defenses import AAA

REQUIRED, ALLOWED, SLACK = 50, 0.03, 1e-6  # the slack is float32's resolution of the logits
CHECKPOINTS = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "checkpoints"


class Row(NamedTuple):
    """One set of logits, one temperature."""

    spread: float
    temperature: float
    exact_seconds: float
    published_seconds: float
    ours_seconds: float
    exact_objective: float
    adam_objective: float
    feasible: float
    worse_feasible: int
    worse: int
    labels_moved: int


def timed(call: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """The result and the least wall time of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def published(logits: Tensor, defense: AAA) -> Tensor:
    """Algorithm 1 of Chen et al. 2022 with autograd and torch.optim.Adam, summed over the batch."""
    target = defense.target(logits).float()
    confidence = (logits / defense.used_temperature).softmax(dim=1).amax(dim=1).float()
    z = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(defense.steps):
        optimizer.zero_grad()
        high = z.topk(2, dim=1).values
        own = z.softmax(dim=1).amax(dim=1)
        ((high[:, 0] - high[:, 1] - target).abs() + defense.beta * (own - confidence).abs()).sum().backward()
        optimizer.step()
    return z.detach()


def compare(spread: float, temperature: float) -> Row:
    generator = torch.Generator().manual_seed(100)
    logits = spread * torch.randn(10_000, 100, generator=generator)
    exact, adam = AAA(temperature=temperature), AAA(solver="adam", temperature=temperature)
    with torch.no_grad():
        exact(logits[:100])
        out, seconds = timed(lambda: exact(logits), 9)
        theirs, ours = timed(lambda: adam(logits), 2)
        _, again = timed(lambda: exact(logits), 9)
    _, slow = timed(lambda: published(logits, adam), 2)
    best, rival = exact.objective(logits, out), exact.objective(logits, theirs)
    reachable, worse = exact.feasible(logits), best > rival + SLACK
    return Row(
        spread, temperature, min(seconds, again), slow, ours,
        float(best.mean()), float(rival.mean()), float(reachable.float().mean()),
        int((worse & reachable).sum()), int(worse.sum()), int((out.argmax(1) != logits.argmax(1)).sum()),
    )  # fmt: skip


def added(checkpoints: Path, pairs: int = 9) -> float:
    """Share of ResNet-20's time at batch 256 that the defence adds: median over alternating runs."""
    weights = checkpoints / "cifar10_resnet20.safetensors"
    suffix = f"?weights={weights}" if weights.is_file() else ""
    if not suffix:
        print(f"No weights in {checkpoints}: random ones.")
    model: nn.Module = models.load(f"builtin:resnet20-cifar10{suffix}").module.eval()
    images = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    defense, shares = AAA(temperature=1.0), []
    with torch.no_grad():
        defense(model(images))
        for _ in range(pairs):
            logits, network = timed(lambda: model(images), 1)
            _, extra = timed(lambda logits=logits: defense(logits), 1)
            shares.append(extra / network)
    return statistics.median(shares)


def failures(rows: list[Row], share: float) -> list[str]:
    found = []
    for row in rows:
        ratio, name = row.published_seconds / row.exact_seconds, f"spread {row.spread:g}, T {row.temperature:g}"
        if ratio < REQUIRED:
            found.append(f"{name}: only {ratio:.0f} times faster")
        if row.exact_objective > row.adam_objective:
            found.append(f"{name}: the mean objective is higher")
        if row.worse_feasible:
            found.append(f"{name}: the objective is higher on {row.worse_feasible} rows that can reach 0")
        if row.labels_moved:
            found.append(f"{name}: {row.labels_moved} labels moved")
    if share > ALLOWED:
        found.append(f"adds {share:.1%} to ResNet-20")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder of cifar10_resnet20.safetensors")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, of ours and of the rival")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), CPU; 10,000 x 100 logits")
    heads = (
        "spread",
        "T",
        "exact ms",
        "published",
        "our adam",
        "ratio",
        "ours",
        "J exact",
        "J adam",
        "feasible",
        "worse",
    )
    print("".join(f"{head:>10}" for head in heads))
    rows = []
    for spread, temperature in ((2.0, 1.0), (2.0, 2.0), (6.0, 2.0)):
        rows.append(row := compare(spread, temperature))
        ratios = row.published_seconds / row.exact_seconds, row.ours_seconds / row.exact_seconds
        times = (1e3 * row.exact_seconds, 1e3 * row.published_seconds, 1e3 * row.ours_seconds)
        print(
            f"{spread:>10g}{temperature:>10g}{times[0]:>10.1f}{times[1]:>10.0f}{times[2]:>10.0f}"
            f"{ratios[0]:>9.0f}x{ratios[1]:>9.0f}x{row.exact_objective:>10.4f}{row.adam_objective:>10.4f}"
            f"{row.feasible:>10.1%}{row.worse:>10}"
        )
    share = added(options.checkpoints)
    print(f"\nAdds {share:.2%} to ResNet-20 at batch 256.")
    if options.json:
        figures = {"torch": torch.__version__, "rows": [row._asdict() for row in rows], "resnet20_share": share}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    found = failures(rows, share)
    print(
        "\n".join(found) or f"All: {REQUIRED} times faster, never a higher objective where 0 can be reached, no label."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
