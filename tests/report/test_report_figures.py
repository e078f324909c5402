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
from poise.report.figures import embedded
from poise.report.folder import Answers, Block, read
from poise.report.style import DARK, LINES, PAPER, SYMBOLS, line_style
from poise.report.tables import scoreboard
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
        assert found.accuracy[list(found.queries).index(step)] == pytest.approx(right.mean(), abs=1e-12)


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
        report.accuracy_over_queries(costs, budget=fake_run.BUDGET),
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


SURE = np.array([0.95, 0.9, 0.45, 0.4, 0.35, 0.3])
"""Confidences under MaxConfidence, K = 4: two surely wrong, two wrong below 1/2, two right."""
WRONG = np.array([0, 0, 0, 0, 1, 1])
SEEN = np.array([0.95, 0.9, 0.47, 0.42, 0.34, 0.2])
"""The highest probability of a wrong class that was seen: in two wrong images higher than at the returned point."""


def surest(**given: Any) -> go.Figure:
    clean = Answers(np.linspace(0.99, 0.4, 6), np.ones(6, dtype=np.int64))
    return report.success_fail(clean, {"max-confidence": Answers(SURE, WRONG), "pgd": Answers(SURE, WRONG)}, **given)


def test_solid_from_one_half_on_and_bounded_below() -> None:
    """Failure and upper bound at every drawn threshold, recounted; the bound ends where no class has a K-th left."""
    figure = surest(max_confidence={"max-confidence": SEEN}, classes=4)
    solid, below, upper = (traces(figure, f"max-confidence{end}")[0] for end in ("", ", below 1/2", ", upper bound"))
    assert (solid.line.dash, below.line.dash, upper.line.dash) == (None, "dash", "dot")
    assert max(solid.x) == pytest.approx(2 / 6, abs=1e-5)
    assert (below.x[0], below.y[0]) == (upper.x[0], upper.y[0]) == (solid.x[-1], solid.y[-1])
    assert below.x[-1] == pytest.approx(4 / 6, abs=1e-5)
    assert upper.x[-1] == pytest.approx(5 / 6, abs=1e-5), "the image whose wrong classes stay below 1/4 cannot fail"
    assert np.all(np.array(upper.x) >= np.array(below.x))
    assert np.all(np.diff(upper.x) >= 0)
    found = {(round(x, 5), round(y, 5)) for x, y in zip(upper.x[::2], upper.y[::2], strict=True)}
    clean = np.linspace(0.99, 0.4, 6)
    counted = {
        (round(float((max(t, 0.2499) < SEEN).mean()), 5), round(float((clean > t).mean()), 5))
        for t in [*SURE, *clean, 0.5, 0.0]
        if t <= 0.5
    }
    assert found == counted


def test_other_attacks_are_dashed_and_bound_nothing() -> None:
    figure = surest(max_confidence={"max-confidence": SEEN})
    assert traces(figure, "pgd")[0].line.dash == "dash"
    assert not traces(figure, "pgd, upper bound")
    ad_hoc = surest()
    assert [t.name for t in ad_hoc.data] == ["no attack", "max-confidence", "pgd"]
    assert {t.line.dash for t in ad_hoc.data[1:]} == {"dash"}


@pytest.mark.parametrize("seen", [SEEN * 0, SEEN / 2])
def test_a_bound_below_what_was_observed_is_never_drawn(seen: np.ndarray) -> None:
    """The broken twin: wrong-class probabilities that contradict the failures; without the rule the bound is lower."""
    figure = surest(max_confidence={"max-confidence": seen}, classes=4)
    below, upper = (traces(figure, f"max-confidence{end}")[0] for end in (", below 1/2", ", upper bound"))
    assert np.all(np.array(upper.x) >= np.array(below.x))
    assert (seen > 0.25).mean() < max(below.x)


