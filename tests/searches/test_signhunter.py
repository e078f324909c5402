"""SignHunter: its chunks, its properties, a loop over one sample written from the text, and goals that keep labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import poise
from numpy_goals import Loop, Oracle, agrees
from poise.checks.searches import check_search
from poise.constraints import L2, Anywhere, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import OCA, UCA, KeepLabel, Margin
from poise.searches import PGD, Ask, Reply, SignHunter
from poise.searches.signhunter import chunks
from poise.types import Access
from toys import Case, Transcript, binary_case, by_hand, drive, generator, linear_case, problem

WIDE = Box(-50.0, 50.0)


# --- chunks ---


@given(d=st.integers(1, 300))
def test_chunks_cover_the_vector_level_by_level(d: int) -> None:
    """Spec 15: length ceil(d / 2^h) at level h = 0..ceil(log2 d); a pass and its first point fit 2^(ceil(log2 d)+1)."""
    levels = math.ceil(math.log2(d))
    by_level: list[list[tuple[int, int]]] = []
    for start, stop in chunks(d):
        if start == 0:
            by_level.append([])
        by_level[-1].append((start, stop))
    assert len(by_level) == levels + 1
    for h, level in enumerate(by_level):
        assert [start for start, _ in level] == [0, *(stop for _, stop in level[:-1])]
        assert level[-1][1] == d
        assert {stop - start for start, stop in level[:-1]} <= {math.ceil(d / 2**h)}
        assert len(level) <= 2**h
    assert all(stop - start == 1 for start, stop in by_level[-1])
    assert 1 + sum(map(len, by_level)) <= 2 ** (levels + 1)


# --- a loop over one sample, from the text ---


def signhunter_loop(search: SignHunter, constraint: Constraint, *, ties: bool = True, zero: bool = True) -> Loop:
    """Spec 15, and zeros where a point would not do."""

    def loop(ask: Oracle, project: Callable[[np.ndarray], np.ndarray]) -> None:
        shape = ask.clean.shape
        d = ask.clean.size
        size = constraint.eps if isinstance(constraint, Linf) else constraint.eps / math.sqrt(d)

        def image(s: np.ndarray) -> np.ndarray:
            if search.order == "chw":
                return s.reshape(shape)
            return s.reshape(shape[1], shape[2], shape[0]).transpose(2, 0, 1)

        origin = ask.clean
        loss, _ = ask(origin)
        while True:
            s = np.zeros(d)
            sign_of_zero = np.ones(d)
            answer, accept = ask(project(origin + size * image(np.ones(d))))
            if accept or not zero:
                s, loss = np.ones(d), answer
            else:
                sign_of_zero = -sign_of_zero
            for h in range(math.ceil(math.log2(d)) + 1):
                length = math.ceil(d / 2**h)
                for i in range(2**h):
                    if i * length >= d:
                        break
                    chunk = slice(i * length, min((i + 1) * length, d))
                    flipped = s.copy()
                    flipped[chunk] = np.where(s[chunk] == 0, sign_of_zero[chunk], -s[chunk])
                    answer, accept = ask(project(origin + size * image(flipped)))
                    if accept and (answer < loss or (ties and answer == loss)):
                        s, loss = flipped, answer
                    sign_of_zero[chunk] *= -1
            origin = project(origin + size * image(s))

    return loop


@pytest.mark.parametrize("goal", ["margin", "margin, no stop", "uca", "oca"])
@pytest.mark.parametrize("constraint", [Linf(0.05), Linf(0.3), L2(0.2), L2(1.5)], ids=repr)
@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_agrees_with_a_loop_over_each_sample(order: str, constraint: Constraint, goal: str) -> None:
    """Same questions, same ledger, same result, through a second pass (18 values, at most 58 queries each)."""
    case = linear_case(4, shape=(2, 3, 3), seed=4)
    search = SignHunter(order=order)
    agrees(case, goal, search, constraint, signhunter_loop(search, constraint), budget=75)


@pytest.mark.parametrize("twin", [{"ties": False}, {"zero": False}])
def test_another_rule_is_noticed(twin: dict) -> None:
    """Broken twins: ties undone, on a model that does not look at the first channel; a start that flips labels kept."""
    case = linear_case(2, shape=(2, 4, 3))
    goal, constraint = ("margin, no stop", Linf(0.1)) if "ties" in twin else ("uca", Linf(0.3))
    case.weight[:, 0] = 0
    case.weight[1, 1] += 2  # all-ones leads to class 1
    case.bias[1] -= 12
    agrees(case, goal, SignHunter(), constraint, signhunter_loop(SignHunter(), constraint), budget=50)
    with pytest.raises(AssertionError):
        agrees(case, goal, SignHunter(), constraint, signhunter_loop(SignHunter(), constraint, **twin), budget=50)


# --- properties ---


@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize(("shape", "ball"), [((1, 4, 4), Linf(0.05)), ((3, 5, 2), Linf(0.02)), ((1, 3, 3), L2(0.3))])
def test_one_pass_is_fgsm_on_a_linear_model(order: str, shape: tuple[int, int, int], ball: Constraint) -> None:
    """P2: every sign is found within 2^(ceil(log2 d) + 1) queries after the clean one, and not with half of a pass."""
    case = binary_case(3, margin=3.0, shape=shape)
    goal, d = Margin(stop=False), math.prod(shape)
    pass_ = 1 + len(list(chunks(d)))
    assert pass_ <= 2 ** (math.ceil(math.log2(d)) + 1)
    found = drive(case, goal, SignHunter(order=order), ball, budget=1 + pass_).best
    early = drive(case, goal, SignHunter(order=order), ball, budget=1 + pass_ // 2).best
    signs = (case.weight[1] - case.weight[0]).sign() * torch.where(case.labels == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    if isinstance(ball, Linf):
        fgsm = drive(case, goal, PGD(steps=1, step=None, undo=False), ball).best
        assert torch.equal(found.x, fgsm.x)
        torch.testing.assert_close(found.merit, fgsm.merit, rtol=0, atol=1e-12)
    size = ball.eps if isinstance(ball, Linf) else ball.eps / math.sqrt(d)
    torch.testing.assert_close(found.x - case.images, size * signs, rtol=0, atol=1e-12)
    assert bool((early.merit > found.merit).all())


def answered(
    search: SignHunter, clean: Tensor, constraint: Constraint, loss: Callable[[Tensor], Tensor], asks: int
) -> Transcript:
    """All points accepted; nobody is active after so many asks."""

    def answer(ask: Ask, number: int) -> Reply:
        value = loss(ask.x)
        return Reply(value, torch.ones_like(value).bool(), torch.full((len(clean),), number + 1 < asks))

    return by_hand(search.run(problem(clean, constraint, box=WIDE)), answer)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
def test_every_point_of_the_first_pass_lies_on_the_surface(constraint: Constraint) -> None:
    """P1 and P3: |delta| = eps (linf: at every value; l2: eps / sqrt(d)) before clipping; the loss kept never rises."""
    clean = torch.rand(3, 2, 3, 4, generator=generator(0), dtype=torch.float64)
    slope = torch.randn(clean.shape, generator=generator(1), dtype=torch.float64)
    told = answered(SignHunter(), clean, constraint, lambda x: (x * slope).flatten(1).sum(dim=1).sin(), 50)
    size = 0.1 if isinstance(constraint, Linf) else 0.4 / math.sqrt(24)
    now = told.asks[1].x
    assert torch.equal(now > clean, torch.ones_like(now).bool())
    loss = told.replies[1].loss
    for ask, reply, (start, stop) in zip(told.asks[2:], told.replies[2:], chunks(24), strict=False):
        torch.testing.assert_close((ask.x - clean).abs(), torch.full_like(clean, size), rtol=0, atol=1e-12)
        moved = ((ask.x - now).abs() > size).permute(0, 2, 3, 1).flatten(1)  # rows, columns, channels
        assert moved.nonzero()[:, 1].unique().tolist() == list(range(start, stop))
        assert bool(moved[:, start:stop].all())
        kept = reply.loss <= loss
        now = torch.where(kept.view(-1, 1, 1, 1), ask.x, now)
        loss = torch.minimum(loss, reply.loss)


def test_chunks_are_stripes_of_rows_or_channels() -> None:
    """The second level's first half: the upper rows of all channels, or the first channel."""
    clean = torch.zeros(1, 2, 4, 3, dtype=torch.float64)
    changes = {}
    for order in ("hwc", "chw"):
        told = answered(SignHunter(order=order), clean, Linf(0.1), lambda x: torch.zeros(len(x)).double(), 4)
        changes[order] = told.asks[3].x[0] != told.asks[2].x[0]
    upper, first = torch.zeros(2, 4, 3).bool(), torch.zeros(2, 4, 3).bool()
    upper[:, :2], first[0] = True, True
    assert torch.equal(changes["hwc"], upper)
    assert torch.equal(changes["chw"], first)


