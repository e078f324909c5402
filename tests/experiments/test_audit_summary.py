"""summary.json: every figure recomputed from the tables in plain numpy, every key of the contract, strict JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
import torch
from audit_cases import audit, held_out, rich_run, spec, write_data

import poise
from poise import data as data_sources
from poise import metrics
from poise.errors import RunError
from poise.experiments import files
from poise.experiments.audit_spec import read_spec
from poise.experiments.measure import METRICS, measure
from poise.experiments.run_folder import RunFolder
from poise.report import read_summary

CONTRACT = [
    "accuracy_before", "accuracy_after", "ece_before", "ece_after", "ece_change", "ks_before", "ks_after",
    "brier_before", "brier_after", "nll_before", "nll_after", "confidence_before", "confidence_after",
    "confidence_right_before", "confidence_right_after", "confidence_wrong_before", "confidence_wrong_after",
    "bound_share", "accepted_right_before", "accepted_right_after", "accepted_wrong_before", "accepted_wrong_after",
    "deferred_before", "deferred_after", "labels_changed", "queries_mean_success", "queries_median_success",
    "queries_mean_all", "queries_success_sum_over_all", "gradients_mean", "success_rate", "linf_max", "delta_w",
    "ssim",
]  # fmt: skip
"""The names that the run folder's contract fixes."""

MEANS = ("accuracy", "brier", "nll", "confidence", "accepted_right", "accepted_wrong", "deferred")


def _ece(confidence: np.ndarray, right: np.ndarray) -> float:
    """15 bins of equal width, closed on the right, the first also at 0."""
    total = 0.0
    for m in range(15):
        inside = (confidence <= (m + 1) / 15) & ((confidence > m / 15) | (m == 0))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def _ks(confidence: np.ndarray, right: np.ndarray) -> float:
    """The largest gap of the two running sums, looked at where the confidence changes."""
    worst = 0.0
    for level in np.unique(confidence):
        below = confidence <= level
        worst = max(worst, abs(float((right - confidence)[below].sum())) / len(right))
    return worst


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _recomputed(rows: pl.DataFrame, threshold: float, classes: int) -> dict[str, float | None]:
    column = {name: rows[name].to_numpy() for name in rows.columns if name != "queries_to_success"}
    found: dict[str, float | None] = {}
    for when in ("before", "after"):
        c, right = column[f"confidence_{when}"], (column[f"prediction_{when}"] == column["label"]).astype(float)
        found |= {
            f"accuracy_{when}": _mean(right),
            f"ece_{when}": _ece(c, right),
            f"ks_{when}": _ks(c, right),
            f"brier_{when}": _mean(column[f"brier_{when}"]),
            f"nll_{when}": _mean(column[f"nll_{when}"]),
            f"confidence_{when}": _mean(c),
            f"confidence_right_{when}": _mean(c[right == 1]),
            f"confidence_wrong_{when}": _mean(c[right == 0]),
            f"accepted_right_{when}": _mean((c > threshold) & (right == 1)),
            f"accepted_wrong_{when}": _mean((c > threshold) & (right == 0)),
            f"deferred_{when}": _mean(c <= threshold),
        }
    found["ece_change"] = found["ece_after"] - found["ece_before"]
    found["bound_share"] = found["ece_after"] / (1 - found["accuracy_before"] / classes)
    found["labels_changed"] = _mean(column["prediction_before"] != column["prediction_after"])
    reached = [value is not None for value in rows["queries_to_success"]]
    success = np.array([value for value in rows["queries_to_success"] if value is not None], dtype=float)
    failed = column["queries"][~np.array(reached)]
    found["success_rate"] = sum(reached) / len(reached)
    found["queries_mean_success"] = _mean(success)
    found["queries_median_success"] = float(np.median(success)) if len(success) else None
    found["queries_mean_all"] = float((success.sum() + failed.sum()) / len(rows))
    found["queries_success_sum_over_all"] = float(success.sum() / len(rows))
    found["gradients_mean"] = _mean(column["gradients"])
    found["linf_max"] = float(column["linf"].max())
    found["delta_w"], found["ssim"] = _mean(column["delta_w"]), _mean(column["ssim"])
    return found


def _disagreements(row: dict[str, Any], expected: dict[str, float | None]) -> list[str]:
    return [
        name
        for name, value in expected.items()
        if (row["metrics"][name]["value"] is None) != (value is None)
        or (value is not None and abs(row["metrics"][name]["value"] - value) > 1e-9)
    ]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return json.loads((rich_run() / "summary.json").read_text(encoding="utf-8"))


