"""The 8-bit grid inside a ball: every level and every radius, against numpy and against all choices of a few pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.constraints import L2, Anywhere, Box, Constraint, EightBit, Linf
from poise.errors import InputError
from poise.rng import Rng
from toys import generator

BOX = Box()
BOXES = [BOX, Box(-1.0, 1.0), Box(0.0, 255.0)]
LEVELS = torch.arange(256, dtype=torch.uint8)
both_modes = pytest.mark.parametrize("mode", ["round", "floor"])


def images(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 2, 3, 4)) -> Tensor:
    """8-bit images, made as a loader makes them."""
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8).to(dtype) / 255


def around(seed: int, clean: Tensor, reach: float) -> Tensor:
    return (clean + reach * (2 * torch.rand(clean.shape, generator=generator(seed + 1), dtype=clean.dtype) - 1)).clamp(
        0, 1
    )


def on_grid(x: Tensor) -> bool:
    """Bit for bit what an image file holds."""
    return torch.equal(x, (x * 255).round().to(torch.uint8).to(x.dtype) / 255)


# --- the grid ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both_modes
def test_all_levels_are_themselves(mode: str, dtype: torch.dtype) -> None:
    """Bit-equal to a uint8 image divided by 255, whatever the mode."""
    x = (LEVELS.to(dtype) / 255).view(1, 1, 16, 16)
    ball = EightBit(Linf(0.0), mode)
    assert torch.equal(ball.project(x, x, BOX), x)
    assert torch.equal(ball.settle(x, x), x)
    assert ball.contains(x, x).tolist() == [True]


@pytest.mark.parametrize("box", BOXES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_bounds(box: Box, dtype: torch.dtype) -> None:
    span = box.high - box.low
    expected = (LEVELS.to(dtype) * span / 255 + box.low).view(1, 1, 16, 16)
    x = expected + 0.3 / 255 * span * (2 * torch.rand(expected.shape, generator=generator(0), dtype=dtype) - 1)
    ball = EightBit(Anywhere(), box=box)
    assert torch.equal(ball.project(x, expected, box), expected)
    assert ball.contains(expected, expected).tolist() == [True]
    assert ball.contains(expected + 1e-3 * span / 255, expected).tolist() == [False]
    if span == 255:
        assert torch.equal(expected.flatten(), LEVELS.to(dtype))


def test_one_bit_beside_the_grid_is_beside_it() -> None:
    clean = images(0)
    beside = clean.clone()
    beside[1, 0, 0, 0] = torch.nextafter(beside[1, 0, 0, 0], torch.tensor(0.5))
    assert EightBit(Linf(0.1)).contains(beside, clean).tolist() == [True, False, True]
    assert Linf(0.1).contains(beside, clean).tolist() == [True, True, True]


# --- spec 22: every level, changed by 8/255 ---


@both_modes
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_change_of_eight_levels_is_eight_levels(mode: str, sign: int, dtype: torch.dtype) -> None:
    """Exactly 8 at every level, clipped at the ends; 9 are outside of the ball."""
    clean = (LEVELS.to(dtype) / 255).view(256, 1, 1, 1)
    ball = EightBit(Linf(8 / 255), mode)
    found = ball.project(clean + sign * 8 / 255, clean, BOX)
    expected = (LEVELS.int() + sign * 8).clamp(0, 255)
    assert torch.equal(found.flatten(), expected.to(torch.uint8).to(dtype) / 255)
    assert bool(ball.contains(found, clean).all())
    further = ((LEVELS.int() + sign * 9).clamp(0, 255).to(dtype) / 255).view(256, 1, 1, 1)
    whole = (LEVELS.int() + sign * 9 >= 0) & (LEVELS.int() + sign * 9 <= 255)
    assert torch.equal(ball.contains(further, clean), ~whole)


def test_rounding_down_without_care_loses_levels() -> None:
    """The hazard that the test above guards against: in float32, 15 of the 256 levels change by 9."""
    clean = LEVELS.float() / 255
    naive = (255 * (clean - 8 / 255).clamp(0, 1)).floor()
    assert int((naive < (LEVELS.float() - 8).clamp_min(0)).sum()) == 15


@pytest.mark.parametrize("eps", [0.05, 8.4 / 255, 7.99 / 255])
@both_modes
def test_a_radius_between_levels_counts_as_the_lower_one(mode: str, eps: float) -> None:
    clean = (LEVELS.float() / 255).view(1, 1, 16, 16)
    for sign in (-1, 1):
        found = EightBit(Linf(eps), mode).project(clean + sign * eps, clean, BOX)
        change = (255 * (found - clean)).round().flatten()
        inner = change[15:241]
        assert inner.unique().tolist() == [sign * int(255 * eps)]


# --- projection ---

settings_ = {
    "seed": st.integers(0, 10_000),
    "eps": st.sampled_from([0.5 / 255, 1 / 255, 0.03, 0.05, 0.3, 1.0]),
    "reach": st.sampled_from([1e-3, 0.05, 0.5]),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
}


@both_modes
@pytest.mark.parametrize("inner", [Linf, L2])
@given(**settings_, grey=st.booleans())
def test_projection_lands_on_the_grid_in_ball_and_box_and_stays(
    inner: type, mode: str, seed: int, eps: float, reach: float, dtype: torch.dtype, grey: bool
) -> None:
    """Also around images that are off the grid, where the ball holds a point of it."""
    clean = images(seed, dtype) if grey else torch.rand(3, 2, 3, 4, generator=generator(seed), dtype=dtype)
    eps = eps if grey or inner is Linf else max(eps, 2 / 255)
    ball, x = EightBit(inner(eps), mode), around(seed, clean, reach)
    ball.check(clean, BOX)
    kept = x.clone()
    found = ball.project(x, clean, BOX)
    assert torch.equal(x, kept)
    assert found.dtype == dtype
    assert on_grid(found)
    change = (found.double() - clean.double()).flatten(1)
    length = change.abs().amax(dim=1) if inner is Linf else change.norm(dim=1)
    assert bool((length <= eps + 5e-7).all())
    assert bool(ball.contains(found, clean).all())
    assert torch.equal(ball.project(found, clean, BOX), found)


@given(**settings_, grey=st.booleans())
def test_linf_projection_is_the_nearest_allowed_level(
    seed: int, eps: float, reach: float, dtype: torch.dtype, grey: bool
) -> None:
    clean = images(seed, dtype) if grey else torch.rand(3, 2, 3, 4, generator=generator(seed), dtype=dtype)
    x = around(seed, clean, reach)
    found = EightBit(Linf(eps)).project(x, clean, BOX).double().numpy()
    levels, c = np.arange(256) / 255, clean.double().numpy()[..., None]
    far = np.where(np.abs(levels - c) <= eps + 4e-7, np.abs(levels - x.double().numpy()[..., None]), np.inf)
    shortest = np.abs(found - x.double().numpy())
    np.testing.assert_allclose(shortest, far.min(axis=-1), rtol=0, atol=1e-6)


@given(seed=st.integers(0, 10_000), eps=st.sampled_from([1.0, 2.3, 5.5]), grey=st.booleans())
def test_l2_projection_against_all_choices(seed: int, eps: float, grey: bool) -> None:
    """Five values: of all pairs of neighbours inside the ball one is nearest; ours is near it, and never worse than
    all values stepping back together."""
    shape = (1, 1, 1, 5)
    clean = images(seed, torch.float64, shape)
    if not grey:
        clean = (clean + 0.3 / 255).clamp(0, 1)
    ball = L2(eps / 255)
    x = ball.project(around(seed, clean, 0.1), clean, BOX)
    found = EightBit(ball).project(x, clean, BOX).flatten().numpy() * 255
    at, c = x.flatten().numpy() * 255, clean.flatten().numpy() * 255
    choices = np.array(list(itertools.product(*zip(np.floor(at + 1e-6), np.ceil(at - 1e-6), strict=True))))
    inside = np.linalg.norm(choices - c, axis=1) <= eps + 1e-4
    assert np.linalg.norm(found - c) <= eps + 2e-4
    if not inside.any():  # off the grid alone
        assert not grey
        return
    best = np.linalg.norm(choices[inside] - at, axis=1).min()
    back = np.where(at >= np.round(c), np.floor(at + 1e-6), np.ceil(at - 1e-6))
    ours = np.linalg.norm(found - at)
    assert ours >= best - 1e-6
    if grey:
        assert ours <= np.linalg.norm(back - at) + 1e-6
        assert np.abs(found - at).max() < 1


def test_l2_keeps_the_length_that_stepping_back_everywhere_would_lose() -> None:
    clean = torch.full((2, 3, 32, 32), 100 / 255)
    x = L2(0.5).project(around(3, clean, 0.2), clean, BOX)
    found = EightBit(L2(0.5)).project(x, clean, BOX)
    back = clean + ((x - clean) * 255).trunc() / 255
    assert bool((L2(1.0).distance(found, clean) > 0.4999).all())
    assert bool((L2(1.0).distance(back, clean) < 0.45).all())


def test_l2_steps_back_first_where_it_costs_least() -> None:
    """Two pixels, (2, 10) levels away after rounding, too long by one step of either; at (1.52, 9.9), stepping back
    costs the first 0.04 for a gain of 3, the second 0.8 for a gain of 19."""
    clean = torch.full((1, 1, 1, 2), 100 / 255, dtype=torch.float64)
    x = torch.tensor([101.52, 109.9], dtype=torch.float64).view(1, 1, 1, 2) / 255
    found = EightBit(L2(101.5**0.5 / 255)).project(x, clean, BOX)
    assert (found * 255).round().flatten().tolist() == [101, 110]


def test_a_value_is_rounded_up_to_the_radius_itself() -> None:
    clean = torch.full((1, 1, 1, 2), 100 / 255)
    x = clean + torch.tensor([7.6, -7.6]) / 255
    found = EightBit(Linf(8 / 255)).project(x, clean, BOX)
    assert (found * 255).round().flatten().tolist() == [108, 92]


def test_around_an_image_off_the_grid_the_nearest_grid_point_is_the_last_resort() -> None:
    """An l2 ball that holds the image's own rounding and hardly anything else."""
    clean = (images(1, torch.float64) + 0.4 / 255).clamp(0, 1)
    nearest = (clean * 255).round() / 255
    eps = float((nearest - clean).flatten(1).norm(dim=1).max()) + 1e-5
    ball = EightBit(L2(eps))
    ball.check(clean, BOX)
    x = L2(eps).project(around(1, clean, 0.3), clean, BOX)
    found = ball.project(x, clean, BOX)
    assert bool(ball.contains(found, clean).all())
    towards = torch.where(x * 255 >= (clean * 255).round(), (x * 255).floor(), (x * 255).ceil()) / 255
    assert not bool(L2(eps).contains(towards, clean).all())  # one level towards the image is not enough
    assert bool(((found - nearest).abs() <= (towards - nearest).abs() + 1 / 255).all())


