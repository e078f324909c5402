"""Figures of `poise bench`: lines and bars by their coordinates, names as text, pages, and drawings for the docs."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from bench_drawn import spec

from poise.errors import InputError, RunError
from poise.experiments.bench.reduce import KEYS as RESULT_KEYS
from poise.experiments.bench.result import COLUMNS, Result, save
from poise.experiments.bench.spec import Figure
from poise.experiments.bench.table import trend_rows
from poise.report.bench.figures import FIGURES, figure, to_html
from poise.report.bench.frames import KEYS, Panels, parts, typed
from poise.report.style import RIGHT

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "paper_figures.py"
NASTY = '</script><img src=x onerror="alert(1)">&<b>'
ABOUT = {"profile": "small", "done": 1, "shards": 1, "poise": "0", "created": "2025-01-01", "machine": "a desk"}


def row(metric, value, *, low=None, high=None, published=None, **keys):
    names = {"dataset": "digits", "model": "CNN", "defence": "none", "attack": "SA-MMA", "norm": "linf", "eps": 0.1}
    found = {**dict.fromkeys(COLUMNS), **names, **keys, "metric": metric, "value": value, "published": published}
    return {**found, "low": low, "high": high, "n": 10, "seeds": 1}


def result(rows, draw="lines", points=None, about=ABOUT, **shown) -> Result:
    table = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    drawn = pl.DataFrame() if points is None else pl.DataFrame(points)
    return Result("calibration/test", spec("attack", draw, figure=shown), table, drawn, about)


def traces(of, kind="scatter"):
    return [trace for trace in json.loads(figure(of).to_json())["data"] if trace["type"] == kind]


ECE = [
    row("ece", 0.05, attack="none", eps=None, norm=None),
    row("ece", 0.1, low=0.05, high=0.2, published=0.15, eps=0.1),
    row("ece", 0.3, low=0.2, high=0.35, published=0.25, eps=0.2),
    row("ece", 0.02, low=0.01, high=0.03, eps=0.1, attack="SA-OCA"),
]


def test_every_kind_of_a_spec_is_drawn():
    kinds = Figure.model_fields["draw"].annotation.__args__
    assert FIGURES.keys() == set(kinds)
    assert KEYS == RESULT_KEYS


def test_a_line_has_its_band_and_the_published_values():
    found = traces(result(ECE, x="eps", y=["ece"], series=["attack"]))
    by = {trace["name"]: trace for trace in found if trace.get("fill") is None}
    assert by["SA-MMA"]["x"] == [0.1, 0.2]
    assert by["SA-MMA"]["y"] == [0.1, 0.3]
    (band,) = [trace for trace in found if trace.get("fill") == "toself"]
    assert band["x"] == [0.1, 0.2, 0.2, 0.1]
    assert band["y"] == [0.2, 0.35, 0.2, 0.05]
    assert by["published"]["y"] == [0.15, 0.25]
    assert by["published"]["marker"]["symbol"].endswith("-open")
    assert by["published"]["marker"]["color"] == by["SA-MMA"]["marker"]["color"]


def test_what_has_no_x_is_a_level_over_the_whole_axis():
    (level,) = [trace for trace in traces(result(ECE, x="eps", y=["ece"])) if trace["name"] == "no attack"]
    assert (level["x"], level["y"], level["line"]["dash"]) == ([0.1, 0.2], [0.05, 0.05], "dash")


def test_a_single_point_has_whiskers_instead_of_a_band():
    (one,) = [trace for trace in traces(result(ECE, x="eps", y=["ece"])) if trace["name"] == "SA-OCA"]
    assert one["error_y"]["array"] == pytest.approx([0.01])
    assert one["error_y"]["arrayminus"] == pytest.approx([0.01])


def test_panels_and_metrics_have_axes_of_their_own():
    rows = [row(metric, 0.1, model=model) for metric in ("ece", "ks") for model in ("CNN", "ViT")]
    drawn = figure(result(rows, x="eps", y=["ece", "ks"], panels=["model"], log_x=True))
    headings = [note.text for note in drawn.layout.annotations]
    assert headings == ["ECE, CNN", "ECE, ViT", "KS calibration error, CNN", "KS calibration error, ViT"]
    assert [trace.xaxis for trace in drawn.data] == ["x", "x2", "x3", "x4"]
    assert drawn.layout.xaxis4.type == "log"


def test_a_metric_may_lie_along_x():
    rows = [*ECE, row("accuracy", 0.9, eps=0.1), row("accuracy", 0.4, eps=0.2)]
    (one,) = [t for t in traces(result(rows, x="accuracy", y=["ece"])) if t["name"] == "SA-MMA" and "fill" not in t]
    assert (one["x"], one["y"]) == ([0.4, 0.9], [0.3, 0.1])


def test_bars_stand_side_by_side_and_published_marks_on_them():
    drawn = result(ECE[1:], "bars", x="eps", y=["ece"], series=["attack"])
    first, second = traces(drawn, "bar")
    assert first["x"] == pytest.approx([-0.2, 1.0])  # beside the other attack's, and alone in its group
    assert second["x"] == pytest.approx([0.2])
    assert first["error_y"]["arrayminus"] == pytest.approx([0.05, 0.1])
    (published,) = traces(drawn)
    assert (published["x"], published["y"]) == (first["x"], [0.15, 0.25])
    assert first["marker"].get("pattern") != second["marker"]["pattern"]
    labels = json.loads(figure(drawn).to_json())["layout"]["xaxis"]["ticktext"]
    assert labels == ["ε 0.1", "ε 0.2"]


def test_axis_titles_are_the_specs_own_or_tell_the_unit():
    assert "pixel units" in figure(result(ECE, x="eps", y=["ece"])).layout.xaxis.title.text
    own = figure(result(ECE, x="eps", y=["ece"], x_label="radius <", y_label="error"))
    assert (own.layout.xaxis.title.text, own.layout.yaxis.title.text) == ("radius &lt;", "error")


def test_a_clean_row_that_comes_twice_is_drawn_once():
    drawn = traces(result([ECE[0], *ECE], "bars", x="attack", y=["ece"], series=["attack"]), "bar")
    assert [(trace["name"], trace["y"]) for trace in drawn][:2] == [("no attack", [0.05]), ("SA-MMA", [0.1, 0.3])]


def test_undefined_values_are_left_out():
    rows = [row("ece", None, eps=0.1), row("ece", 0.2, eps=0.2)]
    (one,) = traces(result(rows, x="eps", y=["ece"]))
    assert one["x"] == [0.2]


def test_what_cannot_be_drawn_is_told_in_one_line():
    with pytest.raises(RunError, match=r"must have something to draw \(lines\)"):
        figure(result([], y=["ece"]))
    with pytest.raises(RunError, match=r"something to draw \(margins\), found nothing; run it first"):
        figure(result(ECE, "margins"))
    bare = dataclasses.replace(result(ECE), spec=spec())
    with pytest.raises(InputError, match=r"calibration/test must have a table \[figure\], it has none"):
        figure(bare)


def test_names_are_those_of_the_keys_that_differ():
    rows = pl.DataFrame({"model": ["a", "b", "a"], "eps": [0.1, 0.1, 0.1]})
    assert [(name, len(part)) for name, part in parts(rows, ("model", "eps"))] == [("a", 2), ("b", 1)]
    assert [name for name, _ in parts(rows, ("eps",))] == ["ε 0.1"]
    assert [name for name, _ in parts(rows.head(1), ("model", "eps"), like=rows)] == ["a"]


def test_keys_that_a_file_took_for_text_are_numbers_again():
    read = typed(pl.DataFrame({"dataset": [1], "eps": [None], "x": ["0.5"], "value": [1.0]}))
    assert read.row(0) == ("1", None, 0.5, 1.0)
    assert read.schema["eps"] == pl.Float64


def test_panels_do_not_overlap():
    panels = Panels(5, columns=3)
    for place in range(5):
        panels.add(place, str(place), {}, {}, iter(()))
    drawn = panels.figure("title", "alt").layout
    spans = [(drawn[f"xaxis{k}"].domain, drawn[f"yaxis{k}"].domain) for k in ("", 2, 3, 4, 5)]
    for at, (x, y) in enumerate(spans):
        assert 0 <= x[0] < x[1] <= 1
        assert 0 <= y[0] < y[1] <= 1
        for other_x, other_y in spans[:at]:
            assert other_x[1] <= x[0] or y[1] <= other_y[0]


class Read(HTMLParser):
    """The tags of a page, its text outside of scripts, and the scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._in = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag

    def handle_data(self, data):
        (self.scripts if self._in == "script" else self.texts).append(data)


