"""Temperature scaling against closed forms, scipy and its own optimality condition."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from poise.checks.defenses import draw
from poise.defenses import PoiseWarning, TemperatureScaling
from poise.defenses.posthoc.temperature import _increasing_root, optimal_temperature
from poise.errors import InputError

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"


def nll(z, y, t):
    return -log_softmax(np.asarray(z, dtype=np.float64) / t, axis=1)[np.arange(len(y)), np.asarray(y)].mean()


def residual(z, y, t):
    """d mean NLL / d s at s = 1/T, relative to the size of its parts."""
    z = np.asarray(z, dtype=np.float64)
    expected = (softmax(z / t, axis=1) * z).sum(axis=1)
    observed = z[np.arange(len(y)), np.asarray(y)]
    return (expected - observed).mean() / np.abs(z).mean()


def one_peak(classes, height, hits, misses):
    """Every class in turn is predicted with a peak of this height; right `hits` times and wrong `misses` times."""
    rows, labels = [], []
    for k in range(classes):
        for i in range(hits + misses):
            row = torch.zeros(classes, dtype=torch.float64)
            row[k] = height
            rows.append(row)
            labels.append(k if i < hits else (k + 1 + i % (classes - 1)) % classes)
    return torch.stack(rows), torch.tensor(labels)


@pytest.mark.parametrize(
    ("classes", "height", "hits", "misses", "expected"),
    [(2, 4.0, 4, 1, 2.885390082), (10, 6.0, 7, 3, 1.970752433)],
)
def test_closed_form_vectors(classes, height, hits, misses, expected):
    logits, labels = one_peak(classes, height, hits, misses)
    defense = TemperatureScaling().fit(logits, labels)
    assert float(defense.temperature) == pytest.approx(expected, abs=1e-9)
    confidence = defense(logits).softmax(1).amax(1)
    torch.testing.assert_close(confidence, torch.full_like(confidence, hits / (hits + misses)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("wanted", np.geomspace(1.1e-3, 900, 23))
@pytest.mark.parametrize(("classes", "hits", "misses"), [(2, 6, 5), (2, 99, 1), (5, 1, 3), (100, 1, 1)])
def test_closed_form_over_the_whole_range_of_temperatures(wanted, classes, hits, misses):
    q = hits / (hits + misses)
    strength = math.log(q * (classes - 1) / (1 - q))
    logits, labels = one_peak(classes, wanted * strength, hits, misses)
    temperature, remark = optimal_temperature(logits, labels)
    assert remark is None
    assert temperature == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "classes", "spread"), [(40, 2, 1.0), (300, 10, 0.05), (300, 10, 30.0), (200, 100, 2.0)])
def test_it_is_the_minimum_that_scipy_finds(seed, n, classes, spread):
    logits, labels = draw(n, classes, seed=seed, dtype=torch.float64)
    logits = logits * spread
    temperature, remark = optimal_temperature(logits, labels)
    z, y = logits.numpy(), labels.numpy()
    found = minimize_scalar(
        lambda u: nll(z, y, math.exp(u)),
        bounds=(math.log(1e-3), math.log(1e3)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert remark is None
    assert temperature == pytest.approx(math.exp(found.x), rel=1e-6)
    assert nll(z, y, temperature) <= found.fun + 1e-13
    assert nll(z, y, temperature) <= nll(z, y, 1.0)
    assert abs(residual(z, y, temperature)) < 1e-11
    assert abs(residual(z, y, temperature * 1.0001)) > 1e-7  # the condition sees an error of 0.01 %


@pytest.mark.parametrize("factor", [1e-2, 0.3, 7.0, 150.0])
def test_scaling_the_logits_scales_the_temperature_and_shifting_rows_does_nothing(factor):
    logits, labels = draw(200, 10, seed=3, dtype=torch.float64)
    base, _ = optimal_temperature(logits, labels)
    assert optimal_temperature(logits * factor, labels)[0] == pytest.approx(base * factor, rel=1e-10)
    shift = torch.linspace(-50, 50, 200, dtype=torch.float64)[:, None]
    assert optimal_temperature(logits + shift, labels)[0] == pytest.approx(base, rel=1e-10)


def test_the_label_and_accuracy_stay_and_confidence_falls_with_temperature():
    logits, labels = draw(500, 10, seed=4)
    outs = []
    for temperature in (0.2, 1.0, 3.0, 50.0):
        defense = TemperatureScaling().fit(logits, labels)
        defense.temperature.fill_(temperature)
        outs.append(defense(logits))
        torch.testing.assert_close(outs[-1], logits / temperature)
        assert torch.equal(outs[-1].argmax(1), logits.argmax(1))
    confidences = torch.stack([out.softmax(1).amax(1) for out in outs])
    assert bool((confidences.diff(dim=0) <= 0).all())


def test_the_order_of_samples_by_confidence_may_change_so_monotone_is_not_promised():
    logits = torch.tensor([[2.0, 1.9, -10.0], [1.0, 0.2, 0.2]])
    defense = TemperatureScaling().fit(*draw(50, 3))
    order = []
    for temperature in (1.0, 10.0):
        defense.temperature.fill_(temperature)
        first, second = defense(logits).softmax(1).amax(1).tolist()
        order.append(first > second)
    assert order == [False, True]
    assert not TemperatureScaling.monotone


@pytest.mark.parametrize(
    ("logits", "labels", "expected", "message"),
    [
        ([[3.0, 0.0], [0.0, 1.0]], [0, 1], 1e-3, "every sample is right: .* clamped to T = 0.001"),
        ([[3.0, 0.0], [1.0, 1.0]], [0, 1], 1e-3, "every sample is right"),
        ([[3.0, 0.0], [0.0, 1.0]], [1, 0], 1e3, "no better than chance: .* clamped to T = 1000"),
        ([[1.0, 0.0], [1.0, 0.0]], [0, 1], 1e3, "no better than chance"),
        ([[5.0, 5.0], [-1.0, -1.0]], [0, 1], 1.0, "all logits of every sample are equal"),
        (
            [[2e-5, 0.0]] * 9 + [[1e-5, 0.0]],
            [0] * 9 + [1],
            1e-3,
            "the NLL falls down to the lower bound, clamped to T = 0.001",
        ),
        (
            [[2e5, 0.0]] * 9 + [[1e5, 0.0]],
            [0] * 9 + [1],
            1e3,
            "the NLL falls up to the upper bound, clamped to T = 1000",
        ),
    ],
)
def test_an_optimum_outside_the_bounds_is_clamped_with_a_warning(logits, labels, expected, message):
    logits, labels = torch.tensor(logits), torch.tensor(labels)
    defense = TemperatureScaling()
    with pytest.warns(PoiseWarning, match=message) as caught:
        defense.fit(logits, labels)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # points at the caller's line
    assert float(defense.temperature) == expected
    out = defense(logits)
    assert bool(out.isfinite().all())
    assert torch.equal(out.argmax(1), logits.argmax(1))


def test_own_bounds_and_bad_bounds():
    logits, labels = one_peak(2, 4.0, 4, 1)
    with pytest.warns(PoiseWarning, match=r"clamped to T = 2$"):
        defense = TemperatureScaling(max_temperature=2.0).fit(logits, labels)
    assert float(defense.temperature) == 2.0
    with pytest.warns(PoiseWarning, match=r"clamped to T = 3$"):
        assert float(TemperatureScaling(min_temperature=3.0).fit(logits, labels).temperature) == 3.0
    for low, high in ((0.0, 1.0), (2.0, 2.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(InputError, match="bounds must satisfy 0 < min < max < inf"):
            TemperatureScaling(min_temperature=low, max_temperature=high)


def test_two_samples_are_enough():
    logits, labels = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    defense = TemperatureScaling().fit(logits, labels)
    assert abs(residual(logits, labels, float(defense.temperature))) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_classes_one_rounding_step_apart_keep_the_label(dtype):
    """Plain division fails this: many numbers next to each other have the same quotient."""
    high = torch.arange(1, 2, 1 / 512, dtype=torch.float64).to(dtype).unique()
    high = torch.cat([high * 2.0**power for power in (-4, 0, 3)])
    low = high - high * torch.finfo(dtype).eps
    logits = torch.stack([low, high], dim=1)
    logits = logits[logits[:, 0] < logits[:, 1]]
    defense = TemperatureScaling().fit(*draw(50, 2))
    lost = 0
    for temperature in (0.7, 1.37, 1.9, 3.3):
        defense.temperature.fill_(temperature)
        assert defense(logits).argmax(1).eq(1).all()
        lost += int((logits / temperature).argmax(1).ne(1).sum())
    assert lost > 0


def test_rows_that_would_overflow_are_shifted_instead():
    defense = TemperatureScaling().fit(*draw(50, 3))
    defense.temperature.fill_(0.1)
    logits = torch.tensor([[60000.0, 59999.0, 0.0], [0.5, -60000.0, -1.0], [-60000.0, -50000.0, -65504.0]])
    out = defense(logits.half())
    assert bool(out.isfinite().all())
    assert out.argmax(1).tolist() == [0, 0, 1]
    expected = (logits.half().double() / 0.1).softmax(1)
    torch.testing.assert_close(out.double().softmax(1), expected, atol=1e-3, rtol=0)


def test_nan_stays_in_its_row():
    defense = TemperatureScaling().fit(*draw(50, 3))
    logits = torch.tensor([[1.0, torch.nan, 0.0], [1.0, 2.0, 3.0]])
    out = defense(logits)
    assert bool(out[0].isnan().any())
    torch.testing.assert_close(out[1], logits[1] / defense.temperature.float())


def test_root_finder_survives_functions_that_mislead_newton():
    steep = _increasing_root(lambda s: (math.atan(1e4 * (s - 0.02)), 1e4 / (1 + (1e4 * (s - 0.02)) ** 2)), 1e-3, 1e3)
    assert steep == pytest.approx(0.02, rel=1e-9)
    flat = _increasing_root(lambda s: (s**9 - 5**9, 0.0), 1e-3, 1e3)  # a derivative that says nothing
    assert flat == pytest.approx(5, rel=1e-9)
    huge = _increasing_root(lambda s: (s - 5, math.inf), 1e-3, 1e3)  # an overflow, as logits of 1e200 give
    assert huge == pytest.approx(5, rel=1e-9)
    assert _increasing_root(lambda s: (s - 2e3, 1.0), 1e-3, 1e3) == 1e3
    assert _increasing_root(lambda s: (s - 1e-4, 1.0), 1e-3, 1e3) == 1e-3
    calls = []
    _increasing_root(lambda s: (calls.append(s) or math.log(s / 7), 1 / s), 1e-3, 1e3)
    assert len(calls) < 12


@pytest.mark.parametrize("name", ["wideresnet-16-4-cifar-10", "lenet-5-cifar-10", "wideresnet-16-4-cifar-100"])
def test_real_records(name):
    file = RECORDS / f"{name}.npz"
    if not file.is_file():
        pytest.skip("the recorded probabilities in ../shared/data/records are not here")
    with np.load(file, allow_pickle=False) as data:
        logits = torch.from_numpy(data["probabilities"]).clamp_min(torch.finfo(torch.float32).tiny).log()
        labels = torch.from_numpy(data["labels"]).flatten()
    held_out, test = slice(0, 5000), slice(5000, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        defense = TemperatureScaling().fit(logits[held_out], labels[held_out])
    temperature = float(defense.temperature)
    z, y = logits.numpy(), labels.numpy()
    found = minimize_scalar(lambda t: nll(z[held_out], y[held_out], t), bounds=(0.5, 5), method="bounded")
    assert temperature == pytest.approx(found.x, rel=1e-4)
    assert nll(z[held_out], y[held_out], temperature) <= found.fun + 1e-12
    assert nll(z[test], y[test], temperature) < nll(z[test], y[test], 1.0)
    assert torch.equal(defense(logits).argmax(1), logits.argmax(1))
