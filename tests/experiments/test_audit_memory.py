"""What an audit holds does not grow with the number of samples, beyond the images themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from toy_models import CLASSES

FEW, SIDE = 100, 64
IMAGE = 3 * SIDE * SIDE
"""Bytes of one stored image; as an attack sees it, float32, it takes four times that."""

AUDIT = """
import gc, sys, tracemalloc
from pathlib import Path
import torch
import audit_cases
from poise.experiments import audit

torch.set_num_threads(1)
tracemalloc.start()
kept, seen = [], []

def held():
    storages = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    tensors = {one.data_ptr(): one.nbytes() for one in storages if one.device.type == "cpu"}
    return sum(tensors.values()) + tracemalloc.get_traced_memory()[0]  # numpy tells tracemalloc what it takes

def watched(*given, **named):
    result = attack(*given, **named)
    seen.append(held())
    return result

def leaking(*given, **named):
    result = watched(*given, **named)
    kept.append(result.images.clone())  # the broken twin: an audit that holds on to its images
    return result

def most(data, out):
    made = audit_cases.spec(
        data, model=audit_cases.model("small"), recipes=("pgd-uca",), defences=("none",), eps=0.02, steps=1,
        batch_size=50, bootstrap=10,
    )
    seen.clear()
    gc.collect()
    audit_cases.audit(made, Path(out))
    return max(seen)

few, many = sys.argv[1:3]
attack, audit.run_recipe = audit.run_recipe, watched
print(most(few, sys.argv[3] + "/warm"), most(few, sys.argv[3] + "/few"), most(many, sys.argv[3] + "/many"))
audit.run_recipe = leaking
print(most(many, sys.argv[3] + "/leak"))
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
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    _, few, many, leak = map(int, done.stdout.split())
    more = 3 * FEW * IMAGE
    allowed = 1.5 * more  # the images
    leaked = 4 * 4 * FEW * IMAGE
    assert many - few < allowed, f"{(many - few) / more:.1f} times the images"
    assert leak - many > 0.75 * leaked, "a leak must be seen"
    assert allowed < 0.75 * leaked, "the limit lies below what a leak takes"
