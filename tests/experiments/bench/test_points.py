"""What figures are drawn of: counted again by hand from the rows of the shards, and drawn."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from bench_drawn import AAA, CLEAN, EPS, OCA, SQUARE, UCA, plan_of, result_of, spec, stored
from safetensors.torch import load

from poise import metrics
from poise.experiments.bench.points import POINTS, answers, common, points, steps
from poise.experiments.bench.reduce import KEYS, Reader
from poise.experiments.bench.store import LocalStore
from poise.report.bench.figures import FIGURES, METRICS, figure

MAX = {"name": "MaxConfidence", "recipe": "max-confidence"}
FGSM = {"name": "FGSM", "recipe": "fgsm"}
SHARP = {"name": "sharp", "temperature": 0.5}
SOFT = {"name": "soft", "temperature": 4.0}
BOUNDS = {"sigma": 0.25, "n": 200, "n0": 10, "radii": [0.0, 0.2]}

CASES = {
    "reliability": {},
    "distributions": {"defences": [{"name": "none"}, SOFT], "attacks": [UCA], "figure": {"series": ["defence"]}},
    "by-class": {"attacks": [FGSM]},
    "success-fail": {"attacks": [MAX, FGSM], "defences": [{"name": "none"}, SOFT], "steps": 5},
    "sorted": {"defences": [{"name": "none"}, SOFT], "attacks": [UCA], "figure": {"series": ["defence"]}},
    "trace": {"attacks": [{"name": "PGD-UCA", "recipe": "pgd-uca"}, FGSM], "keep": ("trace",), "steps": 4},
    "margins": {"task": "margins", "attacks": [SQUARE], "defences": [AAA], "options": {"images": 2}},
    "perturbations": {"attacks": [UCA, FGSM], "keep": ("images",)},
    "cams": {"task": "explain", "options": {"what": "cams", "images": [0, 2]}},
    "embedding": {"task": "explain", "options": {"what": "embedding"}},
    "bounds": {"task": "certify", "attacks": [CLEAN, OCA], "options": BOUNDS, "samples": 4},
}
"""A small spec for every kind of figure that draws points."""

PLACES = {"trace": [0, 1], "margins": [0, 1]}


def case(draw, **more):
    given = {**CASES[draw], **more}
    shown = {"samples": PLACES.get(draw, [0]), **given.pop("figure", {})}
    return spec(given.pop("task", "attack"), draw, figure=shown, **given)


def ready(draw, folder, **more):
    """The points as they are collected, and the reader of the shards."""
    plan, store = stored(case(draw, **more), folder)
    return points(plan, store), Reader(plan, store)


def rows_of(reader, place=0):
    return reader.table(reader.plan.cells[place], "rows.parquet")


def test_every_kind_is_tried_here():
    assert CASES.keys() == POINTS.keys() == FIGURES.keys() - {*METRICS}


@pytest.mark.parametrize("draw", CASES)
def test_every_kind_is_drawn_from_its_files(draw, tmp_path):
    result = result_of(case(draw), tmp_path)
    assert result.points.columns[: len(KEYS)] == list(KEYS)
    assert 0 < len(result.points) <= common.MOST
    drawn = json.loads(figure(result).to_json())
    assert drawn["data"]
    assert drawn["layout"]["title"]["text"] == "Figure 0: A test"
    assert len(drawn["layout"]["meta"]["alt"]) > 20
    assert "NaN" not in json.dumps(drawn, allow_nan=False)


def test_nothing_finished_is_no_points(tmp_path):
    for draw in CASES:
        assert points(plan_of(case(draw)), LocalStore(str(tmp_path))).is_empty()


def test_reliability_bins_make_up_the_ece(tmp_path):
    found, reader = ready("reliability", tmp_path, eps=[0.1, EPS], shard=5)
    assert found.group_by("attack", "eps", maintain_order=True).len()["len"].to_list() == [15] * 5  # "none" once
    rows = rows_of(reader)
    confidence, right = rows["confidence_after"].to_numpy(), (rows["prediction_after"] == rows["label"]).to_numpy()
    bins = found.filter((pl.col("attack") == "SA-UCA") & (pl.col("eps") == 0.1))
    for low, high, count, mean, accuracy in bins.select("low", "high", "count", "confidence", "accuracy").rows():
        inside = (confidence > low) & (confidence <= high)
        assert count == inside.sum()
        assert mean == (pytest.approx(confidence[inside].mean()) if count else None)
        assert accuracy == (pytest.approx(right[inside].mean()) if count else None)
    gap = ((bins["accuracy"] - bins["confidence"]).abs() * bins["count"]).sum() / 12
    assert gap == pytest.approx(metrics.ece(confidence, right.astype(float)))


def test_distributions_count_right_and_wrong_answers(tmp_path):
    found, reader = ready("distributions", tmp_path)
    rows = rows_of(reader)
    for when in ("before", "after"):
        for answer, wanted in (("right", True), ("wrong", False)):
            of = rows.filter((pl.col(f"prediction_{when}") == pl.col("label")) == wanted)[f"confidence_{when}"]
            here = found.filter((pl.col("when") == when) & (pl.col("answer") == answer) & (pl.col("defence") == "none"))
            by_hand = [((of > low) & (of <= high)).sum() for low, high in here.select("low", "high").rows()]
            assert here["count"].to_list() == by_hand
    assert found["count"].sum() == 2 * 2 * 12


def test_classes_hold_every_image_twice_and_are_thinned_out(tmp_path, monkeypatch):
    found, reader = ready("by-class", tmp_path)
    rows = rows_of(reader)
    after = found.filter(pl.col("when") == "after")
    assert after.select("class", "id", "confidence").equals(
        rows.select(pl.col("prediction_before").alias("class"), "id", pl.col("confidence_after").alias("confidence"))
    )
    monkeypatch.setattr(answers, "MOST", 8)
    assert answers.by_class(reader)["id"].unique(maintain_order=True).to_list() == [
        rows["id"][at] for at in (0, 4, 7, 11)
    ]


def test_success_and_failure_are_counted_by_hand(tmp_path):
    found, reader = ready("success-fail", tmp_path)
    for place, cell in enumerate(reader.plan.cells):
        rows = rows_of(reader, place)
        here = found.filter((pl.col("attack") == cell.attack.name) & (pl.col("defence") == cell.defence.name))
        for at, success, failure, upper, solid in here.select(
            "threshold", "success", "failure", "upper", "solid"
        ).rows():
            right, wrong = (rows[f"prediction_{when}"] == rows["label"] for when in ("before", "after"))
            assert success == pytest.approx(((rows["confidence_before"] > at) & right).mean())
            assert failure == pytest.approx(((rows["confidence_after"] > at) & ~wrong).mean())
            assert solid == (cell.attack.name == "MaxConfidence" and at >= 0.5)
            if cell.attack.name != "MaxConfidence":
                assert upper is None
            elif not solid:
                assert upper == pytest.approx(max(failure, (rows["wrong_confidence"] > at).mean()))


def test_sorted_groups_follow_the_undefended_model(tmp_path):
    found, reader = ready("sorted", tmp_path, defences=[SHARP, {"name": "none"}, SOFT])
    tables = {cell.defence.name: rows_of(reader, place) for place, cell in enumerate(reader.plan.cells)}
    order = np.argsort(np.exp(-tables["none"]["nll_before"].to_numpy()), kind="stable")
    for name, rows in tables.items():
        here = found.filter(pl.col("defence") == name)
        sure = rows["confidence_before"].to_numpy()[order].reshape(4, 3).mean(axis=1)
        right = (rows["prediction_before"] == rows["label"]).to_numpy()[order].reshape(4, 3).mean(axis=1)
        assert here["group"].to_list() == [1, 2, 3, 4]
        assert here["confidence"].to_numpy() == pytest.approx(sure)
        assert here["accuracy"].to_numpy() == pytest.approx(right)
    assert found["attack"].unique().to_list() == ["none"]


def test_sorted_without_an_undefended_model_is_empty(tmp_path):
    assert ready("sorted", tmp_path, defences=[SHARP, SOFT])[0].is_empty()


def test_trace_is_that_of_the_chosen_images(tmp_path):
    found, reader = ready("trace", tmp_path)
    rows, cell = rows_of(reader), reader.plan.cells[0]
    whole = reader.table(cell, "trace.parquet")
    here = found.filter((pl.col("attack") == "PGD-UCA") & (pl.col("place") == 1))
    expected = whole.filter(pl.col("id") == rows["id"][1]).sort("iteration")
    assert here["iteration"].to_list() == expected["iteration"].to_list()
    assert here["confidence"].to_list() == expected["confidence"].to_list()
    assert here["confidence"][0] == pytest.approx(rows["confidence_before"][1], abs=1e-6)


def test_margins_are_thinned_out_evenly(tmp_path, monkeypatch):
    found, reader = ready("margins", tmp_path)
    assert found.group_by("place").len().sort("place").rows() == [(0, 25), (1, 25)]
    monkeypatch.setattr(steps, "MOST", 6)
    few = steps.margins(reader)
    assert few["query"].to_list() == [1, 13, 25] * 2
    assert few.join(found, on=["place", "query", "seen", "bare"], how="inner").height == 6


def test_perturbations_are_the_changes_of_one_image(tmp_path):
    found, reader = ready("perturbations", tmp_path, shard=5, figure={"samples": [7]})
    images = [load(reader.content(shard, "images.safetensors")) for shard in reader.plan.cells[1].shards]
    assert [len(part["clean"]) for part in images] == [5, 5, 2]
    clean, attacked = images[1]["clean"][2, 0], images[1]["images"][2, 0]  # the eighth image
    for name, expected in (("image", clean), ("FGSM", attacked - clean)):
        here = found.filter(pl.col("attack") == name).sort("row", "column")
        assert here["value"].to_numpy().reshape(8, 8) == pytest.approx(expected.numpy(), abs=1e-6)


def test_bounds_are_means_over_the_images(tmp_path):
    found, reader = ready("bounds", tmp_path, shard=2)
    table = reader.table(reader.plan.cells[0], "points.parquet").filter(pl.col("radius") == 0.2)
    row = found.filter((pl.col("attack") == "none") & (pl.col("radius") == 0.2)).row(0, named=True)
    assert row["n"] == len(table) == 4
    assert row["lower"] == pytest.approx(table["lower"].to_numpy().mean())
    assert row["lower_low"] <= row["lower"] <= row["lower_high"] <= row["upper"]


def test_a_seed_more_pools_what_is_counted(tmp_path):
    one, _ = ready("distributions", tmp_path / "one", defences=[{"name": "none"}])
    two, _ = ready("distributions", tmp_path / "two", defences=[{"name": "none"}], seeds=[0, 1])
    assert two["count"].sum() == 2 * one["count"].sum()
    before = pl.col("when") == "before"
    assert two.filter(before)["count"].to_list() == [2 * count for count in one.filter(before)["count"]]
