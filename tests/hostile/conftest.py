"""What the hostile tests share: a stand for each reader, and how the bombs ended, each thing made once."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import EXAMPLES, Outcome, Stand

ADDRESSES = 15 * 2**30


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stand]:
    """The stand of a reader, by its name."""
    from readers import READERS

    made: dict[str, Stand] = {}

    def find(name: str) -> Stand:
        if name not in made:
            made[name] = Stand(READERS[name], tmp_path_factory.mktemp("stand"))
        return made[name]

    return find


def limited() -> None:
    """In the new process: as many addresses as it takes without any input, and some more."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))


@pytest.fixture(scope="session")
def exploded() -> dict[str, Outcome]:
    """How every bomb ended, in a process of its own with a limit on memory."""
    here = Path(__file__).resolve().parent
    from bombs import BOMBS, LONG

    places = [str(here), str(here.parent), str(here.parent / "report")]
    chosen = [name for name in BOMBS if EXAMPLES or name not in LONG]
    done = subprocess.run(
        [sys.executable, str(here / "bombs.py"), *chosen],
        capture_output=True, text=True, timeout=300, preexec_fn=limited,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    return {name: Outcome(*rest) for name, *rest in map(json.loads, done.stdout.splitlines())}
