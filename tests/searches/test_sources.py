"""Gradient sources: the mean of several answers, what it costs, and budgets that end among the copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError
from poise.objectives import OCA, KeepLabel, Margin
from poise.searches import EOT, PGD, AdaptivePGD, Ask, Autograd, Problem, Reply, Search, Source
from poise.searches.base import Steps
from poise.types import Access, AttackResult
from toys import Case, RecordingTarget, Transcript, by_hand, generator, linear_case, problem, same_ask

CLEAN = torch.rand(3, 1, 2, 2, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize(
    "search",
    [
        PGD(steps=4, source=EOT(3)),
        PGD(steps=3, random_start=True, undo=False, source=EOT(4)),
        AdaptivePGD(steps=4, source=EOT(2), random_start=True),
        PGD(steps=2, source=Autograd()),
    ],
    ids=repr,
)
def test_contract(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)
    assert search.access is Access.GRADIENTS


# --- the mean, by hand ---


@dataclass
class Asker:
    """A search that asks for the clean points and then for given rows, and keeps what it is told."""

    first_grad: bool
    asks: tuple[Ask, ...]
    access: Access = Access.GRADIENTS

    def __post_init__(self) -> None:
        self.told: list[Reply] = []

    def run(self, problem_: Problem) -> Steps:
        self.told.append((yield Ask(problem_.clean, problem_.everyone, grad=self.first_grad)))
        for ask in self.asks:
            self.told.append((yield ask))


def noisy(ask: Ask, number: int, *, active: tuple[bool, ...] = (True, True, True), affordable: int = 99) -> Reply:
    """Point i of ask n: loss 10 n + i, gradient full of it, accepted where i is not a multiple of 3; the copies of a
    sample beyond `affordable` were not answered."""
    count = len(ask.ids)
    position = torch.arange(count, dtype=torch.float64)
    loss = 10.0 * number + position
    rank = torch.stack([(ask.ids[:i] == ask.ids[i]).sum() for i in range(count)]) if count else position
    unasked = rank >= affordable
    grad = loss.view(-1, 1, 1, 1).expand_as(ask.x).clone() if ask.grad else None
    if grad is not None:
        grad[unasked] = 0
    accept = (torch.arange(count) % 3 != 0) & ~unasked
    return Reply(loss.masked_fill(unasked, torch.inf), accept, torch.tensor(active), grad)


def through(source: Source, asker: Asker, answer: Callable[[Ask, int], Reply] = noisy) -> Transcript:
    given = problem(CLEAN)
    return by_hand(source.through(asker.run(given), given), answer)


def point(*rows: int, grad: bool = True, **rest: object) -> Ask:
    ids = torch.tensor(rows, dtype=torch.long)
    return Ask(CLEAN[ids] + 0.01, ids, grad=grad, **rest)


def tells_the_mean(source: Source) -> None:
    """Two points in three copies each: losses 20 + (0 1 2) and 20 + (3 4 5) become 21 and 24."""
    asker = Asker(False, (point(2, 0), point(1)))
    told = through(source, asker)
    copied = told.asks[1]
    assert copied.ids.tolist() == [2, 2, 2, 0, 0, 0]
    assert copied.repeats == 3
    assert torch.equal(copied.x, (CLEAN + 0.01)[[2, 2, 2, 0, 0, 0]])
    first, second = asker.told[1], asker.told[2]
    assert first.loss.tolist() == [11, 14]
    assert first.grad.shape == (2, 1, 2, 2)
    torch.testing.assert_close(first.grad, torch.tensor([11.0, 14.0]).double().view(-1, 1, 1, 1).expand(2, 1, 2, 2))
    assert first.accept.tolist() == [True, True]  # two of three copies are
    assert second.loss.tolist() == [21]


def the_first_gradient_is_a_mean_too(source: Source) -> None:
    """The clean points are asked once without a gradient (they define the prediction), then like all others."""
    asker = Asker(True, ())
    told = through(source, asker)
    assert [ask.grad for ask in told.asks] == [False, True]
    assert torch.equal(told.asks[0].x, CLEAN)
    assert told.asks[0].ids.tolist() == [0, 1, 2]
    assert told.asks[1].ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert asker.told[0].loss.tolist() == [11, 14, 17]
    assert asker.told[0].grad[:, 0, 0, 0].tolist() == pytest.approx([11, 14, 17])


def unanswered_copies_do_not_count(source: Source) -> None:
    """Two copies of three within the budget: the mean of two. None of them: an infinite loss, gradient 0."""
    for affordable, losses, accept in ((2, [10.5, 13.5], [False, False]), (0, [torch.inf] * 2, [False, False])):
        asker = Asker(False, (point(2, 0),))
        through(
            source, asker, lambda ask, number, left=affordable: noisy(ask, number, affordable=left if number else 99)
        )
        assert asker.told[1].loss.tolist() == losses
        assert asker.told[1].accept.tolist() == accept
        expected = [0.0, 0.0] if affordable == 0 else losses
        assert asker.told[1].grad[:, 0, 0, 0].tolist() == pytest.approx(expected)
        assert bool(torch.isfinite(asker.told[1].grad).all())


CHECKS = [tells_the_mean, the_first_gradient_is_a_mean_too, unanswered_copies_do_not_count]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_mean(check: Callable[[Source], None]) -> None:
    check(EOT(3))


@dataclass(frozen=True)
class FirstCopy(EOT):
    """Broken twin: asks for all copies and believes the first."""

    def _mean(self, many: Reply) -> Reply:
        rows = slice(None, None, self.samples)
        return Reply(many.loss[rows], many.accept[rows], many.active, many.grad[rows])


@dataclass(frozen=True)
class CountsAll(EOT):
    """Broken twin: copies that were not answered pull the mean to zero."""

    def _mean(self, many: Reply) -> Reply:
        told = super()._mean(many)
        mean = many.grad.view(-1, self.samples, *many.grad.shape[1:]).mean(dim=1)
        return dataclasses.replace(told, grad=mean)


@dataclass(frozen=True)
class TrustsTheFirst(EOT):
    """Broken twin: the gradient at the clean points is a single draw."""

    def through(self, steps: Steps, problem: Problem) -> Steps:
        ask = next(steps)
        reply = yield ask
        while True:
            try:
                ask = steps.send(reply)
            except StopIteration:
                return
            reply = (yield from self._ask(ask)) if ask.grad else (yield ask)


@pytest.mark.parametrize(
    ("check", "twin"),
    [
        (tells_the_mean, FirstCopy(3)),
        (tells_the_mean, EOT(2)),
        (the_first_gradient_is_a_mean_too, TrustsTheFirst(3)),
        (unanswered_copies_do_not_count, CountsAll(3)),
    ],
)
def test_broken_sources_are_noticed(check: Callable[[Source], None], twin: Source) -> None:
    with pytest.raises(AssertionError):
        check(twin)


def test_what_an_ask_says_of_its_points_is_said_of_every_copy() -> None:
    asker = Asker(
        False,
        (
            point(2, 0, aim=torch.tensor([1.0, 2.0]), step=torch.tensor([0.1, 0.2]), probe=True),
            point(1, step=0.5),
            point(1, grad=False),
            Ask(CLEAN[:0], torch.arange(0), grad=True),
        ),
    )
    told = through(EOT(2), asker)
    assert told.asks[1].aim.tolist() == [1, 1, 2, 2]
    assert told.asks[1].step.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert told.asks[1].probe
    assert told.asks[2].step == 0.5
    assert same_ask(told.asks[3], asker.asks[2])  # without a gradient: asked as it is
    assert same_ask(told.asks[4], asker.asks[3])  # nothing to copy


def test_finished_samples_have_no_copies_of_their_clean_image() -> None:
    asker = Asker(True, ())
    told = through(EOT(2), asker, lambda ask, number: noisy(ask, number, active=(False, True, False)))
    assert told.asks[1].ids.tolist() == [1, 1]
    assert asker.told[0].loss.tolist() == [0, 10.5, 2]
    assert asker.told[0].grad[:, 0, 0, 0].tolist() == [0, 10.5, 0]
    nobody = through(EOT(2), Asker(True, ()), lambda ask, number: noisy(ask, number, active=(False,) * 3))
    assert len(nobody.asks) == 1


def test_autograd_passes_everything_on() -> None:
    asker = Asker(True, (point(2, 0),))
    told = through(Autograd(), asker)
    assert same_ask(told.asks[1], asker.asks[0])
    assert asker.told[1] is told.replies[1]


# --- deterministic models ---


def attacked(search: Search, constraint: Constraint, case: Case, **settings: object) -> AttackResult:
    target = settings.pop("target", None) or case.target()
    goal = settings.pop("goal", KeepLabel(OCA(tol=0)))
    return poise.attack(target, goal, search, constraint, case.images, case.labels, case.ids, **settings)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("kind", [PGD, AdaptivePGD])
def test_without_randomness_nothing_changes_but_the_price(
    kind: type, random_start: bool, constraint: Constraint
) -> None:
    """Five answers instead of one to every gradient; the last point and the clean image's own answer come once."""
    case = linear_case(4, classes=4)
    plain = attacked(kind(steps=6, random_start=random_start), constraint, case)
    mean = attacked(kind(steps=6, random_start=random_start, source=EOT(5)), constraint, case)
    torch.testing.assert_close(mean.images, plain.images, rtol=0, atol=1e-9)
    gradients = plain.table["gradients"].to_list()
    assert mean.table["gradients"].to_list() == [5 * count for count in gradients]
    once = [query - slope for query, slope in zip(plain.table["queries"], gradients, strict=True)]
    assert mean.table["queries"].to_list() == [1 + 5 * g + o for g, o in zip(gradients, once, strict=True)]


