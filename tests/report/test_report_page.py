"""The page as a file: complete, escaped, small, without the network, and honest about what is missing."""

from __future__ import annotations

import ast
import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_run
import jinja2
import polars as pl
import pytest

import poise.report
from poise.errors import RunError
from poise.report import write
from poise.report.page import SECTIONS, Page, _asset, no_break

LOADING = {"src", "srcset", "href", "data", "poster", "action", "background", "formaction", "manifest"}


class Document(HTMLParser):
    """Elements, texts and scripts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._raw = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.texts.append(data)

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def loads(self) -> list[str]:
        """What the page would fetch: every reference that is neither inside the file nor inside the page."""
        return [
            str(text)
            for _, attributes in self.elements
            for name, text in attributes.items()
            if name in LOADING and not str(text).startswith(("data:", "#"))
        ]


def css_loads(css: str) -> list[str]:
    return re.findall(r"@import[^;]*|url\((?!['\"]?data:)[^)]*\)", css)


@pytest.fixture(scope="module")
def html(colour_run: Path) -> str:
    return (colour_run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Document:
    return Document(html)


@pytest.fixture(scope="module")
def data(page: Document) -> dict[str, Any]:
    return dict(json.loads(page.scripts[0]))


def broken(run: Path, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a run folder after a change."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    change(copy)
    return copy


# ---- one file, no network ----


def test_the_page_loads_nothing(page: Document, html: str) -> None:
    assert page.loads() == []
    assert css_loads(html.split("<style>")[1].split("</style>")[0]) == []


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://a/b.png">',
        '<script src="x.js"></script>',
        '<link href="http://fonts/x">',
        '<img srcset="a 2x">',
    ],
)
def test_a_load_would_be_noticed(html: str) -> None:
    assert Document(html).loads()


def test_a_load_in_the_style_would_be_noticed() -> None:
    assert css_loads("@import 'x.css'; p { background: url(http://a/b) }")
    assert not css_loads("p { background: url(data:image/png;base64,AA) }")


def test_the_policy_forbids_everything_but_the_pages_own_scripts(page: Document) -> None:
    (policy,) = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    hashes = set(re.findall(r"'sha256-([^']+)'", policy))
    executed = page.scripts[1:]
    assert hashes == {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in executed}
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_plotly_is_embedded_once(html: str, page: Document) -> None:
    assert html.count("* plotly.js v") == 1
    assert len(page.scripts) == 3


def test_the_report_does_not_import_torch() -> None:
    """It reads result tables only; a colleague without torch can render a run."""
    folder = Path(poise.report.__file__).parent
    modules = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module or "")
    own = {name for name in modules if name.startswith("poise")}
    assert not any(name.split(".")[0] in {"torch", "torchvision", "torchmetrics", "PIL"} for name in modules)
    assert all(
        name == "poise"
        or name.startswith(("poise.report", "poise.metrics", "poise.errors", "poise.files", "poise.table"))
        for name in own
    )


# ---- escaping ----


def test_hostile_texts_are_text(page: Document, html: str) -> None:
    assert fake_run.NASTY not in html
    assert [text for text in page.texts if fake_run.NASTY in text], "it is shown, as text"
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert len(page.scripts) == 3
    assert "<b>bold</b>" not in html.split("<script")[0]


def test_without_escaping_the_page_would_be_taken_over(colour_run: Path) -> None:
    """The broken twin: the same template without autoescape."""
    from poise.report.folder import read

    environment = jinja2.Environment(loader=jinja2.FunctionLoader(lambda name: str(_asset(name))), autoescape=False)
    environment.filters["nb"] = no_break
    taken = Document(environment.get_template("page.html.j2").render(page=Page(read(colour_run))))
    assert [attributes for _, attributes in taken.elements if "onerror" in attributes]


# ---- contents ----


def test_the_sections_come_in_the_order_of_the_product(page: Document) -> None:
    sections = [attributes["id"] for attributes in page.tags("section")]
    assert sections == [anchor for anchor, _ in SECTIONS if anchor != "explain"], "which nobody asked for"
    assert "traces" in sections
    links = [a["href"] for a in page.tags("a") if str(a.get("href")).startswith("#")]
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {str(link)[1:] for link in links} <= ids
    assert len(ids) == len([1 for _, attributes in page.elements if "id" in attributes]), "no id occurs twice"


def test_a_run_without_traces_has_no_section_for_them(grey_run: Path) -> None:
    plain = Document((grey_run / "report.html").read_text(encoding="utf-8"))
    sections = [attributes["id"] for attributes in plain.tags("section")]
    assert sections == [anchor for anchor, _ in SECTIONS if anchor not in ("traces", "explain")]
    assert "#traces" not in [a.get("href") for a in plain.tags("a")]


def test_advice_is_given_where_a_check_warned_only(tmp_path: Path, grey_run: Path) -> None:
    def change(run: Path) -> None:
        summary = json.loads((run / "summary.json").read_text())
        summary["checks"] = [
            {"name": name, "status": name, "figure": f"figure of {name}", "advice": f"advice of {name}"}
            for name in ("passed", "warned")
        ]
        (run / "summary.json").write_text(json.dumps(summary))

    run = broken(grey_run, tmp_path, change)
    texts = Document(write(run).read_text(encoding="utf-8")).texts
    assert {"figure of passed", "figure of warned", "advice of warned"} <= set(texts)
    assert "advice of passed" not in texts


def test_structure_for_assistive_technology(page: Document) -> None:
    assert len(page.tags("h1")) == 1
    assert all(len(page.tags(tag)) == 1 for tag in ("main", "header", "nav", "footer"))
    assert page.tags("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    named = {attributes["for"] for attributes in page.tags("label") if "for" in attributes}
    wrapped = {attributes["id"] for tag in ("input", "select") for attributes in page.tags(tag) if "id" in attributes}
    unnamed = {attributes["id"] for attributes in page.tags("input") if "aria-label" in attributes}
    assert wrapped <= named | unnamed
    assert all("scope" in attributes for attributes in page.tags("th"))
    assert all(attributes.get("alt") for attributes in page.tags("img"))
    plots = [attributes for attributes in page.tags("div") if attributes.get("class") == "plot"]
    assert plots
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)


def test_every_figure_has_a_title_and_a_text(data: dict[str, Any]) -> None:
    recipes, columns = len(fake_run.RECIPES), len(fake_run.MODELS)
    assert len(data["figures"]) == 2 * recipes * columns + 6 * columns + recipes, "and the traces of the bare model"
    for figure in data["figures"].values():
        assert figure["title"]
        assert figure["alt"]
        assert "title" not in figure["layout"], "the page sets it, where it can wrap"


def test_the_table_to_download_is_the_summary(page: Document, colour_run: Path) -> None:
    links = {a["download"]: a["href"] for a in page.tags("a") if "download" in a}
    summary = json.loads((colour_run / "summary.json").read_text())
    for name, text in (
        ("poise-metrics.csv", poise.report.csv(summary)),
        ("poise-scoreboard.md", poise.report.markdown(summary)),
    ):
        assert base64.b64decode(str(links[name]).split(",")[1]).decode() == text


def test_made_from_shows_the_spec_and_the_fingerprints(page: Document, colour_run: Path) -> None:
    text = "\n".join(page.texts)
    summary = json.loads((colour_run / "summary.json").read_text())
    assert (colour_run / "audit.toml").read_text() in text
    for told in (*summary["fingerprints"].values(), summary["command"], "torch 2.13.0", "12,345"):
        assert told in text


def test_check_status_is_a_word_and_a_sign(page: Document) -> None:
    text = " ".join(" ".join(page.texts).split())
    assert "✓ passed labels kept" in text
    assert "! warned black box stronger than white box" in text
    assert "2 passed, 1 warned" in text
    assert "1 of the 3 checks of the evaluation itself warned" in text


def test_costs_appear_only_when_given(page: Document, grey_run: Path) -> None:
    assert "expected cost" in page.texts
    assert "expected cost" not in Document((grey_run / "report.html").read_text()).texts


# ---- size ----


def test_a_thousand_images_under_forty_attacks_stay_under_eight_megabytes(tmp_path: Path) -> None:
    models = (("none", "aware", 1.0), *fake_run.MODELS[1:5])
    run = fake_run.build(tmp_path / "run", fake_run.Spec(n=1000, copies=2, models=models, side=224))
    assert len(list((run / "samples").glob("*.00000.parquet"))) == 40
    assert write(run).stat().st_size < 8_000_000


# ---- what is missing or broken ----


def test_without_curves_and_gallery_the_page_says_so(tmp_path: Path) -> None:
    spec = fake_run.Spec(n=40, recipes=("sa-mma",), models=fake_run.MODELS[:1], curves=False, gallery=False)
    text = " ".join(Document(write(fake_run.build(tmp_path / "run", spec)).read_text()).texts)
    assert "This run holds no curves" in text
    assert "This run holds no gallery" in text


def test_a_summary_with_the_fewest_words(tmp_path: Path) -> None:
    """Recipes and checks without their texts, and none of the keys that a run may leave out."""
    spec = fake_run.Spec(n=20, recipes=("sa-mma",), models=fake_run.MODELS[:1], curves=False, gallery=False)
    run = fake_run.build(tmp_path / "run", spec)
    (run / "audit.toml").unlink()
    summary = json.loads((run / "summary.json").read_text())
    for key in ("poise", "created", "seconds", "command", "fingerprints", "versions", "costs"):
        del summary[key]
    least = {"recipes": {}, "checks": [{"name": "x", "status": "passed"}], "spec": {}, "bound": {}}
    data = {"samples": 20}
    (run / "summary.json").write_text(json.dumps(summary | least | {"data": data}))
    text = " ".join(Document(write(run).read_text()).texts)
    assert "This run holds no audit.toml" in text
    assert "None" not in text


def test_without_checks_the_page_says_so(grey_run: Path, tmp_path: Path) -> None:
    def change(run: Path) -> None:
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"checks": []}))

    assert "holds no checks" in write(broken(grey_run, tmp_path, change)).read_text()


@pytest.mark.parametrize("n", [1, 2])
def test_a_page_of_very_few_images(tmp_path: Path, n: int) -> None:
    run = fake_run.build(tmp_path / "run", fake_run.Spec(n=n, models=fake_run.MODELS[:3]))
    assert "On " in write(run).read_text()


def test_two_classes(tmp_path: Path) -> None:
    run = fake_run.build(tmp_path / "run", fake_run.Spec(n=30, classes=2, models=fake_run.MODELS[:1]))
    assert 'min="500"' in write(run).read_text()


def rewrite(**changes: object) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, **changes}))

    return change


def without(column: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        for file in (run / "samples").glob("*.parquet"):
            pl.read_parquet(file).drop(column).write_parquet(file)

    return change


def doubled(run: Path) -> None:
    file = next((run / "samples").glob("*.parquet"))
    shutil.copy(file, file.with_name("again.parquet"))


def impossible(run: Path) -> None:
    file = next((run / "samples").glob("*.parquet"))
    pl.read_parquet(file).with_columns(confidence_after=pl.lit(1.5)).write_parquet(file)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no summary": (lambda run: (run / "summary.json").unlink(), "no such file"),
    "half a summary": (lambda run: (run / "summary.json").write_text('{"rows": ['), "must be JSON"),
    "a list": (lambda run: (run / "summary.json").write_text("[1]"), "must hold target"),
    "no rows": (rewrite(rows=[]), "at least one row"),
    "a row without metrics": (rewrite(rows=[{"recipe": "x"}]), "missing: defence"),
    "no classes": (rewrite(target={"model": "x"}), "missing: num_classes"),
    "a check without status": (rewrite(checks=[{"name": "x"}]), "missing: status"),
    "no samples": (lambda run: shutil.rmtree(run / "samples"), "at least one .parquet file"),
    "damaged samples": (lambda run: next((run / "samples").glob("*.parquet")).write_bytes(b"PAR1"), "parquet files"),
    "no label column": (without("label"), "missing: label"),
    "samples twice": (doubled, "duplicates"),
    "confidence above one": (impossible, "confidence_after in [0, 1], got 1.5"),
    "samples of one attack": (
        lambda run: [f.unlink() for f in (run / "samples").glob("sa-oca*")],
        "got none for sa-oca",
    ),
    "damaged gallery": (lambda run: (run / "gallery.safetensors").write_bytes(b"x" * 40), "gallery"),
    "gallery too short": (
        lambda run: pl.read_parquet(run / "gallery.parquet")[:3].write_parquet(run / "gallery.parquet"),
        "one image a row",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_run_is_one_line(name: str, grey_run: Path, tmp_path: Path) -> None:
    change, told = DAMAGE[name]
    run = broken(grey_run, tmp_path, change)
    with pytest.raises(RunError, match=re.escape(told)) as caught:
        write(run)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("report: ")
    assert not list(run.glob("*.html")) + list(run.glob(".report*")), "nothing half-written stays"


def test_an_undamaged_copy_is_fine(grey_run: Path, tmp_path: Path) -> None:
    run = broken(grey_run, tmp_path, lambda _: None)
    assert write(run) == run / "report.html"
    assert [file.name for file in run.iterdir() if file.name.startswith(".")] == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be a folder"):
        write(tmp_path / "nowhere")


def test_a_failed_write_keeps_the_old_page(grey_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = broken(grey_run, tmp_path, lambda folder: (folder / "report.html").write_text("old"))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(run)
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".report*"))


def test_the_same_run_gives_the_same_page(grey_run: Path, tmp_path: Path) -> None:
    run = broken(grey_run, tmp_path, lambda _: None)
    first = write(run).read_bytes()
    assert write(run).read_bytes() == first
