"""poise bench leaderboard: entries made from audits, checked, ranked and rendered as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poise.errors import InputError, RunError

if TYPE_CHECKING:
    from poise.experiments.leaderboard import Group

HELP = """Rank models and defences by the standard attack, from one checked file per entry.

\b
Examples:
  poise bench leaderboard --out leaderboard.html
  poise audit --model … --data … --eps 8/255 --recipes standard --defenses none,ts --out runs/mine
  poise bench leaderboard --add runs/mine --name "My network" --author "A. Person" --url https://example.org/mine

--add makes an entry of each defence of a finished audit. Every file of the folder is checked each time: a damaged or
doubtful one ends the command with its name. Without --out, a table is printed.
"""

DEFAULT = Path("leaderboard")


def leaderboard(
    entries: Annotated[
        Path, typer.Option(help="Folder of the entries, *.json.  [default: leaderboard]", show_default=False)
    ] = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Page to write, .html.")] = None,
    add: Annotated[
        Path | None, typer.Option(help="Folder of a finished audit to make entries of; needs --name.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called, with --add.")] = None,
    author: Annotated[str | None, typer.Option(help="Who submits, with --add.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the model is told of, with --add.")] = None,
    note: Annotated[str | None, typer.Option(help="What is special, in one line, with --add.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ranked entries as JSON.")] = False,
) -> None:
    """Adds entries where asked, checks all, and writes the page or prints the table.

    Raises:
        InputError: a file or an option is not what is required. RunError: the audit or the page's place cannot be used.
    """
    from poise.experiments.leaderboard import rank, read_entries

    if out is not None and out.suffix != ".html":
        raise InputError(f"out: must end in .html, got '{out}'")
    made = _added(entries, add, {"name": name, "author": author, "url": url, "note": note})
    groups = rank(read_entries(entries))
    if out is not None:
        _write(groups, out)
    if as_json:
        typer.echo(json.dumps([group.plain() for group in groups], allow_nan=False, ensure_ascii=False))
        return
    for path in made:
        typer.echo(f"entry    {path}")
    if out is not None:
        typer.echo(f"page     {out} ({sum(len(group.entries) for group in groups)} entries)")
    elif not groups:
        typer.echo(f"no entry in '{entries}'; add one with --add RUN --name NAME")
    else:
        _show(groups)


def _added(folder: Path, run: Path | None, told: dict[str, str | None]) -> list[Path]:
    """The files of a run's entries, once they and those that lie there are known to fit; none without a run."""
    from poise.experiments.leaderboard import entries_from, write_entries
    from poise.report import read_summary

    if run is None:
        if given := [option for option, text in told.items() if text is not None]:
            raise InputError(f"{given[0]}: must be given with --add RUN, got it alone")
        return []
    name = told.pop("name")
    if name is None:
        raise InputError("name: must be given with --add, got none")
    return write_entries(folder, entries_from(read_summary(run), name=name, **told))


def _write(groups: list[Group], out: Path) -> None:
    from poise.experiments.leaderboard import COSTS, THRESHOLD
    from poise.report import leaderboard as page

    try:
        page.write([group.plain() for group in groups], out, costs=COSTS.plain(), threshold=THRESHOLD)
    except OSError as error:
        raise RunError(f"out: '{out}' must be a place that can be written, got: {error.strerror}") from None


def _show(groups: list[Group]) -> None:
    """Every group as a table, as wide as it needs to be where the output goes to a file or a pipe."""
    from poise.experiments.leaderboard import COSTS, THRESHOLD
    from poise.report import leaderboard as page

    console = Console()
    if not console.is_terminal:
        console = Console(width=200, color_system=None)
    for group in (group.plain() for group in groups):
        typer.echo(page.title(group))
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for at, (_, heading) in enumerate(page.COLUMNS):
            shown.add_column(heading, justify="left" if at < page.TEXTS else "right", no_wrap=at >= page.TEXTS)
        for entry in group["entries"]:
            shown.add_row(*(Text(part) for part in page.cells(entry)))
        console.print(shown)
        typer.echo("")
    typer.echo(f"{page.costs_told(COSTS.plain(), THRESHOLD)} =: not distinguishable from the entry above or below.")
