"""NES and SPSA: a loop written from the text, what an estimate estimates, what it costs, and where the budget ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError
from poise.objectives import UCA, ConfSmooth, CrossEntropy, KeepLabel, Margin, MaxConfidence, Objective
from poise.rng import Rng
from poise.searches import NES, PGD, SPSA, AdaptivePGD, Ask, Bandits, Cascade, EveryClass, Reply, Search, Square, Stage
from poise.searches import nes as module
from poise.searches.estimates import Estimator, differences
from poise.searches.nes import Antithetic
from poise.types import Access
from toys import Case, Constant, RecordingTarget, SmallCNN, by_hand, drive, generator, linear_case, problem, same_ask

BALLS = pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
Estimating = NES | SPSA


@BALLS
@pytest.mark.parametrize(
    "search",
    [
        NES(pairs=3),
        NES(pairs=12, step=None, undo=False),
        SPSA(pairs=2, probe=0.3),
        PGD(steps=4, source=NES(pairs=2)),
        PGD(steps=3, random_start=True, undo=False, source=SPSA(pairs=4)),
        AdaptivePGD(steps=4, source=NES(pairs=3), random_start=True),
    ],
    ids=repr,
)
def test_contract(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)
    assert search.access is Access.LABELS


# --- a loop from the text ---


def draw(search: Estimating, rng: Rng, number: int, row: int, pairs: int, shape: tuple[int, ...]) -> np.ndarray:
    """The directions of one sample's estimate: spec 17's N(0, I / d), SPSA's signs."""
    found = []
    for pair in range(number * search.pairs, number * search.pairs + pairs):
        if isinstance(search, NES):
            found.append(rng.normal("nes", pair, torch.tensor([row]), shape)[0].double() / math.sqrt(math.prod(shape)))
        else:
            found.append(torch.where(rng.signs("spsa", pair, torch.tensor([row]), shape)[0], 1.0, -1.0).double())
    return torch.stack(found).flatten(1).numpy()


def by_the_text(case: Case, row: int, search: Estimating, constraint: Constraint, budget: int) -> list[np.ndarray]:
    """All points of one sample of a linear softmax model under cross-entropy, in numpy, in order."""
    weight, bias = case.weight.flatten(1).numpy(), case.bias.numpy()
    x0, shape = case.images[row].flatten().numpy(), tuple(case.images.shape[1:])
    y, rng = int(case.labels[row]), Rng(0, case.ids)
    points = [x0]

    def asked(x: np.ndarray) -> float:
        """The loss: minus the cross-entropy."""
        points.append(x)
        z = weight @ x + bias
        return z[y] - z.max() - math.log(np.exp(z - z.max()).sum())

    def kept(x: np.ndarray) -> bool:
        return not search.undo or (weight @ x + bias).argmax() == (weight @ x0 + bias).argmax()

    x, g, number = x0, np.zeros_like(x0), 0
    while len(points) < budget:
        pairs = min(search.pairs, (budget - len(points) - 1) // 2)
        if pairs:
            g = np.zeros_like(x0)
            for u in draw(search, rng, number, row, pairs, shape):
                up = asked(np.clip(x + search.probe * u, 0, 1))
                down = asked(np.clip(x - search.probe * u, 0, 1))
                g += (up - down) / (2 * search.probe) * u
        elif number == 0:
            break
        number += 1
        if isinstance(constraint, Linf):
            change = np.clip(x - search.step * np.sign(g) - x0, -constraint.eps, constraint.eps)
        else:
            change = x - search.step * g / np.sqrt((g**2).sum()) - x0
            change *= min(1.0, constraint.eps / np.sqrt((change**2).sum()))
        asked(np.clip(x0 + change, 0, 1))
        if kept(points[-1]):
            x = points[-1]
    return points


def same_points(
    search: Estimating, constraint: Constraint, budget: int, *, used: Estimating | None = None, shape=(1, 5, 4)
) -> None:
    case = linear_case(4, shape=shape, classes=4)
    goal: Objective = KeepLabel(CrossEntropy(stop=False), 0.0) if search.undo else CrossEntropy(stop=False)
    target = case.target()
    drive(case, goal, search, constraint, target=target, budget=budget)
    for row in range(4):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = np.stack(by_the_text(case, row, used or search, constraint, budget))
        assert asked.shape[0] == len(expected)
        np.testing.assert_allclose(asked.flatten(1).numpy(), expected, rtol=0, atol=1e-9)


LOOPS = [
    NES(pairs=3, probe=0.2, step=0.04, undo=False),
    NES(pairs=12, probe=0.2, step=0.07),
    SPSA(pairs=3, probe=0.05, step=0.04, undo=False),
    SPSA(pairs=21, probe=0.05, step=0.07),
]


@BALLS
@pytest.mark.parametrize("search", LOOPS, ids=repr)
@pytest.mark.parametrize("budget", [1, 2, 3, 4, 7, 8, 9, 60])
def test_points_are_those_of_a_loop_written_from_the_text(
    search: Estimating, constraint: Constraint, budget: int
) -> None:
    """Each sample by itself, with probes that leave the box at its edge, steps refused, and every kind of remainder."""
    same_points(search, constraint, budget)


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 3, 7)])
def test_the_same_on_colour_and_on_wide_images(shape: tuple[int, int, int]) -> None:
    same_points(LOOPS[1], Linf(0.1), 60, shape=shape)


