"""RamBo: each stage and all three against loops from the text, the known distance, when a stage ends, its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import poise
from decision_cases import (
    Loop,
    Spent,
    asked,
    compared,
    hop_skip_jump,
    length_of,
    nearest_wrong,
    shortest,
    walked,
)
from poise.checks.searches import check_search
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError
from poise.objectives import Misclassify
from poise.searches import Problem
from poise.searches.base import Steps
from poise.searches.decision import BlockDescent, HopSkipJump, RamBo, SignOPT, Slow
from poise.searches.decision.decisions import Decisions
from poise.searches.decision.norms import Euclidean
from poise.types import Access
from toys import Case, RecordingTarget, binary_case, linear_case

# --- loops from the text ---


def block_descent(loop: Loop, x: np.ndarray, stage: BlockDescent, *, overlook: bool = False) -> np.ndarray:
    """One patch move at a time; asked only where it comes nearer, kept only where it is wrong."""
    shape = loop.case.images.shape[1:]
    x0, d, w = loop.x0.reshape(shape), loop.x0.size, stage.half_width
    x = x.reshape(shape)
    step, turn, idle, queries, total, before = np.percentile(abs(x - x0), stage.percentile), 0, 0, 0, 0.0, np.inf
    while idle < 3:
        order = loop.rng.bits("block-order", turn, torch.tensor([loop.row]), (d,))[0].argsort().tolist()
        asked_before = queries
        for first in range(0, d, stage.blocks):
            moved = x.copy()
            for n in order[first : first + stage.blocks]:
                channel, row, column = np.unravel_index(n, shape)
                patch = channel, slice(max(row - w, 0), row + w + 1), slice(max(column - w, 0), column + w + 1)
                moved[patch] = np.clip(x[patch] + step * np.sign(x0[patch] - x[patch]), 0, 1)
            if not overlook and length_of(moved - x0) >= length_of(x - x0):
                continue
            queries += 1
            x = moved if loop.wrong(moved.ravel()) else x
            total += length_of(x - x0)
            if queries % stage.slow.queries == 0:
                mean = total / stage.slow.queries
                if before - mean < stage.slow.gain:
                    return x.ravel()
                before, total = mean, 0.0
        step, turn, idle = step / stage.shrink, turn + 1, idle + 1 if queries == asked_before else 0
    return x.ravel()


def sign_opt(loop: Loop, x: np.ndarray, stage: SignOPT, *, longer: float = 2.0) -> None:
    """Cheng et al., Alg. 1 and 2, with every direction's distance measured where it is nearer than the best so far."""
    x0 = loop.x0
    g, theta = length_of(x - x0), (x - x0) / length_of(x - x0)
    alpha, beta = stage.alpha, stage.beta

    def at(direction: np.ndarray, t: float) -> np.ndarray:
        return np.clip(x0 + t * direction, 0, 1)

    def measure(direction: np.ndarray, high: float) -> float:
        if not loop.wrong(at(direction, high)):
            return np.inf
        low = 0.99 * high
        while loop.wrong(at(direction, low)):
            high, low = low, 0.99 * low
        while high - low > beta / 500:
            middle = (high + low) / 2
            low, high = (low, middle) if loop.wrong(at(direction, middle)) else (middle, high)
        return high

    def turned(slope: np.ndarray) -> np.ndarray:
        direction = theta - alpha * slope
        return direction / length_of(direction)

    for step in range(10**6):
        u = loop.draw("normal", "sign-probes", step * stage.probes, stage.probes)
        u = u / np.sqrt((u**2).sum(axis=1, keepdims=True))
        probes = [theta + beta * one for one in u]
        sign = [-1.0 if loop.wrong(at(one / length_of(one), g)) else 1.0 for one in probes]
        slope = (np.array(sign)[:, None] * u).mean(axis=0)
        best, best_theta = g, theta
        for _ in range(15):
            direction = turned(slope)
            found, alpha = measure(direction, best), alpha * longer
            if found >= best:
                break
            best, best_theta = found, direction
        if best >= g:
            for _ in range(15):
                alpha /= 4
                direction = turned(slope)
                found = measure(direction, best)
                if found < best:
                    best, best_theta = found, direction
                    break
        theta, g = best_theta, best
        if alpha < 1e-4:
            alpha, beta = 1.0, beta / 10
            if beta < 1e-8:
                return


