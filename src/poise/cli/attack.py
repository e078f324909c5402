"""poise attack: one recipe on one model, images and result table on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from poise.cli.audit import resolve, resumable, show, watched_run
from poise.cli.options import free_folder, number

HELP = """Run one attack and keep its images and its result table.

\b
Example:
  poise attack sa-mma --model builtin:digits --data builtin:digits --samples 100 --eps 0.2
  poise attack confsmooth --model "torchvision:resnet18?weights=r18.pth&num_classes=7" --data folder:test --out runs/r18

The folder holds samples/*.parquet (one row per image), adversarial/*.safetensors (ids, images) and summary.json.
"""


def attack(
    recipe: str = typer.Argument(help="Name of the attack; `poise list recipes` shows them."),
    model: str | None = typer.Option(None, help="Where the model comes from.  [default: builtin:digits]"),
    data: str | None = typer.Option(None, help="Where the images come from.  [default: builtin:digits]"),
    eps: str | None = typer.Option(None, help="Radius in pixel units, 0.05 or 8/255.  [default: 8/255; digits 0.2]"),
    norm: str | None = typer.Option(None, help="linf or l2.  [default: linf]"),
    budget: int | None = typer.Option(None, help="Most queries per image.  [default: 1000]"),
    steps: int | None = typer.Option(None, help="Gradient steps.  [default: the paper's]"),
    samples: int | None = typer.Option(None, help="How many images, from the first.  [default: all]"),
    seed: int | None = typer.Option(None, help="Seed of every random draw.  [default: 0]"),
    device: str | None = typer.Option(None, help="cpu, cuda, cuda:1, mps.  [default: cpu]"),
    batch_size: int | None = typer.Option(None, help="Images per forward pass and per saved chunk.  [default: 256]"),
    out: Path | None = typer.Option(None, help="Run folder.  [default: runs/MODEL-DATE]"),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in --out; its spec need not be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print summary.json instead of the table."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
) -> None:
    given: dict[str, Any] = {
        "model": model, "data": data, "recipes": (recipe,), "defences": ("none",), "eps": number("eps", eps),
        "norm": norm, "budget": budget, "steps": steps, "samples": samples, "seed": seed, "device": device,
        "batch_size": batch_size,
    }  # fmt: skip
    spec = resolve({key: value for key, value in given.items() if value is not None}, out, resume=resume)
    folder = out or free_folder(f"{spec.model}-{recipe}")
    with resumable(folder):
        summary = watched_run(spec, folder, resume=resume, quiet=quiet)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        show(summary)
        typer.echo(f"folder   {folder}")
