"""The allocator is told to keep freed memory, by the command alone, and not over the user's own settings."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from poise.cli import app, memory

FAULTS = """
import resource, torch
{}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def tensors():
    before = faults()
    for _ in range(20):
        torch.empty(10 * 2**20).fill_(1)
    return faults() - before
tensors()  # the allocator finds its place
print(tensors())
"""
"""Page faults of twenty tensors of 40 MiB, more than glibc keeps by itself, one after the other."""


def faults(first: str, **settings: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = [sys.executable, "-c", FAULTS.format(first)]
    run = subprocess.run(program, env=clean | settings, capture_output=True, text=True, check=True)
    return int(run.stdout)


KEEP = "from poise.cli.memory import keep_freed_memory; keep_freed_memory()"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    usual, kept = faults(""), faults(KEEP)
    assert kept < usual / 10
    assert faults(KEEP, MALLOC_TRIM_THRESHOLD_="100000", MALLOC_MMAP_THRESHOLD_="100000") > usual / 2


def test_importing_poise_leaves_the_process_alone() -> None:
    code = "import sys, poise, poise.searches, poise.targets; print('poise.cli' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")]
)
def test_what_the_user_has_settled_stands(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", None)  # is not even asked
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_systems_are_left_alone(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: object) -> object:
        raise error

    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(("command", "kept"), [("audit", True), ("attack", True), ("serve", False)])
def test_a_server_gives_memory_back(command: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(app, "keep_freed_memory", lambda: asked.append(True))
    assert app.run([command, "--help"], sys.stderr) == 0
    assert asked == [True] * kept
