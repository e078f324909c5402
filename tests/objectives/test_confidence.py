"""UCA, OCA, ConfSmooth, MMA, RCA: hand-worked values, gradients, targets of the spec, ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import cross_entropy

from poise.constraints import Linf
from poise.errors import InputError
from poise.objectives import MMA, OCA, RCA, UCA, ConfSmooth, KeepLabel, Margin, Objective
from poise.searches import PGD
from poise.types import Access, OutputKind, Outputs
from toys import binary_case, bind, drive, generator, outputs

LOGITS = OutputKind.LOGITS
CLEAN = outputs([0.6, 0.3, 0.1], [0.2, 0.5, 0.3])  # predicts 0 and 1
LATER = outputs([0.5, 0.1, 0.4], [0.45, 0.4, 0.15])  # keeps 0, flips to 0
BOTH = torch.tensor([0, 1])


def values(objective: Objective, labels: list[int], what: str, answers: Outputs = LATER) -> list:
    return getattr(bind(objective, CLEAN, labels), what)(answers, BOTH).tolist()


def test_uca_by_hand() -> None:
    """p_k - max of the others, k of the clean answer whatever the label: .5 - .4, .4 - .45."""
    assert values(UCA(), [2, 2], "loss") == pytest.approx([0.1, -0.05])
    assert values(UCA(), [2, 2], "merit") == pytest.approx([0.1, -0.05])
    assert values(UCA(), [2, 2], "accept") == [True, False]
    assert values(UCA(tol=0.11), [2, 2], "done") == [True, True]
    assert values(UCA(), [2, 2], "done") == [False, True]
    assert bind(UCA(), CLEAN, [2, 2]).over.tolist() == [False, False]


def test_oca_by_hand() -> None:
    """1 - p_k: .5, .6."""
    assert values(OCA(), [2, 2], "loss") == pytest.approx([0.5, 0.6])
    assert values(OCA(), [2, 2], "accept") == [True, False]
    assert values(OCA(tol=0.55), [2, 2], "done") == [True, False]
    assert bind(OCA(), CLEAN, [2, 2]).over.tolist() == [True, True]


@pytest.mark.parametrize(
    ("objective", "reached", "short"),
    [
        (UCA(), [0.504, 0.496, 0.0], [0.506, 0.494, 0.0]),  # gap .008 and .012
        (UCA(tol=0.1), [0.54, 0.46, 0.0], [0.56, 0.44, 0.0]),  # the released code's .1
        (OCA(), [0.991, 0.009, 0.0], [0.989, 0.011, 0.0]),
    ],
)
def test_ends_where_the_paper_says(objective: Objective, reached: list[float], short: list[float]) -> None:
    bound = bind(objective, outputs([0.6, 0.4, 0.0]), [0])
    one = torch.tensor([0])
    assert bound.done(outputs(reached), one).tolist() == [True]
    assert bound.done(outputs(short), one).tolist() == [False]


@pytest.mark.parametrize("follow_label", ["predicted", "true"])
def test_following_cross_entropy_changes_the_loss_alone(follow_label: str) -> None:
    """The released white-box code: ascend CE (under), descend it (over), to the true label if asked so."""
    labels, index = [2, 0], {"predicted": [0, 1], "true": [2, 0]}[follow_label]
    log_p = [math.log(LATER.scores[row, column]) for row, column in enumerate(index)]
    under = UCA(follow="cross-entropy", label=follow_label)
    assert values(under, labels, "loss") == pytest.approx(log_p)  # lower log p is more cross-entropy
    assert values(under, labels, "merit") == values(UCA(), labels, "merit")
    assert values(under, labels, "done") == values(UCA(), labels, "done")
    assert values(under, labels, "accept") == [True, False]
    over = OCA(follow="cross-entropy", label=follow_label)
    assert values(over, labels, "loss") == pytest.approx([-x for x in log_p])
    assert values(over, labels, "merit") == values(OCA(), labels, "merit")
    assert bind(over, CLEAN, labels).over.tolist() == [True, True]


# --- ConfSmooth ---


@pytest.mark.parametrize(("classes", "mass"), [(2, 0.51), (3, 0.3467), (10, 0.1180), (100, 0.0298), (1000, 0.0210)])
def test_confsmooth_is_least_at_the_specs_target(classes: int, mass: float) -> None:
    """Spec 7: mass on k; the loss there is the target's entropy, and nowhere on the simplex is it lower."""
    target = torch.full((1, classes), (1 - mass) / (classes - 1), dtype=torch.float64)
    exact = 0.02 + 0.98 / classes
    assert exact == pytest.approx(mass, abs=5.1e-5)
    target[0, 0] = exact
    target[0, 1:] = 0.98 / classes
    bound = bind(ConfSmooth(tol=1e-12), Outputs(target, OutputKind.PROBABILITIES), [0])
    one = torch.tensor([0])
    entropy = float(stats.entropy(target[0].numpy()))
    at_target = Outputs(target.log().requires_grad_())
    loss = bound.loss(at_target, one)
    assert loss.item() == pytest.approx(entropy, abs=1e-9)
    assert bound.done(at_target, one).tolist() == [True]
    (gradient,) = torch.autograd.grad(loss.sum(), at_target.scores)
    assert gradient.abs().max() < 1e-12
    others = Outputs(target.log() + 0.3 * torch.randn(200, classes, generator=generator(0), dtype=torch.float64))
    many = bound.loss(others, torch.zeros(200, dtype=torch.long))
    assert bool((many > entropy).all())
    assert not bound.done(others, torch.zeros(200, dtype=torch.long)).any()


