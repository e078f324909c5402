"""The page in a real browser: no errors, no network, exact counts, both widths, both colour schemes, print."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import polars as pl
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from poise import metrics
from poise.report.folder import Block, read
from poise.report.style import DARK, INK
from poise.report.words import error

CONTRASTS = """
const parse = (text) => {
  const n = text.match(/[-\\d.]+/g).map(Number);
  return text.startsWith("color(") ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
};
const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
  .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
const behind = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const found = [];
for (const node of document.querySelectorAll("body *")) {
  const text = [...node.childNodes].filter((c) => c.nodeType === 3).map((c) => c.data).join("").trim();
  if (!text || node.closest("script, noscript") || !node.getClientRects().length) continue;
  const style = getComputedStyle(node);
  const ink = parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
  found.push([(a + .05) / (b + .05), node.tagName, text.slice(0, 40)]);
}
return found.sort((x, y) => x[0] - y[0]);
"""


def open_page(browser: webdriver.Chrome, file: Path, *, width: int = 1280, dark: bool = False) -> None:
    """Opens a page and waits until every figure is drawn."""
    emulate(browser, width=width, dark=dark)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(file.as_uri())
    deadline = time.monotonic() + 30
    while browser.execute_script("return document.documentElement.dataset.ready") != "1":
        assert time.monotonic() < deadline, f"the page was not drawn within 30 s: {browser.get_log('browser')}"
        time.sleep(0.05)


def emulate(browser: webdriver.Chrome, *, width: int = 1280, dark: bool = False, media: str = "") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": scheme})


def overflow(browser: webdriver.Chrome) -> int:
    return int(browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth"))


@pytest.fixture(scope="module")
def blocks(colour_run: Path) -> dict[tuple[str, str, str], Block]:
    return read(colour_run).blocks


@pytest.fixture(scope="module")
def opened(browser: webdriver.Chrome, colour_run: Path) -> webdriver.Chrome:
    open_page(browser, colour_run / "report.html")
    return browser


def test_no_errors_and_no_network(opened: webdriver.Chrome) -> None:
    """Chromium's own record: no message of the page, no request but for the file itself and what it holds."""
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if url.startswith("file:") and url.endswith("/report.html")]
    own = ("file:", "data:", "blob:", "chrome:")  # the last are the browser's own first tab
    assert [url for url in sent if not url.startswith(own)] == []


def test_a_request_and_an_error_would_be_noticed(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The broken twin: the checks of the test above, on a page that loads an image and throws."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<html data-ready=1><img src='http://127.0.0.1:9/x.png'><script>throw Error('x')</script>"
        "<div style='width: 3000px'>wide</div><p style='color: #999; background: #fff'>pale</p></html>"
    )
    open_page(browser, page)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert "http://127.0.0.1:9/x.png" in sent
    assert any("Error: x" in entry["message"] for entry in browser.get_log("browser"))
    assert overflow(browser) > 0
    assert browser.execute_script(CONTRASTS)[0][0] == pytest.approx(2.85, abs=0.01)


@pytest.fixture
def page(browser: webdriver.Chrome, colour_run: Path) -> webdriver.Chrome:
    """The page at 1280 pixels in light, opened anew when a test before has left it."""
    if browser.current_url != (colour_run / "report.html").as_uri():
        open_page(browser, colour_run / "report.html")
    emulate(browser)
    return browser


@pytest.mark.parametrize("width", [1280, 400, 320])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_readable_at_every_width_and_in_both_schemes(page: webdriver.Chrome, width: int, dark: bool) -> None:
    emulate(page, width=width, dark=dark)
    time.sleep(0.4)
    assert overflow(page) <= 0
    contrasts = page.execute_script(CONTRASTS)
    assert len(contrasts) > 300
    assert contrasts[0][0] >= 4.5, contrasts[:3]
    ink = page.execute_script("return getComputedStyle(document.querySelector('.plot .xtick text')).fill")
    wanted = DARK[INK] if dark else INK
    assert ink == "rgb({}, {}, {})".format(*(int(wanted[k : k + 2], 16) for k in (1, 3, 5)))
    widest = page.execute_script(
        "return Math.max(...[...document.querySelectorAll('.plot svg')].map((s) => s.getBoundingClientRect().right))"
    )
    assert widest <= width


def accepted(block: Block, at: float) -> dict[str, list[int]]:
    """Counts of accepted-right, accepted-wrong and deferred, clean and attacked, in plain numpy."""
    found = {}
    for name, confidence, prediction in (
        ("clean", block.confidence_before, block.prediction_before),
        ("attacked", block.confidence_after, block.prediction_after),
    ):
        above, right = confidence > at, prediction == block.label
        found[name] = [int((above & right).sum()), int((above & ~right).sum()), int((~above).sum())]
    return found


