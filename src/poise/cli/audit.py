"""poise audit: how far can an attacker move this model's confidence without changing its labels?"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from poise.cli.options import (
    AUTO,
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
    names,
    number,
    repeat_command,
    resumable,
    size,
)
from poise.errors import InputError, RunError

if TYPE_CHECKING:
    from poise.experiments import AuditSpec

HELP = """Attack a classifier's confidence and write a report.

\b
Examples:
  poise audit --model builtin:digits --data builtin:digits
  poise audit --model "builtin:resnet20-cifar10?weights=resnet20.safetensors" --data npz:cifar10.npz \\
    --samples 200 --budget 400 --eps 8/255 --recipes sa-mma,confsmooth --defenses none,ts,cs
  poise audit --out runs/mine --resume
  poise audit --recipes sa-uca,sa-oca,sa-rca,sa-mma --explain --costs costs.toml
  poise audit --model … --data … --gate gate.toml     (exit code 1 when a limit is broken)
  poise audit --model onnx:model.onnx --data folder:test --view top:5 --max-queries 100000
  poise audit --model endpoint:api.toml --data folder:test --cost-per-query 0.0015 --max-cost 50

Options that are not given keep their defaults; `poise list recipes|defenses|models|data` names what there is.
"""


def audit(
    model: Model = None,
    data: Data = None,
    fit_data: Annotated[
        str | None, typer.Option(help="Held-out data for defences that learn.  [default: images not attacked]")
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(help="Attacks, separated by commas.  [default: those that the model gives enough access for]"),
    ] = None,
    defenses: Annotated[
        str | None, typer.Option("--defenses", "--defences", help="Defences.  [default: none,ts,cs]")
    ] = None,
    eps: Eps = None,
    norm: Norm = None,
    budget: Budget = None,
    steps: Steps = None,
    surrogate: Surrogate = None,
    samples: Samples = None,
    threshold: Annotated[
        float | None, typer.Option(help="Confidences above it are accepted automatically.  [default: 0.9]")
    ] = None,
    cost_wrong: Annotated[
        float | None, typer.Option(help="Cost of a wrong case that was accepted; needs --cost-deferred.")
    ] = None,
    cost_deferred: Annotated[
        float | None, typer.Option(help="Cost of a case that a person sees; needs --cost-wrong.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="TOML file of what one case costs: wrong_accepted, deferred, by class.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what the attacks do inside the model; implies --trace.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Keep every iteration of the first 16 images, for the report.")
    ] = False,
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
    bootstrap: Annotated[int | None, typer.Option(help="Resamples behind the 95 % intervals.  [default: 1000]")] = None,
    out: Out = None,
    resume: Resume = False,
    gate: Annotated[
        Path | None, typer.Option(help="TOML file of limits, e.g. ece_after = 0.3; exit code 1 if one breaks.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    from poise import report
    from poise.experiments import Gate
    from poise.report import terminal

    limits = None if gate is None else Gate.read(gate)
    given: dict[str, Any] = {
        "model": model, "data": data, "fit_data": fit_data, "recipes": names(recipes), "defences": names(defenses),
        "eps": number("eps", eps), "norm": norm, "budget": budget, "steps": steps, "samples": samples,
        "surrogate": surrogate, "precision": precision,
        "threshold": threshold, "seed": seed, "device": device, "bootstrap": bootstrap,
        "batch_size": size("batch-size", batch_size),
        "costs": _costs(cost_wrong, cost_deferred, costs), "trace": trace or None,
        "explain": explain or None, "view": view,
        "eight_bit": eight_bit or None, "journal": journal or None, "max_queries": max_queries,
        "cost_per_query": cost_per_query, "max_cost": max_cost,
    }  # fmt: skip
    spec = resolve({key: value for key, value in given.items() if value is not None}, out, resume=resume)
    if limits is not None:
        limits.check(spec.recipes, spec.defences)
    folder = out or free_folder(spec.model)
    with resumable(folder, "poise audit"):
        summary = watched_run(spec, folder, resume=resume, quiet=quiet)
        page = report.write(folder)
    with suppress(BrokenPipeError):  # a reader that has gone must not hide a broken limit
        if as_json:
            typer.echo(json.dumps(summary))
        else:
            show(summary)
            typer.echo(report.verdict(summary))
            for line in terminal.costs(summary):
                typer.echo(line)
            typer.echo(f"report   {page}")
    failures = [] if limits is None else limits.failures(summary)
    for failure in failures:
        typer.echo(f"gate     {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _costs(wrong: float | None, deferred: float | None, file: Path | None) -> dict[str, Any] | None:
    if file is not None and (wrong, deferred) != (None, None):
        raise InputError("costs: --costs must be given without --cost-wrong and --cost-deferred, got both")
    if file is not None:
        from poise.experiments.costs import read_costs

        return read_costs(file)
    if (wrong is None) != (deferred is None):
        raise InputError("costs: --cost-wrong and --cost-deferred must be given together, got one of them")
    return None if wrong is None or deferred is None else {"wrong_accepted": wrong, "deferred": deferred}


def resolve(given: dict[str, Any], out: Path | None, *, resume: bool) -> AuditSpec:
    """The spec of the options; with --resume, of the run that lies in `out`, changed by the options."""
    from poise.experiments.audit_spec import make_spec, read_spec

    auto = given.get("batch_size") == AUTO
    if not resume:
        return _fitted(make_spec(**{**given, "batch_size": 1})) if auto else make_spec(**given)
    if auto:
        raise InputError("batch-size: must be a number, or left out to go on with the run's own, got auto and --resume")
    if out is None:
        raise InputError("resume: needs --out, the folder of the run to go on with, got none")
    if not (out / "audit.toml").exists():
        if not given:
            raise RunError(f"resume: '{out}' must hold a run to go on with, found none (give the options to start one)")
        return make_spec(**given)
    old, _ = read_spec(out / "audit.toml")
    return make_spec(**{**old.model_dump(exclude_none=True), **given})


def _fitted(spec: AuditSpec) -> AuditSpec:
    """The spec with the batch size that model and machine take, found by trying."""
    from poise import data, models
    from poise.recipebook import RECIPES
    from poise.targets import fitting_batch_size
    from poise.types import Access

    if spec.model.split(":")[0] in ("endpoint", "http", "https"):
        raise InputError(f"batch-size: must be a number where questions are paid for, got auto and '{spec.model}'")
    target = models.load(spec.model, device=spec.device)
    images, _, _ = next(iter(data.load(spec.data)[:1].batches(1)))
    channels, height, width = images.shape[1:]
    gradients = any(RECIPES[name].access == Access.GRADIENTS for name in spec.recipes)
    found = fitting_batch_size(target, (channels, height, width), gradients=gradients, most=1024)
    typer.echo(f"batch    {found} images, found by trying", err=True)
    return spec.model_copy(update={"batch_size": found})


def watched_run(spec: AuditSpec, folder: Path, *, resume: bool, quiet: bool) -> dict[str, Any]:
    """Runs the audit with progress on the error stream."""
    from poise.cli.progress import Bars
    from poise.experiments import run_audit

    with Bars(Console(stderr=True), silent=quiet) as bars:
        return run_audit(spec, folder, resume=resume, listener=bars, command=repeat_command(spec))


def show(summary: dict[str, Any]) -> None:
    """Prints the table: as wide as a terminal allows, whole where the output goes to a file or a pipe."""
    from poise.report import terminal

    console = Console()
    if not console.is_terminal:
        typer.echo(terminal.text(summary), nl=False)
        return
    for line in terminal.header(summary):
        console.print(line, markup=False, emoji=False, highlight=False)
    console.print(terminal.table(summary, narrow=console.width < terminal.WIDE))
    for line in terminal.checks(summary):
        console.print(line, markup=False, emoji=False, highlight=False)
