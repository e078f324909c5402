"""QueryNet: Square where it has no surrogates; its rules by hand; its networks; what it costs and what it gains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
import toys
from poise.checks.searches import CheckError, check_search
from poise.constraints import L2, Box, Constraint, Linf
from poise.data import load as load_data
from poise.errors import InputError
from poise.models import load
from poise.objectives import MMA, UCA, CrossEntropy, KeepLabel, Margin, Objective
from poise.rng import Rng
from poise.searches import Aimed, Ask, Cascade, EveryClass, Problem, QueryNet, Reply, Square
from poise.searches.base import shares
from poise.searches.query_net import _Crowd
from poise.searches.surrogates import ARCHITECTURES, Pairs, Surrogate
from recipe_cases import PROPERTIES, Setup, run_own

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
ROW = torch.zeros(1, dtype=torch.int64)
QUICK = QueryNet(steps=1, warm_up=2, enough=1)
SQUARES = [Square(start="stripes"), Square(start="clean", p=0.3), Square(start="best", horizon=7, strict=False)]
SQUARES += [Square(start="clean", inclusive=False, aim=0.0)]


def problem_of(n: int = 6, *, shape: tuple[int, int, int] = (1, 6, 5), seed: int = 0, budget: int = 30) -> Problem:
    return toys.problem(torch.rand(n, *shape, generator=toys.generator(seed)), seed=seed, budget=budget)


# --- without surrogates ---


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.5)], ids=repr)
@pytest.mark.parametrize("square", SQUARES, ids=repr)
def test_without_surrogates_it_is_square_bit_for_bit(square: Square, constraint: Constraint) -> None:
    case = toys.linear_case(6, shape=(3, 5, 5), classes=4)
    goal = KeepLabel(poise.objectives.MinConfidence()) if square.aim is not None else Margin(stop=False)

    def result(search: poise.searches.Search) -> tuple[poise.types.AttackResult, list[Tensor]]:
        target = case.target()
        return poise.attack(target, goal, search, constraint, case.images, case.labels, case.ids, budget=25, seed=3), [
            x for _, x, *_ in target.log
        ]

    (plain, asked), (same, asked_too) = result(square), result(QueryNet(square, surrogates=0))
    assert torch.equal(plain.images, same.images)
    assert torch.equal(plain.scores, same.scores)
    assert len(asked) == len(asked_too) == 25
    assert all(torch.equal(x, y) for x, y in zip(asked, asked_too, strict=True))
    _, asked_otherwise = result(dataclasses.replace(QUICK, square=square))
    assert not all(torch.equal(x, y) for x, y in zip(asked, asked_otherwise, strict=True))


# --- promises of every search and every recipe, but for the company ---

GOALS: list[Objective] = [Margin(), Margin(stop=False), CrossEntropy(), KeepLabel(UCA()), KeepLabel(MMA())]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("goal", GOALS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_promises_of_a_recipe(goal: Objective, norm: str, dtype: torch.dtype) -> None:
    attacked = run_own(goal, QUICK, Setup(n=4, norm=norm, budget=14, dtype=dtype, shape=(3, 4, 6)))
    for check in PROPERTIES.values():
        check(attacked)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (1, 2, 2), (1, 6, 1), (1, 70, 3)])
@pytest.mark.parametrize("n", [0, 1])
def test_tiny_narrow_and_long_images(shape: tuple[int, int, int], n: int) -> None:
    search = dataclasses.replace(QUICK, surrogates=3)
    attacked = run_own(Margin(stop=False), search, Setup(n=n, shape=shape, budget=5))
    for check in PROPERTIES.values():
        check(attacked)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
def test_contract(constraint: Constraint) -> None:
    """`check_search` accepts it, as it says that its samples share; without that word it is refused."""
    check_search(QUICK, constraint=constraint, budget=8)
    with pytest.raises(CheckError, match="must not depend on the other samples"):
        check_search(Undeclared(), constraint=constraint, budget=8)


class Undeclared:
    """QueryNet that does not say that its samples inform each other."""

    access = QUICK.access

    def run(self, problem: Problem):
        return QUICK.run(problem)


def test_never_more_than_one_query_per_sample_and_iteration() -> None:
    case = toys.linear_case(7, shape=(1, 5, 5), classes=4)
    target = case.target()
    poise.attack(target, Margin(), QUICK, Linf(0.05), case.images, case.labels, case.ids, budget=20)
    assert len(target.log) <= 20
    assert all(len(ids) == len(ids.unique()) for ids, *_ in target.log)


def test_it_says_that_samples_share_and_whatever_contains_it_says_so_too() -> None:
    assert shares(QUICK)
    assert not shares(Square())
    assert all(shares(one) for one in (Cascade((Square(), QUICK)), Aimed(QUICK), EveryClass(QUICK)))
    assert not any(shares(one) for one in (Cascade(), Aimed(Square()), EveryClass()))


# --- deterministic for a seed, and only for it ---


def attacked(case: toys.Case, search: QueryNet = QUICK, **settings) -> poise.types.AttackResult:
    arguments = {"budget": 14, "seed": 0} | settings
    target = case.target(batch_size=arguments.pop("batch_size", 256))
    return poise.attack(target, Margin(stop=False), search, Linf(0.05), case.images, case.labels, case.ids, **arguments)


def test_equal_seeds_give_equal_results_and_no_global_generator_is_touched() -> None:
    case = toys.linear_case(6, shape=(1, 6, 6), classes=4, dtype=torch.float32)
    with toys.untouched_generators():
        first = attacked(case)
    torch.rand(3)
    assert torch.equal(first.images, attacked(case).images)
    assert not torch.equal(first.images, attacked(case, seed=1).images)
    assert torch.equal(attacked(case, batch_size=2).images, attacked(case, batch_size=2).images)


def test_the_company_matters() -> None:
    """Why `shares` is declared: cut into batches of two, some sample ends elsewhere."""
    case = toys.linear_case(6, shape=(1, 6, 6), classes=4, dtype=torch.float32)
    assert not torch.equal(attacked(case).images, attacked(case, batch_size=2).images)


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_surrogates_learn_whatever_the_caller_switched_off(switch) -> None:
    case = toys.linear_case(4, shape=(1, 6, 6), classes=4, dtype=torch.float32)
    expected = attacked(case).images
    with switch():
        assert torch.equal(attacked(case).images, expected)


def test_the_surrogates_take_part() -> None:
    assert not torch.equal(
        *(
            attacked(toys.linear_case(6, shape=(1, 6, 6)), dataclasses.replace(QUICK, surrogates=s)).images
            for s in (0, 2)
        )
    )


# --- authority, by hand ---


def crowd_of(n: int, **fields) -> tuple[_Crowd, Tensor, Tensor]:
    """A crowd that has heard the clean points' losses, all 1."""
    problem = problem_of(n)
    crowd = _Crowd(QueryNet(**{"steps": 1, "warm_up": 1, "enough": 2} | fields), problem)
    ids = problem.everyone
    crowd.hear(Ask(problem.clean, ids), answer(torch.ones(n)))
    return crowd, problem.clean, ids