def page(**given) -> Read:
    read = Read()
    read.feed(to_html(result(**given)))
    return read


def test_names_never_become_markup():
    rows = [row("ece", 0.1, attack=NASTY, model=NASTY, dataset=NASTY)]
    about = {**ABOUT, "machine": NASTY, "created": NASTY}
    wanted = result(rows, about=about, x="eps", y=["ece"], panels=["model"], x_label=NASTY, y_label=NASTY)
    named = wanted.spec.model_copy(update={"title": NASTY, "setting": NASTY, "shows": NASTY})
    read = Read()
    read.feed(to_html(dataclasses.replace(wanted, spec=named)))
    assert {tag for tag, _ in read.tags}.isdisjoint({"img", "b"})
    assert [tag for tag, _ in read.tags].count("script") == 3
    assert NASTY in "".join(read.texts)
    shown = json.loads(next(part for part in read.scripts if part.startswith("{")))
    names = [shown["data"][0]["name"], shown["layout"]["xaxis"]["title"]["text"]]
    assert all("<" not in name for name in names)


def test_a_page_loads_nothing_and_tells_its_setting():
    read = page(rows=ECE, x="eps", y=["ece"], about={**ABOUT, "done": 0})
    assert not [attrs for _, attrs in read.tags if "src" in attrs or "href" in attrs]
    policy = next(attrs["content"] for _, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    text = " ".join(" ".join(read.texts).split())
    assert "Partial: 0 of 1 shards are finished." in text
    assert "profile small; as the paper" in text
    alt = next(attrs["aria-label"] for tag, attrs in read.tags if attrs.get("id") == "plot")
    assert alt == figure(result(ECE, x="eps", y=["ece"])).layout.meta["alt"]


def test_a_page_says_which_trends_hold():
    trend = {"text": "SA-MMA beats SA-OCA", "metric": "ece", "more": {"attack": "SA-MMA"}, "less": {"attack": "SA-OCA"}}
    drawn = result(ECE, x="eps", y=["ece"])
    whole = type(drawn.spec)(**{**drawn.spec.model_dump(), "trends": [trend]})
    shown = dataclasses.replace(drawn, spec=whole)
    text = re.sub(r"<[^>]+>", " ", to_html(shown, trend_rows(shown)).split("<footer>")[0])
    assert "SA-MMA beats SA-OCA yes 1 of 1" in " ".join(text.split())


def test_sorted_out_reliability_is_read_from_points():
    keys = dict.fromkeys(KEYS[4:]) | {"dataset": "d", "model": "m", "defence": "none", "attack": "SA-MMA"}
    bins = [
        {**keys, "low": 0.0, "high": 0.5, "count": 3, "confidence": 0.4, "accuracy": 1.0},
        {**keys, "low": 0.5, "high": 1.0, "count": 1, "confidence": 0.8, "accuracy": 0.0},
    ]
    drawn = figure(result([], "reliability", points=bins))
    assert drawn.layout.annotations[0].text == "SA-MMA · ECE 0.65"  # (3 * 0.6 + 1 * 0.8) / 4
    assert list(drawn.data[0].y) == [1.0, 0.0]
    assert drawn.data[0].marker.color == RIGHT


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module whose only spec is the test's own."""
    found = runpy.run_path(str(TOOL))
    wanted = result(ECE, x="eps", y=["ece"]).spec
    monkeypatch.setattr("poise.experiments.bench.catalog.find", lambda name: (name, wanted))
    return found


def called(tool, monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["paper_figures.py", *map(str, arguments)])
    return tool["main"]()


def test_stale_and_missing_drawings_are_found_without_a_browser(tool, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "results", tmp_path / "out"
    save(result(ECE, x="eps", y=["ece"]), folder)
    check = ("--check", "--results", folder, "--out", out)
    assert called(tool, monkeypatch, *check) == 1
    assert "calibration-test.svg" in capsys.readouterr().err
    out.mkdir()
    comment = tool["made_of"]("calibration/test", folder)
    assert re.fullmatch(r"<!-- made of test\.csv sha256 [0-9a-f]{64} -->", comment)
    (out / "calibration-test.svg").write_text(f"{comment}\n<svg/>\n", encoding="utf-8")
    assert called(tool, monkeypatch, *check) == 0
    save(result(ECE[:2], x="eps", y=["ece"]), folder)
    assert called(tool, monkeypatch, *check) == 1


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver"
)
def test_a_drawing_is_made_and_then_fresh(tool, tmp_path, monkeypatch):
    folder, out = tmp_path / "results", tmp_path / "out"
    save(result(ECE, x="eps", y=["ece"]), folder)
    assert called(tool, monkeypatch, "--results", folder, "--out", out) == 0
    text = (out / "calibration-test.svg").read_text(encoding="utf-8")
    assert text.startswith(tool["made_of"]("calibration/test", folder))
    assert "<svg" in text
    assert "SA-MMA" in text
    assert called(tool, monkeypatch, "--check", "--results", folder, "--out", out) == 0
