"""What the figures draw is what plain numpy finds in the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from poise import report
from poise.report.folder import Block, read
from poise.report.style import DARK, LINES, PAPER, SYMBOLS, line_style
from poise.report.words import error

BINS = 15


@pytest.fixture(scope="module")
def blocks(colour_run: Path) -> dict[str, Block]:
    return {recipe: read(colour_run).blocks[recipe, "none", "aware"] for recipe in fake_run.RECIPES}


def traces(figure: go.Figure, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def by_bin(confidence: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    """Values by bin (k/15, (k+1)/15], empty bins left out."""
    found = {}
    for k in range(BINS):
        inside = (confidence > k / BINS) & (confidence <= (k + 1) / BINS)
        if inside.any():
            found[k] = values[inside]
    return found


def drawn_accuracy(figure: go.Figure) -> list[dict[int, float]]:
    bars = traces(figure, "accuracy in the bin (paler: fewer images)")
    return [{int(x * BINS): y for x, y in zip(trace.x, trace.y, strict=True)} for trace in bars]


@pytest.mark.parametrize("recipe", list(fake_run.RECIPES))
def test_reliability_bars_counts_and_gaps(blocks: dict[str, Block], recipe: str) -> None:
    clean, attacked = blocks[recipe].clean, blocks[recipe].attacked
    figure = report.reliability(clean, attacked, name=recipe)
    strips = [trace for trace in figure.data if trace.type == "bar" and trace.textangle == -90]
    gaps = traces(figure, "gap to the mean confidence (dot)")
    for part, bars, strip, gap in zip((clean, attacked), drawn_accuracy(figure), strips, gaps, strict=True):
        right = by_bin(part.confidence, part.correct)
        assert bars == {k: pytest.approx(values.mean(), abs=1e-5) for k, values in right.items()}
        assert list(strip.text) == [str(len(values)) for values in right.values()]
        assert sum(map(int, strip.text)) == len(part.correct)
        means = [values.mean() for values in by_bin(part.confidence, part.confidence).values()]
        assert list(gap.y[1::3]) == pytest.approx(means, abs=1e-5)
        assert list(gap.y[0::3]) == pytest.approx([values.mean() for values in right.values()], abs=1e-5)
        count = np.array([len(values) for values in right.values()])
        distance = np.abs(np.array(gap.y[0::3], float) - np.array(gap.y[1::3], float))
        ece = float((count * distance).sum() / count.sum())
        assert ece == pytest.approx(fake_run.ece(part.confidence, part.correct), abs=1e-4)
    assert figure.layout.title.text.endswith(f"→ {error(fake_run.ece(attacked.confidence, attacked.correct))}")


def test_reliability_of_swapped_panels_is_another_figure(blocks: dict[str, Block]) -> None:
    """The broken twin: clean and attacked mixed up must not pass for the right figure."""
    block = blocks["sa-mma"]
    right = report.reliability(block.clean, block.attacked, name="x")
    wrong = report.reliability(block.attacked, block.clean, name="x")
    assert drawn_accuracy(right) == drawn_accuracy(wrong)[::-1]
    assert drawn_accuracy(right) != drawn_accuracy(wrong)
    assert "nearer to the diagonal" in wrong.layout.title.text


@pytest.mark.parametrize("recipe", list(fake_run.RECIPES))
def test_histograms_count_right_and_wrong_apart(blocks: dict[str, Block], recipe: str) -> None:
    clean, attacked = blocks[recipe].clean, blocks[recipe].attacked
    figure = report.confidence_histograms(clean, attacked, name=recipe, threshold=0.9)
    for group, name, sign in ((1, "right, upwards", 1), (0, "wrong, downwards", -1)):
        for part, trace in zip((clean, attacked), traces(figure, name), strict=True):
            chosen = part.confidence[part.correct == group]
            wanted = {k: len(values) / len(chosen) for k, values in by_bin(chosen, chosen).items()}
            shown = {int(x * BINS): sign * y for x, y in zip(trace.x, trace.y, strict=True)}
            assert shown == pytest.approx(wanted, abs=1e-5)
            assert sum(shown.values()) == pytest.approx(1, abs=1e-3)
    assert [list(trace.x) for trace in traces(figure, "your threshold")] == [[0.9, 0.9], [0.9, 0.9]]
    patterns = {trace.name: trace.marker.pattern.shape for trace in figure.data if trace.type == "bar"}
    assert patterns == {"right, upwards": None, "wrong, downwards": "/"}, "told apart without colour"


def test_all_small_multiples_have_equal_axes(blocks: dict[str, Block]) -> None:
    for draw in (report.reliability, report.confidence_histograms):
        figures = [draw(block.clean, block.attacked, name=name) for name, block in blocks.items()]
        ranges = {(tuple(f.layout[axis].range), axis[0]) for f in figures for axis in ("xaxis", "xaxis2", "yaxis")}
        ranges |= {(tuple(f.layout["yaxis2"].range), "y") for f in figures}
        assert len(ranges) == 2


@pytest.mark.parametrize("confidence", [0.0, 1.0, 0.5])
def test_one_image_and_exact_edges(confidence: float) -> None:
    one = report.Answers(np.array([confidence]), np.array([1]))
    wrong = report.Answers(np.array([confidence]), np.array([0]))
    assert "100 %" in report.reliability(one, wrong, name="x").layout.meta["alt"]
    assert "–" in report.confidence_histograms(one, wrong, name="x").layout.title.text
    report.success_fail(one, {"x": wrong})
    report.risk_coverage(one, {"x": wrong})


def test_cost_is_ece_and_mean_confidence_at_each_checkpoint(colour_run: Path) -> None:
    curves = pl.read_parquet(colour_run / "curves" / "all.parquet")
    part = curves.filter(pl.col("recipe") == "sa-mma", pl.col("defence") == "none")
    found = report.cost(part.sample(fraction=1, shuffle=True, seed=1))
    assert found.queries.tolist() == list(fake_run.STEPS)
    for step, ece, confidence in zip(found.queries, found.ece, found.confidence, strict=True):
        rows = part.filter(pl.col("queries") == step)
        values, right = rows["confidence"].to_numpy(), (rows["prediction"] == rows["label"]).to_numpy()
        assert ece == pytest.approx(fake_run.ece(values, right), abs=1e-12)
        assert confidence == pytest.approx(values.mean(), abs=1e-12)


def test_cost_keeps_the_last_answer_of_an_image_that_stopped(colour_run: Path) -> None:
    """A run that writes no more rows of a finished image gives the same curve as one that repeats its last row."""
    curves = pl.read_parquet(colour_run / "curves" / "all.parquet")
    part = curves.filter(pl.col("recipe") == "sa-oca", pl.col("defence") == "none")
    stopped = part.filter((pl.col("id") % 3 != 0) | (pl.col("queries") <= 10))
    last = part.filter(pl.col("id") % 3 == 0, pl.col("queries") == 10).drop("queries")
    later = pl.DataFrame({"queries": [step for step in fake_run.STEPS if step > 10]}, schema={"queries": pl.Int32})
    repeated = pl.concat([stopped, last.join(later, how="cross").select(stopped.columns)])
    short, full = report.cost(stopped), report.cost(repeated)
    assert short.ece.tolist() == pytest.approx(full.ece.tolist())
    assert short.confidence.tolist() == pytest.approx(full.confidence.tolist())
    naive = [stopped.filter(pl.col("queries") == s)["confidence"].mean() for s in fake_run.STEPS]
    assert short.confidence.tolist() != pytest.approx(naive), "dropping the stopped images would show another curve"


def test_cost_figures_mark_the_budget(colour_run: Path) -> None:
    curves = pl.read_parquet(colour_run / "curves" / "all.parquet").filter(pl.col("defence") == "none")
    costs = {name: report.cost(curves.filter(pl.col("recipe") == name)) for name in fake_run.RECIPES}
    for figure in (
        report.ece_over_queries(costs, budget=fake_run.BUDGET),
        report.confidence_over_queries(costs, budget=fake_run.BUDGET),
    ):
        assert list(traces(figure, "budget, 1,000 queries")[0].x) == [1000, 1000]
        assert figure.layout.xaxis.type == "log"
        assert [trace.name for trace in figure.data[1:]] == list(fake_run.RECIPES)
    ece = report.ece_over_queries(costs, budget=fake_run.BUDGET)
    assert list(traces(ece, "pgd-uca")[0].y) == pytest.approx(costs["pgd-uca"].ece.tolist(), abs=1e-5)
    assert max(trace.y[-1] for trace in ece.data[1:]) <= ece.layout.yaxis.range[1]


def test_success_fail_points_lie_on_the_curve(blocks: dict[str, Block]) -> None:
    clean = blocks["pgd"].clean
    figure = report.success_fail(clean, {name: block.attacked for name, block in blocks.items()})
    thresholds = np.concatenate([[0.0], np.unique(np.concatenate([clean.confidence, blocks["pgd"].confidence_after]))])
    part = blocks["pgd"].attacked
    reached = {
        (
            round(float(((part.correct == 0) & (part.confidence > t)).mean()), 5),
            round(float(((clean.correct == 1) & (clean.confidence > t)).mean()), 5),
        )
        for t in thresholds
    }
    (line,) = traces(figure, "pgd")
    corners = list(zip(line.x, line.y, strict=True))
    assert set(corners[::2]) <= reached
    assert corners[0] == (0, 0)
    assert corners[-1] == pytest.approx((1 - part.correct.mean(), clean.correct.mean()), abs=1e-5)
    assert np.all(np.diff(line.x) >= 0)
    assert np.all(np.diff(line.y) >= 0)
    swapped = report.success_fail(part, {"pgd": clean})
    (other,) = traces(swapped, "pgd")
    assert not set(zip(other.x, other.y, strict=True)) <= reached


def test_bounds_only_where_the_attack_gives_them(blocks: dict[str, Block]) -> None:
    clean, attacked = blocks["pgd"].clean, {"max-confidence": blocks["pgd"].attacked}
    assert [t.name for t in report.success_fail(clean, attacked).data] == ["no attack", "max-confidence"]
    figure = report.success_fail(clean, attacked, max_confidence=frozenset({"max-confidence"}))
    (bound,) = traces(figure, "max-confidence, upper bound")
    assert bound.line.dash == "dash"
    (line,) = traces(figure, "max-confidence")
    assert line.line.dash is None
    assert np.all(np.array(bound.x) >= np.array(line.x) - 1e-9)
    assert bound.x[-1] == 1, "at threshold 0 every attacked case is covered"


def test_risk_coverage_points_and_bounds(blocks: dict[str, Block]) -> None:
    clean = blocks["sa-mma"].clean
    figure = report.risk_coverage(clean, {name: block.attacked for name, block in blocks.items()})
    for name, block in blocks.items():
        part = block.attacked
        (line,) = traces(figure, name)
        for coverage, risk in zip(line.x, line.y, strict=True):
            k = round(coverage * len(part.correct))
            surest = np.argsort(-part.confidence, kind="stable")[:k]
            assert risk == pytest.approx(1 - part.correct[surest].mean(), abs=1e-5)
        assert line.x[-1] == 1
        if name == "pgd":
            continue
        worst, best = (traces(figure, f"{order} order")[0] for order in ("worst", "best"))
        assert np.all(np.interp(line.x, worst.x, worst.y) >= np.array(line.y) - 0.02)
        assert np.all(np.interp(line.x, best.x, best.y) <= np.array(line.y) + 0.02)


def test_titles_and_text_alternatives_say_something(blocks: dict[str, Block]) -> None:
    block = blocks["sa-mma"]
    figures = [
        report.reliability(block.clean, block.attacked, name="sa-mma"),
        report.confidence_histograms(block.clean, block.attacked, name="sa-mma"),
        report.success_fail(block.clean, {"sa-mma": block.attacked}),
        report.risk_coverage(block.clean, {"sa-mma": block.attacked}),
    ]
    for figure in figures:
        assert any(sign.isdigit() for sign in figure.layout.title.text)
        assert len(figure.layout.meta["alt"]) > 40
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_hostile_names_are_shown_as_they_are(blocks: dict[str, Block]) -> None:
    name = '<a href="http://x">x</a>'
    figure = report.risk_coverage(blocks["pgd"].clean, {name: blocks["pgd"].attacked})
    assert figure.data[-1].name == '&lt;a href="http://x">x&lt;/a>'


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_lines_stand_out_on_both_pages_and_from_each_other() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#56b4e9", PAPER) < 3, "the sky blue of the original palette would fail"
    for colour in LINES:
        assert contrast(colour, PAPER) >= 3
        assert contrast(DARK[colour], DARK[PAPER]) >= 3
    looks = {(s["line"]["color"], s["marker"]["symbol"]) for s in map(line_style, range(len(LINES) * len(SYMBOLS)))}
    assert len(looks) == len(LINES) * len(SYMBOLS)
