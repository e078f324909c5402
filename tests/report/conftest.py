"""What the report's tests share: run folders, each made once, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fake_run
import pytest
from selenium import webdriver

from poise.report import write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    " --disable-sync --no-first-run --hide-scrollbars"
)

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


def _tool(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    program, driver = _tool(BROWSERS), _tool(("chromedriver",))
    if program is None or driver is None:
        pytest.skip(f"needs a Chromium browser and chromedriver on the PATH, got browser {program}, driver {driver}")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()
