"""The metrics on softmax outputs of real networks, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from metric_reference import ece_by_loop, ks_by_loop

from poise.metrics import brier, classwise_ece, ece, ks_error, mean, mma_bound, nll, reliability, smooth_ece

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"
NAMES = {
    "wideresnet-16-4-cifar-10": (0.9109, 0.9646),
    "lenet-5-cifar-10": (0.5308, 0.6387),
    "wideresnet-16-4-cifar-100": (0.7543, 0.8022),
    "lenet-5-cifar-100": (0.1246, 0.1368),
}


@pytest.fixture(params=NAMES)
def record(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray]:
    file = RECORDS / f"{request.param}.npz"
    if not file.exists():
        pytest.skip(f"real data is missing: no folder shared/data/records beside the repository ({file.name})")
    with np.load(file) as arrays:
        return request.param, arrays["probabilities"], arrays["labels"]


def test_records(record: tuple[str, np.ndarray, np.ndarray]) -> None:
    name, p, y = record
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    accuracy, average = NAMES[name]
    assert mean(correct) == pytest.approx(accuracy, abs=5e-5)
    assert mean(confidence) == pytest.approx(average, abs=5e-5)
    double = confidence.astype(np.float64)
    assert ece(double, correct) == pytest.approx(ece_by_loop(double, correct), abs=1e-6)
    assert ks_error(double, correct) == pytest.approx(ks_by_loop(double, correct), abs=1e-6)
    assert ece(confidence, correct) == pytest.approx(ece(double, correct), abs=1e-4)
    gap = abs(mean(confidence) - mean(correct))
    for error in (ece(confidence, correct), ks_error(confidence, correct), smooth_ece(confidence, correct)):
        assert gap - 1e-6 <= error <= mma_bound(accuracy, p.shape[1])
    assert reliability(confidence, correct).count.sum() == len(y)
    assert 0 < classwise_ece(p, y) < ece(confidence, correct)
    assert 0 < brier(p, y) < 2
    assert 0 < nll(p, y) < 28
