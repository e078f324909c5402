"""One attack through the module, an ONNX file and HTTP: do the tables agree, and is the served model kept busy?

    python benchmarks/targets.py [--samples 200] [--queries 50] [--connections 16] [--json FILE]

`sa-mma` on CIFAR-10's ResNet-20, linf 8/255. The server is `poise serve` in a process of its own; its /health route
tells how long the model computed, which is set against the attack's wall time. Exit code 1 where a label differs, or
the served model is busy for less than 60 % of the time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

import poise
from poise import models
from poise.defenses.export import export_onnx
from poise.targets import Target
from poise.types import AttackResult
from query_attacks import SHARED, Setting

EPS, BUSY = 8 / 255, 0.6


@contextmanager
def served(address: str, threads: int) -> Iterator[str]:
    """The URL of a server of its own."""
    command = [str(Path(sys.executable).parent / "poise"), "serve", "--model", address, "--port", "0"]
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("address"))
        yield line.split()[1]
    finally:
        process.terminate()
        process.wait(timeout=30)


def attack(target: Target, setting: Setting, queries: int) -> tuple[AttackResult, float]:
    began = time.perf_counter()
    result = poise.run_recipe(
        "sa-mma", target, setting.images, setting.labels, ids=setting.ids, eps=EPS, budget=queries
    )
    return result, time.perf_counter() - began


def compared(name: str, result: AttackResult, other: AttackResult, seconds: float) -> dict[str, Any]:
    """How far a table is from the module's."""
    mine, theirs = result.table, other.table
    far = {
        when: float((mine[f"confidence_{when}"] - theirs[f"confidence_{when}"]).abs().max())
        for when in ("before", "after")
    }
    labels = sum(int((mine[f"prediction_{when}"] != theirs[f"prediction_{when}"]).sum()) for when in far)
    images = int((result.images != other.images).flatten(1).any(dim=1).sum())
    return {
        "target": name, "samples": len(mine), "labels_differ": labels, "images_differ": images,
        "queries_differ": int((mine["queries"] != theirs["queries"]).sum()),
        "confidence_before": far["before"], "confidence_after": far["after"], "seconds": seconds,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of checkpoints and images")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of the server's model and of ours")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(given.shared, given.samples)
    reference, seconds = attack(setting.bare, setting, given.queries)
    rows = [compared("module", reference, reference, seconds)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(setting.bare.module, file, tuple(setting.images.shape[1:]), images=setting.images)
        onnx, seconds = attack(models.load(f"onnx:{file}?threads={given.threads}"), setting, given.queries)
    rows.append(compared("ONNX Runtime", onnx, reference, seconds))
    weights = f"{given.shared}/checkpoints/cifar10_resnet20.safetensors"
    with served(f"builtin:resnet20-cifar10?weights={weights}", given.threads) as url:
        target = models.load(f"{url}?connections={given.connections}")
        before = httpx.get(f"{url}/health").json()["busy_seconds"]
        http, seconds = attack(target, setting, given.queries)
        busy = (httpx.get(f"{url}/health").json()["busy_seconds"] - before) / seconds
    rows.append(compared(f"HTTP, {given.connections} connections", http, reference, seconds) | {"busy": busy})
    for row in rows:
        print(
            f"{row['target']:22} labels differ {row['labels_differ']}, images {row['images_differ']}, queries "
            f"{row['queries_differ']}; confidence within {max(row['confidence_before'], row['confidence_after']):.1e}; "
            f"{row['seconds']:.1f} s"
        )
    print(f"served model busy {busy:.0%} of the time")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if busy < BUSY or any(row["labels_differ"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
