"""Metrics of a stream against the metrics of its rows, and its resamples against the same resamples of rows."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import H10, V10, columns, for_all

from poise.errors import InputError
from poise.metrics import Bootstrap, Streamed, bootstrap, ece, ks_error, success_fail, success_fail_streamed
from poise.metrics.streamed import _measure

Columns = tuple[np.ndarray, np.ndarray]


def streamed(confidence: np.ndarray, correct: np.ndarray, chunk: int = 7, **options: int) -> Streamed:
    stream = Streamed(**options)
    for start in range(0, len(confidence), chunk):
        stream.add(confidence[start : start + chunk], correct[start : start + chunk])
    return stream


def answers(n: int, seed: int = 0) -> Columns:
    """An overconfident model: most answers near 1, fewer right than it says."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(6, 1, n)
    return confidence, (rng.random(n) < confidence**1.3).astype(float)


def test_hand_worked_vector() -> None:
    """Five bins of two cells, so that the grid has the edges 0, 0.1, …, 1."""
    stream = streamed(V10, H10, chunk=3, bins=5, cells=10)
    assert (stream.n, stream.width) == (10, 0.1)
    assert stream.ece() == pytest.approx(ece(V10, H10, bins=5), abs=1e-15)
    # Sums of correct - confidence by cell from (0.3, 0.4] on: -0.31, -0.43, 0.45, 0.34 - 0.61, 0.24, 0.13 - 0.81,
    # 0.05 + 0.08. At the edges: -0.31, -0.74, -0.29, -0.56, -0.32, -1.00, -0.87. The rows reach no further.
    assert stream.ks_error() == pytest.approx(0.100, abs=1e-12)
    assert ks_error(V10, H10) == pytest.approx(0.113, abs=1e-12)
    # Within (0.8, 0.9] the wrong row may come first: from -0.32 down by 0.81.
    assert stream.ks_slack == pytest.approx(0.113 - 0.100, abs=1e-12)


def test_ece_is_that_of_the_rows() -> None:
    def check(data: Columns, bins: int) -> None:
        assert streamed(*data, bins=bins).ece() == pytest.approx(ece(*data, bins=bins), abs=1e-12)

    for_all(check, columns(), st.integers(1, 20))


def test_ks_error_is_within_its_slack() -> None:
    def check(data: Columns, cells: int) -> None:
        stream, exact = streamed(*data, cells=cells, bins=2), ks_error(*data)
        assert stream.ks_error() - 1e-12 <= exact <= stream.ks_error() + stream.ks_slack + 1e-12

    for_all(check, columns(), st.integers(1, 40))


def test_a_bound_without_the_slack_would_be_wrong() -> None:
    """The twin of the test above: on a coarse grid the edges alone miss what happens between them."""
    confidence, correct = np.array([0.3, 0.4]), np.array([0, 1])
    stream = streamed(confidence, correct, bins=1, cells=2)
    assert stream.ks_error() == pytest.approx(0.15)
    assert ks_error(confidence, correct) == pytest.approx(0.15)
    assert streamed(confidence, 1 - correct, bins=1, cells=2).ks_error() == pytest.approx(0.15)
    assert ks_error(confidence, 1 - correct) == pytest.approx(0.35)


def test_equal_confidences_need_no_slack() -> None:
    """What a model that answers few values gives: histogram binning, an attack that stops at a bound."""
    confidence = np.repeat([0.0, 0.25, 0.5, 0.7, 1.0], 40)
    stream = streamed(confidence, np.arange(200) % 3 == 0, cells=30)
    assert stream.ks_slack == 0
    assert stream.ks_error() == pytest.approx(ks_error(confidence, np.arange(200) % 3 == 0), abs=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("confidence", "correct"), [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1), (0.2, 1), (0.5, 0)])
def test_one_row(confidence: float, correct: int, kind: type) -> None:
    stream = Streamed().add(np.array([confidence], dtype=kind), [correct])
    gap = abs(correct - float(kind(confidence)))
    assert (stream.ece(), stream.ks_error(), stream.ks_slack) == (pytest.approx(gap), pytest.approx(gap), 0)
    found = stream.intervals(Bootstrap(resamples=20), thresholds=[0.0, 0.9])
    assert (found.ece.low, found.ece.value, found.ece.high) == pytest.approx((gap, gap, gap))
    assert found.threshold.tolist() == [0.9, 0.0] or kind is np.float32
    for curve, what in ((found.right, correct), (found.wrong, 1 - correct)):
        assert curve.value.tolist() == curve.low.tolist() == curve.high.tolist()
        assert curve.value.tolist() == [what * (confidence > 0.9), what * (confidence > 0)]


