"""The leaderboard's page: all escaped, loads nothing, sorts and filters in a real browser, whole without a script."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from test_report_browser import CONTRASTS, emulate, open_page, overflow

import leaderboard_cases as cases
from poise.experiments.leaderboard import COSTS, THRESHOLD, entries_from, rank, read_entries
from poise.report import leaderboard as page

ROOT = Path(__file__).resolve().parents[2]
NASTY = '<img src=x onerror="alert(1)">|*x*'


def groups() -> list[dict[str, Any]]:
    """Three models on two balls, one with hostile texts."""
    made = [
        *entries_from(cases.summary(), name="Beta", url="https://example.org/?a=1&b=2"),
        *entries_from(cases.summary(weights="4", strengths=(0.3, 0.2, 0.1)), name=NASTY, note=NASTY, author=NASTY),
        *entries_from(cases.summary(weights="5", eps=0.25, norm="l2", strengths=(0.9, 0.1, 0.1)), name="Alpha"),
    ]
    return [group.plain() for group in rank(made)]


def rendered(found: list[dict[str, Any]]) -> str:
    return page.render(found, costs=COSTS.plain(), threshold=THRESHOLD)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(html)
    return parser.found


def test_everything_is_escaped_and_nothing_is_loaded() -> None:
    html = rendered(groups())
    found = tags(html)
    assert NASTY not in html
    assert not [tag for tag, _ in found if tag in ("img", "link", "iframe", "object", "base")]
    assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name == "src"]
    assert len([tag for tag, _ in found if tag == "script"]) == 1
    links = [attributes for tag, attributes in found if tag == "a" and attributes["href"] != "#tables"]
    assert {link["href"] for link in links} == {"https://example.org/?a=1&b=2"}
    assert all("noopener" in str(link["rel"]) for link in links)
    assert "url(" not in html
    assert "@import" not in html


def test_an_address_that_is_not_of_the_web_is_no_link() -> None:
    found = groups()
    for group in found:
        for entry in group["entries"]:
            entry["url"] = "javascript:alert(1)"
    assert "javascript:" not in rendered(found)


def test_the_tables_hold_every_figure() -> None:
    found = groups()
    html = rendered(found)
    for group in found:
        assert page.title(group) in html
        for entry in group["entries"]:
            ece = entry["attacked"]["ece"]
            assert f"<strong>{ece['value']:.3f}</strong>" in html
            assert page.interval(ece) in html
            assert len(page.cells(entry)) == len(page.keys(entry)) == len(page.COLUMNS)
    for said in (
        "bounds the risk from below",
        "adapts",
        "overlaps",
        "wholly below",
        "not distinguishable",
        "certificate",
    ):
        assert said in html


def test_no_entry_at_all() -> None:
    assert "There is no entry yet." in rendered([])
    assert page.markdown([]) == "\n"


def test_what_is_undefined_is_a_dash() -> None:
    (group, *_) = groups()
    entry = group["entries"][0]
    entry["kept"] = {"value": None, "low": None, "high": None}
    assert page.cells(entry)[4] == "–"
    assert page.keys(entry)[4] == ""


def test_markdown_is_escaped() -> None:
    text = page.markdown(groups())
    assert "<img" not in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in lines} == {len(page.COLUMNS) - 1}
    assert r"\*x\*" in text


def test_the_projects_own_entries_render(tmp_path: Path) -> None:
    found = [group.plain() for group in rank(read_entries(ROOT / "leaderboard"))]
    path = page.write(found, tmp_path / "page.html", costs=COSTS.plain(), threshold=THRESHOLD)
    assert path.read_text(encoding="utf-8") == rendered(found)
    assert path.stat().st_size < 500_000
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    return page.write(groups(), path, costs=COSTS.plain(), threshold=THRESHOLD)


@pytest.fixture
def opened(browser: webdriver.Chrome, file: Path) -> webdriver.Chrome:
    open_page(browser, file)
    return browser


def names(browser: webdriver.Chrome) -> list[str]:
    """Model and defence of the rows that are seen, from the top."""
    seen = (row for row in browser.find_elements(By.CSS_SELECTOR, ".ranking tbody tr") if row.is_displayed())
    cells = (
        [row.find_element(By.CSS_SELECTOR, part).text.split("\n")[0] for part in (".model", ".defence")] for row in seen
    )
    return [" ".join(pair) for pair in cells]


def test_no_errors_and_no_network(opened: webdriver.Chrome) -> None:
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("file:")] == []


def test_sorting_by_click_and_keyboard(opened: webdriver.Chrome) -> None:
    table = next(t for t in opened.find_elements(By.CSS_SELECTOR, "table.ranking") if "Beta" in t.text)
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")
    buttons = [head.find_element(By.TAG_NAME, "button") for head in heads]
    assert [head.get_attribute("aria-sort") for head in heads] == ["ascending", *[None] * (len(heads) - 1)]

    def column(at: int) -> list[float]:
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({at + 1})")
        return [float(cell.get_attribute("data-value") or "nan") for cell in cells]

    for at in (3, 5, 8):
        buttons[at].click()
        assert column(at) == sorted(column(at))
        assert heads[at].get_attribute("aria-sort") == "ascending"
        buttons[at].send_keys(Keys.ENTER)
        assert column(at) == sorted(column(at), reverse=True)
        assert [h.get_attribute("aria-sort") for h in heads].count(None) == len(heads) - 1
        assert heads[at].get_attribute("aria-sort") == "descending"
    assert "Sorted by clean confidence, descending." in opened.find_element(By.ID, "shown").text
    buttons[1].send_keys(Keys.SPACE)
    shown = [
        row.find_element(By.CSS_SELECTOR, ".model").text for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    assert [text.split("\n")[0] for text in shown] == [NASTY, NASTY, "Beta", "Beta"]


def test_filters(opened: webdriver.Chrome) -> None:
    everything = names(opened)
    assert len(everything) == 6
    Select(opened.find_element(By.ID, "threat")).select_by_visible_text("L2 0.25")
    assert names(opened) == ["Alpha ts", "Alpha none"]
    Select(opened.find_element(By.ID, "defence")).select_by_visible_text("none")
    assert names(opened) == ["Alpha none"]
    assert opened.find_element(By.ID, "shown").text == "1 of 6 entries shown."
    Select(opened.find_element(By.ID, "threat")).select_by_index(0)
    text = opened.find_element(By.ID, "text")
    text.send_keys("bet")
    assert names(opened) == ["Beta none"]
    text.send_keys(" nothing")
    assert names(opened) == []
    text.clear()
    text.send_keys("<img", Keys.ENTER)
    assert names(opened) == [f"{NASTY} none"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_widths_and_contrast(browser: webdriver.Chrome, file: Path, width: int, dark: bool) -> None:
    open_page(browser, file, width=width, dark=dark)
    assert overflow(browser) == 0
    ratio, tag, text = browser.execute_script(CONTRASTS)[0]
    assert ratio >= 4.5, f"{tag} '{text}'"
    if width == 400:  # rank, model, defence and the figure of the ranking are seen without scrolling
        right = browser.execute_script("return document.querySelector('td.ece').getBoundingClientRect().right")
        assert right <= width


@pytest.mark.parametrize("width", [1280, 400])
def test_opened_details_are_read_as_lines(browser: webdriver.Chrome, file: Path, width: int) -> None:
    """In a narrow column they were a letter wide; they lie over the empty cells beside them and move no column."""
    open_page(browser, file, width=width)
    before = browser.execute_script("return document.querySelector('td.ece').getBoundingClientRect().x")
    browser.find_element(By.CSS_SELECTOR, ".ranking summary").click()
    box = browser.execute_script("return document.querySelector('.ranking dl').getBoundingClientRect()")
    assert box["height"] < 300
    assert box["right"] <= width
    assert browser.execute_script("return document.querySelector('td.ece').getBoundingClientRect().x") == before
    assert overflow(browser) == 0


def test_print_shows_the_table_and_no_controls(browser: webdriver.Chrome, file: Path) -> None:
    open_page(browser, file)
    emulate(browser, width=700, media="print")
    assert not browser.find_element(By.ID, "filters").is_displayed()
    assert len(names(browser)) == 6
    assert overflow(browser) <= 0
    emulate(browser)


def test_without_a_script_the_tables_are_there(browser: webdriver.Chrome, file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script>.*</script>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL))
    browser.get(bare.as_uri())
    assert len(names(browser)) == 6
    assert not browser.find_element(By.ID, "filters").is_displayed()
    assert browser.find_elements(By.CSS_SELECTOR, "thead button") == []
