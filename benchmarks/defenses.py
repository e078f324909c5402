"""Post-hoc defences against the grid searches they replace: time per image and fit, measured in one run.

    python benchmarks/defenses.py [--records FOLDER] [--images 300] [--threads 1] [--json FILE]

Compression scaling is held against the released search (for each image, a Python loop over 800 temperatures, until the
confidence is within 0.01 of the target) and against the same 800 temperatures for all images at once, keeping the
nearest. Temperature scaling is held against 800 temperatures in (0, 10], image by image and for all images at once,
keeping the least NLL. The image-by-image loops run on the first `--images` rows; times are per image, so they compare.
Exit code 1 where a defence is not 100 times faster than the released search (temperature scaling: than its
image-by-image loop), or fits worse than any search. The loop with the exact target is shown beside the released one;
it stops at T = 1 for saturated rows, so its time depends on the data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from poise.defenses import CompressionScaling, TemperatureScaling

REQUIRED = 100
RECORDS = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "records"


class Row(NamedTuple):
    """One method on one set of logits."""

    method: str
    images: int
    seconds_per_image: float
    error: float  # CS: mean |confidence - target|; TS: mean NLL
    worst: float  # CS: largest |confidence - target|; TS: T
    loop: bool = False


def timed(call: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """The result and the least wall time of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def drawn(n: int, classes: int) -> tuple[Tensor, Tensor]:
    """Over-confident logits (n, K) with labels that follow the probabilities at T = 1.8."""
    generator = torch.Generator().manual_seed(classes)
    logits = 4 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial((logits / 1.8).softmax(1), 1, generator=generator).squeeze(1)


def recorded(file: Path) -> tuple[Tensor, Tensor]:
    """Logarithms of a real network's recorded probabilities, and the labels."""
    with np.load(file, allow_pickle=False) as data:
        probabilities, labels = torch.from_numpy(data["probabilities"]), torch.from_numpy(data["labels"])
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log(), labels.flatten()


def confidence(logits: Tensor) -> Tensor:
    return logits.double().softmax(dim=1).amax(dim=1)


def loop_compression(logits: Tensor, targets: Tensor) -> Tensor:
    """The released order of work: image by image, temperature by temperature, one number read back each time."""
    rows = []
    for logit, target in zip(logits, targets.tolist(), strict=True):
        found = logit
        for step in range(800):
            candidate = logit / (1 - 0.00125 * step)
            if abs(candidate.softmax(dim=0).max().item() - target) <= 0.01:
                found = candidate
                break
        rows.append(found)
    return torch.stack(rows)


def grid_compression(logits: Tensor, targets: Tensor) -> Tensor:
    """The same 800 temperatures for all images at once; each image keeps the nearest confidence."""
    best = torch.full_like(targets, torch.inf)
    temperature = torch.ones_like(targets)
    for step in range(800):
        t = 1 - 0.00125 * step
        error = ((logits / t).softmax(dim=1).amax(dim=1) - targets).abs()
        better = error < best
        best, temperature = torch.where(better, error, best), torch.where(better, t, temperature)
    return logits / temperature[:, None]


def compression(logits: Tensor, images: int) -> list[Row]:
    exact, released = CompressionScaling(), CompressionScaling(mode="released")
    target = exact.target(logits)

    def row(method: str, call: Callable[[], Tensor], wanted: Tensor, repeats: int, *, loop: bool = False) -> Row:
        out, seconds = timed(call, repeats)
        error = (confidence(out) - wanted).abs()
        return Row(method, len(out), seconds / len(out), float(error.mean()), float(error.max()), loop)

    few, few_target = logits[:images], released.target(logits)[:images].float()
    full = target.float()
    return [
        row("CompressionScaling", lambda: exact(logits), target, 5),
        row("800 T, all at once, nearest", lambda: grid_compression(logits, full), target, 1),
        row("800 T, image by image", lambda: loop_compression(few, full[:images]), target[:images], 1),
        row("  as released (its own target)", lambda: loop_compression(few, few_target), few_target, 1, loop=True),
        row("CompressionScaling, released", lambda: released(logits), released.target(logits), 3),
    ]


