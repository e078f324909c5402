"""The command's entry: puts the commands together and turns every expected error into one line and exit code 2."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any, TextIO

import typer

from poise.cli import attack, audit, certify, defend, detect, listing, serve, train
from poise.errors import PoiseError

UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Base of the parser's own errors: click's, or that of the copy of click which newer versions of typer carry."""

app = typer.Typer(
    name="poise",
    help="Attack, defend and audit the confidence of image classifiers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("audit", help=audit.HELP)(audit.audit)
app.command("attack", help=attack.HELP)(attack.attack)
app.add_typer(defend.app, name="defend", help=defend.HELP)
app.command("train", help=train.HELP)(train.train)
app.command("detect", help=detect.HELP)(detect.detect)
app.command("certify", help=certify.HELP)(certify.certify)
app.command("serve", help=serve.HELP)(serve.serve)
app.command("list", help=listing.HELP)(listing.listing)


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
    return " ".join(text.split())
