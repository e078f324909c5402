"""Spline recalibration against the hand-worked vectors, the textbook loop and real records."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from poise.checks.defenses import CHECKS, check_defense, draw
from poise.defenses import Splines
from poise.errors import InputError
from poise.metrics import ece, ks_error

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"
TWENTY = [0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1]


def scored(scores, hits, classes=3):
    """Logits whose top class, in turn each, has these scores, and labels that make these hits."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    n, top = len(scores), torch.arange(len(scores)) % classes
    logits = ((1 - scores) / (classes - 1)).log()[:, None].repeat(1, classes)
    logits[torch.arange(n), top] = scores.log()
    return logits, torch.where(torch.as_tensor(hits).bool(), top, (top + 1) % classes)


def reference(scores, hits, knots=6):
    """The paper's steps, one by one."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total, gap = 0.0, []
    for i in order:
        total += hits[i] - scores[i]
        gap.append(total / len(scores))
    t, at = np.linspace(0, 1, len(scores)), np.linspace(0, 1, knots)
    columns = [CubicSpline(at, row, bc_type="natural") for row in np.eye(knots)]
    design = np.stack([column(t) for column in columns], axis=1)
    heights = np.linalg.pinv(design) @ np.array(gap)
    slope = sum(height * column(t, 1) for height, column in zip(heights, columns, strict=True))
    return heights, np.array(scores)[order] + slope


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", [Splines(), Splines(monotone=True), Splines(remainder="proportional")], ids=repr)
def test_promises(defense, check):
    check_defense(defense, only=[check])


def test_vector_of_a_constant_gap():
    scores = 0.7 + 1e-9 * np.arange(101) / 101
    logits, labels = scored(scores, np.ones(101))
    with pytest.warns(UserWarning, match="every sample is right"):
        defense = Splines().fit(logits, labels)
    new = defense.calibrate(torch.tensor([0.0, 0.7, 0.70000000049, 1.0]))
    assert new.tolist() == pytest.approx([0.997029703] * 4, abs=1e-8)


def test_vector_of_twenty():
    logits, labels = scored(np.linspace(0.35, 0.98, 20), TWENTY)
    defense = Splines().fit(logits, labels)
    expected = [-0.015729393, -0.038565167, -0.035631566, -0.039275836, -0.037467932, -0.072061856]
    assert defense.heights.tolist() == pytest.approx(expected, abs=1e-9)
    new = defense.calibrate(torch.tensor([0.35, 0.98, 0.5, 0.34, 0.99], dtype=torch.float64)).tolist()
    assert new == pytest.approx([0.197544489, 0.755059904, 0.496071759, 0.197544489, 0.755059904], abs=1e-8)
    # the first is below 1/K = 1/3 and is clipped there, so that the label stays
    assert float(defense(logits[:1]).softmax(1).amax()) == pytest.approx(1 / 3 + 1e-6, abs=1e-12)
    assert float(defense(logits[-1:]).softmax(1).amax()) == pytest.approx(0.755059904, abs=1e-8)


def test_swapped_interpolation_weights_would_be_seen():
    """The released code gives the nearer neighbour the smaller weight."""
    defense = Splines().fit(*scored(np.linspace(0.35, 0.98, 20), TWENTY))
    x, y = defense.scores[4:6], defense.values[4:6]
    near = x[0] + 0.1 * (x[1] - x[0])
    right, swapped = 0.9 * y[0] + 0.1 * y[1], 0.1 * y[0] + 0.9 * y[1]
    assert float(defense.calibrate(near[None])) == pytest.approx(float(right), abs=1e-12)
    assert abs(float(right - swapped)) > 1e-3


@pytest.mark.parametrize(("n", "knots"), [(3, 6), (5, 6), (50, 2), (50, 6), (500, 7)])
def test_it_is_the_textbook_procedure(n, knots):
    logits, labels = draw(n, 10, seed=n, dtype=torch.float64)
    confidence, top = logits.softmax(1).max(1)
    if n < 10:  # one hit, the rest wrong
        labels = torch.where(torch.arange(n) == 0, top, (top + 3) % 10)
    defense = Splines(knots=knots).fit(logits, labels)
    heights, new = reference(confidence.tolist(), (top == labels).tolist(), knots)
    np.testing.assert_allclose(defense.heights, heights, atol=1e-9)
    np.testing.assert_allclose(defense.values, new.clip(0, 1), atol=1e-8)


def test_equal_scores_get_the_mean_of_their_values():
    scores, hits = [0.5, 0.5, 0.5, 0.7, 0.9, 0.9], [1, 0, 0, 1, 1, 0]
    defense = Splines(knots=3).fit(*scored(scores, hits))
    _, new = reference(scores, hits, 3)
    assert defense.values.tolist() == pytest.approx([new[:3].mean(), new[3], new[4:].mean()], abs=1e-9)


def test_a_calibrated_model_is_left_as_it_is():
    """Four samples of score 3/4 with three hits, again and again: G returns to 0."""
    scores = np.repeat(np.linspace(0.5, 1, 11)[[0, 5]], 2000)
    hits = np.concatenate([np.tile([1, 0], 1000), np.tile([1, 1, 1, 0], 500)])
    defense = Splines().fit(*scored(scores, hits))
    new = defense.calibrate(torch.tensor([0.5, 0.75]))
    assert new.tolist() == pytest.approx([0.5, 0.75], abs=2e-3)


def falling():
    """Accuracy falls as confidence rises."""
    scores = np.linspace(0.4, 0.99, 300)
    return scored(scores, np.arange(300) % 10 < np.linspace(9.9, 1, 300))


def test_monotone_is_an_option_and_the_plain_map_is_not():
    plain, rising = Splines().fit(*falling()), Splines(monotone=True).fit(*falling())
    assert not Splines().monotone
    assert rising.monotone
    assert float(plain.values.diff().amin()) < 0
    assert float(rising.values.diff().amin()) >= 0
    assert float(rising.values.mean()) == pytest.approx(float(plain.values.mean()), abs=1e-12)  # pooling keeps means


def test_scores_closer_than_the_regression_resolves_stay_finite():
    """scikit-learn pools scores closer than 1e-15 and extrapolates with NaN; real records have such rows."""
    scores = np.concatenate([np.linspace(0.4, 0.9, 50), 1 - np.array([5e-16, 4e-16, 3e-16, 2e-16, 1.1e-16])])
    logits, labels = scored(scores, np.arange(55) % 3 > 0)
    defense = Splines(monotone=True).fit(logits, labels)
    assert bool(defense.values.isfinite().all())
    assert len(defense.scores) > 50


def test_bad_options():
    with pytest.raises(InputError, match="Splines: knots must be at least 2, got 1"):
        Splines(knots=1)
    with pytest.raises(InputError, match="monotone=True needs remainder 'uniform', got 'proportional'"):
        Splines(monotone=True, remainder="proportional")


@pytest.mark.parametrize("name", ["wideresnet-16-4-cifar-10", "wideresnet-16-4-cifar-100", "lenet-5-cifar-10"])
def test_held_out_error_falls_on_real_records(name):
    file = RECORDS / f"{name}.npz"
    if not file.is_file():
        pytest.skip("the recorded probabilities in ../shared/data/records are not here")
    with np.load(file, allow_pickle=False) as data:
        logits = torch.from_numpy(data["probabilities"]).double().clamp_min(1e-38).log()
        labels = torch.from_numpy(data["labels"]).flatten()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    half, test = order[:5000], order[5000:]
    for defense in (Splines(), Splines(monotone=True), Splines(remainder="proportional")):
        errors = []
        for out in (logits[test], defense.fit(logits[half], labels[half])(logits[test])):
            confidence, top = out.softmax(1).max(1)
            hits = (top == labels[test]).numpy()
            errors.append((ece(confidence, hits), ks_error(confidence, hits)))
        assert all(after < before / 2 for before, after in zip(*errors, strict=True))
