"""poise detect: which detector notices which attack, and what one fitted on an attack is worth against the others."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from poise.cli.audit import resolve
from poise.cli.defend import _print_block
from poise.cli.options import (
    BatchSize,
    Budget,
    Data,
    Device,
    Eps,
    Model,
    Norm,
    Out,
    Quiet,
    Resume,
    Samples,
    Seed,
    Steps,
    free_folder,
    names,
    number,
    repeat_command,
    resumable,
)

if TYPE_CHECKING:
    from poise.experiments import AuditSpec
    from poise.experiments.detect_spec import DetectOptions

HELP = """Fit detectors of attacked images on each attack and test them on all: Table 2 of the calibration attacks.

\b
Examples:
  poise detect --model builtin:digits --data builtin:digits --samples 200 --budget 200
  poise detect --model … --data … --reference folder:train --recipes square,sa-mma --detectors mahalanobis,input-mfs
  poise detect --out DIR --resume

Unless attacks are named: Square and PGD, and their versions against the confidence. The folder holds an audit's run,
whose finished attacks are reused, detect.json, detect.md and detect.tex.
"""

DETECTORS = ("lid", "lid-apart", "mahalanobis", "input-mfs", "layer-mfs")
RECIPES = ("square", "sa-uca", "sa-oca", "sa-mma", "pgd", "pgd-uca", "pgd-oca", "pgd-mma")
"""Defaults that the help shows; those of `poise.detectors` and `experiments.detect_spec`."""


def detect(
    model: Model = None,
    data: Data = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Labelled images for class means and neighbours.  [default: images not attacked]"),
    ] = None,
    detectors: Annotated[
        str | None, typer.Option(help=f"Names, separated by commas.  [default: {','.join(DETECTORS)}]")
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help=f"Attacks, separated by commas.  [default: {','.join(RECIPES)}]")
    ] = None,
    noise_std: Annotated[
        str | None, typer.Option(help="Noise of the negatives, in pixel units.  [default: each attack's size]")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to read, separated by commas.  [default: stem and stages]")
    ] = None,
    magnitudes: Annotated[
        str | None, typer.Option(help="Steps that Mahalanobis chooses from, by commas.  [default: the seven published]")
    ] = None,
    fit_share: Annotated[
        float | None, typer.Option(help="Share of images that LID and Mahalanobis are fitted on.  [default: 0.1]")
    ] = None,
    scale: Annotated[
        bool | None, typer.Option("--scale/--no-scale", help="Standardise features.  [default: each detector's own]")
    ] = None,
    eps: Eps = None,
    norm: Norm = None,
    budget: Budget = None,
    steps: Steps = None,
    samples: Samples = None,
    seed: Seed = None,
    device: Device = None,
    batch_size: BatchSize = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples behind the 95 % intervals.  [default: 1000]")] = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print detect.json instead of the tables.")] = False,
    quiet: Quiet = False,
) -> None:
    from poise.cli.progress import Bars
    from poise.experiments.detect import run_detect
    from poise.experiments.detect_spec import make_options, read_options
    from poise.experiments.detect_table import NOTE, blocks, header

    given = _given(
        model=model, data=data, recipes=names(recipes), eps=number("eps", eps), norm=norm, budget=budget, steps=steps,
        samples=samples, seed=seed, device=device, batch_size=batch_size, bootstrap=bootstrap,
    )  # fmt: skip
    wanted = _given(
        detectors=names(detectors), reference=reference, noise_std=number("noise-std", noise_std),
        layers=names(layers), magnitudes=_numbers(names(magnitudes)), fit_share=fit_share, scale=scale,
    )  # fmt: skip
    if not resume or (given and out is not None and not (out / "audit.toml").exists()):
        given = {"recipes": RECIPES, **given, "defences": ("none",)}
    spec = resolve(given, out, resume=resume)
    options = make_options(**{**(read_options(out) if resume and out is not None else {}), **wanted})
    folder = out or free_folder(f"{spec.model}-detect")
    going_on = resumable(folder, "poise detect", kept="finished attacks are")
    with going_on, Bars(Console(stderr=True), silent=quiet) as bars:
        result = run_detect(spec, options, folder, resume=resume, listener=bars, command=_command(spec, options))
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    for line in header(result):
        typer.echo(line)
    for block in blocks(result):
        typer.echo("")
        _print_block(block)
    typer.echo(f"\n{NOTE}\nfolder   {folder}")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _numbers(texts: tuple[str, ...] | None) -> tuple[float | None, ...] | None:
    return None if texts is None else tuple(number("magnitudes", text) for text in texts)


def _command(spec: AuditSpec, options: DetectOptions) -> str:
    """The command that repeats a run; what changes nothing in it is left out."""
    from poise.experiments.audit_spec import make_spec
    from poise.experiments.detect_spec import DetectOptions

    unused = {"trace": False, "costs": None, "threshold": make_spec().threshold, "defences": make_spec().defences}
    words = shlex.split(repeat_command(spec.model_copy(update=unused)))
    words[1:2] = ["detect"]
    if "--recipes" not in words:
        words += ["--recipes", ",".join(spec.recipes)]
    usual = DetectOptions()
    for name, value in options:
        if value != getattr(usual, name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            option = f"--{name.replace('_', '-')}"
            words += [option if value else f"--no-{name}"] if isinstance(value, bool) else [option, text]
    return shlex.join(words)
