"""bi-Square and op-Square: their rules replayed by hand, and what they do to a margin that runs backwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import poise
from poise.checks.searches import CheckError, check_search
from poise.constraints import L2, Linf
from poise.defenses import AAA, stack
from poise.errors import InputError
from poise.objectives import Margin
from poise.searches import Ask, CrossingSquare, Reply, Square
from poise.searches.square import fraction
from poise.searches.squares import LinfSquares
from toys import Transcript, by_hand, generator, linear_case, problem


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("count_any_success", [True, False])
@pytest.mark.parametrize("direction", ["both", "up"])
def test_it_keeps_a_searchs_contract(direction: str, count_any_success: bool, constraint: object) -> None:
    check_search(CrossingSquare(direction, 0.05, count_any_success), constraint=constraint)
    check_search(CrossingSquare(direction, 0.05, count_any_success, start="clean"), constraint=constraint)


class DrawsByRow(CrossingSquare):
    """Draws by the row in the batch."""

    def run(self, problem_):
        own = problem(problem_.clean, problem_.constraint, budget=problem_.budget, ids=problem_.everyone)
        first = next(steps := CrossingSquare.run(self, own))
        reply = yield Ask(problem_.clean, first.ids)
        while True:
            try:
                reply = yield steps.send(reply)
            except StopIteration:
                return


def test_a_broken_twin_fails_the_contract() -> None:
    with pytest.raises(CheckError):
        check_search(DrawsByRow())


def noisy(clean: Tensor, size: float, most: int) -> Callable[[Ask, int], Reply]:
    """Losses that rise and fall by about `size`, a function of the point alone."""
    slope = size * torch.randn(clean.shape[1:], generator=generator(9), dtype=clean.dtype)

    def answer(ask: Ask, number: int) -> Reply:
        loss = (ask.x * slope).flatten(1).sum(dim=1) + 20
        return Reply(loss, torch.ones_like(loss, dtype=torch.bool), torch.full((len(clean),), number + 1 < most))

    return answer


def kept_points(told: Transcript, row: int, rule: str, crossing: float) -> list[tuple[Tensor, float]]:
    """Point and loss that the paper's rule holds after the start and after every proposal, from the losses alone."""
    held, upward = [(told.asks[1].x[row], float(told.replies[1].loss[row]))], rule == "up"
    for ask, reply in zip(told.asks[2:], told.replies[2:], strict=True):
        loss = float(reply.loss[row])
        change = loss - held[-1][1]
        take = change > 0 or change < -crossing if upward else change < 0
        upward = upward or (rule == "both" and change > crossing)
        held.append((ask.x[row], loss) if take else held[-1])
    return held


@pytest.mark.parametrize("size", [3.0, 40.0])
@pytest.mark.parametrize("direction", ["both", "up"])
def test_proposals_are_kept_by_the_papers_rule(direction: str, size: float) -> None:
    """Every proposal is Square's from the points that the rule holds, and not from those of another rule."""
    clean = torch.rand(3, 1, 12, 12, generator=generator(1), dtype=torch.float64)
    given = problem(clean, Linf(0.1), budget=200)
    told = by_hand(CrossingSquare(direction).run(given), noisy(clean, size, 120))
    squares = LinfSquares(given, inclusive=True)
    other = {"both": "up", "up": "both"}[direction]
    for rule, crossing, right in ((direction, 3.0, True), (other, 3.0, False), (direction, 1.0, False)):
        held = [kept_points(told, row, rule, crossing) for row in range(3)]
        same = [
            torch.equal(squares.propose(torch.stack(x), given.everyone, fraction(0.05, i, 198), i), ask.x)
            for i, ask in enumerate(told.asks[2:])
            for x in [[points[i][0] for points in held]]
        ]
        assert len(same) == 118
        assert all(same) is right