def answer(loss: Tensor, accept: Tensor | None = None) -> Reply:
    everyone = torch.ones(len(loss), dtype=torch.bool)
    return Reply(loss.double(), everyone if accept is None else accept, everyone)


def play(crowd: _Crowd, x: Tensor, ids: Tensor, chosen: list[int], loss: list[float], **reply) -> None:
    """One round in which the candidates' makers were `chosen`."""
    candidate = crowd.propose(x, ids, 0.1, 0)
    assert crowd.chosen is not None
    if not crowd.alone:
        crowd.chosen = torch.tensor(chosen)
    crowd.hear(Ask(candidate, ids), answer(torch.tensor(loss), **reply))


def test_authority_is_the_share_of_chosen_candidates_that_were_accepted() -> None:
    crowd, x, ids = crowd_of(7)
    assert crowd.authority == [1.0, 1.0, 0.0]
    play(crowd, x, ids, [0, 0, 0, 1, 2, 2, 2], [0.5, 2.0, 0.5, 0.5, 2.0, 2.0, 0.5])
    assert crowd.authority == pytest.approx([2 / 3, 0.0, 1 / 3])  # one candidate of the second is not enough
    play(crowd, x, ids, [1, 1, 0, 0, 0, 0, 2], [0.4, 1.0, 0.5, 0.6, 0.9, 1.0, 0.1])
    assert crowd.authority == pytest.approx([1 / 4, 1 / 2, 0.0])  # equal or worse than the sample's own best is not


def test_authority_counts_labels_as_square_does() -> None:
    kept = torch.tensor([True, False, True, False])
    for strict, expected in ((True, 0.5), (False, 1.0)):
        crowd, x, ids = crowd_of(4, square=Square(start="clean", strict=strict))
        play(crowd, x, ids, [0, 0, 0, 0], [0.5] * 4, accept=kept)
        assert crowd.authority[0] == expected


