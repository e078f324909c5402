"""Gratings: the stripes, the way back to the boundary on curves with a known zero, and who takes part."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import poise
import toys
from poise.constraints import L2, Linf
from poise.errors import InputError
from poise.objectives import KeepLabel, MinConfidence
from poise.recipebook import RECIPES
from poise.searches import Aimed, Ask, Cascade, Gratings, LearnedSquares, Reply
from poise.searches.gratings import WAVES, Way, grating
from toys import problem

GOAL = KeepLabel(MinConfidence())
CLOSE, MOST = 0.1, 12


# --- the stripes ---


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20)])
def test_a_grating_repeats_as_often_as_it_says_and_is_as_often_up_as_down(
    wave: tuple[float, float], shape: tuple[int, int, int]
) -> None:
    stripes = grating(wave, torch.zeros(2, *shape))
    assert stripes.shape == (2, *shape)
    assert set(stripes.flatten().tolist()) == {-1.0, 1.0}
    assert float(stripes.sum()) == 0
    assert torch.equal(stripes, stripes[:1, :1].expand_as(stripes))
    for dim, cycles in ((3, wave[0]), (2, wave[1])):
        half = 1 if cycles == 0 else round(0.5 / abs(cycles))
        assert torch.equal(stripes.roll(half, dim), stripes if cycles == 0 else -stripes)
    spectrum = torch.fft.fft2(stripes[0, 0].double()).abs()
    peak = tuple(int(i) for i in (spectrum == spectrum.max()).nonzero()[0])
    found = [min(i, size - i) / size for i, size in zip(peak, shape[1:], strict=True)]
    assert found == [pytest.approx(abs(wave[1])), pytest.approx(abs(wave[0]))]


# --- the way back ---

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "straight": lambda t: 5 - 8 * t,
    "late": lambda t: 6 - 9 * t**6,
    "early": lambda t: 8 * torch.exp(-9 * t) - 1,
    "a jump": lambda t: torch.where(t < 0.37, 9.0, -2.0) - t,
    "steps": lambda t: 3.7 - 7 * (t * 7).floor() / 7,
}


def walked(curve: Callable[[Tensor], Tensor], most: int = MOST) -> tuple[Way, list[Way]]:
    """The way along a curve of margins, told until it has ended, and what was known in between."""
    clean = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    way = Way.unlost(clean, curve(0 * one))
    way = way.told(clean + 1, one, curve(one))
    known = [way]
    while not bool(way.ended(CLOSE, most)):
        share = way.share(CLOSE / 2)
        point = way.point(clean, share)
        torch.testing.assert_close(point.mean(), share[0])
        way = way.told(point, share, curve(share))
        known.append(way)
    return way, known


@pytest.mark.parametrize("name", CURVES)
def test_the_boundary_stays_bracketed_and_the_bracket_shrinks(name: str) -> None:
    way, known = walked(CURVES[name])
    for before, after in pairwise(known):
        assert float(before.low) <= float(after.low) < float(after.high) <= float(before.high)
        assert float(after.high - after.low) < float(before.high - before.low)
        assert float(after.asked) == float(before.asked) + 1
    assert float(way.inner) >= 0 > float(way.outer)
    assert float(way.inner) == pytest.approx(float(CURVES[name](way.low)))
    assert float(way.outer) == pytest.approx(float(CURVES[name](way.high)))
    if name not in ("a jump", "steps"):
        assert float(way.inner) <= CLOSE
    else:  # no margin is small there: every third step at least halves what is left
        assert float(way.high - way.low) <= 0.5 ** (MOST // 3)


def test_on_a_straight_line_one_step_does() -> None:
    way, known = walked(CURVES["straight"])
    assert len(known) == 2
    assert float(way.inner) == pytest.approx(CLOSE / 2)


def test_what_does_not_lose_the_label_is_forgotten() -> None:
    clean, half = torch.zeros(2, 1, 2, 2), torch.full((2,), 0.5)
    way = Way.unlost(clean, torch.tensor([3.0, 3.0])).told(clean + 1, half, torch.tensor([2.0, -1.0]))
    assert way.lost.tolist() == [False, True]
    assert way.asked.tolist() == [0, 0]
    assert way.far.flatten(1).mean(dim=1).tolist() == [0.0, 1.0]
    way = way.told(clean + 2, half, torch.tensor([-4.0, 1.0]))
    assert way.far.flatten(1).mean(dim=1).tolist() == [2.0, 1.0]
    assert way.outer.tolist() == [-4.0, -1.0]
    assert way.of(torch.tensor([True, False])).far.flatten().tolist() == [2.0] * 4


# --- the search ---


def case_of(rows: int = 16) -> toys.Case:
    """Linear, and a large ball: most labels are taken by a grating."""
    return toys.linear_case(rows, shape=(1, 8, 8), classes=4, scale=6.0, seed=3)


def attacked(
    case: toys.Case, search: object, eps: float = 0.5, budget: int = 40, **given: object
) -> poise.AttackResult:
    images, labels, ids = (given.get(name, getattr(case, name)) for name in ("images", "labels", "ids"))
    return poise.attack(case.target(), GOAL, search, Linf(eps), images, labels, ids, budget)


def test_a_linear_network_is_at_the_tie_soon_after_its_label_is_lost() -> None:
    """One step, where the class that took the label is also the next one at the tie."""
    case = case_of()
    result = attacked(case, Gratings(close=1e-3))
    first, second = case.module()(result.images).detach().topk(2, dim=1).values.unbind(dim=1)
    tied = result.table.filter((first - second <= 1e-3).tolist())
    assert len(tied) >= 12
    assert tied["queries"].median() <= 4
    assert (tied["queries"] <= 1 + len(WAVES) + 8).all()
    assert (result.table["prediction_after"] == result.table["prediction_before"]).all()


def test_whose_label_no_grating_takes_is_asked_no_more_than_all_gratings() -> None:
    table = attacked(case_of(), Gratings(), eps=1e-4).table
    assert table["queries"].to_list() == [1 + len(WAVES)] * 16


def test_confidences_that_are_to_rise_are_left_at_once() -> None:
    told = problem(torch.full((2, 3, 8, 8), 0.5), Linf(0.1))
    told.over[:] = torch.tensor([True, False])
    steps = Gratings().run(told)
    next(steps)
    ask: Ask = steps.send(Reply(torch.zeros(2), torch.ones(2).bool(), torch.ones(2).bool()))
    assert ask.ids.tolist() == [1]


def test_without_answers_the_way_is_halved() -> None:
    """A wrapper hands none on; the label alone is enough to find the boundary."""
    case = case_of()
    seen, blind = (attacked(case, search).table for search in (Gratings(), Aimed(Gratings(halvings=8), 0.0)))
    lower = seen["confidence_after"] < seen["confidence_before"] - 0.05
    assert lower.sum() >= 8
    gap = (blind["confidence_after"] - seen["confidence_after"]).filter(lower).to_numpy()
    assert gap.mean() < 0.05


def test_every_point_lies_in_the_ball() -> None:
    for ball in (Linf(0.1), L2(0.4)):
        clean = torch.rand(3, 3, 8, 8, generator=toys.generator(0))
        told = problem(clean, ball)
        steps = Gratings().run(told)
        next(steps)
        reply = Reply(torch.zeros(3), torch.ones(3).bool(), torch.ones(3).bool())
        for number in range(8):
            ask = steps.send(reply)
            assert bool(ball.contains(ask.x, clean).all())
            kept = torch.full((3,), number % 2 == 1)
            reply = Reply(torch.ones(3), kept, torch.ones(3).bool())


def test_each_sample_is_searched_by_itself_and_nothing_is_drawn() -> None:
    case = case_of()
    whole, rows = attacked(case, Gratings()), torch.tensor([7, 2, 15])
    part = attacked(case, Gratings(), images=case.images[rows], labels=case.labels[rows], ids=case.ids[rows] + 100)
    assert torch.equal(part.images, whole.images[rows])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"waves": ()}, "waves must be pairs of finite"),
        ({"waves": ((0.5,),)}, "waves must be pairs of finite"),
        ({"waves": ((math.inf, 0.0),)}, "waves must be pairs of finite"),
        ({"halvings": 0}, "halvings must be at least 1"),
        ({"close": -0.1}, "close must be a finite number of at least 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gratings(**settings)


# --- what it is worth ---


def after(search: object, budget: int) -> float:
    data, target = poise.data.load("builtin:digits", samples=60), poise.models.load("builtin:digits")
    table = poise.attack(target, GOAL, search, Linf(0.2), data.images, data.labels, budget=budget).table
    return float(table["confidence_after"].mean())


def test_a_dozen_queries_go_further_with_it() -> None:
    both = RECIPES["learned-squares"].search(poise.recipebook.Setting(Linf(0.2)))
    assert isinstance(both, Cascade)
    assert after(both, 14) < after(LearnedSquares(), 14) - 0.1
