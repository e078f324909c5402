"""SimBA: its bases against scipy, its orders, its properties, and a loop over one sample written from the text."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import fft, stats
from torch import Tensor

import poise
from numpy_goals import Loop, Oracle, agrees
from poise.checks.searches import check_search
from poise.constraints import L2, Anywhere, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import CrossEntropy, Margin
from poise.rng import Rng
from poise.searches import Ask, Reply, SimBA
from poise.searches.bases import BASES, Basis, cosines, pixels
from poise.searches.simba import ORDERS, diagonals, rings, shuffled
from poise.types import Access
from toys import Transcript, binary_case, by_hand, drive, generator, linear_case, problem

CPU = torch.device("cpu")
SHAPES = [(1, 1), (1, 5), (4, 1), (6, 6), (7, 4), (32, 32), (5, 28)]


# --- bases ---


def is_orthonormal_dct(make: Callable[..., Basis], height: int, width: int, dtype: torch.dtype) -> None:
    """Against scipy; there and back; lengths kept; members are the images of single coefficients."""
    basis, tolerance = make(height, width, dtype, CPU), 1e-13 if dtype == torch.float64 else 3e-6
    x = torch.randn(2, 3, height, width, generator=generator(0), dtype=dtype)
    z = basis.coefficients(x)
    expected = fft.dctn(x.double().numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(z.double().numpy(), expected, rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(basis.image(z), x, rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=10 * tolerance, atol=0)
    row = torch.arange(height).repeat_interleave(width)
    members = basis.members(row, torch.arange(width).repeat(height))
    single = torch.eye(height * width, dtype=dtype).view(-1, height, width)
    torch.testing.assert_close(members, basis.image(single), rtol=0, atol=tolerance)
    assert members.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_cosines_are_the_orthonormal_dct(height: int, width: int, dtype: torch.dtype) -> None:
    is_orthonormal_dct(cosines, height, width, dtype)


def test_another_basis_is_noticed() -> None:
    """Broken twins: not normalised, and pixels."""

    def longer(*given: object) -> Basis:
        basis = cosines(*given)  # type: ignore[arg-type]
        return Basis(basis.vertical * math.sqrt(2), basis.horizontal / math.sqrt(2) * 1.001)

    for twin in (longer, pixels):
        with pytest.raises(AssertionError):
            is_orthonormal_dct(twin, 6, 5, torch.float64)


def test_pixels_are_themselves() -> None:
    basis, x = pixels(3, 4, torch.float64, CPU), torch.rand(2, 3, 4, dtype=torch.float64)
    assert torch.equal(basis.coefficients(x), x)
    assert torch.equal(basis.image(x), x)
    (member,) = basis.members(torch.tensor([2]), torch.tensor([1]))
    assert member.nonzero().tolist() == [[2, 1]]
    assert member.sum() == 1


# --- orders ---


def test_rings_grow_by_the_stride() -> None:
    """The original's count: after the first block of side f, every ring of stride s at side i has 2 s i + s^2 cells."""
    row, column = torch.arange(224).repeat_interleave(224), torch.arange(224).repeat(224)
    turns = rings(row, column, 28, 7)
    sizes = [28**2, *(2 * 7 * i + 7**2 for i in range(28, 224, 7))]
    assert torch.bincount(turns).tolist() == sizes
    assert bool(((torch.maximum(row, column) < 28) == (turns == 0)).all())
    small = rings(torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3), 2, 1)
    assert small.view(3, 3).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]


def test_diagonals_ascend() -> None:
    turns = diagonals(torch.arange(2).repeat_interleave(3), torch.arange(3).repeat(2), 1, 1)
    assert turns.tolist() == [0, 1, 2, 1, 2, 3]


def test_a_pass_takes_every_coordinate_once_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = torch.arange(30) // 12
    rng, ids = Rng(3, torch.tensor([5, -8, 11, 40, 41])), torch.arange(5)
    whole = shuffled(rng, ids, 0, turns, 30)
    assert bool((whole.sort(dim=1).values == torch.arange(30)).all())
    assert bool((turns[whole] == turns).all())
    assert len({tuple(order.tolist()) for order in [*whole, *shuffled(rng, ids, 1, turns, 30)]}) == 10
    assert torch.equal(shuffled(rng, ids, 0, turns, 7), whole[:, :7])
    assert torch.equal(shuffled(Rng(3, rng.sample_ids[[4, 1]]), ids[:2], 0, turns, 30), whole[[4, 1]])
    monkeypatch.setattr("poise.searches.simba._KEYS", 60)
    assert torch.equal(shuffled(rng, ids, 0, turns, 30), whole)


