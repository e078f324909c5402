"""Damages a valid input of every reader in thousands of ways: how many are taken or refused, and what else happens.

    python benchmarks/fuzz.py [--seconds 20] [--seed 0] [--only TEXT] [--json results/fuzz.json]

The inputs are those of tests/hostile: bytes that flip, headers that lie, structures of another kind, names that are
markup, pickles that would run. Each reader works in a process of its own, which the operating system stops where it
takes 15 GiB of addresses. The bombs of tests/hostile/bombs.py, small on disk and large in memory, come last.
Exit code 1 where anything but a valid object or one line comes out, something runs, a file beside the input changes, or
an input takes 10 s or 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hostile"), str(ROOT / "tests" / "report")]

ADDRESSES = 15 * 2**30
SHOWN = 5
"""Faults of a reader that are kept."""


def fuzz(names: list[str], seconds: float, seed: int, send: Any) -> None:
    """Each reader for so long; sends its row of the table."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    from harness import Outcome, Stand
    from readers import READERS

    for name in names:
        ended: Counter[str] = Counter()
        faults: list[str] = []
        slowest, mib = Outcome("", "", 0, 0), 0.0
        send.send(("at", f"{name}, valid"))
        with tempfile.TemporaryDirectory() as folder:
            stand, case, until = Stand(READERS[name], Path(folder) / "stand"), seed, time.monotonic() + seconds
            while time.monotonic() < until:
                send.send(("at", f"{name}, seed {case}"))
                outcome = stand.attempt(stand.mutated(Random(case)))
                ended["fault" if outcome.fault else outcome.kind] += 1
                if outcome.fault and len(faults) < SHOWN:
                    faults.append(f"seed {case}: {outcome.fault}")
                slowest, mib = max(slowest, outcome, key=lambda each: each.seconds), max(mib, outcome.mib)
                case += 1
        row = {
            "reader": name, "cases": case - seed, "accepted": ended["accepted"], "refused": ended["refused"],
            "other": ended["fault"], "slowest_seconds": round(slowest.seconds, 3), "peak_mib": round(mib, 1),
            "faults": faults,
        }  # fmt: skip
        send.send(("row", row))


def explode(names: list[str], send: Any) -> None:
    """The bombs, as rows of the table."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    import bombs
    from bombs import BOMBS
    from harness import measured

    bombs.SIZE = 16 * bombs.MIB
    for name in names:
        send.send(("at", name))
        with tempfile.TemporaryDirectory() as folder:
            ended = [measured(read) for read in BOMBS[name](Path(folder))]
        row = {
            "reader": name, "cases": len(ended), "accepted": sum(each.kind == "accepted" for each in ended),
            "refused": sum(each.kind == "refused" for each in ended), "other": sum(bool(each.fault) for each in ended),
            "slowest_seconds": round(max(each.seconds for each in ended), 3),
            "peak_mib": round(max(each.mib for each in ended), 1),
            "faults": [each.fault for each in ended if each.fault],
        }  # fmt: skip
        send.send(("row", row))


def rows(target: Any, names: list[str], *args: Any) -> list[dict[str, Any]]:
    """A row for each name, from a process of its own; another one goes on where it dies or is silent for a minute."""
    found: list[dict[str, Any]] = []
    while len(found) < len(names):
        context = multiprocessing.get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(names[len(found) :], *args, send))
        process.start()
        send.close()
        last = "its beginning"
        try:
            while receive.poll(120):
                kind, value = receive.recv()
                if kind == "at":
                    last = value
                    continue
                found.append(value)
                show(value)
            process.kill()
            fault = f"nothing for two minutes at {last}"
        except EOFError:
            process.join()
            fault = f"the process ended with {process.exitcode} at {last}"
        if len(found) < len(names):
            none = {"cases": 1, "accepted": 0, "refused": 0, "other": 1, "slowest_seconds": 0.0, "peak_mib": 0.0}
            found.append({"reader": names[len(found)], **none, "faults": [fault]})
            show(found[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name contains this text")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from bombs import BOMBS
    from readers import READERS

    readers = rows(fuzz, [name for name in READERS if given.only in name], given.seconds, given.seed)
    bombs = rows(explode, [name for name in BOMBS if given.only in name])
    if given.json is not None:
        found = {"seconds_per_reader": given.seconds, "seed": given.seed, "readers": readers, "bombs": bombs}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["other"] for row in readers + bombs) else 0


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['reader']:40} {row['cases']:7,} cases, {row['refused']:6,} refused, {row['accepted']:6,} accepted, "
        f"{row['other']} other; {row['slowest_seconds']:.2f} s, {row['peak_mib']:.0f} MiB",
        *row["faults"], sep="\n    ", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