def test_a_tie_keeps_the_flip() -> None:
    """On a constant model all signs end flipped once per level: 2 values, 2 levels, so at +1 again."""
    clean = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    told = answered(SignHunter(), clean, Linf(0.5), lambda x: torch.zeros(len(x)).double(), 7)
    points = [(2 * ask.x[0, 0, 0]).tolist() for ask in told.asks]
    assert points == [[0, 0], [1, 1], [-1, -1], [1, -1], [1, 1], [1, 1], [0, 0]]


def test_a_pass_begins_at_the_current_point_and_stays_in_the_ball() -> None:
    clean = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    slope = torch.tensor([1.0, -1.0]).double()
    told = answered(SignHunter(), clean, Linf(0.5), lambda x: x[:, 0, 0] @ slope, 8)
    assert (2 * told.asks[2].x[0, 0, 0]).tolist() == [-1, -1]
    assert (2 * told.asks[3].x[0, 0, 0]).tolist() == [1, -1]  # the first flip tied and was kept; this one is worse
    assert (2 * told.asks[4].x[0, 0, 0]).tolist() == [-1, 1]  # the optimum
    assert (2 * told.asks[5].x[0, 0, 0]).tolist() == [0, 1]  # all-ones from there: x_o + eps, cut to the ball
    assert (2 * told.asks[6].x[0, 0, 0]).tolist() == [-1, 0]
    assert all(bool((ask.x.abs() <= 0.5).all()) for ask in told.asks)