def test_edges_are_those_of_the_type() -> None:
    """0.2 in float32 lies on its own edge 1/5 and above that of float64."""
    confidence, correct = np.array([0.2, 0.4, 0.6, 0.8], dtype=np.float32), np.array([1, 0, 1, 0])
    assert streamed(confidence, correct, bins=5).ece() == pytest.approx(ece(confidence, correct, bins=5), abs=1e-12)


def test_success_fail_is_that_of_the_rows() -> None:
    """Every column but the one that a stream cannot have; thresholds are edges, among them one below 0."""

    def check(clean: Columns, adv: Columns) -> None:
        ours = success_fail_streamed(streamed(*clean), streamed(*adv))
        inside = ours.threshold >= 0
        exact = success_fail(*clean, *adv, thresholds=ours.threshold[inside])
        for part in fields(ours):
            if part.name != "upper_wrong":
                got, wanted = getattr(ours, part.name), getattr(exact, part.name)
                np.testing.assert_allclose(got[inside], wanted, atol=1e-12, err_msg=part.name)
        assert np.isnan(ours.upper_wrong).all()
        assert (ours.clean_coverage[-1], ours.adv_coverage[-1]) == (1, 1)

    for_all(check, columns(), columns())


def test_success_fail_at_given_thresholds() -> None:
    clean, adv = answers(500), answers(300, seed=1)
    ours = success_fail_streamed(streamed(*clean), streamed(*adv), thresholds=[0.5, 0.9, 0.2], max_confidence=False)
    exact = success_fail(*clean, *adv, thresholds=[0.2, 0.5, 0.9], max_confidence=False)
    assert ours.threshold.tolist() == [0.9, 0.5, 0.2]
    assert (ours.success.tolist(), ours.failure.tolist()) == (exact.success.tolist(), exact.failure.tolist())
    assert np.isnan(ours.upper_coverage).all()
    assert not ours.solid.any()


def test_chunks_do_not_matter() -> None:
    data = answers(1000)
    first, second = streamed(*data, chunk=1000), streamed(*data, chunk=13)
    assert first.ece() == pytest.approx(second.ece(), abs=1e-14)
    assert first.intervals().right.low.tolist() == second.intervals().right.low.tolist()


def test_a_resample_of_cells_is_the_resample_of_its_rows() -> None:
    """The same rows drawn: ECE within the width of a cell, KS error within that and the slack, coverage exact."""
    confidence, correct = answers(400)
    for cells in (30, 400, 2**14):
        stream = streamed(confidence, correct, cells=cells)
        group, residual = stream._groups()
        at = stream._nearest([0.9, 0.4])
        edges = at * stream.width
        row_group = 2 * np.searchsorted(stream._edges, confidence, side="left") + (correct == 1).astype(int)
        rng = np.random.default_rng(3)
        for _ in range(20):
            rows = rng.integers(0, 400, 400)
            counts = np.bincount(row_group[rows], minlength=group.max() + 1)[group][None]
            found = _measure(counts, group=group, residual=residual, bins=15, per_bin=stream._per_bin, at=at, n=400)
            c, y = confidence[rows], correct[rows]
            assert abs(found[0][0] - ece(c, y)) <= stream.width
            slack = streamed(c, y, cells=cells).ks_slack
            assert -stream.width <= ks_error(c, y) - found[1][0] <= slack + stream.width
            assert found[2][0].tolist() == [np.mean((c > t) & (y == 1)) for t in edges]
            assert found[3][0].tolist() == [np.mean((c > t) & (y == 0)) for t in edges]


def test_counts_of_the_wrong_rows_are_noticed() -> None:
    """The twin of the test above: right and wrong exchanged."""
    confidence, correct = answers(400)
    stream = streamed(confidence, correct)
    group, residual = stream._groups()
    counts = stream._count.ravel()[group][None]
    given = {"bins": 15, "per_bin": stream._per_bin, "at": stream._nearest([0.9]), "n": 400}
    assert _measure(counts, group=group, residual=residual, **given)[0][0] == pytest.approx(stream.ece(), abs=1e-12)
    wrong = _measure(counts, group=group ^ 1, residual=-residual, **given)
    assert abs(wrong[2][0] - stream.intervals(Bootstrap(resamples=1)).right.value) > 0.1


