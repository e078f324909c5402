"""The same attacks of poise, torchattacks, ART and Foolbox against the limit: bare passes of as many images.

    python benchmarks/peers.py [--check] [--quick] [--attacks square,pgd] [--libraries poise,art] [--models tiny]
        [--classes 10,1000] [--batches 1,32,256] [--variants fp32] [--device cpu] [--most 60] [--fresh]
        [--json results/peers.json]

A cell is one attack of one library on one network, at K classes and a batch. Each cell is a process of its own,
forked before anything large is allocated. There the attack and bare passes of the same images through the same module
are timed in turn, the order swapped from pair to pair: forward passes for searches on scores, forward and backward
passes and a last forward pass for gradient searches. What else the machine does can only add time, so the share of the
limit is the ratio of the two minima; the median and the range of the pairs' ratios stand beside it. One pair before
that warms up and gives the memory: by how much the attack raises the process's peak over that of the bare passes (on a
GPU: of allocated memory). Times on a CPU are processor time of one thread; on a GPU wall time. One class is pinned, so
that no image is finished and every library answers for all to the end, and the C library is told to keep freed memory
(`steady`). A query is one image, asked once as the method counts it: of ART, whose Square asks three times per
proposal, the passes per query stand beside it. SimBA takes one image at a time in ART; its queries are those that its
model was asked.

Accuracy left over queries: CIFAR-10's ResNet-20 with the shared checkpoint on images that it classifies correctly, by
how many images each library still asks for after so many queries; one run, equal numbers of passes, p of 0.05, the
schedule scaled to the budget.

Cells that the file holds are not measured again without `--fresh`; those that would take more than `--most` seconds of
processor time are left out and named. `--check` exits 1 where a limit is missed: Square at batch 256 at least 85 % on
the tiny network and 95 % on ResNet-20, PGD at least 95 % on ResNet-20, and never slower than another library by
more than 5 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import poise
from peer_attacks import ATTACKS, EPS, GRADIENT, MODELS, SHARED, VARIANTS, Counted, bare_passes, missing, module, quiet
from poise.files import whole

SLACK = 1.05
"""Shares of two libraries closer than this count as equal."""

LIMITS = {("square", "tiny"): 0.85, ("square", "resnet20"): 0.95, ("pgd", "resnet20"): 0.95}
"""Attack and network to the least share of the limit at the largest batch, 256."""

STEPS = 10
CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 400, 500, 700, 1000)


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    attack: str
    library: str
    model: str
    classes: int
    batch: int
    device: str
    variant: str

    @property
    def title(self) -> str:
        kind = "" if self.variant == "fp32" else f", {self.variant}"
        return f"{self.attack}, {self.library}, {self.model}, K = {self.classes}, batch {self.batch}{kind}"


@dataclass(frozen=True)
class Effort:
    """How long a cell is measured: seconds per run of the attack, pairs, most seconds in all."""

    run: float
    pairs: int
    most: float


def seconds(call: Callable[[], object], device: str) -> float:
    """Processor time of one call on a CPU; wall time with all that it queued on a GPU."""
    if device == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(device: str) -> int:
    """Bytes: the most that this process has held so far, or that were allocated on the GPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return torch.cuda.max_memory_allocated()