def shown(browser: webdriver.Chrome) -> dict[str, list[int]]:
    script = """return Object.fromEntries(['clean', 'attacked'].map((row) => [row, ['right', 'wrong', 'deferred'].map(
      (name) => Number(document.querySelector(`#counts tr[data-row=${row}] [data-cell=${name}]`).dataset.count))]))"""
    return dict(browser.execute_script(script))


def type_threshold(browser: webdriver.Chrome, text: str) -> None:
    field = browser.find_element(By.ID, "exact")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def test_the_counts_are_numpys(page: webdriver.Chrome, blocks: dict[Any, Block]) -> None:
    """At the threshold of the run, where one confidence lies on it and one just above, and at others."""
    columns = {("none", "aware"): "no defence", ("compression", "unaware"): "compression, attacker does not know it"}
    for recipe in fake_run.RECIPES:
        for (defence, view), told in columns.items():
            Select(page.find_element(By.ID, "pick-recipe")).select_by_visible_text(recipe)
            Select(page.find_element(By.ID, "pick-column")).select_by_visible_text(told)
            block = blocks[recipe, defence, view]
            assert 0.9 in block.confidence_after
            for at in (0.9, 0.1, 1.0, 0.553217):
                type_threshold(page, str(at))
                assert shown(page) == accepted(block, at)
    assert accepted(block, 0.9) != accepted(block, np.nextafter(0.9, 0)), "a comparison with >= would be noticed"


def test_the_slider_moves_with_the_keyboard(page: webdriver.Chrome, blocks: dict[Any, Block]) -> None:
    Select(page.find_element(By.ID, "pick-recipe")).select_by_visible_text("sa-mma")
    Select(page.find_element(By.ID, "pick-column")).select_by_visible_text("no defence")
    type_threshold(page, "0.5")
    slider = page.find_element(By.ID, "slider")
    assert slider.get_attribute("value") == "500"
    for _ in range(7):
        slider.send_keys(Keys.ARROW_LEFT)
    assert page.find_element(By.ID, "exact").get_attribute("value") == "0.493"
    assert slider.get_attribute("aria-valuetext") == "0.493"
    assert shown(page) == accepted(blocks["sa-mma", "none", "aware"], 0.493)
    slider.send_keys(Keys.HOME)
    assert shown(page) == accepted(blocks["sa-mma", "none", "aware"], 0.1)
    bar = page.execute_script(
        "return [...document.querySelectorAll('[data-bar=attacked] .seg')].map((s) => s.style.width)"
    )
    wanted = [100 * number / 300 for number in shown(page)["attacked"]]
    assert [float(width.rstrip("%")) for width in bar] == pytest.approx(wanted, abs=1e-3)
    type_threshold(page, "0.9")
    title = page.find_element(By.ID, "threshold-title").text
    assert title.startswith("At 0.90, sa-mma takes the cases accepted from ")


def test_the_least_bad_threshold_is_the_cheapest(page: webdriver.Chrome, blocks: dict[Any, Block]) -> None:
    costs = metrics.Costs(wrong_accepted=10, deferred=1)
    for recipe in fake_run.RECIPES:
        Select(page.find_element(By.ID, "pick-recipe")).select_by_visible_text(recipe)
        Select(page.find_element(By.ID, "pick-column")).select_by_visible_text("no defence")
        page.find_element(By.ID, "use-least-bad").click()
        part = blocks[recipe, "none", "aware"].attacked
        at = float(page.find_element(By.ID, "exact").get_attribute("value") or "nan")
        cell = page.find_element(By.CSS_SELECTOR, "#counts tr[data-row=attacked] [data-cell=cost]")
        cheapest = metrics.least_cost_threshold(part.confidence, part.correct, costs)[1]
        assert metrics.expected_cost(part.confidence, part.correct, at, costs) == pytest.approx(cheapest)
        assert float(cell.get_attribute("data-count") or "nan") == pytest.approx(cheapest)
        assert metrics.expected_cost(part.confidence, part.correct, 0.9, costs) >= cheapest
    type_threshold(page, "0.9")