def test_every_figure_is_that_of_plain_numpy(summary: dict[str, Any]) -> None:
    for row in summary["rows"]:
        rows = RunFolder(rich_run()).rows(row["recipe"], row["defence"], row["view"])
        expected = _recomputed(rows, 0.7, 4)
        assert set(expected) == set(CONTRACT)
        assert row["n"] == len(rows) == 90
        assert _disagreements(row, expected) == [], (row["recipe"], row["defence"], row["view"])


@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        (lambda rows: rows.with_columns(confidence_after=pl.col("confidence_after") * 0.999), "ece_after"),
        (lambda rows: rows.with_columns(prediction_after=pl.lit(0, pl.Int64)), "labels_changed"),
        (lambda rows: rows.with_columns(queries_to_success=pl.col("queries")), "success_rate"),
        (lambda rows: rows[:-1], "queries_mean_all"),
        (lambda rows: rows.with_columns(ssim=pl.col("delta_w")), "ssim"),
    ],
)
def test_the_recomputation_notices(summary: dict[str, Any], broken, noticed: str) -> None:
    rows = RunFolder(rich_run()).rows("sa-mma", "none", "aware")
    assert noticed in _disagreements(summary["rows"][0], _recomputed(broken(rows), 0.7, 4))


def test_a_confidence_on_the_threshold_or_an_edge_is_below_it() -> None:
    """0.7 is not accepted at 0.7, and 0.2 = 3/15 falls in the third bin with 0.19, not in the fourth with 0.21."""
    rows = _rows([0.7, 0.7, 0.2, 0.19, 0.21], right=[1, 0, 1, 0, 0])
    found = measure(rows, threshold=0.7, num_classes=10, plan=metrics.Bootstrap(resamples=5))
    assert found["deferred_after"]["value"] == 1
    by_hand = (2 * abs(0.5 - 0.7) + 2 * abs(0.5 - 0.195) + 0.21) / 5
    assert found["ece_after"]["value"] == pytest.approx(by_hand, abs=1e-12)
    assert found["ece_after"]["value"] == pytest.approx(
        _ece(np.array([0.7, 0.7, 0.2, 0.19, 0.21]), np.array([1.0, 0, 1, 0, 0]))
    )


def _rows(confidence: list[float], right: list[int], *, before: list[float] | None = None) -> pl.DataFrame:
    """A table of one attack in which class 1 is predicted and is the label where `right`."""
    n = len(confidence)
    same = {"delta_w": 0.0, "ssim": 1.0, "linf": 0.0, "gradients": 0, "queries": 7}
    return pl.DataFrame(
        {
            "label": right,
            "prediction_before": [1] * n,
            "prediction_after": [1] * n,
            "confidence_before": before or confidence,
            "confidence_after": confidence,
            **{f"{score}_{when}": [0.5] * n for score in ("brier", "nll") for when in ("before", "after")},
            **{name: [value] * n for name, value in same.items()},
        }
    ).with_columns(queries_to_success=pl.lit(None, pl.Int64))


def test_queries_are_counted_up_to_the_first_success() -> None:
    """A search may go on after its first success; what it then spends is not what success costs."""
    rows = _rows([0.9] * 4, right=[1] * 4).with_columns(
        queries_to_success=pl.Series([3, 5, None, None]), queries=pl.Series([8, 9, 20, 40])
    )
    found = measure(rows, threshold=0.5, num_classes=2, plan=metrics.Bootstrap(resamples=5))
    by_hand = {
        "success_rate": 0.5,
        "queries_mean_success": 4,
        "queries_median_success": 4,
        "queries_mean_all": 17,
        "queries_success_sum_over_all": 2,
    }
    assert {name: found[name]["value"] for name in by_hand} == by_hand


def test_what_is_undefined_is_null_and_so_is_its_interval() -> None:
    found = measure(_rows([0.9, 0.8], right=[1, 1]), threshold=0.5, num_classes=2, plan=metrics.Bootstrap(resamples=9))
    nothing = {"value": None, "low": None, "high": None}
    undefined = {name for name, figure in found.items() if figure == nothing}
    assert undefined == {
        "confidence_wrong_before", "confidence_wrong_after", "queries_mean_success", "queries_median_success"
    }  # fmt: skip
    assert found["queries_mean_all"]["value"] == 7
    assert found["queries_success_sum_over_all"]["value"] == 0


