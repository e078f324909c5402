"""Memory does not grow with the number of samples, beyond the images themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from toy_models import CLASSES

FEW, SIDE = 200, 64
IMAGE = 3 * SIDE * SIDE
"""Bytes of one stored image; as an attack sees it, float32, it takes four times that."""

GIVEN_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""The C library gives every freed tensor back at once: a peak is then what was held, not how freed memory lay about."""

AUDIT = """
import resource, sys
from pathlib import Path
import torch
import audit_cases
from poise.experiments import audit

torch.set_num_threads(1)
kept = []

def leaking(*given, **named):
    result = attack(*given, **named)
    kept.append(result.images.clone())  # the broken twin: an audit that holds on to its images
    return result

def peak(data, out):
    anew = Path("/proc/self/clear_refs")
    if anew.exists():
        anew.write_text("5")  # the highest mark counts from here
    made = audit_cases.spec(
        data, model=audit_cases.model("small"), recipes=("pgd-uca",), defences=("none",), eps=0.02, steps=1,
        batch_size=20, bootstrap=10,
    )
    audit_cases.audit(made, Path(out))
    return most_resident()

def most_resident():
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()  # where getrusage counts the process that this one was forked from
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

few, many = sys.argv[1:3]
print(peak(many, sys.argv[3] + "/warm"), peak(few, sys.argv[3] + "/few"), peak(many, sys.argv[3] + "/many"))
attack, audit.run_recipe = audit.run_recipe, leaking
print(peak(many, sys.argv[3] + "/leak"))
"""


def _write(path: Path, n: int) -> str:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=rng.integers(0, CLASSES, n))
    return f"npz:{path}"


def test_memory_grows_by_the_images_alone(tmp_path: Path) -> None:
    addresses = [_write(tmp_path / f"{n}.npz", n) for n in (FEW, 4 * FEW)]
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, *addresses, str(tmp_path)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True, env=os.environ | GIVEN_BACK,
    )  # fmt: skip
    _, few, many, leak = map(int, done.stdout.split())
    more = 3 * FEW * IMAGE
    allowed = 3.5 * more  # the images, the copy that reading an archive makes, and what rows and modules take
    leaked = 4 * 4 * FEW * IMAGE
    assert many - few < allowed, f"{(many - few) / more:.1f} times the images"
    assert leak - many > 0.75 * leaked, "a leak must be seen"
    assert allowed < 0.75 * leaked, "the limit lies below what a leak takes"