@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 3, 10, 100]), smoothing=st.sampled_from([0.1, 0.98, 1]))
def test_confsmooth_is_torchs_smoothed_cross_entropy(seed: int, classes: int, smoothing: float) -> None:
    logits = 5 * torch.randn(6, classes, generator=generator(seed), dtype=torch.float64)
    clean = Outputs(torch.randn(6, classes, generator=generator(seed + 1), dtype=torch.float64))
    k = clean.scores.argmax(dim=1)
    bound = bind(ConfSmooth(smoothing), clean, torch.zeros(6, dtype=torch.long))
    ours = logits.clone().requires_grad_()
    loss = bound.loss(Outputs(ours), torch.arange(6))
    theirs = cross_entropy(logits, k, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss.detach(), theirs, rtol=1e-12, atol=1e-12)
    target = torch.full_like(logits, smoothing / classes)
    target[torch.arange(6), k] += 1 - smoothing
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    torch.testing.assert_close(gradient, logits.softmax(dim=1) - target, rtol=1e-9, atol=1e-12)  # spec 7, P4


# --- MMA ---


def test_mma_lowers_the_right_and_raises_the_wrong() -> None:
    bound = bind(MMA(), CLEAN, [0, 2])  # row 0 right, row 1 wrong
    assert bound.over.tolist() == [False, True]
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([0.1, 0.6])
    assert bound.accept(LATER, BOTH).tolist() == [True, False]
    sure = outputs([0.504, 0.496, 0.0], [0.005, 0.991, 0.004])
    assert bound.done(sure, BOTH).tolist() == [True, True]
    assert bound.done(sure, BOTH.flip(0)).tolist() == [False, True]  # rows swapped: over .496, under with k = 1


def test_mma_takes_other_goals() -> None:
    bound = bind(MMA(under=ConfSmooth(), over=OCA(tol=0.7)), CLEAN, [0, 2])
    smooth = cross_entropy(LATER.scores.log()[:1], torch.tensor([0]), label_smoothing=0.98).item()
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([smooth, 0.6])
    assert bound.done(LATER, BOTH).tolist() == [False, True]


def test_mma_as_released_moves_wrong_samples_the_wrong_way() -> None:
    """Spec 5, consequence 2: with the true label's cross-entropy the over goal's loss rises with p_k."""
    released = MMA(over=OCA(follow="cross-entropy", label="true"))
    bound = bind(released, CLEAN, [0, 2])
    less, more = outputs([1, 0, 0], [0.3, 0.4, 0.3]), outputs([1, 0, 0], [0.1, 0.8, 0.1])
    assert bound.merit(more, BOTH)[1] < bound.merit(less, BOTH)[1]
    assert bound.loss(more, BOTH)[1] > bound.loss(less, BOTH)[1]


# --- RCA ---


def goals(objective: RCA, confidence: float, classes: int, n: int = 4000, seed: int = 0) -> torch.Tensor:
    """Which of n samples of that clean confidence are sent up."""
    row = [confidence] + [(1 - confidence) / (classes - 1)] * (classes - 1)
    return bind(objective, outputs(*[row] * n), torch.zeros(n, dtype=torch.long), seed=seed).over.double()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("mode", ["target", "direction"])
def test_rca_draws_its_goal_evenly(classes: int, mode: str) -> None:
    """P(up) = P(g > p_k): g ~ U[1/K, 1] as printed, U(1/K + .05, .99) as released (spec 3.4)."""
    low, high = (1 / classes, 1.0) if mode == "target" else (1 / classes + 0.05, 0.99)
    for confidence in (0.56, 0.75, 0.95):
        expected = min(max((high - confidence) / (high - low), 0), 1)
        up = int(goals(RCA(mode=mode), confidence, classes).sum())
        assert stats.binomtest(up, 4000, expected).pvalue > 1e-3
    assert goals(RCA(mode=mode), 0.999, classes).sum() == pytest.approx(4.0 if mode == "target" else 0, abs=12)
    if mode == "direction":
        assert goals(RCA(mode=mode), 0.995, classes).sum() == 0
        assert goals(RCA(mode=mode), 1 / classes + 0.04, classes).sum() == 4000 or classes == 2


