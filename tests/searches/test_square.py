"""Square Attack: the spec's schedule and window tables, its properties, its squares, and its own reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from poise.constraints import L2, Box, Linf
from poise.errors import InputError
from poise.objectives import OCA, UCA, KeepLabel, Margin
from poise.searches import Ask, Problem, Reply, Square
from poise.searches.square import fraction
from poise.searches.squares import L2Squares, LinfSquares, Replaced, Squares, bump
from poise.types import Access
from toys import binary_case, by_hand, drive, generator, linear_case, problem

WIDE = Box(-10.0, 10.0)  # where nothing is ever clipped
SCHEDULE = {
    10_000: [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001],
    5_000: [6, 26, 101, 251, 501, 1001, 2001, 3001, 4001],
    1_000: [2, 6, 21, 51, 101, 201, 401, 601, 801],
}


# --- spec 2: tables ---


@pytest.mark.parametrize("horizon", SCHEDULE)
def test_schedule_table(horizon: int) -> None:
    """First iteration at which each halving applies; constant in between."""
    shares = [fraction(0.8, i, horizon) for i in range(horizon)]
    halvings = [i for i in range(1, horizon) if shares[i] != shares[i - 1]]
    assert halvings == SCHEDULE[horizon]
    assert [shares[i] for i in [0, *halvings]] == [0.8 / 2**m for m in range(10)]


def test_schedule_of_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    """AAA stops at 2500 of 10,000 and so never goes below /64."""
    assert min(fraction(1.0, i, 10_000) for i in range(2500)) == 1 / 64


def sides(kind: type[Squares], p: float, size: int, count: int) -> list[int]:
    squares = kind(problem(torch.zeros(1, 3, size, size)), inclusive=True)
    return [squares.side(p / 2**m) for m in range(count)]


@pytest.mark.parametrize(
    ("kind", "p", "size", "expected"),
    [
        (LinfSquares, 0.05, 32, [7, 5, 4, 3, 2, 1, 1]),
        (LinfSquares, 0.05, 224, [50, 35, 25, 18, 13, 9, 6, 4, 3, 2]),
        (L2Squares, 0.1, 224, [71, 51, 35, 25, 19, 13, 9, 7, 5, 3]),
        (L2Squares, 0.1, 32, [11, 7, 5, 5, 3, 3]),
    ],
)
def test_window_sides(kind: type[Squares], p: float, size: int, expected: list[int]) -> None:
    assert sides(kind, p, size, len(expected)) == expected


@given(height=st.integers(1, 12), width=st.integers(1, 12), p=st.sampled_from([1e-4, 0.05, 0.8, 1.0]))
def test_windows_always_fit(height: int, width: int, p: float) -> None:
    clean = torch.zeros(1, 1, height, width)
    for kind in (LinfSquares, L2Squares):
        side = kind(problem(clean), inclusive=True).side(p)
        assert 1 <= side <= min(height, width)
        assert kind is LinfSquares or side % 2 == 1
        assert kind is L2Squares or side <= max(min(height, width) - 1, 1)


# --- the bump ---


def nested_rectangles(rows: int, columns: int) -> np.ndarray:
    """Spec 2: the m-th rectangle around the centre adds 1/(m+1)^2, as the reference code fills it."""
    filled = np.zeros((rows, columns))
    top, left = rows // 2, columns // 2
    for m in range(max(rows // 2 + 1, columns // 2 + 1)):
        filled[max(top - m, 0) : top + m + 1, max(left - m, 0) : left + m + 1] += 1 / (m + 1) ** 2
    return filled / np.sqrt((filled**2).sum())


@pytest.mark.parametrize("s", [3, 5, 7, 11, 13, 35, 71])
def test_bump_is_two_pyramids(s: int) -> None:
    expected = np.concatenate([nested_rectangles(s // 2, s), -nested_rectangles(s - s // 2, s)])
    expected /= np.sqrt((expected**2).sum())
    np.testing.assert_allclose(bump(s, torch.device("cpu")).numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("s", [1, 2, 3, 11])
def test_bump_has_length_one(s: int) -> None:
    tile = bump(s, torch.device("cpu"))
    assert tile.shape == (s, s)
    assert tile.norm().item() == pytest.approx(1)


# --- proposals, by hand ---


def proposals(
    kind: type[Squares], x: Tensor, clean: Tensor, *, share: float, steps: int = 1, inclusive: bool = True
) -> list[Tensor]:
    constraint = Linf(0.1) if kind is LinfSquares else L2(0.7)
    squares = kind(problem(clean, constraint, box=WIDE), inclusive=inclusive)
    ids = torch.arange(len(clean))
    return [squares.propose(x, ids, share, step) for step in range(steps)]


def box_of(changed: Tensor) -> tuple[int, int, int, int]:
    """Rows and columns of the True entries of (H, W): first and last of each."""
    rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.02, 0.1, 0.5]))
def test_linf_proposal_replaces_one_window_by_a_constant_per_channel(seed: int, share: float) -> None:
    """Outside the window nothing changes; inside the change is +-eps, one sign per channel and image (spec 2, P2)."""
    clean = torch.rand(6, 3, 9, 8, generator=generator(seed), dtype=torch.float64)
    x = clean + 0.1 * (2 * torch.randint(0, 2, clean.shape, generator=generator(seed + 1)) - 1)
    side = max(round(math.sqrt(share * 72)), 1)
    (candidate,) = proposals(LinfSquares, x, clean, share=share)
    for image in range(6):
        moved = (candidate[image] != x[image]).any(dim=0)
        if not moved.any():
            continue  # drawn four times, and every time what was there
        top, bottom, left, right = box_of(moved)
        assert bottom - top < side
        assert right - left < side
        change = candidate[image] - clean[image]
        for channel in change:
            inside = channel[top : bottom + 1, left : right + 1][moved[top : bottom + 1, left : right + 1]]
            assert torch.allclose(inside.abs(), torch.tensor(0.1, dtype=torch.float64))
            assert inside.sign().unique().numel() == 1


def test_linf_windows_have_the_full_side_and_every_image_its_own() -> None:
    clean = torch.full((200, 1, 12, 10), 0.5, dtype=torch.float64)
    (candidate,) = proposals(LinfSquares, clean, clean, share=0.1)
    boxes = [box_of(image[0] != 0.5) for image in candidate]
    assert all(bottom - top == right - left == 2 for top, bottom, left, right in boxes)  # round(sqrt(12)) = 3
    assert len(set(boxes)) > 50
    assert stats.chisquare(np.bincount([top for top, *_ in boxes], minlength=10)).pvalue > 1e-3
    assert stats.chisquare(np.bincount([left for _, _, left, _ in boxes], minlength=8)).pvalue > 1e-3
    up = int(sum(image.sum() > 60 for image in candidate))
    assert stats.binomtest(up, 200).pvalue > 1e-3


@pytest.mark.parametrize("kind", [LinfSquares, L2Squares])
@pytest.mark.parametrize("inclusive", [True, False])
def test_last_row_and_column_are_reached_only_if_inclusive(kind: type[Squares], inclusive: bool) -> None:
    clean = torch.full((400, 1, 9, 7), 0.5, dtype=torch.float64)
    touched = sum(
        (candidate != clean).any(dim=0)[0].long()
        for share in (0.02, 0.2)
        for candidate in proposals(kind, clean, clean, share=share, inclusive=inclusive)
    )
    assert bool((touched[:-1, :-1] > 0).all())
    assert bool((touched[-1] > 0).any()) is inclusive
    assert bool((touched[:, -1] > 0).any()) is inclusive


def alone(clean: Tensor, x: Tensor, ids: Tensor, share: float, step: int) -> Tensor:
    """The candidates of squares that have made nothing ahead."""
    return LinfSquares(problem(clean, Linf(0.1), box=WIDE), inclusive=True).propose(x, ids, share, step)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_windows_made_ahead_are_those_of_their_step(share: float) -> None:
    """Whatever was asked for before: other steps, other samples, another side, ids that were written into."""
    clean = torch.rand(5, 3, 9, 8, generator=generator(3), dtype=torch.float64)
    squares = LinfSquares(problem(clean, Linf(0.1), box=WIDE), inclusive=True)
    everyone, some = torch.arange(5), torch.tensor([3, 1])
    x, asked = clean.clone(), 0
    for step in range(80):
        ids = some if 40 <= step < 50 else everyone
        if step == 60:
            everyone[:2] = torch.tensor([1, 0])
            x = x[[1, 0, 2, 3, 4]]
        part = x[ids] if ids is some else x
        now = 0.5 if step == 20 else share
        expected = alone(clean, part, ids, now, step)
        move = squares.move(part.clone(), ids, now, step)
        assert torch.equal(move.x, expected), step
        asked += len(squares.cut.steps) > 1
        if ids is not some:
            x = torch.where((torch.arange(5) % 2 == step % 2).view(-1, 1, 1, 1), expected, x)
    assert asked > 40  # the lookahead was at work


def test_linf_signs_are_redrawn_where_they_would_change_nothing() -> None:
    """x is already +eps everywhere: of 400 first draws half would repeat it, of four in a row a sixteenth."""
    clean = torch.full((400, 1, 6, 6), 0.5, dtype=torch.float64)
    (candidate,) = proposals(LinfSquares, clean + 0.1, clean, share=0.1)
    same = int((candidate == clean + 0.1).flatten(1).all(dim=1).sum())
    assert stats.binomtest(same, 400, 1 / 16).pvalue > 1e-3


def l2_by_the_spec(change: np.ndarray, eps: float, first: tuple, second: tuple, s: int, turn: bool) -> np.ndarray:
    """All sign patterns of one l2 proposal, from the spec's text: (2^C, C, H, W)."""
    channels = len(change)
    tile = np.concatenate([nested_rectangles(s // 2, s), -nested_rectangles(s - s // 2, s)])
    tile = (tile / np.sqrt((tile**2).sum())).T if turn else tile / np.sqrt((tile**2).sum())
    rows, columns = slice(first[0], first[0] + s), slice(first[1], first[1] + s)
    union = np.zeros(change.shape[1:], bool)
    union[rows, columns] = True
    union[second[0] : second[0] + s, second[1] : second[1] + s] = True
    made = []
    for signs in np.ndindex(*(2,) * channels):
        new = change.copy()
        new[:, second[0] : second[0] + s, second[1] : second[1] + s] = 0
        for c in range(channels):
            old = change[c, rows, columns]
            length = np.sqrt((old**2).sum())
            fresh = tile * (2 * signs[c] - 1) + (old / length if length > 0 else 0)
            left = max(eps**2 - (change**2).sum(), 0) / channels + (change[c][union] ** 2).sum()
            new[c, rows, columns] = fresh / np.sqrt((fresh**2).sum()) * np.sqrt(left)
        made.append(new * eps / np.sqrt((new**2).sum()))
    return np.array(made)


@pytest.mark.parametrize("length", [0.0, 0.4, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_l2_proposal_is_the_specs(length: float, seed: int) -> None:
    """Each proposal equals the text's formula for some two windows, turn and signs, at the ball's surface (P3)."""
    eps, s = 0.7, 3
    clean = torch.zeros(3, 2, 6, 5, dtype=torch.float64)
    direction = torch.randn(clean.shape, generator=generator(seed), dtype=torch.float64)
    x = clean + length * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    squares = L2Squares(problem(clean, L2(eps), box=WIDE), inclusive=True)
    candidate = squares.propose(x, torch.arange(3), 0.1, seed)
    np.testing.assert_allclose(candidate.flatten(1).norm(dim=1).numpy(), eps, rtol=1e-12)
    corners = [(top, left) for top in range(6 - s + 1) for left in range(5 - s + 1)]
    for image in range(3):
        found = min(
            np.abs(made - candidate[image].numpy()).max()
            for first in corners
            for second in corners
            for turn in (False, True)
            for made in l2_by_the_spec(x[image].numpy(), eps, first, second, s, turn)
        )
        assert found < 1e-12


@given(seed=st.integers(0, 10_000), start=st.sampled_from(["clean", "stripes"]))
def test_pre_clip_norm_is_eps_and_the_clip_never_lengthens(seed: int, start: str) -> None:
    """P3, over a whole run: in a wide box every point asked has norm eps, in the unit box eps or less."""
    clean = torch.rand(2, 3, 7, 6, generator=generator(seed), dtype=torch.float64)
    for box, exact in ((WIDE, True), (Box(), False)):
        told = by_hand(Square(start=start).run(problem(clean, L2(0.9), box=box, seed=seed)), _improving(clean, most=25))
        for ask in told.asks[1:]:
            norm = (ask.x - clean[ask.ids]).flatten(1).norm(dim=1)
            assert bool((norm <= 0.9 + 1e-9).all())
            assert not exact or bool((norm >= 0.9 - 1e-9).all())
            assert bool(box.contains(ask.x).all())


def _improving(clean: Tensor, most: int) -> Callable[[Ask, int], Reply]:
    """Answers with a linear loss; nobody is active after `most` asks."""
    slope = torch.randn(clean.shape[1:], generator=generator(9), dtype=clean.dtype)

    def answer(ask: Ask, number: int) -> Reply:
        loss = (ask.x * slope).flatten(1).sum(dim=1)
        active = torch.full((len(clean),), number + 1 < most)
        return Reply(loss, torch.ones_like(loss, dtype=torch.bool), active)

    return answer


@pytest.mark.parametrize("start", ["clean", "stripes"])
def test_linf_changes_are_zero_eps_or_clipped(start: str) -> None:
    """P2: |delta| in {0, eps, distance to the box}; 0 cannot occur after a start with stripes."""
    clean = torch.rand(3, 2, 8, 6, generator=generator(0), dtype=torch.float64)
    told = by_hand(Square(start=start).run(problem(clean, Linf(0.3))), _improving(clean, most=60))
    for ask in told.asks[1:]:
        change = ask.x - clean[ask.ids]
        up = (clean + 0.3).clamp_max(1) - clean
        down = clean - (clean - 0.3).clamp_min(0)
        kinds = [change == 0, (change - up[ask.ids]).abs() < 1e-12, (change + down[ask.ids]).abs() < 1e-12]
        assert bool((kinds[0] | kinds[1] | kinds[2]).all())
        assert start == "clean" or not kinds[0].any()


# --- the starting patterns ---


def test_stripes_are_constant_down_the_rows_and_random_across() -> None:
    clean = torch.full((500, 3, 5, 8), 0.5, dtype=torch.float64)
    first = LinfSquares(problem(clean, Linf(0.1)), inclusive=True).first(torch.arange(500))
    change = first - clean
    assert torch.allclose(change.abs(), torch.full_like(change, 0.1))
    assert bool((change == change[:, :, :1]).all())
    up = (change[:, :, 0] > 0).double()
    assert stats.binomtest(int(up.sum()), up.numel()).pvalue > 1e-3
    for a, b in ((up[:, :, :-1], up[:, :, 1:]), (up[:, :-1], up[:, 1:]), (up[:-1], up[1:])):
        agree = int((a == b).sum())
        assert stats.binomtest(agree, a.numel()).pvalue > 1e-3


def test_bumps_fill_a_grid_at_the_balls_surface() -> None:
    """5 x 5 bumps of side h // 5, centred, random sign per channel and cell; global norm eps."""
    clean = torch.full((60, 2, 16, 15), 0.5, dtype=torch.float64)
    first = L2Squares(problem(clean, L2(0.5), box=WIDE), inclusive=True).first(torch.arange(60))
    change = first - clean
    np.testing.assert_allclose(change.flatten(1).norm(dim=1).numpy(), 0.5, rtol=1e-12)
    assert change[:, :, 15:].abs().sum() == 0  # 16 // 3 = 5 cells of 3 rows, centred with none above and one below
    tile = bump(3, torch.device("cpu"))
    cells = change[:, :, :15].reshape(60, 2, 5, 3, 5, 3).transpose(3, 4)
    scale = change[0].abs().max() / tile.abs().max()
    ups, turns = 0, 0
    for cell in cells.reshape(-1, 3, 3):
        signs = [
            (sign, turn) for sign in (1, -1) for turn in (tile, tile.T) if torch.allclose(cell, sign * scale * turn)
        ]
        assert len(signs) == 1
        ups += signs[0][0] > 0
        turns += signs[0][1] is tile
    assert stats.binomtest(ups, 60 * 2 * 25).pvalue > 1e-3
    assert stats.binomtest(turns, 60 * 2 * 25).pvalue > 1e-4 or 0.4 < turns / 3000 < 0.6


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.5)])
def test_start_replaces_the_clean_image_whatever_its_loss(constraint: object) -> None:
    """As published: the pattern is the first iterate; the second ask differs from it by one proposal only."""
    clean = torch.rand(2, 1, 10, 10, generator=generator(1), dtype=torch.float64)

    def worse(ask: Ask, number: int) -> Reply:
        loss = torch.full((len(ask.ids),), float(number), dtype=torch.float64)
        return Reply(loss, torch.ones_like(loss, dtype=torch.bool), torch.full((2,), number < 4))

    told = by_hand(Square(start="stripes").run(problem(clean, constraint)), worse)
    start, *rest = (ask.x for ask in told.asks[1:])
    assert not torch.equal(start, clean)
    for candidate in rest:  # all of them worse, so each is one proposal away from the start
        assert int((candidate != start).sum()) < int((candidate != clean).sum())


def test_a_start_that_is_not_accepted_is_left_for_the_clean_image() -> None:
    clean = torch.rand(2, 1, 10, 10, generator=generator(1), dtype=torch.float64)

    def flips(ask: Ask, number: int) -> Reply:
        loss = torch.zeros(len(ask.ids), dtype=torch.float64)
        return Reply(loss, torch.full((len(ask.ids),), number != 1), torch.full((2,), number < 4))

    told = by_hand(Square(start="stripes").run(problem(clean, Linf(0.1))), flips)
    assert all(int((ask.x[0] != clean[0]).sum()) <= 9 for ask in told.asks[2:])


def test_no_pattern_without_being_asked() -> None:
    """Calibration attacks: x_best = x at the start, so the first proposal is one window on the clean image."""
    clean = torch.rand(3, 1, 10, 10, generator=generator(1), dtype=torch.float64)
    told = by_hand(Square().run(problem(clean, Linf(0.1))), _improving(clean, most=2))
    assert bool(((told.asks[1].x != clean).flatten(1).sum(dim=1) <= 4).all())


# --- accept, end, budget ---


def test_accept_needs_a_strictly_lower_loss_and_acceptance() -> None:
    """The next proposal starts from the last kept one: after an equal, a lower, and a lower but flipped answer."""
    clean = torch.full((1, 1, 30, 30), 0.5, dtype=torch.float64)
    script = {0: (1.0, True), 1: (1.0, True), 2: (0.5, True), 3: (0.4, False), 4: (0.3, True), 5: (0.3, True)}

    changed = []

    def answer(ask: Ask, number: int) -> Reply:
        changed.append(int((ask.x != clean).sum()))  # now: Square writes into its points later
        loss, accept = script[number]
        return Reply(torch.tensor([loss]).double(), torch.tensor([accept]), torch.tensor([number < 5]))

    by_hand(Square(p=0.001).run(problem(clean, Linf(0.1))), answer)  # one pixel each: 900 places
    assert changed[:2] == [0, 1]
    assert changed[2] == 1  # an equal loss was not kept
    assert changed[3] == 2  # the lower one was
    assert changed[4] == 2  # the flipped one was not
    assert changed[5] == 3


def test_loss_trace_never_rises() -> None:
    """P4: best loss is non-increasing in the query index."""
    case = linear_case(6, shape=(3, 6, 6))
    best: list[Tensor] = []
    search = Square(start="stripes")

    class Watched:
        access = Access.LABELS

        def run(self, problem_: Problem):
            steps = search.run(problem_)
            ask = next(steps)
            while True:
                reply = yield ask
                best.append(torch.full((6,), torch.inf).double().scatter(0, ask.ids, reply.loss))
                try:
                    ask = steps.send(reply)
                except StopIteration:
                    return

    run = drive(case, Margin(stop=False), Watched(), Linf(0.1), budget=80)
    trace = torch.stack(best).cummin(dim=0).values
    assert torch.equal(trace[-1], torch.minimum(run.best.merit, trace[-1]))
    assert (trace[-1] < trace[0]).all()


@pytest.mark.parametrize("budget", [30, 100])
def test_success_at_a_query_holds_for_a_larger_budget_at_a_fixed_horizon(budget: int) -> None:
    """P6."""
    case = linear_case(12, shape=(1, 6, 6), scale=6)
    search = Square(start="stripes", horizon=1000)
    short = drive(case, Margin(), search, Linf(0.04), budget=30).queries_to_success
    longer = drive(case, Margin(), search, Linf(0.04), budget=budget).queries_to_success
    reached = short >= 0
    assert 2 < int(reached.sum()) < 12
    assert torch.equal(longer[reached], short[reached])


def test_margin_approaches_the_closed_form_on_a_linear_model() -> None:
    """P7: z-margin - eps * ||w_1 - w_0||_1 with the box inactive."""
    case = binary_case(4, margin=3.0, shape=(1, 5, 5))
    run = drive(case, Margin(stop=False), Square(start="stripes"), Linf(0.05), budget=700)
    drop = 0.05 * (case.weight[1] - case.weight[0]).abs().sum()
    torch.testing.assert_close(run.best.merit, torch.full_like(drop.expand(4), 3.0 - float(drop)), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("goal", "sign"), [(UCA(tol=0), -1), (OCA(tol=0), 1)])
def test_calibration_goals_reach_the_closed_form(goal: object, sign: int) -> None:
    """K = 2: the gap is tanh(m / 2) and 1 - p_k is sigmoid(-m), at m = z-margin -+ eps * ||w||_1 (spec 28.5)."""
    case = binary_case(4, margin=3.0, shape=(1, 5, 5))
    run = drive(case, KeepLabel(goal), Square(), Linf(0.05), budget=700)
    m = 3.0 + sign * 0.05 * float((case.weight[1] - case.weight[0]).abs().sum())
    assert m > 0.3
    expected = math.tanh(m / 2) if sign < 0 else 1 / (1 + math.exp(m))
    np.testing.assert_allclose(run.best.merit.numpy(), expected, rtol=1e-9)


def test_horizon_is_the_budget_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def spy(p: float, iteration: int, horizon: int) -> float:
        asked.append((iteration, horizon))
        return fraction(p, iteration, horizon)

    monkeypatch.setattr("poise.searches.square.fraction", spy)
    clean = torch.rand(1, 1, 6, 6, generator=generator(0), dtype=torch.float64)
    for search, horizon in ((Square(), 49), (Square(start="stripes"), 48), (Square(horizon=10_000), 10_000)):
        asked.clear()
        by_hand(search.run(problem(clean, Linf(0.1), budget=50)), _improving(clean, most=7))
        assert {h for _, h in asked} == {horizon}
        assert [i for i, _ in asked] == list(range(len(asked)))


@pytest.mark.parametrize(
    ("search", "constraint", "expected"), [(Square(), Linf(0.1), 50), (Square(p=0.3), Linf(0.1), 123)]
)
def test_share_of_the_first_window(search: Square, constraint: object, expected: int) -> None:
    """p of 0.05 (linf) unless given: round(sqrt(p) * 224)."""
    clean = torch.full((1, 1, 224, 224), 0.5)
    told = by_hand(search.run(problem(clean, constraint)), _improving(clean, most=2))
    assert int((told.asks[1].x != clean).sum()) == expected**2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(p=0.0), r"Square: p must be in \(0, 1\], got 0.0"),
        (lambda: Square(p=1.5), r"Square: p must be in \(0, 1\], got 1.5"),
        (lambda: Square(start="bumps"), "Square: start must be 'clean', 'stripes' or 'best', got 'bumps'"),
        (lambda: Square(horizon=0), "Square: horizon must be at least 1, got 0"),
        (lambda: next(Square().run(problem(torch.zeros(1, 1, 2, 2), constraint=object()))), "must be Linf or L2"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- the checks above can fail ---


def test_broken_squares_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    corner, propose = Squares.corner, L2Squares.propose

    def one_for_all(self: Squares, bits: Tensor, s: int) -> tuple[Tensor, Tensor]:
        """The released codes: one window for the whole batch."""
        top, left = corner(self, bits, s)
        return top[:1].expand_as(top), left[:1].expand_as(left)

    def adding(self: LinfSquares, x: Tensor, ids: Tensor, share: float, step: int) -> Replaced:
        """Adds half a step inside the ball instead of replacing the change by +-eps."""
        up = self.problem.rng.signs("twin", step, ids, (self.channels, 1, 1))
        moved = x + torch.where(up, 0.05, -0.05)
        return Replaced(x, self.problem.constraint.project(moved, self.problem.clean[ids], Box()))

    def shorter(self: L2Squares, x: Tensor, ids: Tensor, share: float, step: int) -> Tensor:
        clean = self.problem.clean[ids]
        return clean + 0.999 * (propose(self, x, ids, share, step) - clean)

    def refused(check: Callable[..., None], *arguments: object) -> None:
        plain = check.hypothesis.inner_test if hasattr(check, "hypothesis") else check
        with pytest.raises(AssertionError):
            plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Squares, "corner", one_for_all)
        refused(test_linf_windows_have_the_full_side_and_every_image_its_own)
    with monkeypatch.context() as patch:
        patch.setattr(LinfSquares, "move", adding)
        refused(test_linf_changes_are_zero_eps_or_clipped, "clean")
        refused(test_linf_proposal_replaces_one_window_by_a_constant_per_channel, 0, 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(L2Squares, "propose", shorter)
        refused(test_pre_clip_norm_is_eps_and_the_clip_never_lengthens, 0, "clean")
        refused(test_l2_proposal_is_the_specs, 0.4, 0)