def test_square_is_alone_while_nobody_is_above_it_and_the_surrogates_come_back() -> None:
    crowd, x, ids = crowd_of(6, again=3)
    play(crowd, x, ids, [0, 0, 1, 1, 2, 2], [2.0, 2.0, 2.0, 0.5, 0.5, 0.5])
    assert crowd.authority == [0.0, 0.5, 1.0]
    trained = [surrogate.trained for surrogate in crowd.surrogates]
    alone = []
    for loss in ([0.4] * 6, [2.0] * 4 + [0.3] * 2, [0.2] * 6):
        play(crowd, x, ids, [2] * 6, loss)
        alone.append(crowd.alone)
    assert alone == [True, True, False]  # below the surrogate's share, it is no longer alone
    assert [surrogate.trained for surrogate in crowd.surrogates] == [count + 1 for count in trained]


def test_surrogates_are_tried_anew_after_some_rounds_of_square() -> None:
    """Nobody is ever accepted: all authorities are 0, and every third round is everybody's."""
    crowd, x, ids = crowd_of(6, again=3)
    alone = []
    for _ in range(7):
        play(crowd, x, ids, [0] * 6, [2.0] * 6)
        alone.append(crowd.alone)
    assert alone == [False, True, True, False, True, True, False]


def test_with_few_samples_square_is_alone() -> None:
    crowd, x, ids = crowd_of(6, enough=4)
    play(crowd, x[:3], ids[:3], [2] * 3, [2.0] * 3)
    assert crowd.alone
    play(crowd, x[:4], ids[:4], [2] * 4, [2.0] * 4)
    assert [surrogate.trained for surrogate in crowd.surrogates] == [1, 1]


def test_the_candidate_is_the_one_with_the_lowest_weighted_judgement() -> None:
    """Against a loop over samples; with all weights 0 the plain sum counts."""
    crowd, x, ids = crowd_of(6)
    picked = []
    for step, authority in enumerate(([0.5, 0.25, 0.1], [0.0, 0.3, 0.2], [0.2, 0.0, 0.1], [0.0, 0.0, -1.0])):
        crowd.authority, crowd.waiting = list(authority), 0
        candidate = crowd.propose(x, ids, 0.3, step)
        makers = [crowd._candidate(one, x, ids) for one in crowd.surrogates] + [
            crowd.squares.propose(x, ids, 0.3, step)
        ]
        weights = authority[:2] if any(authority[:2]) else [1.0, 1.0]
        for i in range(6):
            judged = [
                sum(
                    w * float(one(made[i : i + 1], ids[i : i + 1]).detach())
                    for w, one in zip(weights, crowd.surrogates, strict=True)
                )
                for made in makers
            ]
            best = int(np.argmin(judged))
            assert torch.equal(candidate[i], makers[best][i])
            picked.append(best)
    assert len(set(picked)) > 1


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
def test_a_surrogates_candidate_is_the_longest_step_down_its_gradient(constraint: Constraint) -> None:
    """linf: the corner opposite to the gradient's signs; l2: on the sphere; both then cut by the box."""
    problem = toys.problem(torch.rand(4, 1, 6, 5, generator=toys.generator(0)), constraint)
    crowd, ids = _Crowd(QueryNet(), problem), problem.everyone
    x = constraint.sample(problem.clean, Box(-9.0, 9.0), ids, problem.rng, 0)
    one = crowd.surrogates[0]
    points = x.clone().requires_grad_(True)
    one(points, ids).sum().backward()
    made, gradient = crowd._candidate(one, x, ids).numpy(), points.grad.numpy()
    clean = problem.clean.numpy()
    if isinstance(constraint, Linf):
        expected = np.clip(clean - 0.1 * np.sign(gradient), 0, 1)
    else:
        far = np.stack([x[i].numpy() - 0.8 * gradient[i] / np.sqrt((gradient[i] ** 2).sum()) for i in range(4)])
        change = far - clean
        expected = np.clip(clean + 0.4 * change / np.sqrt((change**2).sum(axis=(1, 2, 3), keepdims=True)), 0, 1)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


# --- networks and their memory ---


@pytest.mark.parametrize("number", range(len(ARCHITECTURES)))
def test_a_surrogate_learns_a_loss_and_its_slope(number: int) -> None:
    """Losses linear in x, one slope for all samples, another offset for each: the fit explains them, and its gradient
    points the right way."""
    problem = problem_of(8, shape=(1, 8, 8), budget=40)
    slope = torch.randn(1, 8, 8, generator=toys.generator(5))
    pairs, surrogate = Pairs(problem, 1 << 20), Surrogate(problem, Rng(0, ROW), number)
    for step in range(30):
        x = problem.constraint.sample(problem.clean, Box(), problem.everyone, problem.rng, step)
        x = problem.clean if step == 0 else problem.clean + 3 * (x - problem.clean)
        pairs.add(x, problem.everyone, (x * slope).flatten(1).sum(dim=1))
    surrogate.fit(pairs, 120)
    x, ids, wanted, _ = pairs.at(torch.arange(pairs.held))
    with torch.no_grad():
        left = (surrogate(x, ids) - wanted).square().mean() / wanted.var()
    assert float(left) < 0.5
    found = surrogate.slope(problem.clean, problem.everyone)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), slope.flatten().expand(8, -1), dim=1)
    assert float(cosine.mean()) > 0.25
    assert found.dtype == problem.clean.dtype


