"""Balls and boxes: projection, distance, steepest direction, random points; each against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from poise.constraints import L2, Box, Linf
from poise.constraints.l2 import unit
from poise.constraints.reach import Reach
from poise.errors import InputError
from poise.rng import Rng
from toys import generator

BALLS = [Linf, L2]
BOX = Box()
both_balls = pytest.mark.parametrize("ball", BALLS)


def rows(seed: int, n: int = 3, shape: tuple[int, ...] = (2, 3, 4), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, *shape, generator=generator(seed), dtype=dtype)


def far(seed: int, scale: float, like: Tensor) -> Tensor:
    """Points all around and outside of the box."""
    return like + scale * (torch.rand(like.shape, generator=generator(seed + 1), dtype=like.dtype) - 0.5)


def numpy_distance(ball: type, x: Tensor, clean: Tensor) -> np.ndarray:
    change = (x.double().numpy() - clean.double().numpy()).reshape(len(x), -1)
    return np.abs(change).max(axis=1) if ball is Linf else np.sqrt((change**2).sum(axis=1))


settings_ = {
    "seed": st.integers(0, 10_000),
    "eps": st.sampled_from([0.0, 1e-6, 0.03, 0.3, 1.0]),
    "scale": st.sampled_from([0.0, 1e-3, 0.5, 10.0]),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
}


@both_balls
@given(**settings_)
def test_projection_lands_in_ball_and_box_and_stays(
    ball: type, seed: int, eps: float, scale: float, dtype: torch.dtype
) -> None:
    clean = rows(seed, dtype=dtype)
    x = far(seed, scale, clean)
    constraint = ball(eps)
    kept = x.clone()
    inside = constraint.project(x, clean, BOX)
    assert torch.equal(x, kept)
    assert inside.dtype == dtype
    assert (numpy_distance(ball, inside, clean) <= eps * (1 + 1e-6) + 1e-7).all()
    assert bool(((inside >= 0) & (inside <= 1)).all())
    assert bool(constraint.contains(inside, clean).all())
    torch.testing.assert_close(constraint.project(inside, clean, BOX), inside, rtol=0, atol=1e-7)


@both_balls
@given(**settings_)
def test_a_reach_does_what_the_ball_does_to_the_last_bit(
    ball: type, seed: int, eps: float, scale: float, dtype: torch.dtype
) -> None:
    clean = rows(seed, dtype=dtype)
    x, gradient, constraint = far(seed, scale, clean), far(seed + 2, 1.0, clean) - clean, ball(eps)
    for box in (BOX, Box(0.25, 0.5)):  # the second leaves no room for many pixels
        reach, here = Reach(constraint, clean, box), x.clone()
        moved = reach.descend(here, gradient, 0.07)
        assert torch.equal(here, x)
        assert torch.equal(moved, constraint.project(x - 0.07 * constraint.steepest(gradient), clean, box))
        assert torch.equal(reach.project(here), constraint.project(x, clean, box))
    assert reach.sure is (ball is Linf)


@both_balls
def test_points_inside_are_left_alone(ball: type) -> None:
    clean = 0.3 + 0.4 * rows(0)
    x = clean + 0.01 * (rows(1) - 0.5)
    assert torch.equal(ball(0.2).project(x, clean, BOX), x)


@given(**settings_)
def test_linf_projection_is_the_nearest_point(seed: int, eps: float, scale: float, dtype: torch.dtype) -> None:
    clean = rows(seed, dtype=dtype)
    x = far(seed, scale, clean)
    low, high = np.maximum(clean.numpy() - eps, 0), np.minimum(clean.numpy() + eps, 1)
    nearest = np.minimum(np.maximum(x.numpy(), low), high)
    np.testing.assert_allclose(Linf(eps).project(x, clean, BOX).numpy(), nearest, rtol=0, atol=1e-7)


@given(**settings_)
def test_l2_projection_scales_then_clips(seed: int, eps: float, scale: float, dtype: torch.dtype) -> None:
    clean = rows(seed, dtype=dtype)
    x = far(seed, scale, clean)
    change = (x - clean).double().numpy()
    length = np.sqrt((change**2).sum(axis=(1, 2, 3), keepdims=True))
    scaled = clean.double().numpy() + change * np.minimum(1, eps / np.maximum(length, 1e-300))
    np.testing.assert_allclose(L2(eps).project(x, clean, BOX).numpy(), scaled.clip(0, 1), rtol=0, atol=2e-7)


@both_balls
@given(**settings_)
def test_distance_and_contains_agree_with_numpy(
    ball: type, seed: int, eps: float, scale: float, dtype: torch.dtype
) -> None:
    clean = rows(seed, dtype=dtype)
    x = far(seed, scale, clean)
    expected = numpy_distance(ball, x, clean)
    np.testing.assert_allclose(ball(eps).distance(x, clean).numpy(), expected, rtol=1e-6, atol=1e-7)
    clearly = np.abs(expected - eps) > 1e-5
    assert (ball(eps).contains(x, clean).numpy() == (expected <= eps))[clearly].all()


@both_balls
@given(
    seed=st.integers(0, 10_000), exponent=st.integers(-36, 30), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_steepest_has_length_one_and_the_dual_norms_slope(
    ball: type, seed: int, exponent: int, dtype: torch.dtype
) -> None:
    """<g, steepest(g)> is the dual norm of g: no direction of length 1 raises the loss faster."""
    gradient = ((rows(seed) - 0.5) * 10.0**exponent).to(dtype)
    direction = ball(0.1).steepest(gradient).double()
    flat, g = direction.flatten(1), gradient.double().flatten(1)
    length = flat.abs().amax(dim=1) if ball is Linf else flat.norm(dim=1)
    torch.testing.assert_close(length, torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    top = g.abs().amax(dim=1)
    dual = g.abs().sum(dim=1) if ball is Linf else (g / top[:, None]).norm(dim=1) * top
    torch.testing.assert_close((flat * g).sum(dim=1), dual, rtol=1e-6, atol=0)


@both_balls
def test_steepest_of_no_gradient_is_no_direction(ball: type) -> None:
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[1, 0, 0, 0] = -3.0
    direction = ball(0.1).steepest(gradient)
    assert direction[0].abs().sum() == 0
    assert direction[1].flatten().tolist() == [-1, 0, 0, 0]


def test_squares_of_tiny_gradients_do_not_vanish() -> None:
    """float32: 1e-30 squared is 0, so a plain division by the norm would give nothing or NaN."""
    gradient = torch.tensor([[[[3e-30, -4e-30]]]])
    assert gradient.flatten(1).norm(dim=1).item() < 1e-29
    torch.testing.assert_close(unit(gradient), torch.tensor([[[[0.6, -0.8]]]]))


@both_balls
@given(seed=st.integers(0, 10_000), eps=settings_["eps"], dtype=settings_["dtype"])
def test_random_points_lie_inside(ball: type, seed: int, eps: float, dtype: torch.dtype) -> None:
    clean = rows(seed, n=5, dtype=dtype)
    rng, ids = Rng(seed, torch.arange(5) * 3), torch.tensor([4, 1])
    points = ball(eps).sample(clean[ids], BOX, ids, rng, 0)
    assert points.dtype == dtype
    assert (numpy_distance(ball, points, clean[ids]) <= eps * (1 + 1e-6) + 1e-7).all()
    assert bool(((points >= 0) & (points <= 1)).all())
    whole = ball(eps).sample(clean, BOX, torch.arange(5), rng, 0)
    torch.testing.assert_close(points, whole[ids], rtol=0, atol=0)
    if eps > 1e-3:
        assert not torch.equal(points, ball(eps).sample(clean[ids], BOX, ids, rng, 1))


def test_random_points_fill_the_ball_evenly() -> None:
    """Linf: every pixel uniform. L2: the share of points within r of the centre is (r / eps) ** d."""
    clean, rng, ids = torch.full((4000, 1, 1, 3), 0.5), Rng(0, torch.arange(4000)), torch.arange(4000)
    change = (Linf(0.2).sample(clean, BOX, ids, rng, 0) - clean).double().numpy().reshape(4000, 3)
    assert all(stats.kstest(change[:, i] / 0.4 + 0.5, "uniform").pvalue > 1e-3 for i in range(3))
    points = L2(0.2).sample(clean, BOX, ids, rng, 0)
    share = (numpy_distance(L2, points, clean) / 0.2) ** 3
    assert stats.kstest(share, "uniform").pvalue > 1e-3
    direction = (points - clean).double().numpy().reshape(4000, 3)
    height = direction[:, 2] / np.linalg.norm(direction, axis=1)  # uniform on a sphere (Archimedes)
    assert stats.kstest(height / 2 + 0.5, "uniform").pvalue > 1e-3


@both_balls
def test_no_rows(ball: type) -> None:
    none, ids = torch.zeros(0, 1, 2, 2), torch.arange(0)
    constraint = ball(0.1)
    assert constraint.project(none, none, BOX).shape == none.shape
    assert constraint.steepest(none).shape == none.shape
    assert constraint.contains(none, none).shape == constraint.distance(none, none).shape == (0,)
    assert BOX.contains(none).shape == (0,)
    assert constraint.sample(none, BOX, ids, Rng(0, ids), 0).shape == none.shape


@both_balls
@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 28, 28)])
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.9, 1.0])
def test_rounding_never_throws_a_projected_point_out(ball: type, shape: tuple[int, ...], eps: float) -> None:
    """float32 at the size of ImageNet: what project returns, contains accepts."""
    clean = rows(3, n=2, shape=shape, dtype=torch.float32)
    constraint = ball(eps if ball is Linf else 5 * eps)
    x = constraint.project(far(4, 4.0, clean), clean, BOX)
    assert bool((constraint.contains(x, clean) & BOX.contains(x)).all())


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_box(low: float, high: float) -> None:
    box = Box(low, high)
    middle, reach = (low + high) / 2, high - low
    inside = torch.tensor([low, middle, high]).view(1, 1, 1, 3)
    assert torch.equal(box.project(inside), inside)
    assert box.contains(inside).tolist() == [True]
    outside = torch.tensor([[low - 0.1 * reach, middle, high], [low, middle, high + 0.1 * reach]]).view(2, 1, 1, 3)
    assert box.contains(outside).tolist() == [False, False]
    assert torch.equal(box.project(outside), inside.expand(2, 1, 1, 3))


# --- refusals ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linf(8), r"Linf: eps must be in \[0, 1\], got 8 \(did you mean 8/255\?\)"),
        (lambda: Linf(8.0), r"Linf: eps must be in \[0, 1\], got 8.0 \(did you mean 8/255\?\)"),
        (lambda: Linf(4), r"Linf: eps must be in \[0, 1\], got 4 \(did you mean 4/255\?\)"),
        (lambda: Linf(-0.1), r"Linf: eps must be in \[0, 1\], got -0.1$"),
        (lambda: Linf(float("nan")), r"Linf: eps must be in \[0, 1\], got nan$"),
        (lambda: L2(float("inf")), r"L2: eps must be a finite number of at least 0, got inf$"),
        (lambda: L2(-1.0), r"L2: eps must be a finite number of at least 0, got -1.0$"),
        (lambda: Box(1.0, 1.0), r"Box: low must be below high, got 1.0 and 1.0$"),
        (lambda: Box(2.0, 1.0), r"Box: low must be below high, got 2.0 and 1.0$"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- the checks above can fail ---


@dataclass(frozen=True)
class Wider(Linf):
    """Projects onto a ball that is a little too wide."""

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        return box.project(x.clamp(clean - 1.001 * self.eps, clean + 1.001 * self.eps))


@dataclass(frozen=True)
class Rescaled(L2):
    """Scales back up to eps after the clip, which leaves the box."""

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        change = super().project(x, clean, box) - clean
        return clean + change * self.eps / change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Plain(L2):
    """Divides by the norm alone."""

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _twin(check: Callable[..., None], ball: type, **arguments: object) -> None:
    with pytest.raises(AssertionError):
        check.hypothesis.inner_test(ball=ball, **arguments)


def test_broken_balls_are_noticed() -> None:
    projection = {"seed": 0, "eps": 0.3, "scale": 10.0, "dtype": torch.float64}
    _twin(test_projection_lands_in_ball_and_box_and_stays, Wider, **projection)
    _twin(test_projection_lands_in_ball_and_box_and_stays, Rescaled, **projection | {"eps": 1.0})
    slope = {"seed": 0, "exponent": -30, "dtype": torch.float32}
    _twin(test_steepest_has_length_one_and_the_dual_norms_slope, Plain, **slope)


@both_balls
def test_balls_are_values(ball: type) -> None:
    assert ball(0.1) == ball(0.1) != ball(0.2)
    with pytest.raises(AttributeError):
        ball(0.1).eps = 0.2


def test_a_projection_of_another_type_or_of_several_points_around_one_image() -> None:
    ball, box = Linf(0.1), Box(0.0, 1.0)
    clean = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = clean.double() + torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.minimum(torch.maximum(x, clean - 0.1), clean + 0.1).clamp(0, 1)
    before = x.clone(), clean.clone()
    found = ball.project(x, clean, box)
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)
    assert torch.equal(x, before[0])
    assert torch.equal(clean, before[1])


def test_a_projection_has_a_gradient() -> None:
    clean = torch.full((1, 1, 1, 3), 0.5)
    x = torch.tensor([[[[0.45, 0.55, 0.8]]]], requires_grad=True)
    Linf(0.1).project(x, clean, Box(0.0, 1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 1.0, 0.0]
