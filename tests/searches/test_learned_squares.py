"""LearnedSquares: least squares against a closed form, patterns, the walk on a linear target, both proposals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
import toys
from poise.constraints import L2, Linf
from poise.errors import InputError
from poise.objectives import UCA, KeepLabel, MinConfidence, Misclassify
from poise.rng import Rng
from poise.searches import Aimed, Ask, Cascade, LearnedSquares, Reply, Square, Stage
from poise.searches.learned_squares import slope
from poise.searches.responses import Responses, Tiles, patterns
from poise.types import Outputs
from toys import drive, problem

GOAL = KeepLabel(MinConfidence())
NO_MODEL = LearnedSquares(warm_up=10**6)


# --- the learned response ---


def closed_form(seen: np.ndarray, rises: np.ndarray, sizes: np.ndarray, prior: np.ndarray, noise: float) -> np.ndarray:
    """Posterior mean (K, d) of Bayesian linear regression, by one solve."""
    precision = np.linalg.inv(prior) + (seen / (noise * sizes)[:, None]).T @ seen
    return np.linalg.solve(precision, (seen / (noise * sizes)[:, None]).T @ rises).T


def learns_what_the_closed_form_says(model: Responses, noise: float) -> None:
    generator = toys.generator(3)
    changes = torch.randn(9, 2, 2, 6, 5, generator=generator, dtype=torch.float64)
    rises = torch.randn(9, 2, 3, generator=generator, dtype=torch.float64)
    for change, rise in zip(changes, rises, strict=True):
        model.learn(change, rise, torch.ones(2, dtype=torch.bool))
    for row in range(2):
        seen = torch.stack([model.tiles.seen(change)[row] for change in changes]).numpy()
        sizes = (changes[:, row] / model.tiles.eps).square().flatten(1).mean(dim=1).numpy()
        expected = closed_form(seen, rises[:, row].numpy(), sizes, model.tiles.prior.numpy(), noise)
        np.testing.assert_allclose(model.slopes[row].numpy(), expected, rtol=1e-6, atol=1e-9)


def fresh(noise: float, eps: float = 0.1) -> Responses:
    return Responses(Tiles(torch.zeros(2, 2, 6, 5, dtype=torch.float64), 4, eps), 2, 3, noise)


def test_recursive_least_squares_is_the_regression_solved_at_once() -> None:
    learns_what_the_closed_form_says(fresh(0.05), 0.05)


def test_another_noise_is_noticed() -> None:
    with pytest.raises(AssertionError):
        learns_what_the_closed_form_says(fresh(0.1), 0.05)


def test_a_linear_response_is_learned_exactly_and_unknown_rows_teach_nothing() -> None:
    model = fresh(1e-9)
    truth = torch.randn(3, model.tiles.number, generator=toys.generator(0), dtype=torch.float64)
    for step in range(60):
        values = torch.randn(2, model.tiles.number, generator=toys.generator(step), dtype=torch.float64)
        change = model.tiles.image(values)
        model.learn(change, model.tiles.seen(change) @ truth.T, torch.tensor([True, False]))
    torch.testing.assert_close(model.slopes[0], truth, rtol=1e-4, atol=1e-4)
    assert not bool(model.slopes[1].any())


def test_tiles_are_means_and_cover_small_images() -> None:
    tiles = Tiles(torch.zeros(1, 1, 4, 4), 2, 0.5)
    change = torch.arange(16.0).view(1, 1, 4, 4)
    assert tiles.seen(change).tolist() == [[5.0, 9.0, 21.0, 25.0]]
    assert torch.equal(
        tiles.seen(tiles.image(torch.tensor([[1.0, 2.0, 3.0, 4.0]])) * 0.5), torch.tensor([[1.0, 2, 3, 4]])
    )
    assert Tiles(torch.zeros(1, 3, 2, 5), 8, 0.1).number == 3 * 2 * 5
    assert float(tiles.prior.trace()) == pytest.approx(1.0)


# --- patterns ---


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("shape", [(32, 32), (4, 4), (7, 3)])
def test_patterns_are_signs_in_blocks_and_stripes(number: int, shape: tuple[int, int]) -> None:
    bits = Rng(0, torch.arange(5)).signs("start", number, torch.arange(5), (3, 16, 16))
    found = patterns(number, bits, shape)
    assert found.shape == (5, 3, *shape)
    assert set(found.flatten().tolist()) == {-1.0, 1.0}
    if number == 1:
        assert torch.equal(found, found[:, :, :1].expand_as(found))
    if shape == (32, 32):
        width = 2 if number == 0 else 4
        assert torch.equal(found[..., ::width], found[..., width - 1 :: width])


def asked(search: LearnedSquares, *, over: bool = False, queries: int = 4, constraint: object = None) -> list[Tensor]:
    """What is asked after the clean points, by hand, every answer worse than the clean one."""
    clean = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    told = problem(clean, constraint or Linf(0.1))
    told.over[:] = over
    steps = search.run(told)
    next(steps)
    points, reply = [], Reply(torch.zeros(2).double(), torch.ones(2).bool(), torch.ones(2).bool())
    for _ in range(queries):
        points.append(steps.send(reply).x)
        reply = Reply(torch.ones(2).double(), torch.ones(2).bool(), torch.ones(2).bool())
    return points


def test_it_begins_with_full_patterns_where_the_confidence_is_to_fall() -> None:
    for point in asked(LearnedSquares()):
        torch.testing.assert_close((point - 0.5).abs(), torch.full_like(point, 0.1))
    for point in asked(LearnedSquares(), constraint=L2(0.3)):
        torch.testing.assert_close((point - 0.5).flatten(1).norm(dim=1), torch.full((2,), 0.3, dtype=torch.float64))
    for points in (asked(LearnedSquares(), over=True), asked(LearnedSquares(starts=0))):
        assert all(bool((point == 0.5).any()) for point in points)


def test_windows_per_query() -> None:
    """One window alone is Square, draw for draw but for the number of the draw; more change more."""
    one, three = (asked(LearnedSquares(squares=count, starts=0), queries=20) for count in (1, 3))
    moved = [sum(float((point != 0.5).double().mean()) for point in points) for points in (one, three)]
    assert moved[1] > 1.5 * moved[0]


# --- the walk on the model ---


def test_the_slope_of_a_goal_is_that_of_its_loss() -> None:
    case = toys.linear_case(4, classes=3, scale=5.0)
    outputs = Outputs(case.module()(case.images).detach())
    ids = torch.arange(4)
    bound = GOAL.bind(outputs, case.labels, ids, Rng(0, ids))

    def judge(answer: Outputs, rows: Tensor, aim: Tensor | None) -> Tensor:
        return bound.loss(answer, rows)

    with torch.inference_mode():
        found = slope(judge, outputs.logits, ids, None)
    expected = outputs.probabilities.new_full((4, 3), -1 / 3) + outputs.probabilities  # KL(u || p): label kept
    torch.testing.assert_close(found, outputs.probabilities - 1 / 3)
    torch.testing.assert_close(found, expected)
    labels = Misclassify().bind(outputs, case.labels, ids, Rng(0, ids))
    assert not bool(slope(lambda answer, rows, aim: labels.loss(answer, rows), outputs.logits, ids, None).any())


def smooth_case() -> toys.Case:
    """Linear, and no larger than the tiles: what the model believes is true."""
    return toys.linear_case(16, shape=(1, 4, 4), classes=10, scale=6.0, seed=1)


def left(search: object, case: toys.Case, budget: int, eps: float = 0.2) -> float:
    table = poise.attack(case.target(), GOAL, search, Linf(eps), case.images, case.labels, case.ids, budget).table
    return float(table["loss_after"].mean())


def is_ahead(search: LearnedSquares) -> None:
    case = smooth_case()
    assert left(search, case, 60) < 0.7 * left(NO_MODEL, case, 60)


def test_the_model_helps_on_a_linear_target() -> None:
    is_ahead(LearnedSquares())


def test_a_model_that_never_learns_is_noticed() -> None:
    with pytest.raises(AssertionError):
        is_ahead(LearnedSquares(noise=1e12))


def test_without_score_vectors_squares_and_patterns_remain() -> None:
    """A wrapper hands no answers on: the same points as with a model that never has its turn."""
    case = smooth_case()
    given = case.target(), GOAL
    rest = Linf(0.2), case.images, case.labels, case.ids, 40
    blind, none = (
        poise.attack(*given, search, *rest) for search in (Aimed(LearnedSquares(), 0.0), Aimed(NO_MODEL, 0.0))
    )
    assert torch.equal(blind.images, none.images)


@pytest.mark.parametrize("square", [Square(p=0.1, start="best", strict=False, aim=4.0), Square(p=0.1, start="best")])
def test_from_the_best_point_it_only_gets_better(square: Square) -> None:
    case = smooth_case()
    first = Stage(LearnedSquares(), queries=30)
    alone, both = Cascade((first,)), Cascade((first, LearnedSquares(square=square)))
    given = Linf(0.2), case.images, case.labels, case.ids, 80
    once, twice = (poise.attack(case.target(), GOAL, search, *given).table for search in (alone, both))
    assert (twice["loss_after"] <= once["loss_after"]).all()
    assert twice["loss_after"].mean() < once["loss_after"].mean()


def test_a_goal_without_a_penalty_needs_a_strict_search() -> None:
    """The gap of UCA falls without end beyond the boundary; only a strict search keeps its label there."""
    case = smooth_case()
    ends = []
    for strict in (True, False):
        search = LearnedSquares(square=Square(p=0.1, strict=strict))
        run = drive(case, KeepLabel(UCA()), search, Linf(0.1), budget=60)
        assert bool((run.best.merit <= run.clean_merit).all())
        ends.append(float(run.best.merit.mean()))
    assert ends[0] < 0.5 * ends[1]


def test_each_sample_is_searched_by_itself() -> None:
    case = smooth_case()
    whole = poise.attack(case.target(), GOAL, LearnedSquares(), Linf(0.2), case.images, case.labels, case.ids, 40)
    rows = torch.tensor([7, 2, 15])
    part = poise.attack(
        case.target(batch_size=2), GOAL, LearnedSquares(), Linf(0.2), case.images[rows], case.labels[rows],
        case.ids[rows], 40,
    )  # fmt: skip
    torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"square": Square(start="stripes")}, "must start at 'clean' or 'best'"),
        ({"squares": 0}, "squares must be at least 1"),
        ({"side": 0}, "side must be at least 1"),
        ({"starts": -1}, "starts must be at least 0"),
        ({"warm_up": 0}, "warm_up must be at least 1"),
        ({"noise": 0.0}, "noise must be a positive number"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LearnedSquares(**settings)


def test_a_finished_sample_is_never_asked_again() -> None:
    told = problem(torch.full((3, 1, 4, 4), 0.5))
    steps = LearnedSquares().run(told)
    next(steps)
    reply = Reply(torch.zeros(3), torch.ones(3).bool(), torch.tensor([True, False, True]))
    ask: Ask = steps.send(reply)
    assert ask.ids.tolist() == [0, 2]
    ask = steps.send(Reply(torch.zeros(2), torch.ones(2).bool(), torch.tensor([False, False, True])))
    assert ask.ids.tolist() == [2]
