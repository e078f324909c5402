"""The command's entry: finds the command asked for, and turns every expected error into one line and exit code 2.

A command is a module of this package and a line in `COMMANDS`. Only the module that is asked for is imported, so that
`poise --help` answers at once. The module gives `HELP` and either `app`, a `typer.Typer` with sub-commands, or a
function of the module's own name; what it needs of torch it imports inside that function, so that its own help is as
quick.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib import import_module
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from poise.cli.memory import keep_freed_memory
from poise.errors import PoiseError, printable

COMMANDS: dict[str, tuple[str, str]] = {
    "audit": ("audit", "Attack a classifier's confidence and write a report."),
    "attack": ("attack", "Run one attack and keep its images and its result table."),
    "train": ("train", "Train a network by a recipe: plain, adversarial, or against attacks on its confidence."),
    "detect": (
        "detect",
        "Fit detectors of attacked images on each attack and test them on all: Table 2 of the calibration attacks.",
    ),
    "certify": (
        "certify",
        "Certify the confidence of a classifier smoothed with Gaussian noise, and attack it within the same radii.",
    ),
    "bench": ("bench", "Run the tables and figures of the papers, and show them beside the published numbers."),
    "serve": (
        "serve",
        "Serve a model, with its defence, over HTTP, so that an attack can be tried on the real thing.",
    ),
    "list": (
        "listing",
        "Name what there is: recipes, objectives, searches, defenses, detectors, training, models, data, experiments.",
    ),
    "defend": ("defend", "Fit, compare and export defences of a classifier's confidence."),
}
"""Name → module of `poise.cli`, and the first line of that module's HELP; in the order of `poise --help`."""

UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Base of the parser's own errors: click's, or that of the copy of click which newer versions of typer carry."""


class _Lazy(TyperGroup):
    """Lists the commands from the table, and imports one where it is to run or to show its own help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name != "serve":  # which runs for months, and gives back what a burst of requests took
            keep_freed_memory()
        return name, command if name is None else load(name), rest


def load(name: str) -> Any:
    """Imports a command of the table; returns the parser's object for it."""
    module = import_module(f"poise.cli.{COMMANDS[name][0]}")
    parts: typer.Typer | None = getattr(module, "app", None)
    if parts is None:
        parts = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        parts.command(name)(getattr(module, COMMANDS[name][0]))
    command: Any = typer.main.get_command(parts)
    command.help = module.HELP
    return command


def _not_loaded() -> None:
    """Stands for a command in the list of all; `_Lazy` puts the real one in its place before it is called."""


app = typer.Typer(
    name="poise",
    cls=_Lazy,
    help="Attack, defend and audit the confidence of image classifiers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, (_, _summary) in COMMANDS.items():
    app.command(_name, help=_summary)(_not_loaded)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and leave.")
) -> None:
    if version:
        from poise import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 fine, 1 a gate failed, 2 bad input, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows another, and no error
        sys.stdout.reconfigure(errors="replace")
    code = run(arguments, sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads it; without this the interpreter complains at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str] | None, errors: TextIO) -> int:
    """Runs the command line and returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print("warning:", _one_line(str(message)), file=errors)
        try:
            with typer.main.get_command(app).make_context("poise", list(given)) as context:
                context.command.invoke(context)
        except typer.Exit as leave:
            return leave.exit_code
        except (typer.Abort, KeyboardInterrupt):
            return 130
        except BrokenPipeError:  # the reader of our output has gone, as with `poise list recipes | head -1`
            return 0
        except (PoiseError, UsageError, OSError) as error:
            text = error.format_message() if isinstance(error, UsageError) else str(error)
            print("poise: error:", _one_line(text), file=errors)
            return 2
    return 0


def _one_line(text: str) -> str:
    """Without line ends, and without what a terminal would obey: a text may quote a stranger's file."""
    return printable(" ".join(text.split()))
