"""From confidences back to logits: the label is safe on a million hostile rows, the confidence is the one asked for."""

import math

import numpy as np
import pytest
import torch

from poise.checks.defenses import draw, hard_rows
from poise.defenses import (
    HistogramBinning,
    Isotonic,
    MultiDomainTemperature,
    Platt,
    PoiseWarning,
    Splines,
    TopScore,
    with_confidence,
)
from poise.defenses.posthoc.remap import count_less, interpolate, log_odds
from poise.errors import InputError, NotFittedError

TOP_SCORE = [
    Splines(),
    Splines(monotone=True),
    Splines(remainder="proportional"),
    Platt(),
    Platt(smooth=False, remainder="proportional"),
    Isotonic(),
    Isotonic(remainder="proportional"),
    HistogramBinning(),
    HistogramBinning(equal="mass", remainder="proportional"),
]


class Asked(TopScore):
    """Asks for a fixed confidence."""

    needs_fit = False

    def __init__(self, wanted=0.0, remainder="uniform"):
        super().__init__(remainder=remainder)
        self.wanted = wanted

    def _learn(self, odds, hits):
        raise AssertionError

    def _calibrate(self, odds):
        return torch.full_like(odds, self.wanted)


class Released(Asked):
    """The released remapping of the calibration-attack code: no clip at 1/K."""

    def _map(self, logits):
        r = self._calibrate(log_odds(logits))[:, None]
        r = torch.where(r < 0, 1 / logits.shape[1], r).clamp(1e-12, 0.99)
        is_top = torch.arange(logits.shape[1]) == logits.argmax(1, keepdim=True)
        return (torch.where(is_top, r, (1 - r) / (logits.shape[1] - 1)).log() + 1).to(logits.dtype)


def wide(rows):
    return torch.tensor(rows, dtype=torch.float64)


def misleading(n=400, classes=10, seed=0):
    """The more confident, the less often right: what drives calibrated confidences below 1/K."""
    logits, labels = draw(n, classes, seed=seed)
    confidence, top = logits.softmax(1).max(1)
    wrong = (top + 1) % classes
    return logits, torch.where(confidence > confidence.median(), wrong, labels)


def million(classes=10, chunk=100_000, chunks=10):
    """Random and adversarial rows: spread over magnitudes, tied, one rounding step apart, saturated, of every type."""
    generator = torch.Generator().manual_seed(0)
    types = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for number in range(chunks):
        dtype = types[number % 4]
        logits = torch.randn(chunk, classes, generator=generator, dtype=torch.float64)
        logits = (logits * torch.logspace(-5, 2, chunk, dtype=torch.float64)[:, None]).to(dtype)
        top, index = logits.max(1, keepdim=True)
        rival = (index + 1 + torch.arange(chunk)[:, None] % (classes - 1)) % classes
        step = top - top.abs() * torch.finfo(dtype).eps
        kind = (torch.arange(chunk)[:, None] // 7) % 5
        value = torch.where(kind == 1, top, torch.where(kind == 2, step, logits.gather(1, rival)))
        logits = logits.scatter(1, rival, value)
        yield torch.where((kind == 3) & (logits == top), torch.finfo(dtype).max / 4, logits)


def moved(defense, **size):
    return sum(int((defense(logits).argmax(1) != logits.argmax(1)).sum()) for logits in million(**size))


@pytest.mark.parametrize("defense", [*TOP_SCORE, MultiDomainTemperature()], ids=repr)
def test_the_label_stays_on_a_million_rows(defense):
    fitted = defense.unfitted()
    if isinstance(defense, Platt | MultiDomainTemperature):
        fitted.fit(*draw(400, 10))
    else:
        fitted.fit(*misleading())
    assert fitted.keeps_label
    assert moved(fitted) == 0


@pytest.mark.parametrize("remainder", ["uniform", "proportional"])
@pytest.mark.parametrize("wanted", [-1.0, 0.0, 0.1, 0.5, 1.0])
def test_the_label_stays_whatever_confidence_is_asked_for(wanted, remainder):
    assert moved(Asked(wanted, remainder), chunk=4000, chunks=4) == 0
    for classes in (2, 1000):
        for _, logits in hard_rows(classes, torch.float16):
            assert torch.equal(Asked(wanted, remainder)(logits).argmax(1), logits.argmax(1))


def test_the_released_remapping_moves_labels_on_the_same_rows():
    assert moved(Released(0.05), chunk=4000, chunks=4) > 10_000


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("remainder", ["uniform", "proportional"])
def test_the_confidence_is_the_one_asked_for(classes, remainder):
    logits, _ = draw(300, classes, seed=1, dtype=torch.float64)
    p = logits.softmax(1)
    top, rival = p.topk(2, dim=1).values.T
    for wanted in (0.0, 1 / classes, 0.3, 0.6, 1 - 1e-5, 1.0):
        out = with_confidence(logits, torch.full((300,), wanted), remainder=remainder).exp()
        torch.testing.assert_close(out.sum(1), torch.ones(300, dtype=torch.float64))
        share = rival / (1 - top) if remainder == "proportional" else torch.full_like(top, 1 / (classes - 1))
        least = share / (1 + share) + 1e-6  # r = (1 - r) share, and the margin
        expected = torch.maximum(torch.full_like(top, np.float32(wanted).item()).clamp_max(1 - 1e-6), least)
        torch.testing.assert_close(out.amax(1), expected, atol=1e-12, rtol=0)


def test_what_the_remainder_keeps():
    row = wide([[math.log(0.5), math.log(0.3), math.log(0.2)]])
    uniform, proportional = (with_confidence(row, wide([0.6]), remainder=r).exp() for r in ("uniform", "proportional"))
    torch.testing.assert_close(uniform, wide([[0.6, 0.2, 0.2]]))
    torch.testing.assert_close(proportional, wide([[0.6, 0.24, 0.16]]))
    same = with_confidence(row, wide([0.5]), remainder="proportional").exp()
    torch.testing.assert_close(same, row.exp())


def test_masked_classes_and_nan_stay_in_their_row():
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [torch.nan, 1.0, 0.0], [2.0, 1.0, 0.0]])
    for remainder in ("uniform", "proportional"):
        out = with_confidence(logits, torch.full((3,), 0.7), remainder=remainder)
        assert bool(out[[0, 2]].isfinite().all())
        assert out[[0, 2]].argmax(1).tolist() == [0, 0]
        assert out[[0, 2]].exp().amax(1).tolist() == pytest.approx([0.7, 0.7])


