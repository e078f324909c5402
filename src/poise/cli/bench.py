"""poise bench: tables and figures of the papers from their files, on this machine or on a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.leaderboard import HELP as LEADERBOARD_HELP
from poise.cli.leaderboard import leaderboard
from poise.cli.options import number
from poise.errors import InputError

if TYPE_CHECKING:
    from poise.experiments.bench.engine import Engine
    from poise.experiments.bench.plan import Plan
    from poise.experiments.bench.result import Result
    from poise.experiments.bench.run import Outcome
    from poise.experiments.bench.spec import BenchSpec
    from poise.experiments.bench.store import Store

HELP = """Run the tables and figures of the papers, and show them beside the published numbers."""

RUN_HELP = """Run what is missing of a table or figure, and show it.

\b
Examples:
  poise bench run calibration/t1
  poise bench run calibration/t4 --profile full --files /data/papers --ray auto
  poise bench run my.toml --dry-run

A spec is a grid of victims × defences × attacks × eps × budgets × seeds. Its shards are computed once: the same command
goes on where an interrupted one stopped, and does nothing where all is there.
"""

FILES = "POISE_FILES"
"""Environment variable: the folder of weights and data."""

OUT = "runs/bench"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="PAPER/NAME as `poise bench list` shows them, or a TOML file.")]
ProfileName = Annotated[str, typer.Option("--profile", help="small (runs on a laptop) or full (the paper's own).")]
Out = Annotated[
    str | None, typer.Option(help="Folder or URL (s3://…) of the shards, which runs share.  [default: runs/bench]")
]
FilesFolder = Annotated[
    str | None,
    typer.Option("--files", help=f"Folder of weights and data.  [default: ${FILES}, or ../shared/data]"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Results = Annotated[Path | None, typer.Option(help="Read a saved result from this folder instead of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list", help="Name the specs that come with poise, with one line each.")
def list_specs(as_json: AsJson = False) -> None:
    from poise.experiments.bench.catalog import summaries

    found = summaries()
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found), default=0)
    for name, line in found.items():
        typer.echo(f"{name:<{width}}  {line}")


@app.command("run", help=RUN_HELP)
def run(
    name: Name,
    profile: ProfileName = "small",
    out: Out = None,
    files: FilesFolder = None,
    device: Device = "cpu",
    ray: Annotated[
        str | None,
        typer.Option(help="Run on Ray: local (started and stopped for this run), auto, or HOST:PORT of a cluster."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Ray actors.  [default: one per device of the cluster]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    rate: Annotated[str | None, typer.Option(help="Images per second, for --dry-run.  [default: measured]")] = None,
    save: Annotated[Path | None, typer.Option(help="Also write the result's small files below this folder.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    name, spec = _spec(name)
    plan = _plan(spec, profile, files, device)
    if dry_run:
        _show_price(plan, number("rate", rate), as_json=as_json)
        return
    place = out or OUT
    engine, store = _engine(ray, workers), _store(place)
    outcome = _run(plan, store, engine, quiet=quiet)
    _show_outcome(plan, outcome, place)
    if outcome.total > len(outcome.failed) + sum(map(len, outcome.left_out.values())):
        result = _collected(name, plan, store)
        _save(result, save)
        _show(result, "json" if as_json else "text", None)
    elif outcome.left_out and not outcome.failed:
        raise InputError(_lacking(outcome))
    if outcome.failed:
        raise typer.Exit(1)


@app.command("status", help="Say what of a run is done, running, failed or left out, and how long the rest will take.")
def status(
    name: Name, profile: ProfileName = "small", out: Out = None, files: FilesFolder = None, as_json: AsJson = False
) -> None:
    from poise.experiments.bench.status import status as state_of

    name, spec = _spec(name)
    plan = _plan(spec, profile, files, "cpu")
    place = out or OUT
    found = state_of(plan, _store(place))
    if as_json:
        typer.echo(json.dumps(vars(found) | {"waiting": found.waiting}))
        return
    typer.echo(f"{spec.shows}: {spec.title}, profile {profile}, in {place}")
    typer.echo(f"done     {found.done} of {found.total} shards, {found.waiting} waiting")
    for line in found.running:
        typer.echo(f"running  {line}")
    for line, reason in found.failed.items():
        typer.echo(f"failed   {line}: {reason}")
    for path, count in found.left_out.items():
        typer.echo(f"left out {count} shards for want of {path}")
    if found.left:
        typer.echo(f"left     about {_duration(found.left)} at {found.seconds:.1f} s per shard")


@app.command("table", help="Show the table of what is finished, ours beside the published values.")
def table(
    name: Name,
    profile: ProfileName = "small",
    out: Out = None,
    files: FilesFolder = None,
    results: Results = None,
    form: Annotated[
        str, typer.Option("--format", help="text, markdown, latex (booktabs), csv (tidy), html or json.")
    ] = "text",
    to: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    _show(_result(name, profile, out, files, results), form, to)


@app.command("figure", help="Draw the figure of what is finished, as one HTML file.")
def figure(
    name: Name,
    profile: ProfileName = "small",
    out: Out = None,
    files: FilesFolder = None,
    results: Results = None,
    to: Annotated[Path | None, typer.Option(help="The file.  [default: NAME.html]")] = None,
) -> None:
    from poise.experiments.bench.table import trend_rows
    from poise.experiments.files import write_text
    from poise.report.bench.figures import to_html

    result = _result(name, profile, out, files, results)
    if result.spec.figure is None:
        raise InputError(f"figure: {result.name} is a table; poise bench table {result.name} shows it")
    where = to or Path(f"{result.name.replace('/', '-')}.html")
    write_text(where, to_html(result, trend_rows(result)))
    typer.echo(f"figure   {where}")


app.command("leaderboard", help=LEADERBOARD_HELP)(leaderboard)


def _spec(name: str) -> tuple[str, BenchSpec]:
    from poise.experiments.bench.catalog import find

    return find(name)


def _plan(spec: BenchSpec, profile: str, files: str | None, device: str) -> Plan:
    from poise.experiments.bench.plan import Place
    from poise.experiments.bench.run import plan_for

    folder = files or os.environ.get(FILES) or "../shared/data"
    return plan_for(spec, profile, Place(folder.rstrip("/"), device))


def _store(place: str) -> Store:
    from poise.experiments.bench.store import open_store

    return open_store(place)


def _engine(ray: str | None, workers: int | None) -> Engine:
    if ray is None:
        if workers is not None:
            raise InputError(f"workers: needs --ray, which they work for, got {workers}")
        from poise.experiments.bench.engine import Local

        return Local()
    from poise.experiments.bench.ray_engine import RayEngine

    return RayEngine(address=None if ray == "local" else ray, workers=workers)


def _run(plan: Plan, store: Store, engine: Engine, *, quiet: bool) -> Outcome:
    from poise.cli.bench_progress import Bar
    from poise.experiments.bench.run import run_bench

    with _interrupted(), Bar(silent=quiet) as bar:
        return run_bench(plan, store, engine, bar)


@contextmanager
def _interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; finished shards are kept, the same command goes on", err=True)
        raise typer.Exit(130) from None


def _result(name: str, profile: str, out: str | None, files: str | None, results: Path | None) -> Result:
    from poise.experiments.bench.result import load

    name, spec = _spec(name)
    spec.profile(profile)
    if results is not None:
        return load(name, spec, results)
    plan = _plan(spec, profile, files, "cpu")
    return _collected(name, plan, _store(out or OUT))


def _collected(name: str, plan: Plan, store: Store) -> Result:
    from poise.experiments.bench.result import collect

    return collect(name, plan, store)


def _save(result: Result, folder: Path | None) -> None:
    from poise.experiments.bench.result import save

    if folder is not None:
        typer.echo(f"saved    {save(result, folder)}", err=True)


def _show(result: Result, form: str, to: Path | None) -> None:
    from poise.experiments.bench.table import render
    from poise.experiments.files import write_text

    text = render(result, form)
    if to is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"table    {write_text(to, text)}")


def _show_outcome(plan: Plan, outcome: Outcome, place: str) -> None:
    """What the run did, on the error stream."""
    if outcome.ran == 0 and not outcome.failed and not outcome.left_out:
        typer.echo(f"nothing to do: all {outcome.total} shards are in {place}", err=True)
        return
    again = f", {outcome.repeated} of them again because they were damaged" if outcome.repeated else ""
    typer.echo(f"{outcome.ran} shards run{again}, {outcome.before} were there, in {place}", err=True)
    for what, reason in list(outcome.failed.items())[:5]:
        typer.echo(f"failed   {what}: {reason}", err=True)
    if outcome.failed:
        typer.echo(
            f"{len(outcome.failed)} of {outcome.total} shards failed; the same command tries them again", err=True
        )
    for path, keys in outcome.left_out.items():
        typer.echo(f"left out {len(keys)} shards for want of {path}", err=True)


def _lacking(outcome: Outcome) -> str:
    path = next(iter(outcome.left_out))
    return f"files: nothing can be run without '{path}'; put it there, or name another folder by --files or ${FILES}"


def _show_price(plan: Plan, rate: float | None, *, as_json: bool) -> None:
    from poise.experiments.bench.price import price

    found = price(plan, rate)
    if as_json:
        told = {"hours": found.hours, "hours_now": found.hours_now, "fingerprint": plan.fingerprint}
        typer.echo(json.dumps(vars(found) | told))
        return
    kind = "GPU" if plan.place.device.startswith("cuda") else plan.place.device
    typer.echo(f"{plan.spec.shows}: {plan.spec.title}, profile {plan.profile_name}, fingerprint {plan.fingerprint}")
    typer.echo(f"plan     {found.cells:,} cells, {found.shards:,} shards, {found.samples:,} attacked images")
    typer.echo(f"queries  {found.queries:,} forward and {found.gradients:,} backward passes")
    if found.trainings:
        typer.echo(f"training {found.trainings} networks first, which these figures do not count")
    if found.hours is None:
        typer.echo(f"time     unknown: {found.measured_on}")
    else:
        typer.echo(f"time     {found.hours:,.2f} {kind} hours at {found.rate:,.0f} images/s ({found.measured_on})")
    typer.echo(f"storage  about {found.storage / 1e6:,.1f} MB")
    for path, count in found.left_out.items():
        typer.echo(f"left out {count:,} of the cells, as long as {path} is missing")
    if found.left_out and found.hours_now is not None:
        rest = found.cells - sum(found.left_out.values())
        typer.echo(f"now      {rest:,} cells, {found.hours_now:,.2f} {kind} hours at that rate")


def _duration(seconds: float) -> str:
    """Seconds for a person.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