@pytest.mark.parametrize("used", [{"pairs": 4}, {"probe": 0.21}, {"step": 0.05}], ids=str)
def test_another_setting_is_noticed(used: dict[str, float]) -> None:
    for search in (LOOPS[0], LOOPS[2]):
        with pytest.raises(AssertionError):
            same_points(search, L2(0.4), 60, used=dataclasses.replace(search, **used))


def test_moving_on_where_a_step_is_refused_is_noticed() -> None:
    with pytest.raises(AssertionError):
        same_points(LOOPS[1], Linf(0.1), 60, used=dataclasses.replace(LOOPS[1], undo=False))


# --- what an estimate estimates ---


def slopes_of(estimator: Estimator, x: Tensor, answer: Callable[[Tensor], Tensor], pairs: int | None = None) -> Tensor:
    """Estimates at x (n, C, H, W), answered by a function of the points."""
    steps: Generator[Ask, Reply, tuple[Tensor, Tensor]] = estimator.slope(
        Ask(x, torch.arange(len(x))), 0, pairs or estimator.pairs
    )
    ask = next(steps)
    while True:
        loss = answer(ask.x)
        try:
            ask = steps.send(Reply(loss, torch.ones_like(loss, dtype=torch.bool), torch.ones(len(x)).bool()))
        except StopIteration as end:
            return end.value[0]


class OneSided(Antithetic):
    """Broken twin: the difference from the point itself, without the probe in the other sense."""

    def slope(self, ask: Ask, step: int, pairs: int) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        u = torch.stack([self._direction(ask, pair) for pair in range(pairs)], dim=1)
        points = (ask.x[:, None] + self.probe * u).flatten(0, 1)
        reply = yield Ask(points, ask.ids.repeat_interleave(pairs), probe=True, repeats=pairs)
        loss = reply.loss.view(-1, pairs, 1, 1, 1)
        return (loss * u).mean(dim=1) / self.probe, reply.active


class Halved(Antithetic):
    """Broken twin: divides by the number of probes instead of the number of pairs."""

    def slope(self, ask: Ask, step: int, pairs: int) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        slope, active = yield from super().slope(ask, step, pairs)
        return slope / 2, active


SLOPE = torch.randn(1, 2, 3, 4, generator=generator(3), dtype=torch.float64)


def linear(points: Tensor) -> Tensor:
    return (points * SLOPE).flatten(1).sum(dim=1)


def grey(n: int) -> Tensor:
    """Images whose probes stay in the box."""
    return torch.full((n, 2, 3, 4), 0.5, dtype=torch.float64)


def is_unbiased(make: Callable[..., Antithetic], search: Estimating) -> None:
    """2000 estimates: their mean is the gradient, entry by entry, within what the spread of the draws allows."""
    found = slopes_of(_remade(make, search, grey(2000)), grey(2000), linear)
    z = (found.mean(dim=0) - SLOPE[0]) / (found.std(dim=0) / math.sqrt(2000))
    assert stats.chi2.sf(float(z.square().sum()), z.numel()) > 1e-3
    spread = (SLOPE.square().sum() + SLOPE[0].square() * (1 if isinstance(search, NES) else -1)) / search.pairs
    torch.testing.assert_close(found.var(dim=0), spread, rtol=0.25, atol=0)


