"""A small version of benchmarks/serve_load.py: every kind of abuse, by a few clients, against a real server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from serve_load import ABUSES, Server, abused, good, in_parallel, serving

WAITING = {"slow clients", "idle connections", "keep-alive abuse"}
"""What takes as long as the server's own limits; in the benchmark alone, and in tests/serve with shorter ones."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        assert good(found, 2) == 2
        yield found
        assert found.process.poll() is None, "the server has ended"
        assert not found.tracebacks
        assert not found.unclear


@pytest.mark.parametrize("name", sorted(set(ABUSES) - WAITING))
def test_good_clients_are_served_after_abuse(server: Server, name: str) -> None:
    row = abused(server, name, 12)
    assert row["alive"], row
    assert row["well_after"], row
    assert row["mib_after"] - row["mib_before"] < 256, row


def test_200_clients_at_once_get_the_models_answers(server: Server) -> None:
    found = in_parallel(server, 200, 1)
    assert found["right"] == 200