def test_rca_target_is_uniform_on_1_over_k_to_1() -> None:
    bound = bind(RCA(), outputs(*[[0.7, 0.2, 0.1]] * 4000), torch.zeros(4000, dtype=torch.long))
    ids = torch.arange(4000)
    at_one = bound.loss(outputs(*[[1.0, 0.0, 0.0]] * 4000), ids).numpy()  # |1 - g|
    assert stats.kstest((1 - at_one - 1 / 3) / (2 / 3), "uniform").pvalue > 1e-3


def test_rca_target_stops_where_the_goal_is_reached_or_crossed() -> None:
    bound = bind(RCA(), outputs(*[[0.7, 0.2, 0.1]] * 50), torch.zeros(50, dtype=torch.long))
    ids = torch.arange(50)
    goal = 1 - bound.loss(outputs(*[[1.0, 0.0, 0.0]] * 50), ids)
    assert bound.over.tolist() == (goal > 0.7).tolist()
    assert 5 < int(bound.over.sum()) < 45

    def at(confidence: torch.Tensor) -> Outputs:
        rest = (1 - confidence)[:, None] / 2
        return Outputs(torch.cat([confidence[:, None], rest, rest], dim=1), OutputKind.PROBABILITIES)

    towards = torch.where(bound.over, 1.0, -1.0).double()
    short, past = at(goal - 0.01 * towards), at((goal + 0.001 * towards).clamp_max(1))
    assert not bound.done(short, ids).any()
    assert bound.done(past, ids).all()
    assert bound.loss(short, ids).tolist() == pytest.approx([0.01] * 50)
    assert not bound.done(outputs(*[[0.7, 0.2, 0.1]] * 50), ids).any()


def test_rca_direction_runs_to_the_end_of_uca_or_oca() -> None:
    bound = bind(RCA(mode="direction"), outputs(*[[0.7, 0.2, 0.1]] * 50), torch.zeros(50, dtype=torch.long))
    ids = torch.arange(50)
    under, over = (
        bind(goal, outputs(*[[0.7, 0.2, 0.1]] * 50), torch.zeros(50, dtype=torch.long)) for goal in (UCA(), OCA())
    )
    probe = outputs(*[[0.504, 0.496, 0.0]] * 25, *[[0.995, 0.005, 0.0]] * 25)
    for what in ("loss", "done", "merit"):
        expected = torch.where(bound.over, getattr(over, what)(probe, ids), getattr(under, what)(probe, ids))
        assert torch.equal(getattr(bound, what)(probe, ids), expected)
    assert 5 < int(bound.over.sum()) < 45


def test_rca_draws_by_sample_and_seed() -> None:
    assert torch.equal(goals(RCA(), 0.7, 3), goals(RCA(), 0.7, 3))
    assert not torch.equal(goals(RCA(), 0.7, 3), goals(RCA(), 0.7, 3, seed=1))


def test_rca_ends_near_its_goal_on_a_linear_model() -> None:
    case = binary_case(40, margin=1.5)
    run = drive(case, KeepLabel(RCA()), PGD(steps=200, step=0.001), Linf(0.2), budget=300)
    confidence, before = Outputs(run.best.scores).confidence, run.clean.confidence
    certain = Outputs(torch.nn.functional.one_hot(run.clean.labels, 2).double(), OutputKind.PROBABILITIES)
    goal = 1 - run.bound.merit(certain, case.ids)  # the merit is |p_k - g|
    assert (confidence - goal).abs().max() < 0.005
    assert torch.equal(confidence > before, goal > before)
    past = torch.where(goal > before, confidence >= goal, confidence <= goal)
    assert torch.equal(past, run.done)
    assert 5 < int(run.done.sum()) < 40


# --- numbers near the edges ---


GOALS: list[Objective] = [UCA(), OCA(), ConfSmooth(), MMA(), RCA(), RCA(mode="direction"), UCA(follow="cross-entropy")]
each_goal = pytest.mark.parametrize("objective", GOALS, ids=repr)