def cancels_a_constant(make: Callable[..., Antithetic], search: Estimating) -> None:
    for constant in (0.0, 1e6):
        flat = slopes_of(_remade(make, search, grey(5)), grey(5), lambda x, c=constant: torch.full((len(x),), c))
        assert flat.abs().max() == 0
    raised = slopes_of(_remade(make, search, grey(5)), grey(5), lambda x: linear(x) + 1e6)
    torch.testing.assert_close(raised, slopes_of(_remade(make, search, grey(5)), grey(5), linear), rtol=0, atol=1e-5)


def _remade(make: Callable[..., Antithetic], search: Estimating, x: Tensor) -> Antithetic:
    """The search's estimator as one of another kind."""
    usual = search.estimator(problem(x))
    return make(usual.problem, usual.pairs, usual.probe, usual.draw)


CHECKS = [is_unbiased, cancels_a_constant]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("search", [NES(pairs=4), SPSA(pairs=4), NES(pairs=13)], ids=repr)
def test_estimate(check: Callable[..., None], search: Estimating) -> None:
    check(Antithetic, search)


@pytest.mark.parametrize(("check", "twin"), [(is_unbiased, Halved), (cancels_a_constant, OneSided)])
def test_broken_estimates_are_noticed(check: Callable[..., None], twin: type[Antithetic]) -> None:
    with pytest.raises(AssertionError):
        check(twin, NES(pairs=4))


def test_wrong_directions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform instead of normal: the gradient's direction is right, its length is not."""
    monkeypatch.setattr(module, "_gaussian", lambda rng, *rest: 2 * rng.uniform("nes", *rest) - 1)
    with pytest.raises(AssertionError):
        is_unbiased(Antithetic, NES(pairs=4))


@pytest.mark.parametrize("kind", [NES, SPSA])
def test_the_direction_becomes_the_gradients_with_more_pairs(kind: type[Estimating]) -> None:
    """E cos^2 is about q / (q + d) for a linear loss in d = 24 dimensions."""
    cosines = []
    for pairs in (1, 10, 100, 1000):
        found = slopes_of(kind(pairs=pairs).estimator(problem(grey(40))), grey(40), linear).flatten(1)
        cosines.append(float(torch.cosine_similarity(found, SLOPE.flatten(1)).mean()))
    assert cosines == sorted(cosines)
    assert cosines[1] > 0.4
    assert cosines[-1] > 0.985


def test_pairs_that_the_budget_cuts_do_not_count() -> None:
    """Of three pairs the second has one answer and the third none: the mean is the first pair's."""
    estimator = NES(pairs=3).estimator(problem(grey(2)))
    first = slopes_of(estimator, grey(2), linear, pairs=1)
    unanswered = torch.tensor([0, 0, 0, 1, 1, 1] * 2).bool()
    cut = slopes_of(estimator, grey(2), lambda x: linear(x).masked_fill(unanswered, torch.inf))
    assert torch.equal(cut, first)
    nothing = slopes_of(estimator, grey(2), lambda x: torch.full((len(x),), torch.inf))
    assert nothing.abs().max() == 0


