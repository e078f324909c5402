"""poise defend: fit a defence, compare all of them against an attacker who knows them, export one with the model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poise.cli.audit import resolve
from poise.cli.options import (
    DIGITS,
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
from poise.errors import InputError, RunError

if TYPE_CHECKING:
    from poise.experiments import AuditSpec
    from poise.experiments.defend_table import Block

HELP = """Fit, compare and export defences of a classifier's confidence."""

FIT_HELP = """Fit one defence on held-out data and save it.

\b
Examples:
  poise defend fit ts --model builtin:digits --data builtin:digits --out ts.safetensors
  poise defend fit splines --logits validation.npz --out splines.safetensors

The archive holds logits (n, K), or probabilities, and labels (n,). Where the data to fit on are not named apart, one
half is fitted on and the figures come from the other. The file holds where the fit comes from, and the figures.
"""

COMPARE_HELP = """Compare defences on one split: clean, attacked unaware, and by an attacker who knows them.

\b
Examples:
  poise defend compare --model builtin:digits --data builtin:digits --samples 100
  poise defend compare --model … --data … --defenses ts,splines,aaa-sine --recipes sa-mma,standard --eps 8/255 --out DIR
  poise defend compare --out DIR --resume

The folder holds an audit's run (`poise audit --out DIR --resume` makes its page), compare.json and compare.md.
"""

EXPORT_HELP = """Write model and saved defence as one ONNX or torch.export file, checked against PyTorch.

\b
Example:
  poise defend export --model builtin:digits --defense ts.safetensors --out served.onnx
"""

RECIPES = ("sa-mma", "standard")
SAMPLES = 1000
OPSET = 18
"""Defaults that the help shows; those of `experiments.defend`, `experiments.defend_export` and `defenses.export`."""

app = typer.Typer(help=HELP, add_completion=False, rich_markup_mode=None)