@each_goal
@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 3, 10]), scale=st.sampled_from([0.1, 3.0]))
def test_gradients_are_those_of_finite_differences(objective: Objective, seed: int, classes: int, scale: float) -> None:
    logits = scale * torch.randn(4, classes, generator=generator(seed), dtype=torch.float64)
    clean = Outputs(torch.randn(4, classes, generator=generator(seed + 1), dtype=torch.float64))
    bound, ids = bind(objective, clean, torch.arange(4) % classes), torch.arange(4)
    assert torch.autograd.gradcheck(
        lambda scores: bound.loss(Outputs(scores), ids), logits.requires_grad_(), eps=1e-6, atol=1e-5
    )


@each_goal
@pytest.mark.parametrize("kind", list(OutputKind)[:2])
def test_saturated_answers_give_no_nan(objective: Objective, kind: OutputKind) -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0], [0.0, 1e4, 0.0], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0]])
    scores = logits if kind is LOGITS else logits.softmax(dim=1)
    bound, ids = bind(objective, Outputs(scores, kind), [0, 0, 0, 0]), torch.arange(4)
    leaf = scores.clone().requires_grad_()
    loss = bound.loss(Outputs(leaf, kind), ids)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(bound.merit(Outputs(scores, kind), ids)).all()


def test_tiny_distances_are_resolved() -> None:
    """A gap of 1e-10 and a distance of 1e-10 from certainty: float32 logits, answers told apart in float64."""
    clean = Outputs(torch.tensor([[2.0, 0.0]]))
    one = torch.tensor([0])
    nearly = Outputs(torch.tensor([[2e-10, 0.0]]))
    tie = Outputs(torch.tensor([[0.0, 0.0]]))
    gap = bind(UCA(), clean, [0])
    assert gap.loss(nearly, one).item() == pytest.approx(1e-10, rel=1e-5, abs=0)
    assert gap.loss(tie, one).item() == 0
    sure, surer = (Outputs(torch.tensor([[float(z), 0.0]])) for z in (23.0, 25.0))
    rest = bind(OCA(), clean, [0])
    assert rest.loss(sure, one).item() == pytest.approx(math.exp(-23), rel=1e-4, abs=0)
    assert rest.loss(surer, one).item() == pytest.approx(math.exp(-25), rel=1e-4, abs=0)


def test_saturated_gap_still_has_a_gradient() -> None:
    """Spec 6, pitfalls: p_k = 1 in float32 from a logit gap of about 17 on; the gradient must not be 0 there."""
    logits = torch.tensor([[30.0, 0.0, -5.0]], requires_grad=True)
    for objective in (UCA(), OCA(), ConfSmooth()):
        loss = bind(objective, Outputs(logits.detach()), [0]).loss(Outputs(logits), torch.tensor([0]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient[0, 0] != 0
        assert gradient[0, 1] != 0


@each_goal
@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 5]))
def test_probabilities_and_logits_give_the_same(objective: Objective, seed: int, classes: int) -> None:
    def two(count: int) -> tuple[Outputs, Outputs]:
        logits = 3 * torch.randn(6, classes, generator=generator(count), dtype=torch.float64)
        return Outputs(logits), Outputs(logits.softmax(dim=1), OutputKind.PROBABILITIES)

    labels, ids = torch.arange(6) % classes, torch.arange(6)
    by_logits, by_probabilities = (bind(objective, clean, labels) for clean in two(seed))
    assert torch.equal(by_logits.k, by_probabilities.k)
    assert torch.equal(by_logits.over, by_probabilities.over)
    later, probable = two(seed + 1)
    for what in ("loss", "merit"):
        torch.testing.assert_close(
            getattr(by_logits, what)(later, ids), getattr(by_probabilities, what)(probable, ids), rtol=1e-9, atol=1e-12
        )
    for what in ("accept", "done"):
        assert torch.equal(getattr(by_logits, what)(later, ids), getattr(by_probabilities, what)(probable, ids))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UCA(tol=1.0), r"UCA: tol must be in \[0, 1\), got 1.0"),
        (lambda: OCA(tol=-0.1), r"OCA: tol must be in \[0, 1\), got -0.1"),
        (lambda: UCA(follow="loss"), "UCA: follow must be 'goal' or 'cross-entropy', label 'predicted' or 'true', got"),
        (lambda: OCA(label="clean"), "OCA: follow must be .* got 'goal', 'clean'"),
        (lambda: ConfSmooth(0.0), r"ConfSmooth: smoothing must be in \(0, 1\], got 0.0"),
        (lambda: ConfSmooth(1.1), r"ConfSmooth: smoothing must be in \(0, 1\], got 1.1"),
        (lambda: RCA(mode="goal"), "RCA: mode must be 'target' or 'direction', got 'goal'"),
        (lambda: RCA(tol=2), r"RCA: tol must be in \[0, 1\), got 2"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_access() -> None:
    assert {goal.access for goal in GOALS} == {Access.SCORES}
    assert Margin.access is Access.SCORES