def test_log_odds_keep_their_digits_where_the_confidence_has_none_left():
    logits = wide([[0.0, 800.0, 1.0], [0.0, 1.0, 2.0], [3.0, 3.0, 3.0], [1e308, -1e308, 0.0]])
    odds = log_odds(logits)
    assert odds[0].item() == pytest.approx(800 - math.log(1 + math.e), abs=1e-9)
    assert odds[1].item() == pytest.approx(float(logits[1].softmax(0)[2].logit()), abs=1e-12)
    assert odds[2].item() == pytest.approx(-math.log(2), abs=1e-15)
    assert math.isfinite(odds[3].item())


@pytest.mark.parametrize("m", [0, 1, 2, 3, 7, 8, 100])
def test_binary_search_is_searchsorted(m):
    generator = torch.Generator().manual_seed(m)
    edges = (torch.randint(0, 60, (m,), generator=generator) / 60).double().sort().values
    values = torch.cat([edges, torch.rand(200, generator=generator, dtype=torch.float64), wide([-1.0, 2.0])])
    assert torch.equal(count_less(edges, values), torch.searchsorted(edges, values))
    if m > 1:  # the other convention differs on the edges themselves, so the comparison sees it
        assert not torch.equal(count_less(edges, values), torch.searchsorted(edges, values, right=True))


def test_interpolation_is_numpys():
    generator = torch.Generator().manual_seed(0)
    for m in (1, 2, 5, 40):
        x = torch.rand(m, generator=generator, dtype=torch.float64).sort().values
        y = torch.rand(m, generator=generator, dtype=torch.float64)
        values = torch.cat([x, torch.rand(100, generator=generator, dtype=torch.float64), wide([-1.0, 2.0])])
        np.testing.assert_allclose(interpolate(values, x, y), np.interp(values, x, y), atol=1e-14)
    assert torch.equal(interpolate(wide([math.nan, 0.5]), wide([0.0, 1.0]), wide([0.0, 1.0]))[1:], wide([0.5]))


@pytest.mark.parametrize("defense", TOP_SCORE, ids=repr)
def test_data_without_errors_or_without_hits_are_fitted_with_a_warning(defense):
    logits, _ = draw(200, 10)
    top = logits.argmax(1)
    for what, labels, bound in (("right", top, 0.9), ("wrong", (top + 1) % 10, 0.55)):
        fitted = defense.unfitted()
        with pytest.warns(PoiseWarning, match=f"every sample is {what}, so confidence is calibrated to one") as caught:
            fitted.fit(logits, labels)
        assert caught[0].filename == __file__
        out = fitted(logits)
        confidence = out.softmax(1).amax(1)
        assert bool((confidence > bound).all() if what == "right" else (confidence < bound).all())
        assert torch.equal(out.argmax(1), top)


@pytest.mark.parametrize("defense", TOP_SCORE, ids=repr)
def test_any_number_of_classes_and_rows_after_the_fit(defense):
    fitted = defense.unfitted().fit(*draw(200, 10))
    for classes in (2, 5, 1000):
        for n in (0, 1):
            assert fitted(draw(1, classes)[0][:n]).shape == (n, classes)
    few = torch.tensor([[0.5, 0.0], [1.0, 0.0], [1.5, 0.0], [3.0, 0.0]])
    few = defense.unfitted().fit(few, torch.tensor([1, 0, 1, 0]))
    assert bool(few(torch.tensor([[3.0, 0.0], [0.0, 0.1]])).isfinite().all())


@pytest.mark.parametrize("defense", TOP_SCORE, ids=repr)
def test_exports_for_any_batch_size(defense):
    fitted = defense.unfitted().fit(*draw(200, 10))
    logits, _ = draw(9, 10, seed=2)
    exported = torch.export.export(fitted, (logits[:6],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    torch.testing.assert_close(exported(logits), fitted(logits))


def test_bad_options_and_unfitted_use():
    with pytest.raises(InputError, match=r"Platt: remainder: .* got 'proportionate' \(did you mean proportional"):
        Platt(remainder="proportionate")
    with pytest.raises(NotFittedError, match="Isotonic: must be fitted before use"):
        Isotonic().calibrate(torch.tensor([0.5]))
    assert Isotonic.monotone
    assert not Isotonic(remainder="proportional").monotone