def measure(cell: Cell, effort: Effort) -> dict[str, Any]:
    """One cell, in a process of its own."""
    quiet()
    torch.set_num_threads(1)
    net = Counted(module(cell.model, cell.classes, cell.variant, cell.device)).eval()
    images = torch.rand(cell.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(cell.device)
    labels, backward = torch.zeros(cell.batch, dtype=torch.long, device=cell.device), cell.attack in GRADIENT

    def bare(count: int) -> float:
        return seconds(lambda: bare_passes(net, images, count, backward=backward), cell.device)

    one = bare(1)
    if one < effort.most / 20:
        one = min(bare(1), bare(1))
    fewest, most = (STEPS // 2, STEPS) if backward else (12, 500)
    spent = min(max(round(effort.run / one), fewest), most)
    alone = cell.attack == "simba" and cell.library == "art"  # one image after the other
    some = min(cell.batch, 4) if alone else cell.batch
    cost = one * spent * (4 if cell.attack == "square" and cell.library.startswith("art") else 2)
    if cost * 2 > effort.most:
        return {"skipped": f"a pair would take about {cost:.0f} s", "most": effort.most}
    wanted = effort.pairs * (3 if cost < 1 else 1)  # short ones are easily disturbed
    pairs = max(min(wanted, int(effort.most / cost)), 2)
    attack = ATTACKS[cell.attack][cell.library](net, cell.classes, cell.batch)

    def attacked() -> float:
        return seconds(lambda: attack(images[:some], labels[:some], spent, 0), cell.device)

    attack(images[:1], labels[:1], 6, 0)  # imports what the library imports late
    bare(min(spent, 3))
    before = peak(cell.device)
    net.sizes.clear()
    attacked()
    memory, asked = peak(cell.device) - before, sum(net.sizes)
    queries = asked if cell.attack == "simba" else some * spent
    if asked < queries:
        return {"skipped": f"it stopped early, {asked} of {queries} images were asked"}
    scale = queries / (cell.batch * spent)  # bare passes of as many images
    times = []
    for pair in range(pairs):
        if pair % 2:
            second, first = attacked(), bare(spent)
        else:
            first, second = bare(spent), attacked()
        times.append((first * scale, second))
    ratios = sorted(first / second for first, second in times)
    bares, attacks = zip(*times, strict=True)
    return {
        "queries": spent,
        "pairs": pairs,
        "seconds": 1000 * min(attacks) / queries,
        "limit": 1000 * min(bares) / queries,
        "share": min(bares) / min(attacks),
        "median": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "passes": asked / queries,
        "memory": memory,
        "load": os.getloadavg()[0],
    }


def curve(library: str, samples: int, budget: int) -> dict[str, Any]:
    """Accuracy left over queries of Square, from how many images each call of the model holds."""
    from query_attacks import Setting

    quiet()
    torch.set_num_threads(1)
    setting = Setting(SHARED, samples)
    net = Counted(setting.bare.module).eval()
    run = ATTACKS["square"][library](net, 10, samples)
    found = run(setting.images, setting.labels, budget, 0)
    assert (found - setting.images).abs().max() <= EPS + 1e-6, f"{library}: outside the ball"
    sizes = net.sizes if library != "art" else [samples, net.sizes[2], *net.sizes[5::3]]  # label, old, new loss
    left = float((setting.bare.query(found, setting.ids).labels == setting.labels).double().mean())
    after = {q: sizes[q] / samples if q < len(sizes) and q < budget else left for q in CHECKPOINTS if q <= budget}
    return {"library": library, "samples": samples, "budget": budget, "left": after, "end": left}


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a forked process, which starts without its parent's memory peaks."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        theirs.send(function(*arguments))

    child = context.Process(target=run)
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = None
    child.join()
    if found is None:
        raise RuntimeError(f"the measuring process ended with exit code {child.exitcode}")
    return found


def steady() -> None:
    """Starts this program again with one thread and an allocator that keeps what is freed.

    The C library otherwise gives the memory of every large tensor back and fetches it anew, at a page fault per 4 KiB:
    half the time of a pass through the tiny network, and in some processes but not in others.
    """
    wanted = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    if any(name not in os.environ for name in wanted):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def machine(device: str) -> str:
    """What measured: the processor's or the GPU's name."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """The asked ones; those of APGD and SimBA with ten classes alone, the first on the networks with few layers."""
    lists = (given.models, given.classes, given.batches, given.variants)
    for attack in given.attacks:
        for model, classes, batch, variant in itertools.product(*lists):
            extra = attack in ("apgd", "simba")
            if extra and (classes != 10 or model == "resnet50" or batch != 32):
                continue
            for library in ATTACKS[attack]:
                if library in given.libraries:
                    yield Cell(attack, library, model, classes, batch, given.device, variant)


def show(cell: Cell, row: dict[str, Any]) -> None:
    if "skipped" in row:
        print(f"{cell.title}: left out, {row['skipped']}", flush=True)
        return
    span = f"median {row['median']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
    print(
        f"{cell.title:58} {row['seconds']:9.4f} s per 1,000  {row['share']:6.1%} {span:31} {row['passes']:.2f} passes  "
        f"{row['memory'] / 2**20:7.1f} MiB",
        flush=True,
    )


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """The limits that do not hold, a line each."""
    lines, rows = [], [row for row in rows if "share" in row and row["variant"] == "fp32"]
    by = {(row["attack"], row["library"], row["model"], row["classes"], row["batch"]): row for row in rows}
    for (attack, library, model, classes, batch), row in by.items():
        at = f"{attack}, {model}, K = {classes}, batch {batch}"
        least = LIMITS.get((attack, model))
        if library == "poise" and batch == 256 and least is not None and row["share"] < least:
            lines.append(f"{at}: {row['share']:.1%} of the limit, at least {least:.0%} wanted")
        ours = by.get((attack, "poise", model, classes, batch))
        # each was measured beside the limit in its own process, so shares are compared, not seconds
        if ours is not None and library != "poise" and min(row["share"], 1) > ours["share"] * SLACK:
            lines.append(f"{at}: {library} reaches {row['share']:.1%} of the limit, ours {ours['share']:.1%}")
    return lines


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    parser.add_argument("--quick", action="store_true", help="the tiny network and ResNet-20 at batch 32, K = 10")
    parser.add_argument("--attacks", type=words, default=list(ATTACKS))
    parser.add_argument(
        "--libraries", type=words, default=["poise", "torchattacks", "art", "art-autoattack", "foolbox"]
    )
    parser.add_argument("--models", type=words, default=list(MODELS))
    parser.add_argument("--classes", type=numbers, default=[10, 1000])
    parser.add_argument("--batches", type=numbers, default=[1, 32, 256])
    parser.add_argument("--variants", type=words, default=["fp32"], help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", type=float, default=0.3, help="seconds that a run of the attack should take at least")
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs per cell, three times as many short ones")
    parser.add_argument("--most", type=float, default=60.0, help="most seconds per cell")
    parser.add_argument("--samples", type=int, default=100, help="images of the accuracy curves; 0 leaves them out")
    parser.add_argument("--budget", type=int, default=500, help="queries of the accuracy curves")
    parser.add_argument("--fresh", action="store_true", help="measure what the file holds again")
    parser.add_argument("--json", type=Path, help="file for the figures, completed cell by cell")
    given = parser.parse_args()
    if given.quick:
        given.models, given.classes, given.batches, given.pairs, given.run = ["tiny", "resnet20"], [10], [32], 3, 0.1
        given.samples = 0
    for name, known in (("attacks", ATTACKS), ("models", MODELS), ("variants", VARIANTS)):
        for word in getattr(given, name):
            if word not in known:
                parser.error(f"--{name}: {word!r} is none of {', '.join(known)}")
    return given


def main() -> int:
    given = options()
    found: dict[str, Any] = {"about": {}, "rows": [], "curves": []}
    if given.json and given.json.exists():
        found = json.loads(given.json.read_text(encoding="utf-8"))
    if given.fresh:
        found["rows"], found["curves"] = [], []
    found["about"] = {
        "machine": in_child(machine, given.device),  # this process must not wake the GPU before it forks
        "processor": machine("cpu"),
        "cores": os.cpu_count(),
        "threads": 1,
        "device": given.device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "poise": poise.__version__,
        "loadavg": os.getloadavg(),
        "eps": EPS,
        "steps": STEPS,
    }

    def keep() -> None:
        found["about"]["loadavg"] = os.getloadavg()
        if given.json:
            with whole(given.json) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    left_out = [library for library in given.libraries if missing(library)]
    for library in left_out:
        print(f"{library} is not installed and left out")
    given.libraries = [library for library in given.libraries if library not in left_out]
    effort = Effort(given.run, given.pairs, given.most)
    for cell in cells(given):
        key = asdict(cell)
        known = [row for row in found["rows"] if all(row[name] == value for name, value in key.items())]
        if known and "share" in known[0]:
            show(cell, known[0])
            continue
        same = [other for other in found["rows"] if all(other[name] == key[name] for name in key if name != "library")]
        dear = [other for other in same if other["library"] == "poise" and other.get("most") == given.most]
        try:
            row = {"skipped": dear[0]["skipped"], "most": given.most} if dear else in_child(measure, cell, effort)
        except RuntimeError as error:  # its trace stands above
            row = {"skipped": str(error)}
        found["rows"] = [other for other in found["rows"] if other not in known] + [key | row]
        show(cell, row)
        keep()
    if given.samples and given.device == "cpu" and "square" in given.attacks:
        if not SHARED.exists():
            print("no shared checkpoint and images: the accuracy curves are left out")
        else:
            curves(found, given, keep)
    bad = found["missed"] = missed(found["rows"])
    keep()
    if given.check:
        print("\n".join(f"MISSED {line}" for line in bad) or "every limit holds")
    return int(given.check and bool(bad))


def curves(found: dict[str, Any], given: argparse.Namespace, keep: Callable[[], None]) -> None:
    """Adds the accuracy curves that the file does not hold."""
    for library in ("poise", "torchattacks", "art"):
        size = (library, given.samples, given.budget)
        known = any((one["library"], one["samples"], one["budget"]) == size for one in found["curves"])
        if library not in given.libraries or known:
            continue
        one = in_child(curve, *size)
        found["curves"] = [other for other in found["curves"] if other["library"] != library] + [one]
        keep()
        print(f"square, {library}: " + ", ".join(f"{value:.0%} after {q}" for q, value in one["left"].items()))


if __name__ == "__main__":
    steady()
    sys.exit(main())