@both_modes
def test_points_outside_the_ball_settle_where_they_are(mode: str) -> None:
    """A question outside of the ball (a probe) is rounded, not brought back."""
    clean = images(0)
    x = clean.clone()
    x[0] = (clean[0] + 0.4).clamp(0, 1)
    x[1] = (clean[1] + 0.3 / 255).clamp(0, 1)
    found = EightBit(Linf(1 / 255), mode).settle(x, clean)
    assert on_grid(found)
    assert float((found[0] - x[0]).abs().max()) <= 1 / 255
    assert float((found[0] - clean[0]).abs().max()) > 0.1
    assert torch.equal(found[1:], clean[1:])


# --- the rest of the protocol ---


@pytest.mark.parametrize("inner", [Linf(0.05), L2(0.3)], ids=repr)
def test_everything_else_is_the_balls(inner: Constraint) -> None:
    ball, clean, x = EightBit(inner), images(0), images(5)
    rng, ids = Rng(0, torch.arange(3)), torch.tensor([2, 0, 1])
    assert ball.eps == inner.eps
    assert torch.equal(ball.steepest(x - clean), inner.steepest(x - clean))
    assert torch.equal(ball.distance(x, clean), inner.distance(x, clean))
    drawn = ball.sample(clean, BOX, ids, rng, 4)
    assert on_grid(drawn)
    assert bool(ball.contains(drawn, clean).all())
    raw = inner.sample(clean, BOX, ids, rng, 4)
    assert float((drawn - raw).abs().max()) <= 1 / 255 + 1e-6
    assert not torch.equal(drawn, raw)


