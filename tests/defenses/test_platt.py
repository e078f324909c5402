"""Platt scaling against closed forms, scipy's minimum, temperature scaling and separable data."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_expit

from poise.checks.defenses import CHECKS, check_defense, draw
from poise.defenses import Platt, PoiseWarning, TemperatureScaling
from poise.defenses.posthoc.remap import log_odds
from poise.errors import InputError


def binary(odds, hits):
    """Two classes, predicted in turn, with these log-odds."""
    odds = torch.as_tensor(odds, dtype=torch.float64)
    top = torch.arange(len(odds)) % 2
    logits = torch.zeros(len(odds), 2, dtype=torch.float64).scatter(1, top[:, None], odds[:, None])
    return logits, torch.where(torch.as_tensor(hits).bool(), top, 1 - top)


def loss(x, target, slope, intercept):
    line = slope * x + intercept
    return -(target * log_expit(line) + (1 - target) * log_expit(-line)).mean()


def targets(hits, smooth):
    right, wrong = hits.sum(), (1 - hits).sum()
    return np.where(hits == 1, (right + 1) / (right + 2), 1 / (wrong + 2)) if smooth else hits


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", [Platt(), Platt(smooth=False, remainder="proportional")], ids=repr)
def test_promises(defense, check):
    check_defense(defense, only=[check])


def test_two_points_give_their_accuracies():
    """Log-odds 1 with 6 of 10 right and 3 with 9 of 10: slope and intercept solve two equations."""
    odds, hits = [1.0] * 10 + [3.0] * 10, [1] * 6 + [0] * 4 + [1] * 9 + [0]
    defense = Platt(smooth=False).fit(*binary(odds, hits))
    low, high = math.log(0.6 / 0.4), math.log(9)
    assert float(defense.slope) == pytest.approx((high - low) / 2, abs=1e-9)
    assert float(defense.intercept) == pytest.approx(low - (high - low) / 2, abs=1e-9)
    smooth = Platt().fit(*binary(odds, hits))
    means = [(6 * 16 / 17 + 4 / 7) / 10, (9 * 16 / 17 + 1 / 7) / 10]
    low, high = (math.log(mean / (1 - mean)) for mean in means)
    assert float(smooth.slope) == pytest.approx((high - low) / 2, abs=1e-9)
    assert float(smooth.intercept) == pytest.approx(low - (high - low) / 2, abs=1e-9)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("n", "classes", "spread"), [(60, 2, 1.0), (400, 10, 0.02), (400, 10, 1.0), (400, 100, 50.0)])
def test_it_is_the_minimum_that_scipy_finds(n, classes, spread, smooth):
    logits, labels = draw(n, classes, seed=7, dtype=torch.float64)
    logits = logits * spread
    defense = Platt(smooth=smooth, max_slope=1e4).fit(logits, labels)
    x, hits = log_odds(logits).numpy(), (logits.argmax(1) == labels).double().numpy()
    target, slope, intercept = targets(hits, smooth), float(defense.slope), float(defense.intercept)
    found = minimize(lambda v: loss((x - x.mean()) / x.std(), target, *v), [1, 0], method="BFGS", tol=1e-10)
    assert slope == pytest.approx(found.x[0] / x.std(), rel=1e-5)
    assert loss(x, target, slope, intercept) <= found.fun + 1e-12
    residual = 1 / (1 + np.exp(-(slope * x + intercept))) - target
    assert abs(residual.mean()) < 1e-9
    assert abs((residual * (x - x.mean())).mean()) / x.std() < 1e-9
    off = 1 / (1 + np.exp(-(1.001 * slope * x + intercept))) - target
    assert abs(off.mean()) > 1e-6  # the condition sees an error of 0.1 %


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_with_two_classes_and_no_intercept_it_is_temperature_scaling(temperature):
    logits, labels = draw(100, 2, dtype=torch.float64)
    platt, scaling = Platt().fit(logits, labels), TemperatureScaling().fit(logits, labels)
    platt.slope.fill_(1 / temperature)
    platt.intercept.fill_(0.0)
    scaling.temperature.fill_(temperature)
    expected = scaling(logits).softmax(1)
    inside = expected.amax(1).clamp(0.5 + 1e-6, 1 - 1e-6)
    torch.testing.assert_close(platt(logits).softmax(1).amax(1), inside, atol=1e-12, rtol=0)


def test_separable_data_clamp_the_slope():
    odds, hits = [0.5, 1.0, 2.0, 3.0], [0, 0, 1, 1]
    with pytest.warns(PoiseWarning, match=r"\(almost\) without error, slope clamped to 100$") as caught:
        defense = Platt(smooth=False).fit(*binary(odds, hits))
    assert caught[0].filename == __file__
    assert float(defense.slope) == 100
    assert defense.calibrate(torch.tensor(odds).double().sigmoid()).tolist() == pytest.approx(hits, abs=1e-12)
    smooth = Platt().fit(*binary(odds, hits))  # Platt's targets have a finite minimum
    assert 0 < float(smooth.slope) < 100


def test_the_slope_is_never_negative():
    with pytest.warns(PoiseWarning, match="does not rise with confidence, slope clamped to 0"):
        defense = Platt(smooth=False).fit(*binary([0.5, 1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0, 1]))
    assert float(defense.slope) == 0
    assert defense.calibrate(torch.tensor([0.5, 0.9])).tolist() == pytest.approx([0.6, 0.6], abs=1e-9)
    with pytest.warns(PoiseWarning, match="does not rise with confidence"):
        reverse = Platt(smooth=False).fit(*binary([0.5, 1.0, 2.0, 3.0], [1, 1, 0, 0]))
    assert reverse.calibrate(torch.tensor([0.7])).item() == pytest.approx(0.5, abs=1e-9)


def test_equal_confidences_give_the_mean_target():
    defense = Platt(smooth=False).fit(*binary([1.5] * 5, [1, 1, 1, 0, 0]))
    assert float(defense.slope) == 0
    assert defense.calibrate(torch.tensor([0.9])).item() == pytest.approx(0.6, abs=1e-9)


def test_without_errors_the_mean_target_stays_inside():
    odds = [1.0, 2.0, 3.0, 4.0]
    for defense, expected in ((Platt(), 5 / 6), (Platt(smooth=False), 1 - 1e-6)):
        with pytest.warns(PoiseWarning, match="every sample is right"):
            defense.fit(*binary(odds, [1] * 4))
        assert defense.calibrate(torch.tensor([0.9])).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_bad_bound(bound):
    with pytest.raises(InputError, match="Platt: max_slope must be above 0 and finite"):
        Platt(max_slope=bound)