def test_the_names_are_those_of_the_contract(summary: dict[str, Any]) -> None:
    assert sorted(METRICS) == sorted(CONTRACT)
    assert len(set(METRICS)) == len(METRICS)
    for row in summary["rows"]:
        assert set(row) == {"recipe", "defence", "view", "n", "metrics", "queries"}
        assert set(row["queries"]) == set(metrics.QUERY_VIEWS)
        calibration = row["queries"]["calibration"]
        for average in ("mean_success", "median_success", "mean_all", "success_sum_over_all"):
            assert calibration[average] == row["metrics"][f"queries_{average}"]["value"]
        assert row["queries"]["square"]["samples"] <= calibration["samples"] == row["n"]
        assert list(row["metrics"]) == list(METRICS)
        assert all(set(figure) == {"value", "low", "high"} for figure in row["metrics"].values())


def test_intervals_hold_their_value(summary: dict[str, Any]) -> None:
    """A percentile interval holds a mean; a binned error is biased upwards by resampling and may lie below its own."""
    for row in summary["rows"]:
        for name, figure in row["metrics"].items():
            if figure["low"] is None:
                assert name == "linf_max" or figure["value"] is None
                continue
            assert figure["low"] <= figure["high"]
            if name.startswith(MEANS) or name in ("delta_w", "ssim", "labels_changed", "success_rate"):
                assert figure["low"] - 1e-12 <= figure["value"] <= figure["high"] + 1e-12, name
            if name.startswith(("accuracy", "ece_b", "ece_a", "ks", "deferred", "accepted", "confidence")):
                assert 0 <= figure["low"] <= figure["high"] <= 1 + 1e-12


def test_intervals_agree_with_a_bootstrap_of_another_make(summary: dict[str, Any]) -> None:
    rows = RunFolder(rich_run()).rows("sa-mma", "none", "aware")
    confidence = rows["confidence_after"].to_numpy()
    right = (rows["prediction_after"] == rows["label"]).to_numpy().astype(float)
    picks = np.random.default_rng(5).integers(0, 90, (2000, 90))
    for name, values in (
        ("confidence_after", confidence[picks].mean(1)),
        ("ece_after", np.array([_ece(confidence[p], right[p]) for p in picks[:500]])),
    ):
        figure, width = summary["rows"][0]["metrics"][name], float(np.ptp(np.quantile(values, [0.025, 0.975])))
        for side, level in (("low", 0.025), ("high", 0.975)):
            assert abs(figure[side] - float(np.quantile(values, level))) < 0.2 * width, (name, side)


def test_the_change_is_paired() -> None:
    """Confidence falls by 0.05 for everyone: the change is known exactly, though neither error is."""
    right = [1] * 70 + [0] * 30
    rows = _rows([0.88] * 100, right, before=[0.93] * 100)
    found = measure(rows, threshold=0.5, num_classes=2, plan=metrics.Bootstrap(resamples=400))
    change = found["ece_change"]
    apart = math.hypot(*(found[f"ece_{when}"]["high"] - found[f"ece_{when}"]["low"] for when in ("before", "after")))
    assert change["value"] == pytest.approx(-0.05)
    assert change["high"] - change["low"] < 0.1 * apart
    assert apart > 0.1


def test_the_bound_and_its_share(summary: dict[str, Any]) -> None:
    assert set(summary["bound"]) == {"none", "ts", "cs"}
    for row in summary["rows"]:
        figures = row["metrics"]
        bound = summary["bound"][row["defence"]]
        assert bound == pytest.approx(1 - figures["accuracy_before"]["value"] / 4, abs=1e-12)
        for side in ("value", "low", "high"):
            assert figures["bound_share"][side] == pytest.approx(figures["ece_after"][side] / bound, abs=1e-12)


def test_every_key_of_the_contract(summary: dict[str, Any]) -> None:
    assert set(summary) == {
        "poise", "created", "seconds", "command", "target", "data", "spec", "fingerprints", "versions", "threshold",
        "costs", "bound", "recipes", "rows", "checks", "endpoint", "deferral",
    }  # fmt: skip
    assert set(summary["target"]) == {"model", "description", "num_classes", "access", "parameters"}
    assert summary["target"]["parameters"] == 36 * 4
    assert summary["target"]["access"] == "gradients"
    assert set(summary["data"]) == {"name", "samples", "available", "fit_samples", "shape", "class_names"}
    assert (summary["data"]["samples"], summary["data"]["available"], summary["data"]["fit_samples"]) == (90, 90, 200)
    assert summary["data"]["shape"] == [1, 6, 6]
    assert set(summary["fingerprints"]) == {"weights", "data", "fit_data", "spec", "code"}
    assert summary["versions"] == {
        "poise": poise.__version__, "python": summary["versions"]["python"], "torch": torch.__version__
    }  # fmt: skip
    assert summary["costs"] == {"wrong_accepted": 10.0, "deferred": 1.0, "right_accepted": 0.0}
    assert summary["threshold"] == 0.7
    assert set(summary["recipes"]) == {"sa-mma", "sa-rca", "pgd-mma", "pgd"}
    assert summary["recipes"]["sa-mma"]["whitebox"] is False
    assert summary["recipes"]["pgd-mma"]["whitebox"] is True
    assert summary["recipes"]["pgd"]["keeps_label"] is False
    for check in summary["checks"]:
        assert set(check) == {"name", "status", "figure", "advice"}
        assert check["status"] in ("passed", "warned")
    assert summary["spec"] == read_spec(rich_run() / "audit.toml")[0].model_dump(mode="json")
    assert read_summary(rich_run()) == summary, "the report reads the same"


