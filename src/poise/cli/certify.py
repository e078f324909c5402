"""poise certify: what is proved about the smoothed model's confidence, and what attacks do to it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from poise.cli.console import Shown
from poise.cli.options import (
    AsJson,
    Data,
    Device,
    Model,
    Out,
    Quiet,
    Resume,
    Seed,
    free_folder,
    names,
    number,
    resumable,
)
from poise.errors import InputError, RunError

if TYPE_CHECKING:
    from poise.experiments.certify_spec import CertifySpec

HELP = """Certify the confidence of a classifier smoothed with Gaussian noise, and attack it within the same radii.

\b
Examples:
  poise certify --model builtin:digits --data builtin:digits --sigma 0.25 --n 10000 --alpha 0.001 --radii 0,0.25,0.5
  poise certify --model "builtin:resnet20-cifar10?weights=resnet20.safetensors" --data npz:cifar10.npz --samples 100
  poise certify --out runs/mine --resume

For each radius: bounds of the mean confidence (images that abstain count 0, or are left out), certified accuracy,
certified Brier score and calibration error, and the confidence that attacks on the smoothed model leave. The folder
holds samples/*.parquet, attacks/*.parquet, summary.json, certify.md and certify.html.
"""


def certify(
    model: Model = None,
    data: Data = None,
    sigma: Annotated[str | None, typer.Option(help="Noise, in pixel units: 0.25 or 32/255.  [default: 0.25]")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Draws per image behind its bounds.  [default: 10000]")] = None,
    n0: Annotated[int | None, typer.Option("--n0", help="Draws that choose the class.  [default: 100]")] = None,
    alpha: Annotated[float | None, typer.Option(help="Probability that a bound fails.  [default: 0.001]")] = None,
    radii: Annotated[
        str | None, typer.Option(help="l2 radii in pixel units, with commas.  [default: 0,0.25,0.5,0.75,1]")
    ] = None,
    measure: Annotated[str | None, typer.Option(help="pred_score or margin.  [default: pred_score]")] = None,
    samples: Annotated[int | None, typer.Option(help="How many images, from the first.  [default: 100]")] = None,
    attack: Annotated[
        bool | None, typer.Option("--attack/--no-attack", help="Attack the smoothed model too.  [default: attack]")
    ] = None,
    attack_steps: Annotated[int | None, typer.Option(help="Gradient steps of an attack.  [default: 20]")] = None,
    attack_draws: Annotated[int | None, typer.Option(help="Noisy copies per step.  [default: 16]")] = None,
    attack_judged: Annotated[
        int | None, typer.Option(help="Fresh draws that judge what an attack found.  [default: 1000]")
    ] = None,
    seed: Seed = None,
    device: Device = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass.  [default: 256]")] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples behind the 95 % intervals.  [default: 1000]")] = None,
    out: Out = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    from poise.experiments import files
    from poise.experiments.certify import run_certify
    from poise.report.certify_figures import markdown, write_page

    given: dict[str, Any] = {
        "model": model, "data": data, "sigma": number("sigma", sigma), "n": n, "n0": n0, "alpha": alpha,
        "radii": _radii(radii), "measure": measure, "samples": samples, "attack": attack,
        "attack_steps": attack_steps, "attack_draws": attack_draws, "attack_judged": attack_judged, "seed": seed,
        "device": device, "batch_size": batch_size, "bootstrap": bootstrap,
    }  # fmt: skip
    spec = _spec({key: value for key, value in given.items() if value is not None}, out, resume=resume)
    folder = out or free_folder(f"{spec.model}-certificate")
    going_on = resumable(
        folder, "poise certify", spec_file="certify.toml", kept="what was counted is", before="the first draw"
    )
    with going_on, Bar(silent=quiet) as bar:
        summary = run_certify(spec, folder, resume=resume, listener=bar, command=_command(spec))
        files.write_text(folder / "certify.md", markdown(summary))
        page = write_page(summary, folder / "certify.html")
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    _show(summary)
    typer.echo(f"page     {page}")


def _radii(text: str | None) -> tuple[float, ...] | None:
    """Numbers and fractions separated by commas."""
    parts = names(text)
    return None if parts is None else tuple(number("radii", part) or 0.0 for part in parts)


def _spec(given: dict[str, Any], out: Path | None, *, resume: bool) -> CertifySpec:
    """The spec of the options; with --resume, of the run that lies in `out`, changed by the options."""
    from poise.experiments.certify_spec import make_certify_spec, read_certify_spec

    if not resume:
        return make_certify_spec(**given)
    if out is None:
        raise InputError("resume: needs --out, the folder of the run to go on with, got none")
    if not (out / "certify.toml").exists():
        if not given:
            raise RunError(f"resume: '{out}' must hold a certification to go on with, found none")
        return make_certify_spec(**given)
    old, _ = read_certify_spec(out / "certify.toml")
    return make_certify_spec(**{**old.model_dump(), **given})


def _command(spec: CertifySpec) -> str:
    """The command that repeats a run of this spec: what differs from the defaults.

    >>> from poise.experiments.certify_spec import make_certify_spec
    >>> _command(make_certify_spec(samples=20, radii=(0.0, 0.5), attack=False))
    'poise certify --model builtin:digits --data builtin:digits --radii 0.0,0.5 --samples 20 --no-attack'
    """
    from poise.experiments.certify_spec import make_certify_spec

    usual, words = make_certify_spec(), ["poise", "certify", "--model", spec.model, "--data", spec.data]
    for name, value in spec:
        if name in ("model", "data") or value == getattr(usual, name):
            continue
        if name == "attack":
            words.append("--no-attack")
            continue
        text = ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


class Bar(Shown):
    """A `CertifyListener` that writes to the error stream: a bar for each part on a terminal, a line elsewhere.

    Args:
        silent: write nothing.
    """

    def __init__(self, *, silent: bool) -> None:
        count = TextColumn("{task.completed:>12,.0f}/{task.total:,.0f}")
        super().__init__((TextColumn("{task.fields[name]:<8}"),), (count,), silent=silent)

    def begin(self, what: str, done: int, total: int) -> None:
        self._task = self._bar.add_task("", total=total, completed=done, name=what)
        if not self._console.is_terminal:
            self.note(f"{what}: {total:,}" + (f", {done:,} of them there" if done else ""))

    def advance(self, done: int) -> None:
        self._bar.update(self._task, completed=done)


def _show(summary: dict[str, Any]) -> None:
    """Prints what was certified, the table and the notes: whole where the output goes to a file or a pipe."""
    from poise.report.certify_figures import about, head, notes, table_rows

    console = Console()
    console = console if console.is_terminal else Console(width=200)
    typer.echo(about(summary))
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head(summary):
        shown.add_column(
            name.replace(", ", ",\n").replace("certified a", "certified\na"), justify="right", no_wrap=True
        )
    for cells in table_rows(summary):
        shown.add_row(*(Text(cell) for cell in cells))
    console.print(shown)
    for line in notes(summary):
        typer.echo(line)