# --- goals that keep the label ---


def test_where_a_point_would_not_do_chunks_stay_at_zero_and_signs_take_turns() -> None:
    """Acceptance by script: nothing; then the first half at +1; then only single values."""
    clean = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    script = [True, False, False, True, False, False, False, True, False]

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(torch.zeros(1).double(), torch.tensor([script[number]]), torch.tensor([number < 8]))

    told = by_hand(SignHunter().run(problem(clean, Linf(1.0), box=WIDE)), answer)
    assert [ask.x[0, 0, 0].tolist() for ask in told.asks] == [
        [0, 0, 0, 0],
        [1, 1, 1, 1],  # refused
        [-1, -1, -1, -1],  # refused
        [1, 1, 0, 0],  # kept
        [1, 1, 1, 1],  # refused
        [-1, 1, 0, 0],  # refused: single values from here on
        [1, -1, 0, 0],  # refused
        [1, 1, -1, 0],  # kept: -1 after +1 failed
        [1, 1, -1, -1],
    ]


@pytest.mark.parametrize(("goal", "sign"), [(UCA(tol=0), -1), (OCA(tol=0), 1)])
def test_calibration_goals_reach_the_closed_form(goal: object, sign: int) -> None:
    """K = 2: the gap is tanh(m / 2) and 1 - p_k is sigmoid(-m), at m = z-margin -+ eps * ||w||_1 (spec 28.5)."""
    case = binary_case(4, margin=3.0, shape=(1, 5, 5))
    run = drive(case, KeepLabel(goal), SignHunter(), Linf(0.05), budget=65)
    m = 3.0 + sign * 0.05 * float((case.weight[1] - case.weight[0]).abs().sum())
    assert m > 0.3
    expected = math.tanh(m / 2) if sign < 0 else 1 / (1 + math.exp(m))
    np.testing.assert_allclose(run.best.merit.numpy(), expected, rtol=1e-9)