def test_orders_are_uniform() -> None:
    order = shuffled(Rng(0, torch.arange(2000)), torch.arange(2000), 0, torch.zeros(3, dtype=torch.long), 3)
    seen = np.bincount((order * torch.tensor([9, 3, 1])).sum(dim=1).numpy(), minlength=27)
    assert stats.chisquare(seen[seen > 0]).pvalue > 1e-3
    assert (seen > 0).sum() == 6


# --- a loop over one sample, from the text ---


def simba_loop(search: SimBA, *, strict: bool = True, first: int = -1) -> Loop:
    """Spec 16. The order is the search's own draw; all the rest is written anew, the DCT by scipy."""

    def loop(ask: Oracle, project: Callable[[np.ndarray], np.ndarray]) -> None:
        clean = ask.clean
        channels, height, width = clean.shape
        block = {"random": 32, "strided": 28, "diagonal": 1}[search.order]
        side = search.freq_dims or (99 if search.basis == "pixel" else block)
        cells = [(c, r, k) for c in range(channels) for r in range(height) for k in range(width)]
        turn_of = {
            "random": lambda r, k: 0 if r < side and k < side else None,
            "strided": lambda r, k: math.ceil(max(max(r, k) + 1 - side, 0) / search.stride),
            "diagonal": lambda r, k: r + k,
        }[search.order]
        cells = [cell for cell in cells if turn_of(*cell[1:]) is not None]
        turns = torch.tensor([turn_of(*cell[1:]) for cell in cells])
        rng = Rng(0, ask.case.ids)
        z = np.zeros(clean.shape)
        to_image = (lambda z: z) if search.basis == "pixel" else lambda z: fft.idctn(z, axes=(1, 2), norm="ortho")
        loss, _ = ask(clean)
        for pass_ in range(10**6):
            for position in shuffled(rng, torch.tensor([ask.row]), pass_, turns, len(cells))[0].tolist():
                for sign in (first, -first):
                    tried = z.copy()
                    tried[cells[position]] += sign * search.step
                    answer, accept = ask(project(clean + to_image(tried)))
                    if (answer < loss or (not strict and answer <= loss)) and accept:
                        z, loss = tried, answer
                        break

    return loop


@pytest.mark.parametrize("goal", ["margin", "margin, no stop", "uca"])
@pytest.mark.parametrize(
    ("search", "constraint"),
    [
        (SimBA(), Linf(0.1)),
        (SimBA(), L2(0.4)),
        (SimBA(basis="pixel"), Linf(0.1)),
        (SimBA(basis="pixel", order="diagonal"), L2(0.5)),
        (SimBA(step=0.1, order="strided", freq_dims=2, stride=2), Anywhere()),
        (SimBA(freq_dims=3), Linf(0.05)),
        (SimBA(order="diagonal"), L2(0.3)),
    ],
    ids=repr,
)
def test_agrees_with_a_loop_over_each_sample(search: SimBA, constraint: Constraint, goal: str) -> None:
    """Same questions, same ledger, same result, through a second pass (24 coordinates) and at an odd budget."""
    case = linear_case(3, shape=(2, 4, 3), seed=4)
    agrees(case, goal, search, constraint, simba_loop(search), budget=59)


@pytest.mark.parametrize("twin", [{"strict": False}, {"first": 1}])
def test_another_rule_is_noticed(twin: dict) -> None:
    """Broken twins: a tie is kept, and +e before -e; on a model that does not look at the first channel."""
    case, search = linear_case(2, shape=(2, 4, 3)), SimBA(basis="pixel")
    case.weight[:, 0] = 0
    agrees(case, "margin, no stop", search, Linf(0.1), simba_loop(search), budget=40)
    with pytest.raises(AssertionError):
        agrees(case, "margin, no stop", search, Linf(0.1), simba_loop(search, **twin), budget=40)