@dataclass(frozen=True)
class Only:
    """One stage alone, from the blended start."""

    access: ClassVar[Access] = Access.LABELS
    stage: BlockDescent | SignOPT

    def run(self, problem: Problem) -> Steps:
        decisions = Decisions(problem, "test")
        ids = yield from decisions.begin()
        ids, x = yield from decisions.start(ids, 100)
        yield from self.stage.descend(Euclidean(decisions, L2(0.0)), ids, x)


BLOCKS = [
    BlockDescent(),
    BlockDescent(percentile=50, blocks=4, shrink=2.0, slow=Slow(1e-3, 40)),
    BlockDescent(half_width=0, slow=Slow(0.0, 30)),
]
SIGNS = [SignOPT(), SignOPT(probes=20, alpha=1.0, beta=0.01)]


@pytest.mark.parametrize("stage", BLOCKS, ids=repr)
def test_blocks_are_those_of_a_loop_written_from_the_text(stage: BlockDescent) -> None:
    case = linear_case(4, shape=(2, 5, 4))
    target, _ = walked(case, Only(stage), "l2", 300)
    assert compared(case, target, 300, lambda loop: block_descent(loop, loop.start(), stage), 1e-9) >= 2


@pytest.mark.parametrize("stage", SIGNS, ids=repr)
def test_signs_are_those_of_a_loop_written_from_the_text(stage: SignOPT) -> None:
    case = linear_case(4, shape=(1, 4, 4))
    target, _ = walked(case, Only(stage), "l2", 900)
    assert compared(case, target, 900, lambda loop: sign_opt(loop, loop.start(), stage), 1e-9) >= 2


@pytest.mark.parametrize(
    "twin",
    [
        (BlockDescent(), lambda loop: block_descent(loop, loop.start(), BlockDescent(), overlook=True)),
        (BlockDescent(), lambda loop: block_descent(loop, loop.start(), BlockDescent(shrink=1.3))),
        (BlockDescent(), lambda loop: block_descent(loop, loop.start(), BlockDescent(half_width=2))),
        (BlockDescent(slow=Slow(0.5, 60)), lambda loop: block_descent(loop, loop.start(), BlockDescent())),
        (SignOPT(20), lambda loop: sign_opt(loop, loop.start(), SignOPT(20), longer=1.9)),
        (SignOPT(20), lambda loop: sign_opt(loop, loop.start(), SignOPT(20, beta=2e-3))),
    ],
)
def test_another_stage_is_noticed(twin: tuple[BlockDescent | SignOPT, Callable[[Loop], None]]) -> None:
    case = linear_case(1, shape=(2, 5, 4))
    target, _ = walked(case, Only(twin[0]), "l2", 250)
    with pytest.raises(AssertionError):
        compared(case, target, 250, twin[1], 1e-9)


def all_three(loop: Loop, search: RamBo) -> None:
    slow = search.slow.gain, search.slow.queries
    x = hop_skip_jump(loop, probes=search.hops.probes, slow=slow)
    sign_opt(loop, block_descent(loop, x, search.blocks), search.signs)


QUICK = RamBo(
    hops=HopSkipJump(probes=20),
    slow=Slow(0.01, 30),
    blocks=BlockDescent(slow=Slow(0.02, 40)),
    signs=SignOPT(probes=30),
)
"""Whose stages all come to their turn within a few hundred queries, at different times for different samples."""


def test_all_points_are_those_of_the_three_stages_in_turn() -> None:
    case = linear_case(6, shape=(1, 4, 4))
    target, _ = walked(case, QUICK, "l2", 900)
    assert compared(case, target, 900, lambda loop: all_three(loop, QUICK), 1e-9) >= 3
    assert len(stage_ends(QUICK, case, target)) > 1


def stage_ends(search: RamBo, case: Case, target: RecordingTarget) -> set[int]:
    """How many queries the samples had made when they left their first stage."""
    ends = set()
    for row in range(len(case.images)):
        loop = Loop(case, row, len(asked(target, case, row)))
        try:
            if not loop.wrong(loop.x0):
                hop_skip_jump(loop, probes=search.hops.probes, slow=(search.slow.gain, search.slow.queries))
                ends.add(len(loop.asked))
        except Spent:
            pass
    return ends


@pytest.mark.parametrize("other", [Slow(0.0, 30), Slow(0.01, 90)], ids=repr)
def test_another_moment_is_noticed(other: Slow) -> None:
    case = linear_case(6, shape=(1, 4, 4))
    target, _ = walked(case, QUICK, "l2", 900)
    with pytest.raises(AssertionError):
        compared(case, target, 900, lambda loop: all_three(loop, replace(QUICK, slow=other)), 1e-9)


