"""Makes the result tables in results/ anew: the audits and benchmarks behind every figure in README and docs.

    python tools/results.py [NAME ...]

NAME is a key of TABLES at the end. Without names, all of them: about five hours on two cores. The CIFAR-10 ones need
the files named below.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
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
COMPARED = "none,ts,md-ts,splines,aaa-linear,aaa-sine,cs,rnd"
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


def records() -> None:
    """Post-hoc defences on the answers of real networks."""
    _bench("records")


def aaa() -> None:
    """AAA solved exactly against the published procedure."""
    _bench("aaa")


def query_attacks() -> None:
    """Black-box attacks on labels against defences made for them."""
    (RESULTS / "query_attacks.json").unlink(missing_ok=True)
    _bench("query_attacks")
    _bench("query_attacks", "--attacks", "signhunter,simba,nes,bandits,spsa", "--defences", "none")


def query_speed() -> None:
    """Query attacks against bare passes."""
    _bench("query_speed")


def targets() -> None:
    """One attack through the module, a file and an endpoint."""
    _bench("targets")


def square_peers() -> None:
    """Square beside the same attack of other libraries."""
    _bench("square_peers")


def compare() -> None:
    """Defences under attackers who know them, on two networks."""
    held_out = _held_out()
    for network, weights in (("resnet20", "cifar10_resnet20"), ("cnn-a", "cifar10_cnn_a_adv")):
        run = _fresh(f"compare-{network}")
        model = f"builtin:{network}-cifar10?weights={SHARED}/checkpoints/{weights}.safetensors"
        _poise(
            *("defend", "compare", "--model", model),
            *("--data", f"npz:{SHARED}/cifar10_test_lossless_subset.npz", "--fit-data", f"npz:{held_out}"),
            *("--samples", "200", "--eps", "0.05", "--budget", "400", "--defenses", COMPARED, "--out", str(run)),
        )
        (RESULTS / "compare").mkdir(exist_ok=True)
        shutil.copy(ROOT / run / "compare.json", RESULTS / "compare" / f"{network}.json")


def _held_out(images: int = 1000) -> Path:
    """Test images that no attack sees, to fit defences on: recompressed ones, as the data says of itself."""
    with np.load(ROOT / SHARED / "cifar10_test_lossless_subset.npz") as archive:
        attacked = archive["test_index"]
    with np.load(ROOT / SHARED / "cifar10_test_jpeg75.npz") as archive:
        rows = np.setdiff1d(np.arange(len(archive["labels"])), attacked)[:images]
        arrays = {"images": archive["images"][rows], "labels": archive["labels"][rows]}
        arrays["class_names"] = archive["class_names"]
    path = Path("runs") / "results" / "held-out.npz"
    (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
    np.savez(ROOT / path, **arrays)
    return path


def _bench(name: str, *options: str) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", *options, "--json", str(RESULTS / f"{name}.json")]
    subprocess.run(command, cwd=ROOT, check=True)


def papers() -> None:
    """Every table and figure of the papers in its small profile; finished shards are not run again."""
    from poise.experiments.bench.catalog import names

    for name in names():
        _poise("bench", "run", name, "--quiet", "--save", str(RESULTS / "papers"))


TABLES = {
    "digits": digits,
    "resnet20": resnet20,
    "queries": queries,
    "speed": speed,
    "defenses": defenses,
    "strength": strength,
    "illusion": illusion,
    "records": records,
    "aaa": aaa,
    "query_attacks": query_attacks,
    "square_peers": square_peers,
    "query_speed": query_speed,
    "targets": targets,
    "compare": compare,
    "papers": papers,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        TABLES[name]()
