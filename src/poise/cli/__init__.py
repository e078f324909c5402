"""The command `poise`: one file per command; errors are one line, exit codes 0 fine, 1 a gate failed, 2 bad input."""

from poise.cli.app import main

__all__ = ["main"]
