"""The stream: what it counts, that neither batches nor interruptions change a bit of it, and that memory stays flat."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from poise.certify import (
    BINS,
    EXACT,
    MARGIN,
    PRED_SCORE,
    Certificate,
    Measure,
    Noise,
    Smoothing,
    Stream,
    certificates,
    certify,
)
from poise.certify import stream as stream_module
from poise.errors import AccessError, InputError
from poise.targets import ModuleTarget
from poise.targets.views import view
from toys import Constant, Fixed, Linear, Softmax, generator, untouched_generators

SHORT = Smoothing(sigma=0.5, n=300, n0=40, alpha=0.05)
IDS = torch.tensor([7, 3, 11, 2, 30])


def linear(batch_size: int = 256) -> tuple[ModuleTarget, torch.Tensor]:
    """A target whose answers do not depend on the rest of the batch, and five images."""
    g = generator(1)
    module = Linear(torch.randn(4, 1, 3, 3, generator=g))
    return ModuleTarget(module, num_classes=4, batch_size=batch_size), torch.rand(5, 1, 3, 3, generator=g)


def drawn(batch_size: int, smoothing: Smoothing = SHORT, *, part: slice = slice(None)) -> dict[str, torch.Tensor]:
    target, images = linear(batch_size)
    stream = Stream(target, images[part], IDS[part], smoothing)
    stream.run()
    return stream.state()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


BINNED = replace(SHORT, n=EXACT + 1)


@pytest.mark.parametrize("smoothing", [SHORT, BINNED, replace(SHORT, measure=MARGIN)])
@pytest.mark.parametrize("batch_size", [7, 64, 4000])
def test_the_batch_size_changes_no_bit(batch_size: int, smoothing: Smoothing) -> None:
    assert_equal(drawn(batch_size, smoothing), drawn(256, smoothing))


@pytest.mark.parametrize("row", range(5))
def test_the_other_images_change_no_bit(row: int) -> None:
    alone, together = drawn(256, part=slice(row, row + 1)), drawn(256)
    for name in ("sums", "classes", "mean", "counts"):
        assert torch.equal(alone[name][0], together[name][row])


@pytest.mark.parametrize("smoothing", [SHORT, BINNED])
@pytest.mark.parametrize("stops", [(1,), (2, 3), (0, 5, 1)])
def test_an_interruption_changes_no_bit(stops: tuple[int, ...], smoothing: Smoothing) -> None:
    """Stopped after so many batches, each time a new process's stream of another batch size goes on from the state."""
    state = None
    for sitting, batches in enumerate((*stops, 10**6)):
        target, images = linear(64 + 9 * sitting)
        stream = Stream(target, images, IDS, smoothing)
        if state is not None:
            stream.load(state)
        for _ in range(batches):
            if stream.done == stream.total:
                break
            stream.step()
        state = stream.state()
    assert state is not None
    assert_equal(state, drawn(256, smoothing))


def test_a_stream_that_forgets_where_it_was_is_noticed() -> None:
    """The broken twin: counts are kept, but the draws begin again."""
    target, images = linear()
    stream = Stream(target, images, IDS, SHORT)
    stream.step()
    stream.step()
    other = Stream(target, images, IDS, SHORT)
    other.load(stream.state() | {"done": torch.tensor(0)})
    other.run()
    assert not torch.equal(other.state()["mean"], drawn(256)["mean"])


@pytest.mark.parametrize("measure", [PRED_SCORE, MARGIN])
def test_it_counts_what_a_loop_over_the_draws_counts(measure: Measure) -> None:
    smoothing = replace(SHORT, measure=measure)
    target, images = linear()
    found = certify(target, images, IDS, smoothing)
    noise = Noise(0, IDS, size=9, rows=smoothing.n0 + smoothing.n)
    for row, one in enumerate(found):
        points = torch.empty(smoothing.n0 + smoothing.n, 9)
        noise.fill(points, torch.full((len(points),), row), torch.arange(len(points)), sigma=0.5)
        p = target.module((points + images[row].flatten()).view(-1, 1, 3, 3)).double().softmax(1).detach().numpy()
        assert one.prediction == p[:40].mean(axis=0).argmax()
        own, others = p[40:, one.prediction], np.delete(p[40:], one.prediction, axis=1).max(axis=1)
        scores = own if measure is PRED_SCORE else own - others
        np.testing.assert_allclose(np.repeat(one.scores.floor, one.scores.counts), np.sort(scores), atol=1e-6)
        assert one.mean == pytest.approx(scores.mean(), abs=1e-6)
        assert one.scores.n == 300


@pytest.mark.parametrize("measure", [PRED_SCORE, MARGIN])
def test_the_histogram_is_weaker_than_the_scores_by_at_most_a_bin(measure: Measure, monkeypatch) -> None:
    smoothing, radii = replace(SHORT, measure=measure), np.array([0.0, 0.25, 0.5, 1.0])
    target, images = linear()
    exact = certify(target, images, IDS, smoothing)
    monkeypatch.setattr(stream_module, "EXACT", 0)
    binned = certify(target, images, IDS, smoothing)
    width = (measure.high - measure.low) / BINS
    for one, other in zip(exact, binned, strict=True):
        assert one.mean == other.mean
        assert (
            (other.lower(radii) <= one.lower(radii) + 1e-12) & (other.lower(radii) >= one.lower(radii) - width)
        ).all()
        assert (
            (other.upper(radii) >= one.upper(radii) - 1e-12) & (other.upper(radii) <= one.upper(radii) + width)
        ).all()
        assert ((other.scores.ceiling - other.scores.floor) == width).all()