@pytest.mark.parametrize("n", [200, 3000])
def test_intervals_are_those_of_the_exact_bootstrap(n: int) -> None:
    """Other draws of the same distribution: limits agree to what 4,000 resamples leave uncertain."""
    data = answers(n, seed=2)
    ours = streamed(*data, chunk=n).intervals(Bootstrap(resamples=4000, seed=5), thresholds=[0.9])
    for metric, found in ((ece, ours.ece), (ks_error, ours.ks_error)):
        exact = bootstrap(metric, *data, resamples=4000)
        spread = exact.high - exact.low
        assert found.value == pytest.approx(exact.value, abs=1e-3)
        assert abs(found.low - exact.low) < 0.05 * spread
        assert abs(found.high - exact.high) < 0.05 * spread
        assert found.resamples == 4000

    def share(confidence: np.ndarray, correct: np.ndarray) -> float:
        return float(np.mean((confidence > 0.9) & (correct == 1)))

    exact = bootstrap(share, *data, resamples=2000)
    spread = exact.high - exact.low
    assert abs(ours.right.low[0] - exact.low) < 0.1 * spread
    assert abs(ours.right.high[0] - exact.high) < 0.1 * spread


def test_intervals_cover_the_truth() -> None:
    """Share of covered and right rows, known exactly: about 95 of 100 intervals hold it, and half of them do not."""
    truth, held, short = 0.5 * (1 - 0.6**2), 0, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        confidence = np.sqrt(rng.random(400))  # P(confidence > t) = 1 - t^2
        stream = Streamed(cells=100).add(confidence, rng.random(400) < 0.5)
        for level in (0.95, 0.5):
            curve = stream.intervals(Bootstrap(resamples=200, level=level, seed=seed), thresholds=[0.6]).right
            inside = bool(curve.low[0] <= truth <= curve.high[0])
            held, short = (held + inside, short) if level == 0.95 else (held, short + inside)
    assert 88 <= held <= 100
    assert 35 <= short <= 65


def test_resamples_are_a_function_of_the_seed() -> None:
    stream = streamed(*answers(500))
    first, again, other = (stream.intervals(Bootstrap(resamples=50, seed=seed)).ece for seed in (1, 1, 2))
    assert (first.low, first.high) == (again.low, again.high)
    assert (first.low, first.high) != (other.low, other.high)


def test_memory_does_not_grow() -> None:
    stream = Streamed(cells=1000)
    before = [part.nbytes for part in vars(stream).values() if isinstance(part, np.ndarray)]
    for seed in range(5):
        stream.add(*answers(1000, seed))
    after = [part.nbytes for part in vars(stream).values() if isinstance(part, np.ndarray)]
    assert sum(after) - sum(before) == stream._edges.nbytes
    assert stream.n == 5000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Streamed(bins=0), "Streamed: bins must be a whole number of at least 1, got 0"),
        (lambda: Streamed(cells=0), "Streamed: cells must be a whole number of at least 1, got 0"),
        (lambda: Streamed().add([0.5], [2]), "Streamed: correct must be 0 or 1"),
        (lambda: Streamed().add([1.5], [1]), r"Streamed: confidence must be in \[0, 1\]"),
        (lambda: Streamed().add([], []), "Streamed: confidence must have at least one row"),
        (lambda: Streamed().add([0.5, 0.5], [1]), "must have the same length"),
        (lambda: Streamed().add(np.array([0.5], np.float16), [1]), "must be float32 or float64, got float16"),
        (lambda: Streamed().add([0.5], [1]).add(np.array([0.5], np.float32), [1]), "must be float64 as in the first"),
        (lambda: Streamed().ece(), "at least one row must be added, got none"),
        (lambda: Streamed().ks_error(), "at least one row must be added, got none"),
        (lambda: Streamed().intervals(), "at least one row must be added, got none"),
        (lambda: Streamed().add([0.5], [1]).intervals(Bootstrap(method="bca")), "must be percentile, got bca"),
        (lambda: Streamed().add([0.5], [1]).intervals(thresholds=[2]), r"thresholds must be in \[0, 1\]"),
        (lambda: success_fail_streamed(Streamed(), Streamed()), "at least one row must be added"),
        (
            lambda: success_fail_streamed(Streamed().add([0.5], [1]), Streamed(bins=10).add([0.5], [1])),
            "must have the same bins and cells",
        ),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