def test_a_start_that_flips_the_label_does_not_stop_the_search() -> None:
    """All-ones flips every label; the gap is closed all the same, and from accepted points alone."""
    case = binary_case(6, margin=0.5)
    weight = case.weight[1] - case.weight[0]
    weight = weight.abs() * torch.where(case.labels == 0, 1.0, -1.0)[0]
    case = Case(case.images[:1], case.labels[:1], case.ids[:1], torch.stack([-weight / 2, weight / 2]), case.bias)
    clean = float((case.images * weight).sum() + case.bias[1] - case.bias[0])
    case.bias[1] += (-0.5 if case.labels[0] == 0 else 0.5) - clean
    target = case.target()
    arguments = case.images, case.labels, case.ids, 65
    table = poise.attack(target, KeepLabel(UCA(tol=0)), SignHunter(), Linf(0.1), *arguments).table
    assert int(target.log[1][2].argmax()) != int(target.log[0][2].argmax())
    assert table["loss_before"][0] == pytest.approx(math.tanh(0.25))
    assert table["loss_after"][0] < 0.25 * table["loss_before"][0]


# --- shapes, company, contract ---


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (3, 9, 2), (2, 3, 35)])
@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_any_shape(shape: tuple[int, int, int], order: str) -> None:
    case = linear_case(1, shape=shape, dtype=torch.float32)
    target = case.target()
    goal, search = Margin(stop=False), SignHunter(order=order)
    result = poise.attack(target, goal, search, Linf(0.1), case.images, case.labels, case.ids, 20)
    assert result.table["queries"].to_list() == [20] == target.counted(case.ids, gradients=False)
    assert result.table["loss_after"][0] < result.table["loss_before"][0]
    assert result.images.dtype == torch.float32


def test_nobody_left_to_ask() -> None:
    clean = torch.rand(2, 1, 3, 3, generator=generator(0), dtype=torch.float64)
    told = answered(SignHunter(), clean, Linf(0.1), lambda x: torch.zeros(len(x)).double(), 1)
    assert len(told.asks) == 1


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("goal", [Margin(), KeepLabel(UCA())], ids=["margin", "uca"])
def test_results_do_not_depend_on_the_company(batch_size: int, goal: object) -> None:
    case = linear_case(6, shape=(2, 4, 5))

    def images(size: int, rows: slice) -> Tensor:
        given_ = case.images[rows], case.labels[rows], case.ids[rows]
        return poise.attack(case.target(batch_size=size), goal, SignHunter(), Linf(0.2), *given_, 40).images

    whole = images(256, slice(None))
    assert torch.equal(images(batch_size, slice(None)), whole)
    assert torch.equal(images(256, slice(2, 4)), whole[2:4])


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_contract(order: str, constraint: Constraint) -> None:
    check_search(SignHunter(order=order), constraint=constraint, budget=40)
    assert SignHunter().access is Access.LABELS


def test_refusals() -> None:
    with pytest.raises(InputError, match="SignHunter: order must be 'hwc' or 'chw', got 'whc'"):
        SignHunter(order="whc")
    with pytest.raises(InputError, match=r"SignHunter: the constraint must have a finite radius, got Anywhere\(\)"):
        next(SignHunter().run(problem(torch.zeros(1, 1, 2, 2), Anywhere())))
