"""Metrics of 10 million answers, clean and attacked, with 1,000 resamples of each, and what memory that takes.

    python benchmarks/metrics_scale.py [--check] [--rows 10000000] [--resamples 1000] [--json FILE]

Each part is a process of its own, whose peak memory the operating system tells. `streamed`: chunks of a million rows
into `metrics.Streamed`, for clean and attacked answers; ECE, KS error and success-fail curve, and the intervals of ECE,
KS error and of both rates at a threshold. Limits: 60 s and 2 GiB, the making of the answers left out of the time.
`exact`: the same values by `ece`, `ks_error` and `success_fail` on whole columns, without intervals; the two parts must
give the same ECE and rates, and KS errors within the stated slack. `agreement`: on a set small enough to resample
the rows themselves, the limits of the two ways of making intervals, in units of the interval's width: what different
draws leave is about 0.05 with 1,000 resamples. `--check` exits 1 where a limit or an agreement is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise import metrics

SECONDS, GIB = 60.0, 2.0
CHUNK = 2**20
SMALL = 20_000
THRESHOLD = 0.9
Columns = tuple[NDArray[np.float64], NDArray[np.float64]]


def chunks(rows: int, attacked: bool) -> Iterator[Columns]:
    """Answers of an overconfident model, or the same after an attack: seeded, the same in every part."""
    power, share = (2.5, 0.6) if attacked else (8.0, 1.25)
    for number, start in enumerate(range(0, rows, CHUNK)):
        rng, n = np.random.default_rng([number, attacked]), min(CHUNK, rows - start)
        confidence = rng.random(n) ** (1 / power)
        confidence[::1000], confidence[1::1000] = 1.0, 0.0
        right = rng.random(n) < (confidence * share if attacked else confidence**share)
        yield confidence, right.astype(np.float64)


def part_streamed(rows: int, resamples: int) -> dict[str, Any]:
    """Values and intervals of two streams; seconds by step."""
    plan, streams, spent = metrics.Bootstrap(resamples=resamples), [], {"add": 0.0}
    for attacked in (False, True):
        stream = metrics.Streamed()
        for confidence, correct in chunks(rows, attacked):
            start = time.perf_counter()
            stream.add(confidence, correct)
            spent["add"] += time.perf_counter() - start
        streams.append(stream)
    start = time.perf_counter()
    values = [(stream.ece(), stream.ks_error(), stream.ks_slack) for stream in streams]
    curve = metrics.success_fail_streamed(*streams)
    at = metrics.success_fail_streamed(*streams, thresholds=[THRESHOLD])
    spent["values"] = time.perf_counter() - start
    start = time.perf_counter()
    found = [stream.intervals(plan, thresholds=[THRESHOLD]) for stream in streams]
    spent["intervals"] = time.perf_counter() - start
    return {
        "seconds": sum(spent.values()),
        "spent": spent,
        "ece": [ece for ece, _, _ in values],
        "ks_error": [ks for _, ks, _ in values],
        "ks_slack": [slack for _, _, slack in values],
        "curve_points": len(curve.threshold),
        "success": at.success[0],
        "failure": at.failure[0],
        "ece_interval": [[i.ece.low, i.ece.high] for i in found],
        "ks_interval": [[i.ks_error.low, i.ks_error.high] for i in found],
    }


def part_exact(rows: int, resamples: int) -> dict[str, Any]:
    """The values from whole columns."""
    data = [[np.concatenate(column) for column in zip(*chunks(rows, attacked), strict=True)] for attacked in (0, 1)]
    start = time.perf_counter()
    ece, ks = ([metric(*columns) for columns in data] for metric in (metrics.ece, metrics.ks_error))
    at = metrics.success_fail(*data[0], *data[1], thresholds=[THRESHOLD])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "ece": ece, "ks_error": ks, "success": at.success[0], "failure": at.failure[0]}


def part_agreement(rows: int, resamples: int) -> dict[str, Any]:
    """Largest distance of the limits of both ways, in units of the interval's width, on few rows."""
    confidence, correct = next(chunks(min(rows, SMALL), attacked=False))
    start = time.perf_counter()
    stream = metrics.Streamed().add(confidence, correct).intervals(metrics.Bootstrap(resamples=resamples))
    streamed = time.perf_counter() - start
    apart, start = {}, time.perf_counter()
    for metric, ours in ((metrics.ece, stream.ece), (metrics.ks_error, stream.ks_error)):
        exact = metrics.bootstrap(metric, confidence, correct, resamples=resamples)
        largest = max(abs(ours.low - exact.low), abs(ours.high - exact.high))
        apart[metric.__name__] = largest / (exact.high - exact.low)
    return {"rows": len(correct), "apart": apart, "seconds": time.perf_counter() - start + streamed}