def test_bi_is_square_until_a_big_rise_was_seen() -> None:
    clean = torch.rand(3, 1, 8, 8, generator=generator(2), dtype=torch.float64)

    def asked(search: Square | CrossingSquare, size: float) -> list[Tensor]:
        return [ask.x for ask in by_hand(search.run(problem(clean, budget=90)), noisy(clean, size, 80)).asks]

    square = Square(start="stripes")
    assert all(map(torch.equal, asked(CrossingSquare(), 0.2), asked(square, 0.2)))
    assert all(map(torch.equal, asked(CrossingSquare(crossing=1e9), 60.0), asked(square, 60.0)))
    assert not all(map(torch.equal, asked(CrossingSquare(), 60.0), asked(square, 60.0)))


def test_op_never_keeps_a_small_fall() -> None:
    clean = torch.rand(2, 1, 8, 8, generator=generator(3), dtype=torch.float64)
    told = by_hand(CrossingSquare("up").run(problem(clean, budget=150)), noisy(clean, 0.5, 150))
    levels = [loss for _, loss in kept_points(told, 0, "up", 3.0)]
    assert levels == sorted(levels)
    assert levels[-1] > levels[0]


class Sawtooth(nn.Module):
    """Two classes; the label is lost only where the true margin, 40 times the brightness, is in (11, 12)."""

    def forward(self, x: Tensor) -> Tensor:
        true = 40 * x.flatten(1).mean(dim=1)
        margin = AAA(temperature=1.0).target(torch.stack([true, torch.zeros_like(true)], dim=1)).to(x.dtype) - 7
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


def rate(name: str, module: nn.Module, images: Tensor, *, eps: float, budget: int) -> float:
    target = poise.ModuleTarget(module, num_classes=module(images[:1]).shape[1])
    labels = module(images).argmax(dim=1).detach()
    table = poise.run_recipe(name, target, images, labels, eps=eps, budget=budget).table
    return float((table["prediction_after"] != table["label"]).mean())


def test_against_a_sawtooth_only_the_attacks_that_know_it_get_across() -> None:
    images = torch.full((12, 1, 6, 6), 0.425, dtype=torch.float64)  # true margin 17, shown as 13 - 7
    found = {
        name: rate(name, Sawtooth(), images, eps=0.25, budget=150) for name in ("square", "bi-square", "op-square")
    }
    assert found["square"] < 0.5
    assert found["op-square"] > found["square"]
    assert found["bi-square"] >= found["square"]


def linear() -> tuple[nn.Module, Tensor]:
    case = linear_case(20, shape=(1, 6, 6), classes=4, seed=3)
    return case.module(), case.images


def test_without_a_defence_op_finds_less_than_square() -> None:
    module, images = linear()
    assert rate("square", module, images, eps=0.3, budget=80) > rate("op-square", module, images, eps=0.3, budget=80)
    defended = stack(module, AAA(temperature=1.0))
    assert rate("square", defended, images, eps=0.3, budget=80) < rate("square", module, images, eps=0.3, budget=80)


def test_the_released_rule_counts_only_what_is_kept() -> None:
    """A flip by a small fall is a success for a real attacker, and none for the released op-Square."""
    module, images = linear()
    labels = module(images).argmax(dim=1)
    found = {}
    for direction in ("both", "up"):
        for any_success in (True, False):
            target = poise.ModuleTarget(module, num_classes=4)
            search = CrossingSquare(direction, 50.0, any_success, start="clean")
            result = poise.attack(target, Margin(), search, Linf(0.3), images, labels, budget=80)
            found[direction, any_success] = int((result.table["prediction_after"] != result.table["label"]).sum())
            assert int(result.table["queries"].max()) <= 80
    assert found["up", False] == 0
    assert found["up", True] > 0
    assert found["both", False] == pytest.approx(found["both", True], abs=1)  # Square keeps what flips, one query later
    assert found["both", False] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "down"}, "direction must be 'both' or 'up', got 'down'"),
        ({"crossing": 0.0}, "crossing must be above 0, got 0.0"),
        ({"p": 1.5}, r"p must be in \(0, 1\], got 1.5"),
        ({"start": "best"}, "start must be 'stripes' or 'clean', got 'best'"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CrossingSquare(**arguments)


def test_it_needs_a_ball() -> None:
    steps = CrossingSquare().run(problem(torch.rand(1, 1, 4, 4), poise.constraints.Anywhere()))
    with pytest.raises(InputError, match="CrossingSquare: the constraint must be Linf or L2"):
        next(steps)