def test_rows_stand_in_the_order_of_the_spec(summary: dict[str, Any]) -> None:
    views = [("none", "aware"), ("ts", "aware"), ("ts", "unaware"), ("cs", "aware"), ("cs", "unaware")]
    expected = [(recipe, *view) for recipe in ("sa-mma", "sa-rca", "pgd-mma", "pgd") for view in views]
    assert [(row["recipe"], row["defence"], row["view"]) for row in summary["rows"]] == expected


def test_summary_is_strict_json() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads((rich_run() / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(rich_run() / "nan.json", {"value": math.nan})
    assert not (rich_run() / "nan.json").exists()


def test_fingerprints_are_those_of_the_files(summary: dict[str, Any]) -> None:
    made, recorded = read_spec(rich_run() / "audit.toml")
    assert recorded == {key: value for key, value in summary["fingerprints"].items() if key != "spec"}
    assert recorded["data"] == data_sources.load(made.data).fingerprint()
    assert recorded["fit_data"] == data_sources.load(held_out()).fingerprint()
    assert recorded["weights"] == poise.models.fingerprint(poise.models.load(made.model))
    assert recorded["code"] == poise.models.code_fingerprint(made.model)


def test_without_a_defence_that_learns_nothing_is_held_out(tmp_path: Path) -> None:
    summary = audit(spec(defences=("none",), samples=5), tmp_path / "run")
    assert summary["data"]["fit_samples"] == 0
    assert (summary["data"]["samples"], summary["data"]["available"]) == (5, 40)
    assert set(summary["fingerprints"]) == {"weights", "data", "spec", "code"}
    assert summary["costs"] is None


def test_the_rest_of_the_data_is_held_out(tmp_path: Path) -> None:
    summary = audit(spec(defences=("ts",), samples=15), tmp_path / "run")
    assert summary["data"]["fit_samples"] == 25


def test_the_gallery_holds_the_cases_that_moved_most() -> None:
    chosen = pl.read_parquet(rich_run() / "gallery.parquet")
    images = safetensors.numpy.load_file(rich_run() / "gallery.safetensors")
    assert images["clean"].shape == images["adversarial"].shape == (len(chosen), 1, 6, 6)
    rows = pl.concat(
        [RunFolder(rich_run()).rows(recipe, "none", "aware") for recipe in ("sa-mma", "sa-rca", "pgd-mma", "pgd")]
    ).filter(pl.col("prediction_before") == pl.col("prediction_after"))
    source = data_sources.load(read_spec(rich_run() / "audit.toml")[0].data)
    for direction, sign in (("down", -1), ("up", 1)):
        shown = chosen.filter(pl.col("direction") == direction)
        moved = rows.with_columns(moved=(pl.col("confidence_after") - pl.col("confidence_before")) * sign)
        best = moved.group_by("id").agg(pl.col("moved").max()).sort("moved", descending=True)["moved"].head(6)
        ours = (shown["confidence_after"] - shown["confidence_before"]) * sign
        assert np.allclose(ours, best)
        assert shown["id"].n_unique() == len(shown) == 6
    for at, case in enumerate(chosen.iter_rows(named=True)):
        position = source.ids.tolist().index(case["id"])
        assert np.array_equal(images["clean"][at], source[position : position + 1].images[0].numpy())
        assert np.abs(images["adversarial"][at] - images["clean"][at]).mean() == pytest.approx(
            case["delta_w"], abs=1e-6
        )


def test_no_gallery_where_nothing_moved(tmp_path: Path) -> None:
    audit(spec(write_data(tmp_path / "d.npz", 5), budget=1, defences=("none",)), tmp_path / "run")
    assert not list((tmp_path / "run").glob("gallery*"))


def test_a_missing_table_is_an_error_not_a_smaller_sample() -> None:
    with pytest.raises(RunError, match="must exist, found none"):
        RunFolder(rich_run()).rows("sa-oca", "none", "aware")