@pytest.mark.parametrize(("at_once", "sizes"), [(256, [92]), (40, [40, 40, 12]), (10, [8] * 11 + [4]), (1, [4] * 23)])
def test_memory_is_bounded_and_changes_nothing(at_once: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate's 23 pairs for two samples in as many asks as it takes; no direction is drawn twice."""

    def run() -> list[Ask]:
        return by_hand(NES(pairs=23, probe=0.1).run(problem(grey(2))), answer).asks

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(linear(ask.x), torch.ones(len(ask.ids)).bool(), torch.full((2,), number == 0 or ask.probe))

    usual = run()
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    asks = run()
    assert [len(ask.ids) for ask in asks] == [2, *sizes, 2]
    assert [ask.repeats for ask in asks] == [1, *(size // 2 for size in sizes), 1]
    assert [ask.probe for ask in asks] == [False, *(True for _ in sizes), False]
    probes = torch.cat([ask.x[ask.ids == 0] for ask in asks[1:-1]]).flatten(1)
    assert len(probes.unique(dim=0)) == 46
    assert torch.equal(asks[-1].x, usual[-1].x)


# --- as a source ---


@BALLS
@pytest.mark.parametrize(
    "search", [NES(pairs=3, step=0.03), SPSA(pairs=4, step=0.03), Bandits(step=0.03, tau=1.0)], ids=repr
)
def test_as_pgds_source_it_asks_what_the_search_asks(search: Estimating | Bandits, constraint: Constraint) -> None:
    """The same points in the same order, up to PGD's last step."""
    case = linear_case(5)
    own, source = case.target(), case.target()
    goal = CrossEntropy(stop=False)
    drive(case, goal, search, constraint, target=own, budget=200)
    drive(case, goal, PGD(steps=9, step=0.03, source=search), constraint, target=source, budget=200)
    assert len(source.log) == 1 + 2 * 9
    for (ids, x, _, _), (other_ids, other_x, _, _) in zip(source.log, own.log, strict=False):
        assert torch.equal(ids, other_ids)
        assert torch.equal(x, other_x)


def test_many_pairs_replace_autograd() -> None:
    """On a linear model the estimated gradient leads where the true one does, without a backward pass."""
    case = linear_case(5)
    goal, ball = CrossEntropy(stop=False), L2(0.4)
    true = drive(case, goal, PGD(steps=5, step=0.1), ball, budget=3000)
    found = drive(case, goal, PGD(steps=5, step=0.1, source=NES(pairs=250)), ball, budget=3000)
    assert found.meter.gradients.tolist() == [0] * 5
    assert found.meter.queries.tolist() == [1 + 5 * 501] * 5
    gained = (found.clean_merit - found.best.merit) / (true.clean_merit - true.best.merit)
    assert bool((gained > 0.9).all())


def test_what_an_ask_follows_its_probes_follow() -> None:
    """`aim` and `repeats` go on to the probes; an ask without a gradient is passed on as it is."""
    clean = grey(3)
    aims, ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0, 2])
    plain = Ask(clean[:1], torch.tensor([1]))
    told: list[Reply] = []

    def steps() -> Generator[Ask, Reply, None]:
        told.append((yield Ask(clean, torch.arange(3))))
        told.append((yield Ask(clean[ids], ids, grad=True, repeats=2, aim=aims)))
        told.append((yield plain))

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(linear(ask.x), torch.ones(len(ask.ids)).bool(), torch.ones(3).bool())

    asks = by_hand(NES(pairs=2).through(steps(), problem(clean)), answer).asks
    assert [len(ask.ids) for ask in asks] == [3, 3, 12, 1]
    assert not any(ask.grad for ask in asks)
    assert asks[2].probe
    assert asks[2].repeats == 8
    assert asks[2].ids.tolist() == [2] * 4 + [0] * 4 + [2] * 4
    assert asks[2].aim.tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert same_ask(asks[3], plain)
    assert told[1].grad.shape == (3, 2, 3, 4)
    assert told[2].grad is None


def test_finished_samples_are_not_probed() -> None:
    told: list[Reply] = []

    def steps() -> Generator[Ask, Reply, None]:
        told.append((yield Ask(grey(3), torch.arange(3), grad=True)))

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(linear(ask.x), torch.ones(len(ask.ids)).bool(), torch.tensor([False, True, False]))

    asks = by_hand(NES(pairs=2).through(steps(), problem(grey(3))), answer).asks
    assert asks[1].ids.tolist() == [1, 1, 1, 1]
    assert told[0].grad.flatten(1).any(dim=1).tolist() == [False, True, False]


# --- in company ---


@pytest.mark.parametrize("goal", [UCA(tol=0), ConfSmooth()], ids=repr)
def test_goals_that_keep_the_label(goal: Objective) -> None:
    """On a network: no label changes, and the goal comes nearer wherever a step is accepted at all."""
    target = RecordingTarget(SmallCNN(), num_classes=4)
    images = torch.rand(6, 1, 8, 8, generator=generator(5))
    labels = target.query(images, torch.arange(6)).scores.argmax(dim=1)
    table = poise.attack(target, KeepLabel(goal), NES(step=0.02), Linf(0.1), images, labels, budget=207).table
    assert table["prediction_after"].to_list() == labels.tolist()
    assert (table["loss_after"] < table["loss_before"]).sum() >= 5


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 40])
@pytest.mark.parametrize(
    "search",
    [NES(pairs=3), SPSA(pairs=3), PGD(source=NES(pairs=3)), Cascade((Square(), NES(pairs=3)))],
    ids=["NES", "SPSA", "PGD", "Cascade"],
)
def test_the_ledger_is_what_the_model_saw(search: Search, budget: int) -> None:
    """Never more than the budget; all of it, but where it does not allow one pair and one step."""
    case = linear_case(4)
    target = case.target()
    table = poise.attack(
        target, Margin(stop=False), search, Linf(0.1), case.images, case.labels, case.ids, budget=budget
    ).table
    assert table["queries"].to_list() == target.counted(case.ids, gradients=False)
    assert target.module.passes == {"forward": table["queries"].sum(), "backward": 0}
    assert bool((table["queries"] <= budget).all())
    if isinstance(search, NES | SPSA):
        assert table["queries"].to_list() == [budget if budget >= 4 else 1] * 4