PARTS = {"streamed": part_streamed, "exact": part_exact, "agreement": part_agreement}


def run_part(name: str, rows: int, resamples: int) -> dict[str, Any]:
    """One part in a process of its own."""
    words = [sys.executable, __file__, "--part", name, "--rows", str(rows), "--resamples", str(resamples)]
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def failures(streamed: dict[str, Any], exact: dict[str, Any], agreement: dict[str, Any]) -> list[str]:
    """What was missed, a line each."""
    missed = []
    if streamed["seconds"] >= SECONDS or streamed["gib"] >= GIB:
        missed.append(f"streamed: limits are {SECONDS:g} s and {GIB:g} GiB")
    for ours, theirs in zip(streamed["ece"], exact["ece"], strict=True):
        if abs(ours - theirs) > 1e-9:
            missed.append(f"ECE differs: {ours} and {theirs}")
    for ours, theirs, slack in zip(streamed["ks_error"], exact["ks_error"], streamed["ks_slack"], strict=True):
        if not -1e-9 <= theirs - ours <= slack + 1e-9:
            missed.append(f"KS error differs by more than {slack}: {ours} and {theirs}")
    if (streamed["success"], streamed["failure"]) != (exact["success"], exact["failure"]):
        missed.append("success and failure rate differ")
    missed += [f"limits of {name} differ" for name, apart in agreement["apart"].items() if apart > 0.2]
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--part", choices=list(PARTS), help="one part, in this process; its figures as JSON")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    if given.part:
        found = PARTS[given.part](given.rows, given.resamples)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({**found, "gib": peak / 2**30}))
        return 0
    parts = {name: run_part(name, given.rows, given.resamples) for name in PARTS}
    streamed, exact, agreement = parts["streamed"], parts["exact"], parts["agreement"]
    print(f"2 x {given.rows:,} rows, {given.resamples:,} resamples; numpy {np.__version__}")
    for name, found in parts.items():
        print(f"{name:10} {found['seconds']:7.1f} s {found['gib']:6.2f} GiB")
    print("streamed by step: " + ", ".join(f"{step} {spent:.1f} s" for step, spent in streamed["spent"].items()))
    for at, kind in enumerate(("clean", "attacked")):
        low, high = streamed["ece_interval"][at]
        print(
            f"{kind:9} ECE {streamed['ece'][at]:.6f} [{low:.6f}, {high:.6f}]  KS error {streamed['ks_error'][at]:.6f}, "
            f"exact {exact['ks_error'][at]:.6f}, slack {streamed['ks_slack'][at]:.1e}"
        )
    apart = ", ".join(f"{name} {value:.3f}" for name, value in agreement["apart"].items())
    print(f"limits against a bootstrap of {agreement['rows']:,} rows, in widths of the interval: {apart}")
    missed = failures(streamed, exact, agreement)
    print("\n".join(f"MISSED {line}" for line in missed) or "limits met")
    if given.json:
        kept = {"rows": given.rows, "resamples": given.resamples, "limits": {"seconds": SECONDS, "gib": GIB}, **parts}
        given.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return int(given.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