Force = Annotated[bool, typer.Option("--force", help="Replace what lies at --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]
Bootstrap = Annotated[int | None, typer.Option(help="Resamples behind the 95 % intervals.  [default: 1000]")]
FitData = Annotated[str | None, typer.Option(help="Held-out data to fit on.  [default: images not measured on]")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("fit", help=FIT_HELP)
def fit_command(
    name: Annotated[str, typer.Argument(help="Name of the defence; `poise list defenses` shows them.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    model: Model = None,
    data: Data = None,
    fit_data: FitData = None,
    logits: Annotated[Path | None, typer.Option(help=".npz of logits or probabilities, and labels.")] = None,
    device: Device = None,
    batch_size: BatchSize = None,
    bootstrap: Bootstrap = None,
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    from poise.defenses import make
    from poise.experiments.audit_spec import make_spec
    from poise.experiments.defend_fit import fit, from_logits, from_model, save

    make(name)
    usual = make_spec(**_given(bootstrap=bootstrap, seed=seed, device=device, batch_size=batch_size))
    if out.suffix != ".safetensors":
        raise InputError(f"out: must end in .safetensors, got '{out}'")
    _check_free(out, force=force)
    if logits is not None:
        if given := [option for option, at in (("model", model), ("data", data), ("fit-data", fit_data)) if at]:
            raise InputError(f"logits: stand for the model's answers, must be given without --{given[0]}")
        held_out, measured = from_logits(logits, usual.seed)
    else:
        from poise import models

        address = model or DIGITS
        target = models.load(address, device=usual.device, batch_size=usual.batch_size, on_note=_note)
        held_out, measured = from_model(
            address, data or DIGITS, fit_data, target=target, batch_size=usual.batch_size, seed=usual.seed
        )
    fitted = fit(name, held_out, measured, bootstrap=usual.bootstrap, seed=usual.seed)
    save(fitted, out)
    if as_json:
        typer.echo(json.dumps(fitted.report, allow_nan=False))
        return
    report = fitted.report
    _print_block(_fit_block(report))
    changed = f", labels changed {report['labels_changed']}" if not report["keeps_label"] else ""
    typer.echo(f"fitted on {report['fitted_on']['n']} samples, measured on {report['measured_on']['n']}{changed}")
    typer.echo(f"file     {out}")


@app.command("compare", help=COMPARE_HELP)
def compare_command(
    model: Model = None,
    data: Data = None,
    fit_data: FitData = None,
    defenses: Annotated[
        str | None, typer.Option("--defenses", "--defences", help="Names, or all.  [default: every post-hoc one]")
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help=f"Attacks, separated by commas.  [default: {','.join(RECIPES)}]")
    ] = None,
    eps: Eps = None,
    norm: Norm = None,
    budget: Budget = None,
    steps: Steps = None,
    samples: Samples = None,
    seed: Seed = None,
    device: Device = None,
    batch_size: BatchSize = None,
    bootstrap: Bootstrap = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json instead of the tables.")] = False,
    quiet: Quiet = False,
) -> None:
    from poise.cli.progress import Bars
    from poise.defenses import DEFENSES, summaries
    from poise.experiments.defend import run_compare
    from poise.experiments.defend_table import NOTE, blocks, header

    given = _given(
        model=model, data=data, fit_data=fit_data, recipes=names(recipes), defences=names(defenses),
        eps=number("eps", eps), norm=norm, budget=budget, steps=steps, samples=samples, seed=seed, device=device,
        batch_size=batch_size, bootstrap=bootstrap,
    )  # fmt: skip
    if given.get("defences") == ("all",):
        given["defences"] = tuple(summaries())
    if not resume or (given and out is not None and not (out / "audit.toml").exists()):
        given = {"recipes": RECIPES, "defences": tuple(DEFENSES), **given}
    spec = resolve(given, out, resume=resume)
    folder = out or free_folder(f"{spec.model}-defences")
    with resumable(folder, "poise defend compare"), Bars(Console(stderr=True), silent=quiet) as bars:
        comparison = run_compare(
            spec, folder, resume=resume, listener=bars, command=_command(spec),
            on_adaptive=lambda recipe, defence: bars.note(f"{recipe} × {defence}: adaptive attacker"),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(comparison, allow_nan=False))
        return
    for line in header(comparison):
        typer.echo(line)
    for block in blocks(comparison):
        typer.echo("")
        _print_block(block)
    typer.echo(f"\n{NOTE}\nfolder   {folder}")


@app.command("export", help=EXPORT_HELP)
def export_command(
    defense: Annotated[Path, typer.Option("--defense", "--defence", help="File that `poise defend fit` wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch.export.")],
    model: Model = None,
    data: Annotated[
        str | None, typer.Option(help="Real images to check the file on.  [default: builtin:digits]")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help=f"How many of them, at most.  [default: {SAMPLES}]", show_default=False)
    ] = SAMPLES,
    opset: Annotated[int, typer.Option(help=f"Operator set of ONNX.  [default: {OPSET}]", show_default=False)] = OPSET,
    device: Device = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    from poise import data as data_sources
    from poise import models
    from poise.experiments.defend_export import run_export, writer
    from poise.types import OutputKind

    writer(out, opset)
    _check_free(out, force=force)
    target = models.load(model or DIGITS, device=device or "cpu", on_note=_note)
    parity = run_export(target, defense, data_sources.load(data or DIGITS), out, samples=samples, opset=opset)
    found = {
        "file": str(out), "model": model or DIGITS, "defense": str(defense), "images": parity.images,
        "probability": parity.probability, "logit": parity.logit, "opset": opset if out.suffix == ".onnx" else None,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    kind = f"ONNX, opset {opset}" if out.suffix == ".onnx" else "torch.export"
    typer.echo(f"file     {out} ({kind}; {OutputKind.LOGITS.value} out)")
    typer.echo(
        f"parity   on {parity.images} images: probabilities within {parity.probability:.1e} of PyTorch's, logits "
        f"within {parity.logit:.1e} of their row's largest"
    )


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _check_free(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise InputError(f"out: must be a file's name, got the folder '{path}'")
    if path.exists() and not force:
        raise RunError(f"out: '{path}' must not exist, it does; give --force to replace it, or another --out")


def _fit_block(report: dict[str, Any]) -> Block:
    from poise.experiments.defend_figures import METRICS
    from poise.experiments.defend_table import NAMES, Block, cell

    lines = [(when, *(cell(report[when][metric]) for metric in METRICS)) for when in ("before", "after")]
    head = (report["defence"], *(NAMES[metric] for metric in METRICS))
    return Block(f"{report['defence']} on held-out data", head, lines, len(METRICS))


def _print_block(block: Block) -> None:
    """A table, as wide as it needs to be where the output goes to a file or a pipe."""
    shown = Table(title=block.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    texts = len(block.head) - block.numbers
    for at, title in enumerate(block.head):
        shown.add_column(title, justify="left" if at < texts else "right", no_wrap=at < texts)
    for cells in block.lines:
        shown.add_row(*(Text(part) for part in cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200, color_system=None)
    console.print(shown)


def _command(spec: AuditSpec) -> str:
    """The command that repeats a comparison; what changes nothing in it is left out."""
    from poise.experiments.audit_spec import make_spec

    unused = {"trace": False, "costs": None, "threshold": make_spec().threshold}
    words = shlex.split(repeat_command(spec.model_copy(update=unused)))
    words[1:2] = ["defend", "compare"]
    for option, value in (("--recipes", spec.recipes), ("--defenses", spec.defences)):
        if option not in words:
            words += [option, ",".join(value)]
    return shlex.join(words)
