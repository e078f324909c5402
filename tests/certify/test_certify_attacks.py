"""No attack of the library, on the smoothed model within the radius, gets outside a certificate; embedded digits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import poise
from poise import recipebook
from poise.certify import Certificate, ClassScore, Smoothed, Smoothing, Stream, certify, dkw_epsilon
from poise.constraints import L2
from poise.searches import PGD
from poise.targets import ModuleTarget

RADIUS, DRAWS, JUDGED = 0.25, 4, 500
SMOOTHING = Smoothing(sigma=0.25, n=1000, n0=50, alpha=0.01)
SLACK = dkw_epsilon(JUDGED, 1e-4)
"""What judging with 500 fresh draws may be wrong by."""


@cache
def bare() -> ModuleTarget:
    target = poise.models.load("builtin:digits")
    assert isinstance(target, ModuleTarget)
    return target


def smoothed() -> ModuleTarget:
    return ModuleTarget(Smoothed(bare().module, sigma=SMOOTHING.sigma, draws=DRAWS), num_classes=10)


@cache
def certified() -> tuple[poise.data.Dataset, list[Certificate]]:
    images = poise.data.load("builtin:digits")[:6]
    return images, certify(bare(), images.images, images.ids, SMOOTHING)


def outside(images: torch.Tensor, inside: np.ndarray) -> int:
    """How many of the images (6, …) lie outside their bounds at the radius, by more than judging can be wrong."""
    data, found = certified()
    classes = torch.tensor([one.prediction for one in found])
    fresh = Smoothing(sigma=SMOOTHING.sigma, n=JUDGED, n0=0, alpha=0.5)
    stream = Stream(bare(), images, data.ids, fresh, classes=classes, purpose="judging")
    stream.run()
    mean = stream.means.numpy()
    low = np.array([float(one.lower(RADIUS)) for one in found])
    high = np.array([float(one.upper(RADIUS)) for one in found])
    return int((((mean < low - SLACK) | (mean > high + SLACK)) & inside).sum())


@pytest.mark.parametrize("name", recipebook.RECIPES)
def test_no_recipe_gets_outside(name: str) -> None:
    data, _ = certified()
    found = recipebook.run_recipe(
        name, smoothed(), data.images, data.labels, ids=data.ids, eps=RADIUS, norm="l2", steps=4, budget=24, seed=1
    )
    assert outside(found.images, found.table["l2"].to_numpy() <= RADIUS * (1 + 1e-6)) == 0


@pytest.mark.parametrize("up", [False, True])
def test_the_attack_on_the_certified_score_itself(up: bool) -> None:
    """It moves the smoothed score, stays inside; and what it finds is real: fresh draws see it too."""
    data, certificates = certified()
    classes = torch.tensor([one.prediction for one in certificates])
    found = poise.attack(
        smoothed(), ClassScore(up=up), PGD(steps=10, step=RADIUS / 4, undo=False), L2(RADIUS), data.images, classes,
        ids=data.ids, budget=100,
    )  # fmt: skip
    assert outside(found.images, np.ones(6, dtype=bool)) == 0
    change = -found.table["loss_after"].to_numpy() if up else found.table["loss_after"].to_numpy()
    moved = np.exp(change) - np.array([one.mean for one in certificates])
    assert (moved.mean() > 0.02) if up else (moved.mean() < -0.05)


def test_an_attack_with_twice_the_radius_is_seen() -> None:
    """The broken twin: a certificate that forgets how far the attacker can go does not hold."""
    data, certificates = certified()
    classes = torch.tensor([one.prediction for one in certificates])
    found = poise.attack(
        smoothed(), ClassScore(up=False), PGD(steps=12, step=1.0, undo=False), L2(8 * RADIUS), data.images, classes,
        ids=data.ids, budget=100,
    )  # fmt: skip
    assert outside(found.images, np.ones(6, dtype=bool)) > 0


def test_smoothed_is_the_mean_of_softmaxes() -> None:
    data, _ = certified()
    module = Smoothed(bare().module, sigma=1e-6, draws=3)
    torch.testing.assert_close(module(data.images), bare().module(data.images).log_softmax(dim=1), atol=1e-3, rtol=0)
    with pytest.raises(poise.errors.InputError, match=r"^Smoothed: draws must be at least 1, got 0$"):
        Smoothed(bare().module, sigma=0.1, draws=0)
    with pytest.raises(poise.errors.InputError, match=r"^sigma: must be a number above 0"):
        Smoothed(bare().module, sigma=0.0)
