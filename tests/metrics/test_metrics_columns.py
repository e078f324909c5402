"""What every metric refuses, what it forgives, and what the package may import."""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import poise.metrics as m
from poise.errors import InputError

COSTS = m.Costs(wrong_accepted=2, deferred=1)
ON_ANSWERS = {
    "ece": m.ece,
    "mce": m.mce,
    "average_bin_error": m.average_bin_error,
    "adaptive_ece": m.adaptive_ece,
    "debiased_ece": m.debiased_ece,
    "smooth_ece": m.smooth_ece,
    "ks_error": m.ks_error,
    "top_label_brier": m.top_label_brier,
    "aurc": m.aurc,
    "risk_coverage": m.risk_coverage,
    "reliability": m.reliability,
    "operating_point": partial(m.operating_point, threshold=0.5),
    "least_cost_threshold": partial(m.least_cost_threshold, costs=COSTS),
    "success_fail": lambda c, h: m.success_fail(c, h, c, h),
}
ON_PROBABILITIES = {"classwise_ece": m.classwise_ece, "brier": m.brier, "nll": m.nll}
BINNED = {
    name: ON_ANSWERS[name]
    for name in ("ece", "mce", "average_bin_error", "adaptive_ece", "debiased_ece", "reliability")
}


def table(metrics):
    return pytest.mark.parametrize("metric", metrics.values(), ids=metrics)


@table(ON_ANSWERS)
@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "confidence must have at least one row, got none"),
        ([0.5], [1, 0], "confidence and correct must have the same length, got 1 and 2"),
        ([0.5, 1.01], [1, 0], r"confidence must be in \[0, 1\], got 1.01 in row 1"),
        ([-0.1, 0.5], [1, 0], r"confidence must be in \[0, 1\], got -0.1 in row 0"),
        ([0.5, np.nan], [1, 0], "confidence must be finite, got NaN or infinity in row 1"),
        ([0.5, 0.5], [1, 2], "correct must be 0 or 1, got 2 in row 1"),
        ([0.5, 0.5], [1, np.nan], "correct must be finite"),
        ([[0.5]], [1], r"confidence must be 1-dimensional, got shape \(1, 1\)"),
        (["high"], [1], "confidence must be numbers, got type"),
        ([None], [1], "confidence must be numbers, got type object"),
    ],
)
def test_refuses(metric, confidence, correct, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        metric(confidence, correct)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ON_ANSWERS)
def test_a_refusal_names_the_metric(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: "):
        ON_ANSWERS[name]([0.5], [1, 0])


@table(ON_ANSWERS)
def test_forgives_rounding_and_works_on_one_row(metric) -> None:
    metric([1 + 1e-7], [1])
    metric([-1e-7], [0])
    metric(np.array([1.0000001], dtype=np.float32), [True])


def test_rounding_is_clipped() -> None:
    assert m.ece([1 + 5e-7], [1]) == 0
    assert m.ece(np.array([1 + 2e-7], dtype=np.float32), [1], edges="torchmetrics") == 0


@table(ON_PROBABILITIES)
@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.empty((0, 3)), [], "probabilities must have at least one row"),
        ([[0.5, 0.5]], [0, 1], "probabilities and labels must have the same length, got 1 and 2"),
        ([[0.5, 0.5]], [2], r"labels must be integers in 0..1, got 2 in row 0"),
        ([[0.5, 0.5]], [-1], "got -1 in row 0"),
        ([[0.5, 0.5]], [0.5], "got 0.5 in row 0"),
        ([[0.5, 0.5], [0.5, 0.7]], [0, 1], r"probabilities must sum to 1 in every row, got 1.2 in row 1"),
        ([[3.0, -2.0]], [0], r"probabilities must be in \[0, 1\]"),
        ([[1.0]], [0], "at least 2 columns, got 1"),
        ([0.5, 0.5], [0, 1], "probabilities must be 2-dimensional"),
    ],
)
def test_refuses_what_is_no_probability(metric, probabilities, labels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metric(probabilities, labels)


@table(BINNED)
@pytest.mark.parametrize("bins", [0, -3, 2.5, True, "15"])
def test_refuses_bins(metric, bins) -> None:
    with pytest.raises(InputError, match="bins must be a whole number of at least 1, got"):
        metric([0.5], [1], bins)


def test_refuses_unknown_edges_and_suggests() -> None:
    with pytest.raises(InputError, match=r"'rigth' \(did you mean right\?"):
        m.ece([0.5], [1], edges="rigth")


@table(ON_ANSWERS)
def test_takes_lists_tensors_series_and_float32(metric) -> None:
    c, h = [0.9, 0.25, 0.5], [1, 0, 1]
    expected = repr(metric(c, h))
    assert repr(metric(torch.tensor(c, dtype=torch.float64), torch.tensor(h))) == expected
    assert repr(metric(pl.Series(c), pl.Series(h).cast(pl.Boolean))) == expected
    single = metric(np.array(c, dtype=np.float32), np.array(h, dtype=np.int8))
    if isinstance(single, float):
        assert single == pytest.approx(metric(c, h), abs=1e-6)


@table({**ON_ANSWERS, "ssim": lambda c, h: m.ssim(c.reshape(1, 1, 2, 2), c.reshape(1, 1, 2, 2))})
def test_inputs_are_left_alone(metric) -> None:
    c, h = np.array([0.9, 0.3, 1 + 1e-7, 0.5]), np.array([1, 0, 1, 1])
    before = c.copy(), h.copy()
    metric(c, h)
    assert (c == before[0]).all()
    assert (h == before[1]).all()


def test_every_public_name_is_there_and_documented() -> None:
    assert len(m.__all__) == len(set(m.__all__))
    for name in m.__all__:
        assert name in ("QUERY_VIEWS", "Edges") or getattr(m, name).__doc__


ALLOWED = {"numpy", "poise.errors", "poise.metrics", "__future__"}
STANDARD = {"collections", "dataclasses", "functools", "math", "statistics", "types", "typing"}


def check_imports(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        for name in names:
            top = ".".join(name.split(".")[:2]) if name.startswith("poise") else name.split(".")[0]
            assert top in ALLOWED | STANDARD, f"imports {name}"


def test_the_package_needs_numpy_alone() -> None:
    files = sorted(Path(m.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for file in files:
        check_imports(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", ["import torch", "from poise.types import Outputs", "def f():\n    import plotly.io"])
def test_the_import_check_can_fail(line: str) -> None:
    with pytest.raises(AssertionError):
        check_imports(line)
