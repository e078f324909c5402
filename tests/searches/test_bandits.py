"""Bandits: a loop written from the text, how the prior learns and spreads, published settings, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Anywhere, Constraint, Linf
from poise.errors import InputError
from poise.objectives import UCA, CrossEntropy, KeepLabel, Margin, MaxConfidence, Objective
from poise.rng import Rng
from poise.searches import PGD, AdaptivePGD, Ask, Bandits, EveryClass, Reply, Search
from poise.searches.bandits import RATES, Prior
from poise.types import Access
from toys import Case, Constant, RecordingTarget, SmallCNN, drive, generator, linear_case, problem

BALLS = pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)


@BALLS
@pytest.mark.parametrize(
    "search",
    [
        Bandits(),
        Bandits(tile=2, undo=False),
        Bandits(tile=9, tau=1.0, zeta=0.5),
        PGD(steps=8, source=Bandits()),
        AdaptivePGD(steps=6, source=Bandits(tile=3), random_start=True),
    ],
    ids=repr,
)
def test_contract(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)
    assert search.access is Access.LABELS


# --- a loop from the text ---


def exponentiated(v: np.ndarray, g: np.ndarray, tau: float) -> np.ndarray:
    """Spec 18: map to [0, 1], multiply by exp(+-tau g), renormalise, and back."""
    up, down = (1 + v) / 2 * np.exp(tau * g), (1 - v) / 2 * np.exp(-tau * g)
    return 2 * up / (up + down) - 1


def spread(v: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest neighbour, pixel by pixel."""
    rows, columns = v.shape[1:]
    made = np.empty((len(v), height, width))
    for i in range(height):
        for j in range(width):
            made[:, i, j] = v[:, math.floor(i * rows / height), math.floor(j * columns / width)]
    return made


def by_the_text(case: Case, row: int, search: Bandits, constraint: Constraint, budget: int) -> list[np.ndarray]:
    """All points of one sample of a linear softmax model under cross-entropy, in numpy, in order."""
    weight, bias = case.weight.numpy(), case.bias.numpy()
    x0, y, rng = case.images[row].numpy(), int(case.labels[row]), Rng(0, case.ids)
    linf = isinstance(constraint, Linf)
    shape, points = (x0.shape[0], search.tile, search.tile), [x0]
    v = np.zeros(shape)

    def scores(x: np.ndarray) -> np.ndarray:
        return (weight * x).sum(axis=(1, 2, 3)) + bias

    def asked(x: np.ndarray) -> float:
        """The loss: minus the cross-entropy."""
        points.append(x)
        z = scores(x)
        return z[y] - z.max() - math.log(np.exp(z - z.max()).sum())

    def big(v: np.ndarray) -> np.ndarray:
        return spread(v, *x0.shape[1:])

    x, step = x0, 0
    while len(points) < budget:
        if budget - len(points) >= 3:
            u = rng.normal("bandits", step, torch.tensor([row]), shape)[0].double().numpy() / math.sqrt(v.size)
            q = [big(v + sign * search.zeta * u) for sign in (1, -1)]
            up, down = (asked(np.clip(x + search.probe * one / np.sqrt((one**2).sum()), 0, 1)) for one in q)
            g = (up - down) / (search.probe * search.zeta) * u
            v = exponentiated(v, g, search.tau) if linf else v + search.tau * g
        elif step == 0:
            break
        step += 1
        if linf:
            change = np.clip(x - search.step * np.sign(big(v)) - x0, -constraint.eps, constraint.eps)
        else:
            change = x - search.step * big(v) / np.sqrt((big(v) ** 2).sum()) - x0
            change = change * min(1.0, constraint.eps / np.sqrt((change**2).sum()))
        asked(np.clip(x0 + change, 0, 1))
        if not search.undo or scores(points[-1]).argmax() == scores(x0).argmax():
            x = points[-1]
    return points


def same_points(
    search: Bandits, constraint: Constraint, budget: int, *, shape=(1, 5, 4), used: Bandits | None = None
) -> None:
    case = linear_case(4, shape=shape, classes=4)
    goal: Objective = KeepLabel(CrossEntropy(stop=False), 0.0) if search.undo else CrossEntropy(stop=False)
    target = case.target()
    drive(case, goal, search, constraint, target=target, budget=budget)
    for row in range(4):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = np.stack(by_the_text(case, row, used or search, constraint, budget))
        assert asked.shape == expected.shape
        np.testing.assert_allclose(asked.numpy(), expected, rtol=0, atol=1e-8)