def test_after_another_search_with_little_left() -> None:
    """A cascade tells every member the whole budget: the probes that are not covered come back unasked."""
    case = linear_case(4)
    for budget in range(20, 30):
        search = Cascade((Stage(Square(), queries=15), NES(pairs=4)))
        run = drive(case, Margin(stop=False), search, Linf(0.1), budget=budget)
        assert run.meter.queries.tolist() == [budget] * 4


def test_towards_every_class_at_once() -> None:
    """Several rows of one sample, each with its own estimate, share one budget."""
    case = linear_case(3, classes=4)
    search = EveryClass(PGD(steps=4, step=0.05, undo=False, source=NES(pairs=2)))
    for budget in (2, 17, 61, 1000):
        target = case.target()
        run = drive(case, MaxConfidence(), search, Linf(0.1), budget=budget, target=target)
        assert run.meter.queries.tolist() == target.counted(case.ids, gradients=False)
        assert int(run.meter.queries.max()) <= budget
        assert budget < 1000 or run.meter.queries.tolist() == [1 + 3 * (1 + 4 * 5)] * 3
    assert bool((run.best.merit < run.clean_merit).all())


def test_batches_change_nothing() -> None:
    case = linear_case(5)
    whole, single = (
        poise.attack(
            case.target(batch_size=size), Margin(), NES(pairs=3), L2(0.4), case.images, case.labels, case.ids, 40
        )
        for size in (256, 1)
    )
    assert torch.equal(whole.images, single.images)
    assert whole.table["queries"].to_list() == single.table["queries"].to_list()


def test_a_flat_model_moves_nothing() -> None:
    target = RecordingTarget(Constant(3), num_classes=3)
    images, labels = torch.rand(2, 1, 3, 3, generator=generator(0)), torch.tensor([0, 0])
    result = poise.attack(target, Margin(stop=False), NES(pairs=2), Linf(0.1), images, labels, budget=20)
    assert torch.equal(result.images, images)


def test_probes_are_no_results() -> None:
    """A probe that succeeds ends nothing; the step after it may."""
    case = linear_case(6)
    target = case.target()
    run = drive(case, Margin(), NES(pairs=5, probe=3.0, step=None), Linf(0.3), budget=12, target=target)
    correct = target.log[0][2].argmax(dim=1) == case.labels
    assert set(run.queries_to_success[correct].tolist()) <= {12, -1}
    ids, _, scores, _ = target.log[1]
    labels = [scores[ids == name].argmax(dim=1) for name in case.ids]
    flipped = torch.tensor([bool((found != label).any()) for found, label in zip(labels, case.labels, strict=True)])
    assert int((flipped & correct).sum()) > 1


def test_differences_are_asked_within_the_box() -> None:
    """Pairs side by side, so that a budget cuts between them; outside pixels moved to the edge."""
    x = grey(2)
    probes = torch.stack([x + 1, x - 0.1], dim=1)[:, None]
    steps = differences(Ask(x, torch.arange(2)), probes, problem(x))
    ask = next(steps)
    assert ask.ids.tolist() == [0, 0, 1, 1]
    assert ask.x[:, 0, 0, 0].tolist() == pytest.approx([1.0, 0.4] * 2)
    with pytest.raises(StopIteration) as end:
        steps.send(Reply(torch.tensor([3.0, 1.0, torch.inf, 1.0]), torch.ones(4).bool(), torch.ones(2).bool()))
    difference, covered, active = end.value.value
    assert difference.tolist() == [[2.0], [0.0]]
    assert covered.tolist() == [1, 0]
    assert active.tolist() == [True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NES(pairs=0), "NES: pairs must be at least 1, got 0"),
        (lambda: NES(probe=0.0), "NES: probe must be a positive number, got 0.0"),
        (lambda: NES(step=float("inf")), "NES: step must be a positive number, got inf"),
        (lambda: SPSA(pairs=-1), "SPSA: pairs must be at least 1, got -1"),
        (lambda: SPSA(step=-0.1), "SPSA: step must be a positive number, got -0.1"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
