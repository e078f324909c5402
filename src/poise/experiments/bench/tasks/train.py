"""Training of a network that a victim names, from the settings of `poise train`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import quote

import polars as pl

from poise.experiments.bench.plan import Shard
from poise.experiments.bench.tasks import packing
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.experiments.train import run_train
from poise.experiments.train_spec import make_train_spec
from poise.training import training_recipe


def train(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """The kept weights, their address with `{weights}` for the file, and the metrics of every epoch."""
    settings, place = shard.settings, bench.place
    spec = make_train_spec(
        recipe=training_recipe(settings["recipe"], settings["change"]),
        model=place.address(settings["model"]),
        data=place.address(settings["data"]),
        val=None if settings["val"] is None else place.address(settings["val"]),
        seed=settings["seed"],
        precision=settings["precision"],
        devices=settings["devices"],
        device=place.device,
        workers=0,
    )
    with tempfile.TemporaryDirectory(prefix="poise-train-") as scratch:
        out = Path(scratch) / "run"
        summary = run_train(spec, out)
        weights = out / "best.safetensors"
        address = summary["address"].replace(quote(str(weights)), "{weights}")
        return {
            "model.safetensors": weights.read_bytes(),
            "address.txt": address.encode(),
            "metrics.parquet": packing.table(pl.read_parquet(out / "metrics.parquet")),
        }
