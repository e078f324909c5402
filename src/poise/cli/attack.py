"""poise attack: one recipe on one model, images and result table on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from poise.cli.audit import resolve, show, watched_run
from poise.cli.options import (
    AnyBatchSize,
    AsJson,
    Budget,
    CostPerQuery,
    Data,
    Device,
    EightBit,
    Eps,
    Journaled,
    MaxCost,
    MaxQueries,
    Model,
    Norm,
    Out,
    Precision,
    Quiet,
    Resume,
    Samples,
    Seed,
    Steps,
    Surrogate,
    View,
    free_folder,
    number,
    resumable,
    size,
)
from poise.errors import InputError

HELP = """Run one attack and keep its images and its result table.

\b
Example:
  poise attack sa-mma --model builtin:digits --data builtin:digits --samples 100 --eps 0.2
  poise attack standard --samples 16 --trace trace.parquet
  poise attack confsmooth --model "torchvision:resnet18?weights=r18.pth&num_classes=7" --data folder:test --out runs/r18

The folder holds samples/*.parquet (one row per image), adversarial/*.safetensors (ids, images) and summary.json.
"""


def attack(
    recipe: Annotated[str, typer.Argument(help="Name of the attack; `poise list recipes` shows them.")],
    model: Model = None,
    data: Data = None,
    eps: Eps = None,
    norm: Norm = None,
    budget: Budget = None,
    steps: Steps = None,
    surrogate: Surrogate = None,
    samples: Samples = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write every iteration of the first 16 images to this .parquet file.")
    ] = None,
    view: View = None,
    eight_bit: EightBit = False,
    journal: Journaled = False,
    max_queries: MaxQueries = None,
    cost_per_query: CostPerQuery = None,
    max_cost: MaxCost = None,
    seed: Seed = None,
    device: Device = None,
    batch_size: AnyBatchSize = None,
    precision: Precision = None,
    out: Out = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    given: dict[str, Any] = {
        "model": model, "data": data, "recipes": (recipe,), "defences": ("none",), "eps": number("eps", eps),
        "norm": norm, "budget": budget, "steps": steps, "samples": samples, "seed": seed, "device": device,
        "surrogate": surrogate, "precision": precision,
        "batch_size": size("batch-size", batch_size), "trace": None if trace is None else _traced(trace, recipe),
        "view": view, "eight_bit": eight_bit or None, "journal": journal or None, "max_queries": max_queries,
        "cost_per_query": cost_per_query, "max_cost": max_cost,
    }  # fmt: skip
    spec = resolve({key: value for key, value in given.items() if value is not None}, out, resume=resume)
    folder = out or free_folder(f"{spec.model}-{recipe}")
    with resumable(folder, "poise audit"):
        summary = watched_run(spec, folder, resume=resume, quiet=quiet)
    if trace is not None:
        from poise.experiments import files
        from poise.experiments.run_folder import RunFolder

        files.write_parquet(trace, RunFolder(folder).trace(recipe, "none"))
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        show(summary)
        typer.echo(f"folder   {folder}")


def _traced(path: Path, recipe: str) -> bool:
    """True; refuses a place that cannot be meant, and attacks that are not ours to watch."""
    from poise.recipebook import PEERS

    if path.suffix != ".parquet" or path.is_dir():
        raise InputError(f"trace: must be the name of a .parquet file, got '{path}'")
    if recipe in PEERS:
        raise InputError(f"trace: must be asked of an attack of poise, got '{recipe}' of another library")
    return True
