"""The command `poise`: one file per command; errors are one line, exit codes 0 fine, 1 a gate failed, 2 bad input."""

import os

# Threads of a small network meet thousands of times a second; waiting asleep rather than spinning costs nothing
# on a calm machine and is several times faster on a busy one. It must be set before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from poise.cli.app import main

__all__ = ["main"]