# --- what it comes to ---


def test_the_walk_comes_near_the_known_distance() -> None:
    case = binary_case(4)
    target, run = walked(case, QUICK, "l2", 2000)
    ratios = nearest_wrong(target, case, "l2") / shortest(case, "l2")
    assert float(ratios.min()) >= 1 - 1e-9
    assert float(ratios.max()) < 1.01
    hops, _ = walked(case, replace(QUICK.hops, iterations=None), "l2", 2000)
    assert float(nearest_wrong(hops, case, "l2").median()) > float(nearest_wrong(target, case, "l2").median())
    assert run.meter.queries.tolist() == [2000] * 4


@pytest.mark.parametrize("stage", [BLOCKS[0], SIGNS[1]], ids=repr)
def test_no_stage_moves_away(stage: BlockDescent | SignOPT) -> None:
    """Its last point, which the next stage begins with, is the nearest wrong one of all that it asked alone."""
    case = binary_case(3)
    last: dict[str, torch.Tensor] = {}

    @dataclass(frozen=True)
    class Kept(Only):
        def run(self, problem: Problem) -> Steps:
            decisions = Decisions(problem, "test")
            ids = yield from decisions.begin()
            ids, x = yield from decisions.start(ids, 100)
            last["first"] = (x - problem.clean[ids]).flatten(1).norm(dim=1)
            x = yield from self.stage.descend(Euclidean(decisions, L2(0.0)), ids, x)
            last["last"] = (x - problem.clean[ids]).flatten(1).norm(dim=1)

    target, _ = walked(case, Kept(stage), "l2", 400)
    torch.testing.assert_close(nearest_wrong(target, case, "l2"), last["last"], rtol=1e-9, atol=0)
    assert bool((last["last"] < last["first"]).all())


@pytest.mark.parametrize("ball", [L2, Linf])
def test_success_is_a_wrong_point_in_the_ball(ball: Callable[[float], Constraint]) -> None:
    """In the maximum norm too, though the walk is Euclidean."""
    case = binary_case(3)
    eps = (1.1 if ball is L2 else 2.2) * shortest(case, "l2" if ball is L2 else "linf")
    result = poise.attack(case.target(), Misclassify(), QUICK, ball(eps), case.images, case.labels, budget=900)
    assert (result.table["stop"] == "success").all()
    assert (result.table["prediction_after"] != result.table["label"]).all()
    assert bool(ball(eps).contains(result.images, case.images).all())


@pytest.mark.parametrize("search", [QUICK, RamBo.imagenet(), Only(BLOCKS[1]), Only(SIGNS[1])], ids=repr)
def test_contract(search: RamBo | Only) -> None:
    check_search(search, constraint=L2(0.4), budget=300)


def test_published_settings() -> None:
    """Spec 20: the table's two columns."""
    cifar, imagenet = RamBo(), RamBo.imagenet()
    assert (cifar.slow, imagenet.slow) == (Slow(1e-2, 500), Slow(1.0, 2000))
    assert cifar.blocks == BlockDescent(percentile=100, blocks=1, shrink=1.2, half_width=1, slow=Slow(1e-2, 500))
    assert imagenet.blocks == BlockDescent(percentile=50, blocks=16, shrink=2, half_width=1, slow=Slow(1e-1, 1000))
    assert cifar.signs == imagenet.signs == SignOPT(probes=200, alpha=0.2, beta=0.001)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Slow(-1.0, 5), "Slow: gain must be a number of at least 0, got -1.0"),
        (lambda: Slow(0.1, 0), "Slow: queries must be at least 1, got 0"),
        (lambda: BlockDescent(percentile=101), r"BlockDescent: percentile must be in \[0, 100\], got 101"),
        (lambda: BlockDescent(blocks=0), "BlockDescent: blocks must be at least 1, got 0"),
        (lambda: BlockDescent(shrink=1.0), "BlockDescent: shrink must be a number above 1, got 1.0"),
        (lambda: BlockDescent(half_width=-1), "BlockDescent: half_width must be at least 0, got -1"),
        (lambda: SignOPT(probes=0), "SignOPT: probes must be at least 1, got 0"),
        (lambda: SignOPT(alpha=0.0), "SignOPT: alpha must be a positive number, got 0.0"),
        (lambda: SignOPT(beta=float("inf")), "SignOPT: beta must be a positive number, got inf"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
