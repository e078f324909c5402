"""What a certificate costs, and whether any attack of the library gets under one, on real images.

    python benchmarks/certify.py [--part cost|attacks|all] [--pairs 9] [--samples 100] [--n 10000]
                                [--run DIR] [--json FILE]

Cost: a stream's batch (noise, pass, counting) against the same number of bare passes, timed in turn, A B A B …; the
figure is the median of the pairs' ratios of processor time on one core, limit 1.05 on ResNet-20. The noise of an image
takes about 20 µs whatever the network: beside CNN-A, which itself takes 40 µs, that is not small.

Attacks: certificates of CNN-A (adversarially trained, CIFAR-10) for the first real images, then every recipe of the
library on the smoothed model within a certified radius, judged with fresh draws. A result under its certificate by more
than the error of judging would be a bug. No network here was trained with noise: at sigma .25 there is nothing left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

import poise
from poise.certify import Smoothed, Smoothing, Stream, dkw_epsilon
from poise.experiments.certify import run_certify
from poise.experiments.certify_attack import judge
from poise.experiments.certify_folder import CertifyFolder
from poise.experiments.certify_spec import make_certify_spec
from poise.recipebook import RECIPES, run_recipe
from poise.report.certify_figures import markdown
from poise.targets import ModuleTarget

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
IMAGES = f"npz:{SHARED / 'cifar10_test_lossless_subset.npz'}"
NETWORKS = {
    "ResNet-20": (f"builtin:resnet20-cifar10?weights={SHARED / 'checkpoints' / 'cifar10_resnet20.safetensors'}", 1.05),
    "CNN-A": (f"builtin:cnn-a-cifar10?weights={SHARED / 'checkpoints' / 'cifar10_cnn_a_adv.safetensors'}", None),
}
BATCH, DRAWS, BUDGET, STEPS, JUDGED = 256, 4, 24, 8, 200
SIGMA, RADII, ATTACKED = 0.1, (0.0, 0.1, 0.2, 0.3, 0.5), 0.2


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def cost(pairs: int) -> list[dict[str, Any]]:
    """The ratio of a stream's batch to a batch of bare passes, per network."""
    rows = []
    for name, (address, limit) in NETWORKS.items():
        target = poise.models.load(address, batch_size=BATCH)
        assert isinstance(target, ModuleTarget)
        images = poise.data.load(IMAGES)[:2]
        stream = Stream(target, images.images, images.ids, Smoothing(n=100_000))
        bare = partial(target.module, torch.rand(BATCH, 3, 32, 32))
        with target.session(0), torch.no_grad():
            bare(), stream.step()
            timed = [(seconds(bare), seconds(stream.step)) for _ in range(pairs)]
        ratio = statistics.median(ours / theirs for theirs, ours in timed)
        each = 1e6 * statistics.median(theirs for theirs, _ in timed) / BATCH
        rows.append({"network": name, "ratio": ratio, "limit": limit, "microseconds_per_pass": each})
        print(f"{name:<10} ratio {ratio:.3f}  limit {limit}  {each:.0f} µs per bare pass")
    return rows


def attacks(samples: int, n: int, run: Path, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Certificates with `poise certify`'s own attacks, then every recipe within a radius; what is there after each.

    Recipes that have a row already are not run again.
    """
    address, _ = NETWORKS["CNN-A"]
    spec = make_certify_spec(
        model=address,
        data=IMAGES,
        samples=samples,
        n=n,
        sigma=SIGMA,
        radii=RADII,
        batch_size=BATCH,
        attack_steps=STEPS,
        attack_draws=2 * DRAWS,
        attack_judged=JUDGED,
    )
    summary = run_certify(spec, run, resume=True, listener=Silent())
    bounds = CertifyFolder(run).samples()
    print(markdown(summary), flush=True)
    target = poise.models.load(address, batch_size=BATCH)
    assert isinstance(target, ModuleTarget)
    images = poise.data.load(IMAGES).mixed()[:samples]
    smoothed = ModuleTarget(
        Smoothed(target.module, sigma=spec.sigma, draws=DRAWS), num_classes=10, batch_size=BATCH // DRAWS
    )
    summary["target"]["model"], summary["data"]["name"] = "builtin:cnn-a-cifar10", "CIFAR-10 (test)"
    summary["spec"] |= {"model": "builtin:cnn-a-cifar10", "data": "CIFAR-10 (test)"}
    kept = {key: value for key, value in summary.items() if key not in ("command", "created")}
    here = images_bounds(bounds, ATTACKED, images.ids)
    classes = torch.tensor(here["prediction"].to_numpy().copy())
    yield {"certificate": kept, "recipes": rows}
    there = {row["recipe"] for row in rows}
    for name in (name for name in RECIPES if name not in there):
        rows.append(one(name, ATTACKED, spec.smoothing, target, smoothed, images, classes, here))
        print(rows[-1], flush=True)
        yield {"certificate": kept, "recipes": rows}


def images_bounds(bounds: pl.DataFrame, radius: float, ids: torch.Tensor) -> pl.DataFrame:
    """The rows of one radius in the order of the images."""
    order = pl.DataFrame({"id": ids.numpy()})
    return order.join(bounds.filter(pl.col("radius") == radius), on="id", how="left", maintain_order="left")


def one(
    name: str,
    radius: float,
    smoothing: Smoothing,
    target: ModuleTarget,
    smoothed: ModuleTarget,
    images: poise.data.Dataset,
    classes: torch.Tensor,
    here: pl.DataFrame,
) -> dict[str, Any]:
    """What a recipe does within a radius: mean confidence left, and the least distance to a bound."""
    began = time.perf_counter()
    found = run_recipe(
        name, smoothed, images.images, images.labels, ids=images.ids, eps=radius, norm="l2", steps=STEPS,
        budget=BUDGET, seed=0,
    )  # fmt: skip
    inside = found.table["l2"].to_numpy() <= radius * (1 + 1e-6)
    mean = judge(smoothing, target, found.images, images.ids, classes, draws=JUDGED).numpy()
    above, below = mean - here["lower"].to_numpy(), here["upper"].to_numpy() - mean
    slack = dkw_epsilon(JUDGED, 0.0001)
    return {
        "recipe": name,
        "radius": radius,
        "inside": int(inside.sum()),
        "confidence": float(mean.mean()),
        "least_above_lower": float(above[inside].min()) if inside.any() else None,
        "least_below_upper": float(below[inside].min()) if inside.any() else None,
        "outside_bounds": int(((above < -slack) | (below < -slack))[inside].sum()),
        "seconds": round(time.perf_counter() - began, 1),
    }


class Silent:
    """Hears, and says nothing."""

    def note(self, line: str) -> None: ...

    def begin(self, what: str, done: int, total: int) -> None:
        print(f"{what}: {total:,}", flush=True)

    def advance(self, done: int) -> None: ...


def write(path: Path | None, found: dict[str, Any]) -> None:
    """What was found so far."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "attacks", "all"), default="all")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--run", type=Path, help="folder of the certification, gone on with where it is there")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--again", help="recipes to run again, separated by commas; others keep their rows.  [default: all]"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    if given.part in ("cost", "all"):
        found["cost"] = cost(given.pairs)
        write(given.json, found)
    if given.part in ("attacks", "all"):
        again = None if given.again is None else given.again.split(",")
        rows = [] if again is None else [row for row in found["recipes"] if row["recipe"] not in again]
        with tempfile.TemporaryDirectory() as scratch:
            for part in attacks(given.samples, given.n, given.run or Path(scratch), rows):
                write(given.json, found | part)


if __name__ == "__main__":
    main()