FULL = Bandits(tile=2, probe=0.3, step=0.05, tau=0.3, zeta=0.7, undo=False)


@BALLS
@pytest.mark.parametrize("tile", [1, 3, 4, 9])
@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 4, 6), (2, 3, 7)])
def test_points_are_those_of_a_loop_written_from_the_text(
    shape: tuple[int, int, int], tile: int, constraint: Constraint
) -> None:
    """Tiles of one pixel to the whole image, uneven ones, and a tile larger than the image."""
    for search in (FULL, dataclasses.replace(FULL, undo=True, step=0.08)):
        same_points(dataclasses.replace(search, tile=tile), constraint, 50, shape=shape)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 30])
def test_the_same_at_every_kind_of_remainder(budget: int) -> None:
    same_points(FULL, Linf(0.1), budget)


@pytest.mark.parametrize("used", [{"tile": 3}, {"probe": 0.31}, {"step": 0.06}, {"tau": 3.0}, {"zeta": 0.6}], ids=str)
def test_another_setting_is_noticed(used: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        same_points(FULL, L2(0.4), 50, used=dataclasses.replace(FULL, **used))


def test_another_update_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The l2 rule in the linf ball: signs differ once v comes near 1."""
    fast = dataclasses.replace(FULL, tau=3.0)
    same_points(fast, Linf(0.1), 50)
    monkeypatch.setitem(RATES, Linf, dataclasses.replace(RATES[Linf], prior=torch.clone))
    with pytest.raises(AssertionError):
        same_points(fast, Linf(0.1), 50)


def test_moving_on_where_a_step_is_refused_is_noticed() -> None:
    search = dataclasses.replace(FULL, undo=True, step=0.08)
    with pytest.raises(AssertionError):
        same_points(search, Linf(0.1), 50, used=dataclasses.replace(search, undo=False))


# --- the prior ---

NUMBERS = st.floats(-3, 3).map(lambda value: round(value, 3))


@given(updates=st.lists(NUMBERS, max_size=8), tau=st.sampled_from([0.01, 1.0, 4.0]))
def test_sums_of_updates_are_exponentiated_gradient(updates: list[float], tau: float) -> None:
    """tanh of the sum is the published product, stays in [-1, 1], and does not move where the update is 0."""
    prior, v, total = RATES[Linf].prior, np.zeros(1), torch.zeros(1, dtype=torch.float64)
    for g in updates:
        v = exponentiated(v, np.array([g]), tau)
        total = total + tau * g
        np.testing.assert_allclose(prior(total).numpy(), v, rtol=0, atol=1e-6)
        assert bool((prior(total).abs() <= 1).all())
        assert torch.equal(prior(total + tau * 0.0), prior(total))


def test_huge_updates_neither_overflow_nor_stick() -> None:
    """The product as published is inf / inf here; and a v that has rounded to 1 comes back."""
    prior = RATES[Linf].prior
    assert prior(torch.tensor([1e30, -1e30])).tolist() == [1, -1]
    up = torch.tensor([50.0])
    assert prior(up).item() == 1
    assert prior(up - 50.5).item() == pytest.approx(math.tanh(-0.5))


def prior_of(search: Bandits, clean: Tensor, constraint: Constraint | None = None) -> Prior:
    return search.estimator(problem(clean, constraint))


def learn(prior: Prior, x: Tensor, answer: Callable[[Tensor], Tensor], step: int = 0) -> Tensor:
    """One update at x (n, C, H, W), answered by a function of the points; what the prior then says."""
    steps = prior.slope(Ask(x, torch.arange(len(x))), step, 1)
    loss = answer(next(steps).x)
    with pytest.raises(StopIteration) as end:
        steps.send(Reply(loss, torch.ones_like(loss, dtype=torch.bool), torch.ones(len(x)).bool()))
    return end.value.value[0]


def is_constant_on_tiles(prior: Prior, clean: Tensor) -> None:
    """6 x 8 pixels in 3 x 3 tiles: rows in pairs, columns 0-2, 3-5, 6-7 (floor of 3 j / 8)."""
    said = learn(prior, clean, lambda x: x.flatten(1) @ torch.randn(96, generator=generator(0), dtype=x.dtype))
    assert said.shape == clean.shape
    assert said.flatten(1).any(dim=1).all()
    for rows in ((0, 2), (2, 4), (4, 6)):
        for columns in ((0, 3), (3, 6), (6, 8)):
            tile = said[:, :, rows[0] : rows[1], columns[0] : columns[1]].flatten(2)
            assert torch.equal(tile, tile[:, :, :1].expand_as(tile))
    assert said.flatten(2).unique().numel() == 2 * 2 * 9


@BALLS
def test_the_prior_is_constant_on_tiles(constraint: Constraint) -> None:
    clean = torch.full((2, 2, 6, 8), 0.5, dtype=torch.float64)
    is_constant_on_tiles(prior_of(Bandits(tile=3, tau=0.1), clean, constraint), clean)
    with pytest.raises(AssertionError):
        is_constant_on_tiles(prior_of(Bandits(tile=4, tau=0.1), clean, constraint), clean)


@pytest.mark.parametrize(("tile", "size"), [(4, 32), (50, 32), (20, 32), (50, 299), (7, 7), (28, 5)])
def test_tiles_spread_as_torchs_nearest_neighbour(tile: int, size: int) -> None:
    prior = prior_of(Bandits(tile=tile), torch.zeros(1, 3, size, size))
    v = torch.randn(2, 3, tile, tile, generator=generator(1))
    expected = nn.functional.interpolate(v, size=(size, size), mode="nearest")
    assert torch.equal(prior.spread(v), expected)


@pytest.mark.parametrize(
    ("height", "width", "tile"), [(32, 32, (32, 32)), (224, 224, (50, 50)), (28, 60, (28, 50)), (1, 1, (1, 1))]
)
def test_the_usual_tile_is_50_or_the_image(height: int, width: int, tile: tuple[int, int]) -> None:
    assert prior_of(Bandits(), torch.zeros(1, 1, height, width)).sums.shape[2:] == tile


def learns_the_gradient(search: Bandits, constraint: Constraint) -> None:
    """On a linear loss the prior's direction comes to be the gradient's, averaged over tiles."""
    clean = torch.full((20, 1, 4, 4), 0.5, dtype=torch.float64)
    slope = torch.randn(1, 1, 2, 2, generator=generator(2), dtype=torch.float64)
    slope = slope.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    prior, cosines = prior_of(search, clean, constraint), []
    for step in range(60):
        said = learn(prior, clean, lambda x: (x * slope).flatten(1).sum(dim=1), step)
        cosines.append(float(torch.cosine_similarity(said.flatten(1), slope.flatten(1)).mean()))
    assert cosines[0] < 0.8
    assert cosines[-1] > 0.95


@BALLS
def test_the_prior_learns(constraint: Constraint) -> None:
    learns_the_gradient(Bandits(tile=2, tau=0.05, zeta=1.0), constraint)
    with pytest.raises(AssertionError):
        learns_the_gradient(Bandits(tile=1, tau=0.05, zeta=1.0), constraint)


def test_a_flat_model_teaches_nothing() -> None:
    """Updates of 0 leave the prior where it was, and the image too."""
    target = RecordingTarget(Constant(3), num_classes=3)
    images, labels = torch.rand(2, 1, 3, 3, generator=generator(0)), torch.tensor([0, 0])
    result = poise.attack(target, Margin(stop=False), Bandits(), Linf(0.1), images, labels, budget=20)
    assert torch.equal(result.images, images)


def test_a_pair_beyond_the_budget_teaches_nothing() -> None:
    clean = torch.full((1, 1, 3, 3), 0.5)
    prior = prior_of(Bandits(), clean)
    learn(prior, clean, lambda x: torch.tensor([1.0, torch.inf]))
    assert prior.sums.abs().max() == 0


# --- settings ---


def test_published_settings() -> None:
    """Spec 18's table. Its tau is the released code's, which multiplies by zeta once more."""
    assert RATES[Linf].share * 0.05 == pytest.approx(0.01)
    assert RATES[L2].share * 5 == pytest.approx(0.5)
    rows = {
        Bandits.aaa(): (0.1, 0.01, 0.01, 50, 1.0),
        Bandits.official_linf(): (0.1, 0.01, 100, 50, 1.0),
        Bandits.official_l2(): (0.01, 0.5, 0.1, 50, 0.01),
        Bandits.signhunter(): (2.55 / 255, 5 / 255, 1e-4, 20, 0.1),
    }
    for search, (probe, step, tau, tile, zeta) in rows.items():
        assert (search.probe, search.step, search.tile, search.zeta) == (probe, step, tile, zeta)
        assert search.tau == pytest.approx(tau * zeta)


@pytest.mark.parametrize("constraint", [Linf(0.05), L2(5.0)], ids=repr)
def test_nothing_given_is_the_released_codes_setting(constraint: Constraint) -> None:
    """But for tau in the linf ball."""
    slower = dataclasses.replace(Bandits.official_linf(), tau=Bandits.aaa().tau)
    official = slower if isinstance(constraint, Linf) else Bandits.official_l2()
    case = linear_case(2, shape=(1, 60, 55))
    points = []
    for search in (Bandits(), official):
        target = case.target()
        drive(case, CrossEntropy(stop=False), search, constraint, target=target, budget=10)
        points.append(torch.cat([x for _, x, _, _ in target.log]))
    torch.testing.assert_close(points[0], points[1], rtol=0, atol=1e-12)


# --- as a source, and in company ---


def test_goals_that_keep_the_label() -> None:
    target = RecordingTarget(SmallCNN(), num_classes=4)
    images = torch.rand(6, 1, 8, 8, generator=generator(5))
    labels = target.query(images, torch.arange(6)).scores.argmax(dim=1)
    table = poise.attack(target, KeepLabel(UCA(tol=0)), Bandits(), Linf(0.1), images, labels, budget=200).table
    assert table["prediction_after"].to_list() == labels.tolist()
    assert (table["loss_after"] < table["loss_before"]).sum() >= 5


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 7, 8, 31])
@pytest.mark.parametrize("search", [Bandits(), PGD(source=Bandits())], ids=["Bandits", "PGD"])
def test_the_ledger_is_what_the_model_saw(search: Search, budget: int) -> None:
    case = linear_case(4)
    target = case.target()
    table = poise.attack(
        target, Margin(stop=False), search, Linf(0.1), case.images, case.labels, case.ids, budget=budget
    ).table
    assert table["queries"].to_list() == target.counted(case.ids, gradients=False)
    assert target.module.passes == {"forward": table["queries"].sum(), "backward": 0}
    assert bool((table["queries"] <= budget).all())
    if isinstance(search, Bandits):
        assert table["queries"].to_list() == [budget if budget >= 4 else 1] * 4


def test_towards_every_class_at_once() -> None:
    """Every aim has a prior of its own; all share one budget."""
    case = linear_case(3, classes=4)
    search = EveryClass(PGD(steps=4, step=0.05, undo=False, source=Bandits()))
    for budget in (2, 17, 31, 1000):
        target = case.target()
        run = drive(case, MaxConfidence(), search, Linf(0.1), budget=budget, target=target)
        assert run.meter.queries.tolist() == target.counted(case.ids, gradients=False)
        assert int(run.meter.queries.max()) <= budget
    assert run.meter.queries.tolist() == [1 + 3 * (1 + 4 * 3)] * 3


def test_several_points_of_one_sample_add_to_one_prior() -> None:
    clean = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    both, one = prior_of(Bandits(tau=0.1), clean), prior_of(Bandits(tau=0.1), clean)

    def answer(x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=x.dtype)

    learn(one, clean, answer)
    steps = both.slope(Ask(clean.repeat(2, 1, 1, 1), torch.tensor([0, 0]), repeats=2), 0, 1)
    ask = next(steps)
    assert ask.repeats == 4
    with pytest.raises(StopIteration):
        steps.send(Reply(answer(ask.x), torch.ones(4).bool(), torch.ones(1).bool()))
    torch.testing.assert_close(both.sums, 2 * one.sums, rtol=1e-12, atol=0)


def test_batches_change_nothing() -> None:
    case = linear_case(5)
    whole, single = (
        poise.attack(case.target(batch_size=size), Margin(), Bandits(), L2(0.4), case.images, case.labels, case.ids, 40)
        for size in (256, 1)
    )
    assert torch.equal(whole.images, single.images)
    assert whole.table["queries"].to_list() == single.table["queries"].to_list()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bandits(tile=0), "Bandits: tile must be at least 1, got 0"),
        (lambda: Bandits(tau=0.0), "Bandits: tau must be a positive number, got 0.0"),
        (lambda: Bandits(zeta=-1.0), "Bandits: zeta must be a positive number, got -1.0"),
        (
            lambda: next(Bandits().run(problem(torch.zeros(1, 1, 2, 2), Anywhere()))),
            r"Bandits: the constraint must be Linf or L2, got Anywhere\(\)",
        ),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