# --- properties ---


def scripted(search: SimBA, clean: Tensor, answers: list[tuple[list[float], list[bool]]]) -> Transcript:
    """Answers ask by ask with losses and acceptance; nobody is active after the last."""

    def answer(ask: Ask, number: int) -> Reply:
        loss, accept = answers[number]
        active = torch.full((len(clean),), number + 1 < len(answers))
        return Reply(torch.tensor(loss).double(), torch.tensor(accept), active)

    return by_hand(search.run(problem(clean, Anywhere(), box=Box(-50.0, 50.0))), answer)


def test_the_second_direction_is_asked_only_where_the_first_failed() -> None:
    """Three samples: lower; equal; lower but not accepted. Then the next step starts from what each one kept."""
    clean = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    told = scripted(
        SimBA(basis="pixel"),
        clean,
        [
            ([1.0, 1.0, 1.0], [True] * 3),
            ([0.5, 1.0, 0.2], [True, True, False]),
            ([0.9, 2.0], [True, True]),
            ([0.4, 0.8, 0.9], [True] * 3),
        ],
    )
    assert [ask.ids.tolist() for ask in told.asks] == [[0, 1, 2], [0, 1, 2], [1, 2], [0, 1, 2]]
    assert all(ask.repeats == 1 and not ask.probe for ask in told.asks)
    first, second, third = told.asks[1:]
    assert torch.equal(second.x, -first.x[1:])
    assert first.x.flatten(1).sum(dim=1).tolist() == [-0.2] * 3
    moved = third.x.clone()
    moved[0] -= first.x[0]  # kept -e
    moved[1] -= second.x[0]  # kept +e
    assert bool((moved.flatten(1).min(dim=1).values == -0.2).all())
    assert bool(((moved != 0).flatten(1).sum(dim=1) == 1).all())


@pytest.mark.parametrize(
    "search", [SimBA(), SimBA(basis="pixel"), SimBA(order="diagonal", step=0.7), SimBA(freq_dims=2)], ids=repr
)
def test_one_coefficient_changes_by_one_step(search: SimBA) -> None:
    """P1 and P2, without ball and clip: kept losses fall, one coefficient at a time, all of a pass before the next."""
    clean = torch.rand(2, 2, 5, 3, generator=generator(1), dtype=torch.float64)
    slope = torch.randn(clean.shape[1:], generator=generator(2), dtype=torch.float64)
    d = 8 if search.freq_dims else 30

    def answer(ask: Ask, number: int) -> Reply:
        loss = ((ask.x * slope).flatten(1).sum(dim=1)).sin()  # many a coordinate fails both ways
        return Reply(loss, torch.ones_like(loss).bool(), torch.full((2,), number < 3 * d))

    told = by_hand(search.run(problem(clean, Anywhere(), box=Box(-99.0, 99.0))), answer)
    for row in range(2):
        now, loss, touched = clean[row], math.inf, []
        for ask, reply in zip(told.asks, told.replies, strict=True):
            for x, value in zip(ask.x[ask.ids == row], reply.loss[ask.ids == row].tolist(), strict=True):
                change = (x - now).numpy()
                z = change if search.basis == "pixel" else fft.dctn(change, axes=(1, 2), norm="ortho")
                moved = np.flatnonzero(np.abs(z) > 1e-9)
                if ask is told.asks[0]:
                    assert len(moved) == 0
                else:
                    assert np.abs(z.ravel()[moved]) == pytest.approx([search.step], abs=1e-12)
                    assert z.ravel()[moved] < 0 or touched[-1] == moved[0]  # +e only after -e of the same
                    if not touched or touched[-1] != moved[0]:
                        touched.append(int(moved[0]))
                if value < loss:
                    now, loss = x, value
        assert len(set(touched[:d])) == d
        assert len(touched) > d


def test_pixels_reach_the_closed_form_on_a_linear_model() -> None:
    """A step beyond eps is cut to +-eps: one pass finds every sign, z-margin - eps * ||w_1 - w_0||_1."""
    case = binary_case(4, margin=3.0, shape=(1, 5, 5))
    run = drive(case, Margin(stop=False), SimBA(basis="pixel"), Linf(0.05), budget=51)
    drop = 0.05 * (case.weight[1] - case.weight[0]).abs().sum()
    torch.testing.assert_close(run.best.merit, torch.full_like(drop.expand(4), 3.0 - float(drop)), rtol=0, atol=1e-9)
    assert bool((run.improved_at < 51).any())