def test_surrogates_differ_and_depend_on_the_seed() -> None:
    problem, other = problem_of(3), problem_of(3, seed=1)
    first, again, second = (
        Surrogate(one, Rng(one.rng.seed, ROW), 0).body.state_dict() for one in (problem, problem, other)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))
    with torch.no_grad():
        answers = [Surrogate(problem, Rng(0, ROW), k)(problem.clean, problem.everyone) for k in range(3)]
    assert not torch.allclose(answers[0], answers[1])
    spread = torch.stack(answers).std()
    assert 0.05 < float(spread) < 20


def test_large_images_cost_no_more() -> None:
    seen = []
    problem = problem_of(1, shape=(3, 224, 200))
    for number in range(len(ARCHITECTURES)):
        surrogate = Surrogate(problem, Rng(0, ROW), number)
        surrogate.body[1].register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
        surrogate(problem.clean, problem.everyone)
    assert seen == [(1, 3, 32, 28)] * len(ARCHITECTURES)


def test_the_ring_holds_the_latest_pairs_and_no_more() -> None:
    problem = problem_of(4, shape=(1, 2, 2), budget=100)
    pairs = Pairs(problem, 10 * 16)
    assert pairs.places == 10
    for step in range(7):
        pairs.add(problem.clean + step, problem.everyone, torch.arange(4) * 10.0 + step)
    assert pairs.held == 10
    x, ids, share, known = pairs.at(torch.arange(10))
    change = (x - problem.clean[ids]).flatten(1).mean(dim=1).round().int()
    assert sorted(zip(change.tolist(), ids.tolist(), strict=True)) == sorted(
        [(6, i) for i in range(4)] + [(5, i) for i in range(4)] + [(4, 2), (4, 3)]
    )
    np.testing.assert_allclose(share.numpy(), change.numpy() / 6, rtol=1e-6)
    assert known.tolist() == [1.0] * 10


def test_points_that_were_not_evaluated_teach_nothing() -> None:
    problem = problem_of(3)
    pairs = Pairs(problem, 1 << 20)
    pairs.add(problem.clean, problem.everyone, torch.tensor([1.0, 2.0, 3.0]))
    pairs.add(problem.clean, problem.everyone, torch.tensor([0.5, torch.inf, 4.0]))
    _, _, share, known = pairs.at(torch.arange(6))
    assert known.tolist() == [1, 1, 1, 1, 0, 1]
    assert share.tolist() == [0, 0, 0, -1, 0, 1]


def test_memory_is_bounded_by_the_budget_and_holds_every_sample_once() -> None:
    assert Pairs(problem_of(5, shape=(1, 4, 4), budget=3), 1 << 30).places == 15
    assert Pairs(problem_of(5, shape=(1, 4, 4)), 0).places == 5


# --- what it gains ---


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")
def test_fewer_queries_than_square_on_a_real_network() -> None:
    """ResNet-20, the first 50 images, 8/255, the first queries, where the surrogates matter most."""
    target = load(f"builtin:resnet20-cifar10?weights={SHARED}/checkpoints/cifar10_resnet20.safetensors")
    images, labels, ids = next(load_data(f"npz:{SHARED}/cifar10_test_lossless_subset.npz").batches(50))
    plain, helped = (
        poise.attack(target, Margin(), search, Linf(8 / 255), images, labels, ids, budget=7).table
        for search in (QueryNet(surrogates=0), QueryNet())
    )
    assert (helped["stop"] == "success").sum() >= (plain["stop"] == "success").sum() + 4
    assert helped["queries"].mean() < plain["queries"].mean() - 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surrogates": 4}, r"QueryNet: surrogates must be in 0..3, got 4"),
        ({"surrogates": -1}, r"QueryNet: surrogates must be in 0..3, got -1"),
        ({"steps": 0}, r"QueryNet: steps must be at least 1, got 0"),
        ({"warm_up": 0}, r"QueryNet: warm_up must be at least 1, got 0"),
        ({"enough": 0}, r"QueryNet: enough must be at least 1, got 0"),
        ({"again": 0}, r"QueryNet: again must be at least 1, got 0"),
        ({"memory": -1}, r"QueryNet: memory must be at least 0 bytes, got -1"),
    ],
)
def test_refusals(fields: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QueryNet(**fields)
