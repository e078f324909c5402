"""DropoutPGD: what it keeps, what it undoes, what it erases, and the released code's switches (spec 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import poise
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import MMA, OCA, UCA, KeepLabel
from poise.rng import Rng
from poise.searches import PGD, Ask, DropoutPGD, Reply
from poise.types import Outputs
from toys import Case, binary_case, by_hand, drive, generator, linear_case, problem

KEPT = DropoutPGD(keep_under=1.0, keep_over=1.0)
PLAIN = PGD(steps=10, step=5 / 255)


def wandering(n: int, most: int) -> Callable[[Ask, int], Reply]:
    """Everything is accepted; the gradient is the same random pattern everywhere."""

    def answer(ask: Ask, number: int) -> Reply:
        pattern = torch.randn(ask.x.shape[1:], generator=generator(3), dtype=ask.x.dtype)
        m = len(ask.ids)
        return Reply(
            torch.zeros(m).double(),
            torch.ones(m, dtype=torch.bool),
            torch.full((n,), number + 1 < most),
            pattern.expand(ask.x.shape).clone(),
        )

    return answer


# --- properties of spec 5 ---


@pytest.mark.parametrize("mask_target", ["delta", "step"])
@pytest.mark.parametrize("constraint", [Linf(0.05), L2(0.2)])
def test_keeping_all_is_label_preserving_pgd(mask_target: str, constraint: Constraint) -> None:
    """P2: the same points, up to the rounding of x + (x' - x)."""
    case = linear_case(5, shape=(3, 5, 4), classes=4)
    for goal in (UCA(tol=0), OCA(tol=0), MMA()):
        targets = [case.target(), case.target()]
        searches = [dataclasses.replace(KEPT, mask_target=mask_target), PLAIN]
        for target, search in zip(targets, searches, strict=True):
            drive(case, KeepLabel(goal), search, constraint, target=target)
        for first, second in zip(targets[0].log, targets[1].log, strict=True):
            assert torch.equal(first[0], second[0])
            torch.testing.assert_close(first[1], second[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("under", "over"), [(0.05, 0.8), (0.3, 0.5)])
def test_share_of_changed_pixels_follows_the_binomial_law(under: float, over: float) -> None:
    """P3, mask_target="delta": each candidate is sparse, with its own share per direction, drawn anew every step."""
    clean = torch.full((2, 3, 40, 40), 0.5, dtype=torch.float64)
    search = DropoutPGD(steps=6, keep_under=under, keep_over=over)
    given = problem(clean, Linf(0.05))
    given.over.copy_(torch.tensor([False, True]))
    told = by_hand(search.run(given), wandering(2, 99))
    masks = [ask.x != clean for ask in told.asks[1:]]
    assert len(masks) == 6
    for mask in masks:
        for row, share in ((0, under), (1, over)):
            assert stats.binomtest(int(mask[row].sum()), 4800, share).pvalue > 1e-3
    both = int((masks[0][1] & masks[1][1]).sum())
    assert stats.binomtest(both, 4800, over**2).pvalue > 1e-3
    cross = int((masks[0][0] & masks[0][1]).sum())
    assert stats.binomtest(cross, 4800, under * over).pvalue > 1e-3


def test_masking_the_delta_erases_and_masking_the_step_adds_up() -> None:
    clean = torch.full((1, 1, 50, 50), 0.5, dtype=torch.float64)
    share = {}
    for mask_target in ("delta", "step"):
        search = DropoutPGD(steps=20, step=0.01, keep_under=0.1, mask_target=mask_target)
        told = by_hand(search.run(problem(clean, Linf(0.05))), wandering(1, 99))
        share[mask_target] = float((told.asks[-1].x != clean).double().mean())
    assert share["delta"] == pytest.approx(0.1, abs=0.03)
    assert share["step"] == pytest.approx(1 - 0.9**20, abs=0.03)


@pytest.mark.parametrize("mask_target", ["delta", "step"])
@pytest.mark.parametrize("constraint", [Linf(0.05), L2(0.3)])
def test_without_rescaling_every_point_lies_in_the_ball(mask_target: str, constraint: Constraint) -> None:
    """P1."""
    case = linear_case(4, shape=(3, 6, 5))
    target = case.target()
    search = DropoutPGD(steps=12, keep_under=0.4, mask_target=mask_target)
    drive(case, KeepLabel(MMA()), search, constraint, target=target)
    for ids, x, _, _ in target.log:
        rows = [case.ids.tolist().index(name) for name in ids.tolist()]
        assert bool(constraint.contains(x, case.images[rows]).all())


# --- the released code ---


def test_rescaling_leaves_the_ball_and_so_finds_nothing_in_it() -> None:
    """Survivors are divided by 0.05: points at 20 times the radius are no results of that radius."""
    case = binary_case(6, shape=(1, 10, 10), margin=4.0)
    search = DropoutPGD(keep_under=0.05, rescale=True)
    target = case.target()
    run = drive(case, KeepLabel(UCA()), search, Linf(0.015), target=target)
    assert torch.equal(run.best.x, case.images)
    reached = torch.cat([x for _, x, _, _ in target.log]).sub(case.images.mean()).abs().max()
    assert reached > 0.1


def test_rescaling_with_the_ball_that_it_does_reach() -> None:
    """`radius` clips before the mask; the attack's own ball is 20 times as wide, and results lie between the two."""
    case = binary_case(6, shape=(1, 10, 10), margin=4.0)
    search = DropoutPGD(steps=10, step=0.01, keep_under=0.05, rescale=True, radius=0.015)
    run = drive(case, KeepLabel(UCA()), search, Linf(0.3))
    change = (run.best.x - case.images).abs()
    assert (run.best.merit < run.clean_merit).any()
    assert 0.015 < float(change.max()) <= 0.3 + 1e-9
    assert bool((((change > 0).flatten(1).double().mean(dim=1)) < 0.2).all())
    assert torch.equal(Outputs(run.best.scores).labels, run.clean.labels)


def ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """15 equal bins, (low, high]: the weighted gap of mean confidence and accuracy."""
    which = np.ceil(confidence * 15).astype(int)
    gaps = [abs(confidence[which == b].sum() - correct[which == b].sum()) for b in range(16)]
    return sum(gaps) / len(confidence)


def after(case: Case, goal: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    search = DropoutPGD(steps=15, step=0.02, keep_under=0.5, keep_over=0.9)
    run = drive(case, KeepLabel(goal), search, Linf(0.1), seed=1)
    right = (run.clean.labels == case.labels).numpy()
    return run.clean.confidence.numpy(), Outputs(run.best.scores).confidence.numpy(), right


def test_maximum_miscalibration_is_no_less_than_underconfidence() -> None:
    """P5, which the published table fails: with the predicted label's goals the wrong samples do rise."""
    case = linear_case(90, classes=5, shape=(1, 5, 5), scale=5.0)
    before, mma, right = after(case, MMA())
    _, uca, _ = after(case, UCA())
    assert 25 <= (~right).sum() <= 35
    assert ece(mma, right) > ece(uca, right) + 0.05
    assert (mma[~right] >= before[~right]).all()
    assert (mma[~right] > before[~right] + 0.05).any()


def test_the_released_codes_true_label_moves_wrong_samples_the_wrong_way() -> None:
    """Spec 5, consequence 2: descending the true label's cross-entropy cannot raise another label's confidence."""
    case = linear_case(90, classes=5, shape=(1, 5, 5), scale=5.0)
    released = MMA(under=UCA(follow="cross-entropy", label="true"), over=OCA(follow="cross-entropy", label="true"))
    before, theirs, right = after(case, released)
    _, ours, _ = after(case, MMA())
    assert (theirs - before)[~right].mean() < 0.3 * (ours - before)[~right].mean()


# --- a loop from the text ---


class Table:
    """Stands for Rng.uniform: one table of draws per (sample, step), by the sample's name."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def at(self, name: int, step: int) -> Tensor:
        return torch.rand(self.shape, generator=generator(1000 * (name + 500) + step))

    def __call__(self, rng: Rng, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        assert shape == self.shape
        return torch.stack([self.at(int(rng.sample_ids[row]), step) for row in ids])


def by_the_text(case: Case, row: int, search: DropoutPGD, eps: float, table: Table) -> list[Tensor]:
    """Spec 5, recommended reading, for one sample and UCA (right) or OCA (wrong), linf."""
    module, clean = case.module(), case.images[row : row + 1]
    k = int(module(clean).argmax())
    over = k != int(case.labels[row])
    keep = search.keep_over if over else search.keep_under

    def loss(x: Tensor) -> Tensor:
        p = module(x)[0].softmax(dim=0)
        return 1 - p[k] if over else p[k] - torch.cat([p[:k], p[k + 1 :]]).max()

    x, points = clean, [clean]
    for t in range(search.steps):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        mask = (table.at(int(case.ids[row]), t) < keep).double()
        if search.rescale:
            mask = mask / keep
        if search.mask_target == "delta":
            delta = (x - search.step * gradient.sign() - clean).clamp(-eps, eps)
            delta = (clean + delta).clamp(0, 1) - clean
            candidate = (clean + mask * delta).clamp(0, 1)
        else:
            delta = (x - search.step * mask * gradient.sign() - clean).clamp(-eps, eps)
            candidate = (clean + delta).clamp(0, 1)
        points.append(candidate)
        kept = int(module(candidate).argmax()) == k
        if kept and not (search.monotone and not loss(candidate) < loss(x)):
            x = candidate
    return points


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("mask_target", ["delta", "step"])
def test_points_are_those_of_a_loop_written_from_the_text(
    rescale: bool, monotone: bool, mask_target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = linear_case(6, shape=(1, 5, 4), classes=4, scale=4.0)
    table = Table((1, 5, 4))
    monkeypatch.setattr(Rng, "uniform", lambda rng, *rest: table(rng, *rest))
    search = DropoutPGD(
        steps=8,
        step=0.04,
        keep_under=0.6,
        keep_over=0.7,
        mask_target=mask_target,
        rescale=rescale,
        monotone=monotone,
        radius=0.1,
    )
    target = case.target()
    goal = KeepLabel(MMA(under=UCA(tol=0), over=OCA(tol=0)), 0.0)
    drive(case, goal, search, Linf(0.5), target=target)
    flips = 0
    for row in range(6):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = torch.cat(by_the_text(case, row, search, 0.1, table))
        torch.testing.assert_close(asked, expected, rtol=0, atol=1e-12)
        flips += len(case.module()(asked).argmax(dim=1).unique()) > 1
    assert flips  # the undoing was put to use


def test_monotone_undoes_what_did_not_lower_the_loss() -> None:
    clean = torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64)
    losses = [1.0, 2.0, 0.5, 0.7, 0.2]

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(
            torch.tensor([losses[number]]), torch.tensor([True]), torch.tensor([number < 4]), torch.ones_like(ask.x)
        )

    for monotone, kept in ((True, [0, 0, 2, 2]), (False, [0, 1, 2, 3])):
        search = DropoutPGD(steps=9, step=0.01, keep_under=1.0, monotone=monotone)
        told = by_hand(search.run(problem(clean, Linf(0.3))), answer)
        points = [ask.x for ask in told.asks]
        for number, base in enumerate(kept):
            torch.testing.assert_close(points[number + 1], points[base] - 0.01)


def test_papers_default() -> None:
    search = DropoutPGD()
    assert (search.steps, search.step, search.keep_under, search.keep_over) == (10, 5 / 255, 0.05, 0.8)
    assert (search.mask_target, search.rescale, search.monotone, search.radius) == ("delta", False, False, None)


def test_passes_are_paid_once() -> None:
    case = linear_case(3)
    run = drive(case, KeepLabel(OCA(tol=0)), DropoutPGD(steps=7), Linf(0.1))
    assert run.meter.queries.tolist() == [8] * 3
    assert run.meter.gradients.tolist() == [7] * 3


def test_works_in_its_own_box() -> None:
    case = linear_case(3)
    target = case.target(bounds=(0.0, 1.0))
    drive(case, KeepLabel(OCA(tol=0)), DropoutPGD(steps=7, rescale=True, keep_over=0.1), Linf(0.1), target=target)
    assert all(bool(Box().contains(x).all()) for _, x, _, _ in target.log)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropoutPGD(steps=0), "DropoutPGD: steps must be at least 1, got 0"),
        (lambda: DropoutPGD(step=0), "DropoutPGD: step must be a positive number, got 0"),
        (lambda: DropoutPGD(keep_under=0.0), r"DropoutPGD: keep_under must be in \(0, 1\], got 0.0"),
        (lambda: DropoutPGD(keep_over=1.2), r"DropoutPGD: keep_over must be in \(0, 1\], got 1.2"),
        (lambda: DropoutPGD(mask_target="noise"), "DropoutPGD: mask_target must be 'delta' or 'step', got 'noise'"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_recipe_adds_up_and_stays_in_the_ball() -> None:
    """The recipes mask the step; the result of each lies in the ball that was asked for."""
    case = linear_case(6, shape=(1, 6, 6))
    for name in ("pgd-uca", "pgd-oca", "pgd-mma", "pgd-rca", "pgd-rca-direction"):
        result = poise.run_recipe(name, case.target(), case.images, case.labels, eps=0.05, ids=case.ids)
        assert result.table["linf"].max() <= 0.05 + 1e-9
        assert (result.table["loss_after"] < result.table["loss_before"]).any()
