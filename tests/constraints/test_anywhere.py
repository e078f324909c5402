"""Anywhere: every legal image, and nothing but legal images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from poise.constraints import Anywhere, Box, Linf
from poise.rng import Rng
from toys import generator

CLEAN = torch.rand(4, 2, 3, 5, generator=generator(0), dtype=torch.float64)
IDS = torch.arange(4)


def draw(constraint: object, box: Box, step: int = 0, seed: int = 0) -> torch.Tensor:
    return constraint.sample(CLEAN, box, IDS, Rng(seed, IDS * 7), step)


@pytest.mark.parametrize("box", [Box(), Box(-1.0, 1.0), Box(0.0, 255.0)])
def test_projection_is_the_boxes_and_leaves_legal_points_alone(box: Box) -> None:
    wild = (CLEAN - 0.5) * 3 * (box.high - box.low)
    moved = Anywhere().project(wild, CLEAN, box)
    np.testing.assert_array_equal(moved.numpy(), np.clip(wild.numpy(), box.low, box.high))
    assert torch.equal(Anywhere().project(moved, CLEAN, box), moved)
    assert not torch.equal(moved, wild)


@pytest.mark.parametrize("box", [Box(), Box(-1.0, 1.0), Box(0.0, 255.0)])
def test_samples_fill_the_box_and_forget_the_image(box: Box) -> None:
    whole = torch.stack([draw(Anywhere(), box, step) for step in range(60)])
    share = (whole - box.low) / (box.high - box.low)
    assert stats.kstest(share.numpy().ravel(), "uniform").pvalue > 1e-3
    moved = Anywhere().sample(CLEAN * 0, box, IDS, Rng(0, IDS * 7), 0)
    assert torch.equal(moved, whole[0])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(draw(Anywhere(), box, seed=1), whole[0])


def test_a_ball_would_not_pass_for_it() -> None:
    """The twin: samples of a small ball neither fill the box nor forget the image."""
    whole = torch.stack([draw(Linf(0.2), Box(), step) for step in range(60)])
    assert stats.kstest(whole.numpy().ravel(), "uniform").pvalue < 1e-3
    assert not torch.equal(Linf(0.2).sample(CLEAN * 0, Box(), IDS, Rng(0, IDS * 7), 0), whole[0])
    assert not Linf(0.2).contains(1 - CLEAN, CLEAN).all()


def test_the_rest() -> None:
    assert Anywhere().eps == float("inf")
    assert Anywhere().contains(1 - CLEAN, CLEAN).tolist() == [True] * 4
    assert Anywhere().contains(CLEAN[:0], CLEAN[:0]).tolist() == []
    elsewhere = CLEAN.to("meta")
    assert Anywhere().contains(elsewhere, elsewhere).device == elsewhere.device
    other = CLEAN.flip(0)
    np.testing.assert_allclose(
        Anywhere().distance(other, CLEAN).numpy(), np.abs((other - CLEAN).numpy()).reshape(4, -1).max(axis=1)
    )
    gradient = torch.tensor([-3.0, 0.0, 1e-30]).view(1, 1, 1, 3)
    assert Anywhere().steepest(gradient).flatten().tolist() == [-1, 0, 1]
    assert Anywhere() == Anywhere()