def test_the_scoreboard_switches(page: webdriver.Chrome, colour_run: Path) -> None:
    rows = json.loads((colour_run / "summary.json").read_text())["rows"]
    row = next(r for r in rows if (r["recipe"], r["defence"], r["view"]) == ("sa-oca", "temperature", "aware"))
    cell = page.find_element(By.CSS_SELECTOR, "#board td[data-at='1.1']")
    before = cell.text
    assert before.startswith(error(row["metrics"]["ece_after"]["value"]))
    page.find_element(By.CSS_SELECTOR, "input[name=metric][value=ks_after]").click()
    assert cell.text.startswith(error(row["metrics"]["ks_after"]["value"]))
    assert page.find_element(By.ID, "metric-note").text.startswith("KS")
    page.find_element(By.CSS_SELECTOR, "input[name=metric][value=queries_mean_all]").click()
    assert cell.text == f"{row['metrics']['queries_mean_all']['value']:,.0f}"
    page.find_element(By.CSS_SELECTOR, "input[name=metric][value=ece_after]").click()
    assert cell.text == before


def test_figures_follow_the_model_picker(page: webdriver.Chrome) -> None:
    figure = page.find_element(By.CSS_SELECTOR, "[data-base='reliability.0']")
    before = figure.find_element(By.CLASS_NAME, "figure-title").text
    picker = Select(page.find_element(By.ID, "before-after-column"))
    picker.select_by_visible_text("compression, attacker knows it")
    after = figure.find_element(By.CLASS_NAME, "figure-title").text
    spec = page.execute_script(
        "return JSON.parse(document.getElementById('data').textContent).figures['reliability.0.3']"
    )
    assert after == spec["title"] != before
    assert figure.find_element(By.CLASS_NAME, "plot").get_attribute("aria-label") == spec["alt"]
    picker.select_by_index(0)
    assert figure.find_element(By.CLASS_NAME, "figure-title").text == before


def test_the_downloaded_images_are_the_samples(page: webdriver.Chrome, colour_run: Path) -> None:
    page.execute_script(
        "const make = URL.createObjectURL; URL.createObjectURL = (blob) => { window.made = blob; return make(blob); };"
    )
    page.find_element(By.ID, "samples-csv").click()
    text = page.execute_async_script("window.made.text().then(arguments[0])")
    names = ["recipe", "defence", "view", "id"]
    found = pl.DataFrame(list(csv.DictReader(io.StringIO(text)))).with_columns(pl.col("id").cast(pl.Int64)).sort(names)
    wanted = pl.read_parquet(colour_run / "samples" / "*.parquet").sort(names)
    assert found.height == wanted.height
    for name in ("label", "prediction_before", "prediction_after", "queries"):
        assert found[name].cast(pl.Int64).to_list() == wanted[name].to_list()
    for name in ("confidence_before", "confidence_after"):
        assert np.abs(found[name].cast(pl.Float64).to_numpy() - wanted[name].to_numpy()).max() <= 1e-6


def test_every_control_is_reached_by_the_keyboard_and_seen(page: webdriver.Chrome) -> None:
    page.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = set()
    body = page.find_element(By.TAG_NAME, "body")
    for _ in range(45):
        body.send_keys(Keys.TAB) if not reached else page.switch_to.active_element.send_keys(Keys.TAB)
        style = "const s = getComputedStyle(document.activeElement); return [document.activeElement.id, s.outlineWidth]"
        name, outline = page.execute_script(style)
        reached.add(name)
        assert int(float(outline.removesuffix("px"))) >= 2, f"no visible focus on {name}"
    wanted = {"pick-recipe", "pick-column", "slider", "exact", "before-after-column", "samples-csv", "use-least-bad"}
    assert wanted <= reached


def test_print_is_light_and_fits_the_paper(page: webdriver.Chrome) -> None:
    emulate(page, width=688, dark=True, media="print")
    page.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.execute_script("return getComputedStyle(document.querySelector('.plot .xtick text')).fill") == (
        "rgb({}, {}, {})".format(*(int(INK[k : k + 2], 16) for k in (1, 3, 5)))
    )
    assert overflow(page) <= 0
    assert page.execute_script(CONTRASTS)[0][0] >= 4.5
    cut = """return [...document.querySelectorAll('.figure, .recipe, .case')]
      .filter((node) => getComputedStyle(node).breakInside !== 'avoid').length"""
    assert page.execute_script(cut) == 0
    page.execute_script("window.dispatchEvent(new Event('afterprint'))")
    emulate(page)


def test_a_page_of_grey_images_without_costs(browser: webdriver.Chrome, grey_run: Path) -> None:
    open_page(browser, grey_run / "report.html", width=400)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    assert overflow(browser) <= 0
    rendering = "return getComputedStyle(document.querySelector('.case img')).imageRendering"
    assert browser.execute_script(rendering) == "pixelated"
    sizes = "return [...document.querySelectorAll('.case img')].map((i) => [i.naturalWidth, i.naturalHeight])"
    assert {tuple(size) for size in browser.execute_script(sizes)} == {(8, 8)}
    assert shown(browser) == accepted(read(grey_run).blocks["sa-mma", "none", "aware"], 0.9)
