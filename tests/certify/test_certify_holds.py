"""The certificate's promise: it encloses the truth in at least 1 - alpha of many repetitions, whole stream included."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from poise.certify import Certificate, Scores, Smoothing, cdf_lower, cdf_upper, certify, dkw_epsilon
from poise.targets import ModuleTarget
from toys import Fixed

SIGMA, ALPHA, N, REPETITIONS = 0.5, 0.1, 200, 2000
RADII = np.array([0.0, 0.25, 0.5])
AT = 0.35
"""Where the one pixel lies."""

STEEP = {"logistic": 3.0, "step": 1e4}
"""Logits (k x, 0): p_0 = 1 / (1 + exp(-k x)), which is 1[x > 0] for a large k."""


def truth(kind: str, at: float) -> float:
    """The smoothed confidence of class 0 at `at`: the step's is Phi(at / sigma), the logistic's an integral."""
    if kind == "step":
        return float(norm.cdf(at / SIGMA))
    density = lambda v: norm.pdf(v, scale=SIGMA) / (1 + np.exp(-STEEP[kind] * (at + v)))  # noqa: E731
    return quad(density, -10 * SIGMA, 10 * SIGMA, epsabs=1e-12)[0]


def low_and_high(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest within each radius: the score rises in x, so they are at the ball's ends."""
    return tuple(np.array([truth(kind, AT + side * r) for r in RADII]) for side in (-1, 1))  # type: ignore[return-value]


@cache
def repeated(kind: str) -> list[Certificate]:
    """2,000 certificates of one image, each with draws of its own."""
    module = Fixed(lambda x: torch.stack([STEEP[kind] * x.flatten(), torch.zeros(len(x))], dim=1))
    target = ModuleTarget(module, num_classes=2, batch_size=8192)
    images = torch.full((REPETITIONS, 1, 1, 1), AT)
    return certify(target, images, smoothing=Smoothing(sigma=SIGMA, n=N, n0=20, alpha=ALPHA, seed=5))


def failures(kind: str, epsilon: float | None = None) -> np.ndarray:
    """(r,) shares of the repetitions whose bounds do not enclose the truth, on one side or the other."""
    low, high = low_and_high(kind)
    broken = np.zeros((REPETITIONS, len(RADII)), dtype=bool)
    for row, found in enumerate(repeated(kind)):
        assert found.prediction in (0, 1)
        slack = found.smoothing.epsilon if epsilon is None else epsilon
        below = cdf_lower(found.scores, RADII, sigma=SIGMA, epsilon=slack)
        above = cdf_upper(found.scores, RADII, sigma=SIGMA, epsilon=slack)
        if found.prediction == 0:
            broken[row] = (below > low) | (above < high)
        else:  # the rarer choice of the n0 draws: what is certified is 1 - p_0
            broken[row] = (below > 1 - high) | (above < 1 - low)
    return broken.mean(axis=0)


@pytest.mark.parametrize("kind", STEEP)
def test_it_holds_in_at_least_1_minus_alpha_of_2000_repetitions(kind: str) -> None:
    assert (failures(kind) <= ALPHA).all()


@pytest.mark.parametrize("kind", STEEP)
def test_a_bound_without_slack_is_caught(kind: str) -> None:
    """The broken twin: the empirical distribution taken for the true one."""
    assert failures(kind, epsilon=0.0)[0] > 0.5


def test_a_bound_that_forgets_the_attacker_is_caught() -> None:
    """The broken twin: the radius counts half."""
    low, _ = low_and_high("step")
    below = [found.lower(RADII / 2) for found in repeated("step") if found.prediction == 0]
    assert (np.array(below) > low)[:, 2].mean() > 0.5


@pytest.mark.parametrize("alpha", [0.5, 0.05])
def test_one_side_alone_at_its_own_alpha(alpha: float) -> None:
    """The lower bound with all of alpha, straight from the step's distribution: the tightest case there is."""
    rng, slack = np.random.default_rng(0), dkw_epsilon(N, alpha)
    hits = rng.binomial(N, norm.cdf(AT / SIGMA), REPETITIONS)
    low, _ = low_and_high("step")
    broken = []
    for k in hits:
        scores = Scores.exact(np.repeat([0.0, 1.0], [N - k, k]))
        broken.append(cdf_lower(scores, RADII, sigma=SIGMA, epsilon=slack) > low)
    assert (np.mean(broken, axis=0) <= alpha).all()


def test_the_step_function_is_the_worst_case() -> None:
    """With very many draws the bound is not only below the truth but near it: Neyman and Pearson's test is attained."""
    low, high = low_and_high("step")
    p = norm.cdf(AT / SIGMA)
    scores = dataclasses.replace(Scores.exact([0.0, 1.0]), counts=np.array([round((1 - p) * 1e9), round(p * 1e9)]))
    np.testing.assert_allclose(cdf_lower(scores, RADII, sigma=SIGMA, epsilon=1e-7), low, atol=1e-5)
    np.testing.assert_allclose(cdf_upper(scores, RADII, sigma=SIGMA, epsilon=1e-7), high, atol=1e-5)
