"""Boundary attack: a loop from the text that never moves away, its two steps, the known distance, ART."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
from decision_cases import NOWHERE, Loop, compared, lengths, nearest_wrong, shortest, walked
from libraries import global_seed, peer
from poise.constraints import L2
from poise.errors import InputError
from poise.objectives import Misclassify
from poise.peers.art_bridge import Bridge, art_estimator
from poise.searches.decision import Boundary
from poise.searches.decision.boundary_attack import CONVERGED, _around, _inwards
from poise.types import OutputKind
from toys import Case, RecordingTarget, SmallCNN, binary_case, drive, generator, linear_case, problem


def test_the_walk_comes_near_the_known_distance() -> None:
    case = binary_case(3)
    target, _ = walked(case, Boundary(), "l2", 1200)
    ratios = nearest_wrong(target, case, "l2") / shortest(case, "l2")
    assert float(ratios.min()) >= 1 - 1e-9
    assert float(ratios.max()) < 1.02


def test_steps_of_one_size_do_not() -> None:
    case = binary_case(3)
    target, _ = walked(case, Boundary(window=10_000), "l2", 1200)
    assert float(nearest_wrong(target, case, "l2").min()) > 1.02 * shortest(case, "l2")


def test_success_is_a_wrong_point_in_the_ball() -> None:
    case = binary_case(3)
    for factor, expected in ((0.99, False), (1.1, True)):
        ball = L2(factor * shortest(case, "l2"))
        result = poise.attack(case.target(), Misclassify(), Boundary(), ball, case.images, case.labels, budget=700)
        assert (result.table["stop"] == "success").to_list() == [expected] * 3
        assert (result.table["prediction_after"] != result.table["label"]).to_list() == [expected] * 3
        assert bool(ball.contains(result.images, case.images).all())


def test_a_sample_ends_when_it_stands_still() -> None:
    """At the nearest point of a plane no step inwards is wrong, so `towards` shrinks to the end."""
    _, run = walked(binary_case(2), Boundary(window=5), "l2", 5000)
    assert CONVERGED == 1e-7
    assert int(run.meter.queries.max()) < 2000


# --- its two steps ---


def pieces(size: float, *, low: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """clean, x, the point on the sphere and the one inwards of it, for five images."""
    clean = low + 0.2 * torch.rand(5, 2, 4, 3, generator=generator(0), dtype=torch.float64)
    x = clean + 0.05 * torch.randn(clean.shape, generator=generator(1), dtype=torch.float64)
    x = x.clamp(0, 1)
    given, ids = problem(clean, L2(1.0)), torch.arange(5)
    sizes = torch.full((5,), size, dtype=torch.float64)
    sphere = _around(given, x, ids, sizes, 0)
    return clean, x, sphere, _inwards(given, sphere, x, ids, sizes)


@pytest.mark.parametrize("size", [0.01, 0.3])
def test_one_step_keeps_the_distance_and_one_shortens_it(size: float) -> None:
    clean, x, sphere, nearer = pieces(size)
    radius = lengths(x - clean, "l2")
    torch.testing.assert_close(lengths(sphere - clean, "l2"), radius, rtol=1e-12, atol=0)
    torch.testing.assert_close(lengths(nearer - clean, "l2"), (1 - size) * radius, rtol=1e-12, atol=0)
    cosine = ((sphere - clean) * (x - clean)).flatten(1).sum(dim=1) / radius.square()
    torch.testing.assert_close(cosine, torch.full_like(cosine, (1 + size**2) ** -0.5), rtol=1e-12, atol=0)
    assert len({tuple(row.tolist()) for row in (sphere - clean).flatten(1)}) == 5


def test_at_the_box_no_step_moves_away() -> None:
    clean, x, sphere, nearer = pieces(0.3, low=0.0)
    radius = lengths(x - clean, "l2")
    assert bool((lengths(sphere - clean, "l2") < radius - 1e-6).any())
    assert bool((lengths(nearer - clean, "l2") <= 0.7 * radius + 1e-12).all())
    assert bool(((nearer >= 0) & (nearer <= 1) & (sphere >= 0)).all())


# --- a loop from the text ---


def by_the_text(loop: Loop, *, window: int = 20, factor: float = 1.5, drift: bool = False) -> None:
    """Brendel et al., Alg. 1 and section 2.4, one point at a time; the distance never grows."""
    x0, x, sizes, trials = loop.x0, loop.start(), [0.01, 0.01], [[], []]
    for step in range(10**6):
        radius = np.sqrt(((x - x0) ** 2).sum())
        outwards = (x - x0) / radius
        u = loop.draw("normal", "boundary-step", step)
        u = u - (u @ outwards) * outwards
        u = u / np.sqrt((u**2).sum())
        sphere = x0 + (x - x0 + sizes[0] * radius * u) / np.sqrt(1 + sizes[0] ** 2)
        sphere = np.clip(sphere, 0, 1)
        trials[0].append(loop.wrong(sphere))
        if trials[0][-1]:
            length = np.sqrt(((sphere - x0) ** 2).sum())
            nearer = x0 + min((1 - sizes[1]) * radius / length, 1) * (sphere - x0)
            trials[1].append(loop.wrong(nearer))
            if trials[1][-1]:
                assert np.sqrt(((nearer - x0) ** 2).sum()) <= radius
                x = nearer
            elif drift:
                x = sphere
        for i in (0, 1):
            if len(trials[i]) == window:
                share = np.mean(trials[i])
                sizes[i] = min(
                    sizes[i] * factor if share > 0.5 else sizes[i] / factor if share < 0.2 else sizes[i], 0.5
                )
                trials[i] = []


def test_points_are_those_of_a_loop_written_from_the_text() -> None:
    case = linear_case(5, shape=(1, 4, 4))
    target, _ = walked(case, Boundary(), "l2", 500)
    assert compared(case, target, 500, by_the_text, 1e-9) >= 3


@pytest.mark.parametrize("other", [{"window": 21}, {"factor": 1.4}, {"drift": True}], ids=repr)
def test_another_walk_is_noticed(other: dict[str, float]) -> None:
    case = linear_case(3, shape=(1, 4, 4))
    target, _ = walked(case, Boundary(), "l2", 500)
    with pytest.raises(AssertionError):
        compared(case, target, 500, lambda loop: by_the_text(loop, **other), 1e-9)


# --- a peer ---


def test_no_farther_than_art_at_equal_queries() -> None:
    images = torch.rand(3, 1, 8, 8, generator=generator(3))
    target = RecordingTarget(SmallCNN(size=8).eval(), num_classes=4)
    labels = target.query(images, torch.arange(3)).labels
    bridge = Bridge(target, OutputKind.LOGITS)
    estimator = art_estimator(bridge, images.shape[1:], "test")
    with global_seed(0):
        made = peer("art.attacks.evasion").BoundaryAttack(estimator, targeted=False, max_iter=15, verbose=False)
        points = torch.from_numpy(made.generate(x=images.numpy(), y=labels.numpy()))
    assert bool((target.query(points, torch.arange(3)).labels != labels).all())
    theirs, spent = float(lengths(points - images, "l2").median()), bridge.forwards // 3
    target.log.clear()
    case = Case(images, labels, torch.arange(3), torch.zeros(4, 1), torch.zeros(4))
    drive(case, Misclassify(), Boundary(), NOWHERE["l2"], target=target, budget=spent)
    assert float(nearest_wrong(target, case, "l2").median()) <= 1.25 * theirs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boundary(orthogonal=0.0), r"Boundary: orthogonal must be in \(0, 0.5\], got 0.0"),
        (lambda: Boundary(towards=0.6), r"Boundary: towards must be in \(0, 0.5\], got 0.6"),
        (lambda: Boundary(factor=1.0), "Boundary: factor must be a number above 1, got 1.0"),
        (lambda: Boundary(window=0), "Boundary: window must be at least 1, got 0"),
        (lambda: Boundary(tries=0), "Boundary: tries must be at least 1, got 0"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