def test_no_rows() -> None:
    none, ids = torch.zeros(0, 1, 2, 2), torch.arange(0)
    for inner in (Linf(0.1), L2(0.1), Anywhere()):
        ball = EightBit(inner)
        ball.check(none, BOX)
        assert ball.project(none, none, BOX).shape == ball.settle(none, none).shape == none.shape
        assert ball.contains(none, none).shape == (0,)
        assert ball.sample(none, BOX, ids, Rng(0, ids), 0).shape == none.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EightBit(EightBit(Linf(0.1))), r"EightBit: inner must be Linf, L2 or Anywhere, got EightBit\("),
        (lambda: EightBit(Linf(0.1), "up"), r"EightBit: mode: must be one of .*, got 'up'"),
        (
            lambda: EightBit(Linf(0.1)).check(images(0), Box(-1.0, 1.0)),
            r"EightBit: box must be the target's, Box\(low=-1.0, high=1.0\), got Box\(low=0.0, high=1.0\)$",
        ),
        (
            lambda: EightBit(Linf(1e-3)).check(torch.cat([images(0), torch.full((1, 2, 3, 4), 100.4 / 255)]), BOX),
            r"EightBit: eps must be at least 0.00157, the distance of image 3 from the nearest 8-bit image, got 0.001$",
        ),
        (
            lambda: EightBit(Linf(1e-3)).check(torch.cat([torch.full((1, 2, 3, 4), 100.4 / 255), images(0)]), BOX),
            r"at least 0.00157, the distance of image 0 ",
        ),
        (lambda: EightBit(L2(5e-3)).check(torch.full((1, 2, 3, 4), 100.4 / 255), BOX), r"at least 0.00768, .* image 0"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- the checks above can fail ---


@dataclass(frozen=True)
class Careless(EightBit):
    """Rounds, and looks no further."""

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        return (self.inner.project(x, clean, box) * 255).round() / 255


@pytest.mark.parametrize("inner", [Linf(12.6 / 255), L2(0.05)], ids=repr)
def test_a_careless_projection_leaves_the_ball(inner: Constraint) -> None:
    clean = images(0, shape=(3, 3, 8, 8))
    x = around(0, clean, 0.4)
    assert not bool(Careless(inner).contains(Careless(inner).project(x, clean, BOX), clean).all())
    assert bool(EightBit(inner).contains(EightBit(inner).project(x, clean, BOX), clean).all())