@pytest.mark.parametrize("budget", range(1, 34))
def test_a_budget_ends_among_the_copies(budget: int) -> None:
    """Exactly as many queries as are allowed, and the best of what was answered."""
    case = linear_case(3, classes=4)
    target = case.target()
    result = attacked(PGD(steps=6, source=EOT(5)), Linf(0.1), case, budget=budget, target=target)
    assert (
        result.table["queries"].to_list() == [min(budget, 1 + 30 + 1)] * 3 == target.counted(case.ids, gradients=False)
    )
    assert result.table["gradients"].to_list() == [min(max(budget - 1, 0), 30)] * 3
    assert (result.table["loss_after"] <= result.table["loss_before"]).all()


# --- random models ---


class Trembling(nn.Module):
    """z = W x + tremor * (T x) with a fresh matrix T for every point: the mean gradient is that of W."""

    def __init__(self, case: Case, tremor: float) -> None:
        super().__init__()
        self.still, self.tremor = case.module(), tremor

    def forward(self, x: Tensor) -> Tensor:
        matrix = torch.randn(len(x), len(self.still.bias), x[0].numel(), dtype=x.dtype) * self.tremor
        return self.still(x) + (matrix @ (x - 0.5).flatten(1)[:, :, None])[:, :, 0]


def margins_after(source: Source, seed: int) -> Tensor:
    """True margins of the points where PGD ends, on a model whose single gradients are mostly noise."""
    case = linear_case(10, shape=(1, 6, 6), seed=1)
    images, labels = case.images * 0.5 + 0.25, case.module()(case.images * 0.5 + 0.25).argmax(dim=1)
    target = RecordingTarget(Trembling(case, 1.5), num_classes=3)
    search = PGD(steps=2, step=0.03, undo=False, source=source)
    poise.attack(target, Margin(stop=False), search, Linf(0.1), images, labels, case.ids, seed=seed)
    z = case.module()(target.log[-1][1]).detach()
    return z.gather(1, labels[:, None])[:, 0] - z.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def averaging_helps(source: Source) -> None:
    plain, mean = (torch.stack([margins_after(s, seed) for seed in range(4)]).mean() for s in (Autograd(), source))
    assert mean < plain - 0.15


def test_averaging_helps_on_a_random_model() -> None:
    averaging_helps(EOT(40))
    for twin in (FirstCopy(40), EOT(1)):
        with pytest.raises(AssertionError):
            averaging_helps(twin)


def test_copies_differ_and_each_may_become_the_result() -> None:
    case = linear_case(3)
    target = RecordingTarget(Trembling(case, 1.0), num_classes=3)
    result = attacked(PGD(steps=3, source=EOT(6)), Linf(0.1), case, target=target, goal=Margin(stop=False))
    lowest = []
    for row, name in enumerate(case.ids):
        scores = torch.cat([answer[ids == name] for ids, _, answer, _ in target.log])
        own = scores[:, case.labels[row]]
        others = scores.clone()
        others[:, case.labels[row]] = -torch.inf
        lowest.append((own - others.amax(dim=1)).min().item())
        assert len(scores.unique(dim=0)) == len(scores)
    assert result.table["loss_after"].to_list() == pytest.approx(lowest)


@pytest.mark.parametrize("samples", [0, -1])
def test_refusals(samples: int) -> None:
    with pytest.raises(InputError, match=f"EOT: samples must be at least 1, got {samples}"):
        EOT(samples)
