"""Makes docs/assets/papers/PAPER-NAME.svg of every saved figure of a paper, with plotly.js in headless Chromium.

    python tools/paper_figures.py                    # draws what is missing or stale; --all draws every one
    python tools/paper_figures.py --check            # no browser: exit code 1 where a drawing is missing or stale
    python tools/paper_figures.py calibration/fig1   # these alone

Each drawing says in a comment which tables it was made of, by their sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "papers"
OUT = ROOT / "docs" / "assets" / "papers"
MADE_OF = "<!-- made of "
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars",
)  # fmt: skip
SECONDS = 60
DRAW = """
const [figure, width, done] = [JSON.parse(arguments[0]), arguments[1], arguments[arguments.length - 1]];
figure.layout.paper_bgcolor = "#fdfdfc";
const size = { format: "svg", width: width, height: figure.layout.height };
Plotly.toImage(figure, size).then(done, (error) => done("error: " + error));
"""


def saved(folder: Path) -> list[str]:
    """Names of the saved results, PAPER/NAME."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in folder.glob("*/*.json"))


def tables(name: str, folder: Path) -> list[Path]:
    """The CSV files of a result."""
    base = folder / name
    return [path for path in (base.with_suffix(".csv"), base.with_suffix(".points.csv")) if path.exists()]


def made_of(name: str, folder: Path) -> str:
    """The comment that a drawing of these tables carries."""
    sums = (f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in tables(name, folder))
    return f"{MADE_OF}{', '.join(sums)} -->"


def picture(name: str, out: Path) -> Path:
    """Where the drawing of a result lies."""
    return out / f"{name.replace('/', '-')}.svg"


def is_fresh(name: str, folder: Path, out: Path) -> bool:
    """The drawing is there and was made of the tables as they are."""
    path = picture(name, out)
    return path.exists() and made_of(name, folder) in path.read_text(encoding="utf-8")[:1000]


@contextmanager
def browser() -> Iterator[object]:
    """Chromium with plotly.js in an empty page."""
    from plotly.offline import get_plotlyjs
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}/profile"):
            options.add_argument(flag)
        page = Path(profile) / "page.html"
        page.write_text(f"<!doctype html><meta charset=utf-8><script>{get_plotlyjs()}</script>", encoding="utf-8")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            driver.set_script_timeout(SECONDS)
            driver.get(page.as_uri())
            yield driver
        finally:
            driver.quit()


def drawn(driver: object, name: str, folder: Path) -> str:
    """The drawing of a result as SVG with its comment."""
    from poise.experiments.bench.catalog import find
    from poise.experiments.bench.result import load
    from poise.report.bench.figures import figure
    from poise.report.bench.frames import WIDTH

    result = load(name, find(name)[1], folder)
    answer = driver.execute_async_script(DRAW, figure(result).to_json(), WIDTH)  # type: ignore[attr-defined]
    kind, _, content = str(answer).partition(",")
    if not kind.startswith("data:image/svg+xml"):
        raise SystemExit(f"{name}: {answer}")
    return f"{made_of(name, folder)}\n{unquote(content)}\n"


def wanted(names: list[str], folder: Path) -> list[str]:
    """Of the named results, or of all saved ones, those whose spec has a figure."""
    from poise.experiments.bench.catalog import find

    return [name for name in names or saved(folder) if find(name)[1].figure is not None]


def main() -> int:
    """Draws or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description="Drawings of the papers' figures.")
    parser.add_argument("names", nargs="*", help="PAPER/NAME; all saved figures where none is given")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a drawing is missing or stale")
    parser.add_argument("--all", action="store_true", help="draw fresh ones again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of saved results")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the drawings")
    given = parser.parse_args()
    names = wanted(given.names, given.results)
    stale = [name for name in names if given.all or not is_fresh(name, given.results, given.out)]
    if given.check:
        for name in stale:
            sys.stderr.write(f"stale: {picture(name, given.out).name}; run tools/paper_figures.py {name}\n")
        return int(bool(stale))
    if stale:
        given.out.mkdir(parents=True, exist_ok=True)
        with browser() as driver:
            for name in stale:
                picture(name, given.out).write_text(drawn(driver, name, given.results), encoding="utf-8")
    sys.stdout.write(json.dumps({"drawn": stale, "fresh": len(names) - len(stale)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
