"""How the time and the memory of an attack grow with samples and queries: Square on the tiny network.

    python benchmarks/scaling.py [--check] [--samples 100,300,1000,3000,10000] [--queries 25,50,100,200,400]
                                 [--rounds 3] [--json results/scaling.json]

Samples: 12 queries each, batches of 100. Queries: 100 images. Every run is a process of its own, forked before anything
large is allocated; the sizes are run in turn, round after round, and the least processor time (one thread) counts,
since other work can only add to it. A straight line, seconds = a + b size, is fitted with weights 1 / size, so that
small and large sizes count alike; R2 is of the same weights, and residuals are in per cent of the measured time. Memory
is the peak of the process over what it held before the attack, the images included; over samples it is fitted in the
same way, in images. What `attack` returns holds one image per sample, and while the batches are joined two copies of it
exist, so a slope of 2 is what the result itself takes, and the allocator leaves gaps between its parts; over queries
memory must not grow.

`--check` exits 1 unless R2 is at least 0.98 and every residual below 20 %, the memory over samples grows by no more
than 3 images per sample, and over queries by no more than 20 % and 4 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import poise
from peer_attacks import ATTACKS, module, quiet
from peers import in_child, machine, numbers, peak, steady
from poise.files import whole

BATCH, FEW_QUERIES, IMAGE = 100, 12, 3 * 32 * 32 * 4
R2, RESIDUAL, IMAGES, GROWTH, ROOM = 0.98, 0.20, 3.0, 1.2, 4 * 2**20


def measure(samples: int, queries: int) -> tuple[float, int]:
    """Processor seconds of one attack, and by how many bytes it raised the peak."""
    quiet()
    torch.set_num_threads(1)
    attack = ATTACKS["square"]["poise"](module("tiny", 10), 10, BATCH)
    images = torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(samples, dtype=torch.long)
    attack(images[:BATCH], labels[:BATCH], 4, 0)
    before, began = peak("cpu"), time.process_time()
    attack(images, labels, queries, 0)
    return time.process_time() - began, peak("cpu") - before


def line(sizes: list[int], values: list[float]) -> dict[str, Any]:
    """The weighted straight line, its R2 (1 where all values are equal) and its residuals as shares of the values."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    weight = 1 / x
    slope, start = np.polyfit(x, y, 1, w=weight)
    fitted = start + slope * x
    mean = (weight**2 * y).sum() / (weight**2).sum()
    spread = (weight**2 * (y - mean) ** 2).sum()
    r2 = 1 - (weight**2 * (y - fitted) ** 2).sum() / spread if np.ptp(y) else 1.0
    exponent = np.polyfit(np.log(x), np.log(np.maximum(y, 1e-12)), 1)[0]
    residuals = ((y - fitted) / np.where(y == 0, 1, y)).tolist()
    return {"start": start, "slope": slope, "r2": r2, "residuals": residuals, "exponent": exponent}


def missed(found: dict[str, Any]) -> list[str]:
    """The limits that do not hold, a line each."""
    lines = []
    for axis in ("samples", "queries"):
        fit = found[axis]["time"]
        if fit["r2"] < R2:
            lines.append(f"time over {axis}: R2 {fit['r2']:.4f}, at least {R2} wanted")
        worst = max(abs(value) for value in fit["residuals"])
        if worst >= RESIDUAL:
            lines.append(f"time over {axis}: a residual of {worst:.0%}, below {RESIDUAL:.0%} wanted")
    slope = found["samples"]["memory"]["slope"] / IMAGE
    if slope > IMAGES:
        lines.append(f"memory over samples: {slope:.2f} images per sample, at most {IMAGES} wanted")
    memory = [row["memory"] for row in found["queries"]["rows"]]
    if max(memory) > min(memory) * GROWTH + ROOM:
        lines.append(f"memory over queries: from {min(memory):,} to {max(memory):,} bytes")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    parser.add_argument("--samples", type=numbers, default=[100, 300, 1000, 3000, 10_000])
    parser.add_argument("--queries", type=numbers, default=[25, 50, 100, 200, 400])
    parser.add_argument("--rounds", type=int, default=3, help="times every size is run; the least counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    sizes = {"samples": [(n, FEW_QUERIES) for n in given.samples], "queries": [(BATCH, q) for q in given.queries]}
    runs: dict[str, list[list[tuple[float, int]]]] = {axis: [[] for _ in pairs] for axis, pairs in sizes.items()}
    for round_ in range(given.rounds):
        for axis, pairs in sizes.items():
            for at, (samples, queries) in enumerate(pairs):
                if samples >= 3000 and round_ > 1:
                    continue  # long runs are steady
                runs[axis][at].append(in_child(measure, samples, queries))
    found: dict[str, Any] = {
        "about": {
            "machine": machine("cpu"), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__,
            "python": platform.python_version(), "poise": poise.__version__, "loadavg": os.getloadavg(),
            "batch": BATCH, "few_queries": FEW_QUERIES, "rounds": given.rounds, "image_bytes": IMAGE,
        }
    }  # fmt: skip
    for axis, pairs in sizes.items():
        at = [pair[axis == "queries"] for pair in pairs]
        seconds = [min(one for one, _ in several) for several in runs[axis]]
        memory = [float(np.median([one for _, one in several])) for several in runs[axis]]
        rows = [{axis: n, "seconds": s, "memory": m} for n, s, m in zip(at, seconds, memory, strict=True)]
        found[axis] = {"rows": rows, "time": line(at, seconds), "memory": line(at, memory)}
        fit = found[axis]["time"]
        print(f"{axis}: {fit['start']:.3f} s + {1e3 * fit['slope']:.4f} ms each, R2 {fit['r2']:.5f}")
        for row, residual in zip(rows, fit["residuals"], strict=True):
            print(f"  {row[axis]:6,} {row['seconds']:8.3f} s {residual:+7.1%} {row['memory'] / 2**20:8.1f} MiB")
    print(f"memory: {found['samples']['memory']['slope'] / IMAGE:.2f} images per sample")
    if given.json:
        with whole(given.json) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = missed(found)
    print("\n".join(f"MISSED {text}" for text in bad) or "every limit holds")
    return int(given.check and bool(bad))


if __name__ == "__main__":
    steady()
    sys.exit(main())
