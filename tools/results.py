"""Makes the result tables in results/ anew: the audits and benchmarks behind every figure in README and docs.

    python tools/results.py [digits] [resnet20] [queries] [speed] [defenses] [strength] [illusion]

Without names, all of them: about two hours on two cores. The CIFAR-10 ones need the files named below.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from poise import metrics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SHARED = Path("../shared/data")
CIFAR = [
    "--model",
    f"builtin:resnet20-cifar10?weights={SHARED}/checkpoints/cifar10_resnet20.safetensors",
    "--data",
    f"npz:{SHARED}/cifar10_test_lossless_subset.npz",
    *("--samples", "200", "--eps", "0.05"),
]
RECIPES = "sa-uca,sa-oca,sa-mma,sa-rca,pgd-uca,pgd-mma,adaptive,confsmooth"


def _poise(*arguments: str) -> None:
    subprocess.run([Path(sys.executable).parent / "poise", *arguments], cwd=ROOT, check=True)


def _fresh(name: str) -> Path:
    """An empty place for a run."""
    folder = Path("runs") / "results" / name
    shutil.rmtree(ROOT / folder, ignore_errors=True)
    return folder


def _audit(name: str, *arguments: str) -> None:
    run = _fresh(name)
    _poise("audit", *arguments, "--out", str(run))
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / run / "summary.json", RESULTS / name / "summary.json")


def digits() -> None:
    """The main job: `make audit`."""
    _audit("digits", "--model", "builtin:digits", "--data", "builtin:digits")


def resnet20() -> None:
    """The tutorial's audit."""
    _audit("resnet20", *CIFAR, "--budget", "400", "--recipes", RECIPES, "--defenses", "none,ts,cs")


def queries() -> None:
    """ECE over queries of two black-box attacks, 1,000 queries."""
    found: dict[str, dict[str, float]] = {}
    for recipe in ("sa-mma", "sa-mma-confsmooth"):
        run = _fresh(recipe)
        _poise("attack", recipe, *CIFAR, "--budget", "1000", "--out", str(run))
        curve = pl.read_parquet(ROOT / run / "curves" / "*.parquet")
        found[recipe] = {
            str(count): metrics.ece(part["confidence"].to_numpy(), (part["prediction"] == part["label"]).to_numpy())
            for count in (1, 50, 100, 200, 500, 1000)
            for part in [curve.filter(pl.col("queries") == count)]
        }
    (RESULTS / "resnet20" / "queries.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def speed() -> None:
    """Attacks against bare passes."""
    _bench("speed")


def defenses() -> None:
    """Exact defences against the published search."""
    _bench("defenses")


def strength() -> None:
    """The standard attack beside the others, and what each of its parts is worth."""
    (RESULTS / "strength.json").unlink(missing_ok=True)
    _bench("strength")


def illusion() -> None:
    """What a served temperature hides."""
    _bench("illusion")


def _bench(name: str) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", "--json", str(RESULTS / f"{name}.json")]
    subprocess.run(command, cwd=ROOT, check=True)


TABLES = {
    "digits": digits,
    "resnet20": resnet20,
    "queries": queries,
    "speed": speed,
    "defenses": defenses,
    "strength": strength,
    "illusion": illusion,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        TABLES[name]()
