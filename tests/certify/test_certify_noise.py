"""The noise: a normal distribution, and a function of (seed, id, draw) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from poise.certify import Noise
from poise.rng import Rng, mix
from toys import untouched_generators


def drawn(ids: list[int], draws: int, size: int, *, seed: int = 0, purpose: str = "smoothing") -> torch.Tensor:
    """(len(ids), draws, size)"""
    noise = Noise(seed, torch.tensor(ids), size=size, rows=64, purpose=purpose)
    rows = torch.arange(len(ids)).repeat_interleave(draws)
    out = torch.empty(len(rows), size)
    noise.fill(out, rows, torch.arange(draws).repeat(len(ids)), sigma=1.0)
    return out.view(len(ids), draws, size)


def test_it_is_standard_normal() -> None:
    values = drawn([0, 1, 2, 3], 500, 101).double().numpy().ravel()
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert abs(values.mean()) < 4 / np.sqrt(len(values))
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / len(values))
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / len(values))
    assert np.abs(values).max() < 7.5


def test_pixels_draws_and_samples_are_independent() -> None:
    values = drawn([5, 6], 4000, 6).double().numpy()
    by_pixel = np.corrcoef(values.reshape(-1, 6).T)
    assert np.abs(by_pixel - np.eye(6)).max() < 0.05
    squares = np.corrcoef((values.reshape(-1, 6) ** 2).T)  # both halves of one Box-Muller pair
    assert np.abs(squares - np.eye(6)).max() < 0.05
    assert abs(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(values[0, :-1].ravel(), values[0, 1:].ravel())[0, 1]) < 0.03


def test_a_draw_is_a_function_of_seed_id_purpose_and_number() -> None:
    whole = drawn([3, 9, 4], 100, 7)
    assert torch.equal(drawn([9], 100, 7)[0], whole[1])
    noise = Noise(0, torch.tensor([3, 9, 4]), size=7, rows=3)
    few = torch.empty(2, 7)
    noise.fill(few, torch.tensor([2, 0]), torch.tensor([99, 1]), sigma=1.0)
    assert torch.equal(few, torch.stack([whole[2, 99], whole[0, 1]]))
    for other in (drawn([3, 9, 4], 100, 7, seed=1), drawn([3, 9, 4], 100, 7, purpose="judging")):
        assert not (other == whole).any()
    assert len(whole.unique()) == whole.numel()


def test_the_bits_are_those_of_the_library_s_streams() -> None:
    """Written out with poise.rng: key by id, by draw, by position; then Box-Muller of 40 and 24 bits."""
    ids = torch.tensor([12, 5])
    key = Rng(3, ids).bits("smoothing", 0, torch.tensor([1]), ())
    golden = 0x9E3779B97F4A7C15 - (1 << 64)
    words = mix(mix(key + torch.tensor(8) * golden) + torch.arange(1, 3) * golden).numpy().view(np.uint64)
    radius = np.sqrt(-2 * np.log(((words >> 24).astype(np.float64) + 1) * 2.0**-40))
    angle = (words & 0xFFFFFF).astype(np.float64) * 2.0**-24 * 2 * np.pi
    out = torch.empty(1, 3)
    Noise(3, ids, size=3, rows=1).fill(out, torch.tensor([1]), torch.tensor([8]), sigma=0.5)
    expected = 0.5 * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:3]
    np.testing.assert_allclose(out[0].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 192, 200_001])
def test_any_size(size: int) -> None:
    out = drawn([0], 2, size)
    assert out.isfinite().all()
    assert out.shape == (1, 2, size)


def test_no_global_generator_is_touched() -> None:
    with untouched_generators():
        drawn([0, 1], 10, 5)