@pytest.mark.parametrize("n", [100, EXACT + 100])
def test_a_model_that_answers_probabilities_of_exactly_0_and_1(n: int) -> None:
    module = Fixed(lambda x: torch.stack([x.flatten(1)[:, 0] * 0 + 1, x.flatten(1)[:, 0] * 0], dim=1))
    target = ModuleTarget(module, num_classes=2, outputs="probabilities")
    (found,) = certify(target, torch.rand(1, 1, 2, 2), smoothing=Smoothing(n=n, alpha=0.01))
    assert found.prediction == 0
    assert found.mean == 1.0
    assert float(found.lower(0)) == pytest.approx(1 - found.smoothing.epsilon, abs=1 / BINS)
    assert float(found.upper(0)) == 1.0
    assert found.certified(0.0)


def test_an_image_that_nobody_can_tell_abstains() -> None:
    target = ModuleTarget(Constant(4), num_classes=4)
    (found,) = certify(target, torch.rand(1, 1, 2, 2), smoothing=SHORT)
    assert found.abstains
    assert not found.certified([0.0, 0.5]).any()
    (by_margin,) = certify(target, torch.rand(1, 1, 2, 2), smoothing=replace(SHORT, measure=MARGIN))
    assert by_margin.abstains
    assert by_margin.mean == 0.0


def test_classes_that_are_given_cost_no_draw() -> None:
    target, images = linear()
    stream = Stream(target, images, IDS, SHORT, classes=torch.tensor([0, 1, 2, 3, 0]))
    stream.run()
    assert stream.total == 5 * SHORT.n
    assert stream.classes.tolist() == [0, 1, 2, 3, 0]
    (one,) = [c for c in certificates(stream, IDS.tolist(), SHORT) if c.id == 3]
    assert isinstance(one, Certificate)
    assert one.prediction == 1


def test_every_draw_costs_one_pass_and_the_last_batch_is_the_only_one_not_full() -> None:
    target, images = linear(64)
    seen: list[tuple[int, int]] = []
    certify(target, images, IDS, SHORT, on_draws=lambda done, total: seen.append((done, total)))
    assert target.module.passes["forward"] == 5 * 340 == seen[-1][0] == seen[-1][1]
    assert [b - a for (a, _), (b, _) in pairwise(seen)].count(64) == len(seen) - 3


def test_nothing_is_left_behind() -> None:
    target, images = linear()
    before = images.clone()
    target.module.train()
    with untouched_generators():
        certify(target, images, IDS, SHORT)
    assert target.module.training
    assert torch.equal(images, before)


MEMORY = """
import sys
from pathlib import Path
import torch
from poise.certify import Smoothing, Stream, stream
from poise.targets import ModuleTarget

torch.set_num_threads(1)
target = ModuleTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 50)), num_classes=50, batch_size=2048)

def peak(n):
    made = Stream(target, torch.rand(2, 1, 4, 4), torch.arange(2), Smoothing(n=n))
    made.run()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

print(peak(20_000), peak(20_000), peak(400_000))
stream.EXACT = 10**9  # the broken twin: every score is kept
print(peak(400_000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own record of the most memory used is read")
def test_memory_does_not_grow_with_n() -> None:
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=unmeasured)
    _, few, many, kept = map(int, done.stdout.split())
    assert many - few < 1_500_000, "twenty times the draws must not take more memory"
    assert kept - many > 4_000_000, "keeping every score must be seen"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Smoothing(sigma=0), "sigma: must be a number above 0 (without noise nothing is certified), got 0"),
        (lambda: Smoothing(n=0), "n: must be in [1, 1073741824], got 0"),
        (lambda: Smoothing(n0=-1), "n0: must be in [0, 1073741824], got -1"),
        (lambda: Smoothing(alpha=0), "alpha: must be in (0, 1], got 0"),
        (lambda: Smoothing(alpha=0.7, two_sided=False), "alpha: must be in (0, 0.5], got 0.7"),
        (
            lambda: Smoothing(n=3),
            "n: must be large enough for alpha=0.001 to say anything (the slack is 1.13, it must be below 1), got 3",
        ),
        (
            lambda: Stream(linear()[0], torch.rand(3, 3), IDS[:3], SHORT),
            "certify: images must be (g, C, H, W) with g at least 1 and ids (g,) int64, "
            "got (3, 3) and (3,) torch.int64",
        ),
        (
            lambda: Stream(linear()[0], linear()[1], IDS, replace(SHORT, n0=0)),
            "n0: must be at least 1 where the classes are not given, got 0",
        ),
        (
            lambda: Stream(linear()[0], linear()[1], IDS, SHORT, classes=torch.full((5,), 4)),
            "classes: must be in 0..3, got 4 to 4",
        ),
        (
            lambda: Stream(linear()[0], linear()[1], IDS, SHORT).load(drawn(64, BINNED)),
            "Stream: state must be one of a stream of the same images and n, got another",
        ),
    ],
)
def test_errors_say_what_is_required_and_what_was_given(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


def test_labels_alone_cannot_be_certified() -> None:
    target, images = linear()
    with pytest.raises(AccessError, match=r"^certify: needs access 'scores', the target gives 'labels'$"):
        Stream(view(target, "labels"), images, IDS, SHORT)


def test_probabilities_and_logits_give_the_same_certificate() -> None:
    target, images = linear()
    softmax = ModuleTarget(Softmax(target.module), num_classes=4, outputs="probabilities")
    for one, other in zip(certify(target, images, IDS, SHORT), certify(softmax, images, IDS, SHORT), strict=True):
        assert one.lower(0.25) == pytest.approx(float(other.lower(0.25)), abs=1e-6)
