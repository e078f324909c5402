"""Run folders for the report's tests, each made once."""

from __future__ import annotations

from pathlib import Path

import fake_run
import pytest

from poise.report import write

COSTS = {"wrong_accepted": 10.0, "deferred": 1.0, "right_accepted": 0.0}


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recipes, three defences under both views, costs, traces, colour images, hostile names; with its page."""
    run = fake_run.build(tmp_path_factory.mktemp("colour") / "run", fake_run.Spec(costs=COSTS, traces=True))
    write(run)
    return run


@pytest.fixture(scope="session")
def grey_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes without a defence, no costs, 8 x 8 grey images, plain names; the page is written."""
    spec = fake_run.Spec(
        n=61, recipes=("sa-mma", "sa-oca"), models=fake_run.MODELS[:1], channels=1, side=8, nasty=False, seed=3
    )
    run = fake_run.build(tmp_path_factory.mktemp("grey") / "run", spec)
    write(run)
    return run