def test_length_without_a_ball_is_bounded_by_the_steps() -> None:
    """||delta||_2 = step * sqrt(k) after k kept steps along different coordinates, where nothing is clipped."""
    case = binary_case(3, margin=3.0)
    run = drive(case, CrossEntropy(), SimBA(step=0.01), Anywhere(), budget=17)
    steps = ((run.best.x - case.images).flatten(1).norm(dim=1) / 0.01).square()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-6)
    assert bool(((steps > 7) & (steps < 17)).all())


# --- shapes, company, contract ---


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (3, 9, 2), (1, 40, 3), (2, 3, 35)])
@pytest.mark.parametrize("search", [SimBA(), SimBA(basis="pixel"), SimBA(order="strided", freq_dims=2)], ids=repr)
def test_any_shape(shape: tuple[int, int, int], search: SimBA) -> None:
    case = linear_case(1, shape=shape, dtype=torch.float32)
    target = case.target()
    result = poise.attack(target, Margin(stop=False), search, Linf(0.1), case.images, case.labels, case.ids, 20)
    assert result.table["queries"].to_list() == [20] == target.counted(case.ids, gradients=False)
    assert result.table["loss_after"][0] < result.table["loss_before"][0]
    assert result.images.dtype == torch.float32


@pytest.mark.parametrize(("search", "rows", "columns"), [(SimBA(), 32, 32), (SimBA(freq_dims=36), 36, 34)])
def test_frequencies_beyond_the_block_are_left_alone(search: SimBA, rows: int, columns: int) -> None:
    clean = torch.zeros(1, 1, 40, 34, dtype=torch.float64)
    told = scripted(search, clean, [([0.0], [True])] * 400)
    moved = sum(np.abs(fft.dctn(ask.x[0, 0].numpy(), norm="ortho")) > 1e-9 for ask in told.asks)
    assert not moved[rows:].any()
    assert not moved[:, columns:].any()
    assert moved[rows - 3 :].any()
    assert moved[:, columns - 3 :].any()
    assert moved.max() == 2  # -e and +e, no coordinate twice


def test_nobody_left_to_ask() -> None:
    clean = torch.rand(2, 1, 3, 3, generator=generator(0), dtype=torch.float64)
    told = scripted(SimBA(), clean, [([1.0, 1.0], [True, True])])
    assert len(told.asks) == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_do_not_depend_on_the_company(batch_size: int) -> None:
    case = linear_case(6, shape=(2, 4, 5))

    def images(size: int, rows: slice) -> Tensor:
        given = case.images[rows], case.labels[rows], case.ids[rows]
        return poise.attack(case.target(batch_size=size), Margin(), SimBA(), Linf(0.1), *given, 40).images

    whole = images(256, slice(None))
    assert torch.equal(images(batch_size, slice(None)), whole)
    assert torch.equal(images(256, slice(2, 4)), whole[2:4])


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4), Anywhere()], ids=repr)
@pytest.mark.parametrize("search", [SimBA(basis=basis, order=order) for basis in BASES for order in ORDERS], ids=repr)
def test_contract(search: SimBA, constraint: Constraint) -> None:
    check_search(search, constraint=constraint, budget=20)
    assert search.access is Access.LABELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0.0}, "SimBA: step must be a positive number, got 0.0"),
        ({"step": math.inf}, "SimBA: step must be a positive number, got inf"),
        ({"basis": "wavelet"}, "SimBA: basis must be 'dct' or 'pixel', got 'wavelet'"),
        ({"order": "zigzag"}, "SimBA: order must be 'random', 'strided' or 'diagonal', got 'zigzag'"),
        ({"freq_dims": 0}, "SimBA: freq_dims must be at least 1 and needs basis 'dct', got 0 with 'dct'"),
        ({"basis": "pixel", "freq_dims": 8}, "and needs basis 'dct', got 8 with 'pixel'"),
        ({"stride": 0}, "SimBA: stride must be at least 1, got 0"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        SimBA(**arguments)