def loop_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Least NLL of 800 temperatures, image by image."""
    totals = []
    for step in range(1, 801):
        total = 0.0
        for logit, label in zip(logits, labels, strict=True):
            total -= (logit / (0.0125 * step)).log_softmax(dim=0)[label].item()
        totals.append(total)
    return torch.tensor(0.0125 * (int(np.argmin(totals)) + 1))


def grid_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Least NLL of 800 temperatures, all images at once."""
    losses = [float(cross_entropy(logits / (0.0125 * step), labels)) for step in range(1, 801)]
    return torch.tensor(0.0125 * (int(np.argmin(losses)) + 1))


def temperature(logits: Tensor, labels: Tensor, images: int) -> list[Row]:
    few, few_labels = logits[:images], labels[:images]

    def row(method: str, call: Callable[[], Tensor], n: int, repeats: int, *, loop: bool = False) -> Row:
        t, seconds = timed(call, repeats)
        nll = float(cross_entropy(logits[:n].double() / t, labels[:n]))
        return Row(method, n, seconds / n, nll, float(t), loop)

    def fit(z: Tensor, y: Tensor) -> Tensor:
        return TemperatureScaling().fit(z, y).temperature

    few_fit = row("  on the rows of the loop", lambda: fit(few, few_labels), len(few), 5)
    return [
        row("TemperatureScaling", lambda: fit(logits, labels), len(logits), 5),
        few_fit,
        row("800 T, all at once", lambda: grid_temperature(logits, labels), len(logits), 1),
        row("800 T, image by image", lambda: loop_temperature(few, few_labels), len(few), 1, loop=True),
    ]


def show(title: str, heads: tuple[str, str], rows: list[Row]) -> None:
    print(f"\n{title}")
    print(f"  {'method':<31}{'images':>7}{'us/image':>12}{'ratio':>10}{heads[0]:>14}{heads[1]:>14}")
    for row in rows:
        ratio = row.seconds_per_image / rows[0].seconds_per_image
        numbers = f"{row.seconds_per_image * 1e6:>12.3f}{ratio:>9.1f}x{row.error:>14.4g}{row.worst:>14.4g}"
        print(f"  {row.method:<31}{row.images:>7}{numbers}")


def slowest_rival(rows: list[Row]) -> float:
    """How many times slower per image the fastest image-by-image search is."""
    return min(row.seconds_per_image for row in rows if row.loop) / rows[0].seconds_per_image


def verdict(rows: list[Row], rivals: list[tuple[Row, Row]]) -> list[str]:
    """What fails: too slow against an image-by-image loop, or worse than a rival on the same rows."""
    slow = [
        f"only {row.seconds_per_image / rows[0].seconds_per_image:.0f} times faster than '{row.method.strip()}'"
        for row in rows
        if row.loop and row.seconds_per_image < REQUIRED * rows[0].seconds_per_image
    ]
    worse = [
        f"fits worse than '{theirs.method.strip()}': {ours.error:.6g} against {theirs.error:.6g}"
        for ours, theirs in rivals
        if ours.error > theirs.error + 1e-9
    ]
    return slow + worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of .npz with probabilities and labels")
    parser.add_argument("--images", type=int, default=300, help="rows for the image-by-image loops")
    parser.add_argument("--json", type=Path, help="file for the least ratios against an image-by-image search")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, of ours and of every rival")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sets = {f"drawn, {n:,} x {k}": drawn(n, k) for n, k in ((2_000, 10), (10_000, 100))}
    files = sorted(options.records.glob("*.npz")) if options.records.is_dir() else []
    sets |= {f"{file.stem}, real": recorded(file) for file in files}
    if not files:
        print(f"No recorded probabilities in {options.records}: drawn logits only.")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), CPU")
    failures, table = [], []
    with torch.no_grad():
        for name, (logits, labels) in sets.items():
            least = {}
            rows = compression(logits, options.images)
            least["cs_speedup"] = slowest_rival(rows)
            show(f"Compression scaling, {name}", ("mean |c - t|", "max |c - t|"), rows)
            found = verdict(rows, [(rows[0], row) for row in rows[1:4]])
            rows = temperature(logits, labels, options.images)
            least["ts_speedup"] = slowest_rival(rows)
            table.append({"data": name.split(",")[0], "shape": "{:,} × {:,}".format(*logits.shape), **least})
            show(f"Temperature scaling, {name}", ("mean NLL", "T"), rows)
            found += verdict(rows, [(rows[0], rows[2]), (rows[1], rows[3])])
            failures += [f"{name}: {what}" for what in found]
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": table}, indent=1) + "\n")
    print(
        "\n" + ("\n".join(failures) or f"All: {REQUIRED} times faster than image by image, and no search fits better.")
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