def test_the_page_bounds_max_confidence_where_the_attacker_saw_the_model(tmp_path: Path) -> None:
    """From the run folder; against a defence that was attacked unaware nothing is known, and nothing is bounded."""
    models = (("none", "aware", 1.0), ("cs", "aware", 0.9), ("cs", "unaware", 0.5))
    made = fake_run.Spec(n=40, recipes=("sa-mma", "pgd", "max-confidence"), models=models, nasty=False)
    path = fake_run.build(tmp_path / "run", made)
    for file in (path / "samples").glob("max-confidence.cs.unaware.*"):
        pl.read_parquet(file).with_columns(wrong_confidence=pl.lit(None, pl.Float64)).write_parquet(file)
    run = read(path)
    figures = embedded(run, scoreboard(run.summary))
    names = [{trace.get("name") for trace in figures[f"success.{place}"]["data"]} for place in range(3)]
    assert all({"no attack", "pgd", "max-confidence"} <= found and "sa-mma" not in found for found in names)
    assert ["max-confidence, upper bound" in found for found in names] == [True, True, False]


def test_a_run_of_label_keeping_attacks_draws_them_all(tmp_path: Path) -> None:
    made = fake_run.Spec(n=20, recipes=("sa-mma", "sa-oca"), models=fake_run.MODELS[:1], nasty=False)
    run = read(fake_run.build(tmp_path / "run", made))
    drawn = [t.get("name") for t in embedded(run, scoreboard(run.summary))["success.0"]["data"]]
    assert drawn == ["no attack", "sa-mma", "sa-oca"]


def test_a_trace_shows_median_and_middle_half() -> None:
    """Against numpy; an image whose attack has ended keeps its last margin, but has no step any more."""
    rows = fake_run.trace(fake_run.Spec(), steps=True, images=6, iterations=20)
    figure = report.attack_trace(rows, name="adaptive")
    margin, _, step = traces(figure, "median")
    last = np.array([[10 + i - min(at, 20 // (1 + i % 2)) / 4 for i in range(6)] for at in range(21)])
    assert list(margin.x) == list(range(21))
    assert list(margin.y) == pytest.approx(np.median(last, axis=1).tolist())
    band = traces(figure, "middle half of the images")[0]
    quartiles = np.quantile(last, [0.75, 0.25], axis=1)
    assert list(band.y) == pytest.approx([*quartiles[0], *quartiles[1][::-1]], abs=1e-5)
    assert list(step.x) == list(range(1, 21))
    assert list(step.y) == pytest.approx([0.05 / (1 + at // 8) for at in range(1, 21)], abs=1e-5)
    assert [len(t.x) for t in traces(figure, "single images")[:3]] == [21, 11, 21]
    titles = [figure.layout[f"yaxis{k}"].title.text for k in ("", "2", "3")]
    assert titles == ["margin (logits)", "confidence", "step (pixel units)"]
    assert figure.layout.xaxis3.title.text == "iteration"


def test_a_trace_without_a_step_has_two_panels_and_one_of_many_points_few() -> None:
    rows = fake_run.trace(fake_run.Spec(), steps=False, images=3, iterations=1500)
    figure = report.attack_trace(rows, name="sa-mma")
    assert len(traces(figure, "median")) == 2
    assert "yaxis3" not in figure.layout
    (margin, _) = traces(figure, "median")
    assert len(margin.x) == 200
    assert (margin.x[0], margin.x[-1]) == (0, 1500)


def test_the_best_of_several_points_stands_for_an_iteration() -> None:
    rows = fake_run.trace(fake_run.Spec(), steps=True, images=2, iterations=4)
    worse = rows.with_columns(margin=pl.col("margin") + 5, loss=pl.col("loss") + 1)
    drawn = [traces(report.attack_trace(part, name="x"), "median")[0].y for part in (rows, pl.concat([worse, rows]))]
    assert drawn[0] == drawn[1]
    better = worse.with_columns(loss=pl.col("loss") - 2)
    twin = traces(report.attack_trace(pl.concat([better, rows]), name="x"), "median")[0].y
    assert twin != drawn[0]


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
