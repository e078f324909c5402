"""The draws behind a group of certificates as a stream of full batches: counts that can be stopped and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.certify.bounds import check_sigma, dkw_epsilon
from poise.certify.measures import PRED_SCORE, Measure
from poise.certify.noise import Noise
from poise.certify.scores import Scores
from poise.errors import AccessError, InputError
from poise.targets.base import Target
from poise.types import Access, OutputKind

BINS = 1 << 14
"""Bins of the running histogram. A power of two, so that a score's bin is exact; it weakens a bound by at most 1/BINS
of the score's range, where the statistical slack of 100,000 draws is a hundred times that."""

EXACT = 4096
"""Up to so many draws per image every score is kept, and nothing is lost to bins."""

_FIXED = 2.0**32
"""Sums of probabilities are kept as whole multiples of 1/_FIXED: whole numbers add up to the same in any order."""

MOST_DRAWS = 1 << 30
OnDraws = Callable[[int, int], None]
"""Hears how many of all draws are done."""


@dataclass(frozen=True)
class Smoothing:
    """How a certificate is drawn.

    Args:
        sigma: standard deviation of the noise in the units of a pixel, before any normalisation.
        n: draws behind the bounds of one image; 100,000 in the papers.
        n0: draws before them that choose the class: the one with the highest mean probability.
        alpha: probability, per image, that its bounds do not hold.
        measure: what is certified.
        seed: of the noise.
        two_sided: the lower and the upper bound hold together, each with alpha / 2. False gives each alpha, as in the
            papers, which use the lower one alone.

    Raises:
        InputError: one of them makes no sense.

    >>> round(Smoothing(n=10_000, alpha=0.001).epsilon, 5)  # what the sampling may be wrong by
    0.01949
    """

    sigma: float = 0.25
    n: int = 100_000
    n0: int = 100
    alpha: float = 0.001
    measure: Measure = PRED_SCORE
    seed: int = 0
    two_sided: bool = True

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        for name, value, least in (("n", self.n, 1), ("n0", self.n0, 0)):
            if not least <= value <= MOST_DRAWS:
                raise InputError(f"{name}: must be in [{least}, {MOST_DRAWS}], got {value}")
        most = 1 if self.two_sided else 0.5
        if not 0 < self.alpha <= most:
            raise InputError(f"alpha: must be in (0, {most:g}], got {self.alpha}")
        if self.epsilon >= 1:
            raise InputError(
                f"n: must be large enough for alpha={self.alpha:g} to say anything (the slack is {self.epsilon:.3g}, "
                f"it must be below 1), got {self.n}"
            )

    @property
    def epsilon(self) -> float:
        """The slack of each bound."""
        return dkw_epsilon(self.n, self.alpha / 2 if self.two_sided else self.alpha)


class Stream:
    """Draws n0 + n noisy answers for each of a group of images, counts them, keeps none.

    Batches are filled across images. What is counted is a function of (seed, id, number of the draw): it does not
    depend on the batch size, on the group, or on where the stream was interrupted, as far as the network's own answers
    do not depend on the rest of their batch. Memory does not grow with n: (g, K) sums, and (g, BINS) counts or the
    (g, n) scores where n is at most EXACT.

    Args:
        target: answers with scores; the only thing that is asked.
        images: (g, C, H, W) in the target's bounds. The noisy images leave the bounds, as the theorem needs.
        ids: (g,) int64, the names of the images that the noise is keyed by.
        smoothing: how it is drawn.
        classes: (g,) the classes that are measured; None chooses them with the first n0 draws. With classes given, none
            of those is made.
        purpose: what the draws are for; other purposes give independent ones.

    Raises:
        InputError: images and ids do not fit together, or neither classes nor n0 are given.
        AccessError: the target answers labels alone.

    >>> import torch, poise
    >>> from poise.certify import Smoothing
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=2)
    >>> stream = Stream(target, data.images, data.ids, Smoothing(n=200))
    >>> stream.run()
    >>> stream.means.shape
    torch.Size([2])
    """

    def __init__(
        self,
        target: Target,
        images: Tensor,
        ids: Tensor,
        smoothing: Smoothing,
        *,
        classes: Tensor | None = None,
        purpose: str = "smoothing",
    ) -> None:
        _check(target, images, ids, smoothing, classes)
        self._target, self._smoothing, device = target, smoothing, target.device
        self._images = images.to(device, torch.float32)
        self._ids = ids.to(device)
        rows = min(target.batch_size, len(images) * max(smoothing.n, smoothing.n0))
        size = images[0].numel()
        self._noise = Noise(smoothing.seed, self._ids, size=size, rows=rows, purpose=purpose, device=device)
        self._points = torch.empty(rows, size, device=device)
        self._ones = torch.ones(rows, dtype=torch.int64, device=device)
        self._choosing = 0 if classes is not None else len(images) * smoothing.n0
        self.total = self._choosing + len(images) * smoothing.n
        self.done = 0
        g = len(images)
        self._sums = torch.zeros(g, target.num_classes, dtype=torch.int64, device=device)
        self._classes = torch.zeros(g, dtype=torch.int64, device=device) if classes is None else classes.to(device)
        self._mean = torch.zeros(g, dtype=torch.int64, device=device)
        self._exact = smoothing.n <= EXACT
        kept = (g, smoothing.n) if self._exact else (g, BINS)
        self._counts = torch.zeros(kept, dtype=torch.float64 if self._exact else torch.int64, device=device)

    def run(self, on_draws: OnDraws | None = None) -> None:
        """Makes all draws that are missing; `on_draws(done, total)` is called after every batch, and may raise."""
        with self._target.session(self._smoothing.seed % 2**63):
            while self.done < self.total:
                self.step()
                if on_draws is not None:
                    on_draws(self.done, self.total)

    def step(self) -> None:
        """Makes the draws of one batch: those that choose the classes first, then those that are counted."""
        choosing = self.done < self._choosing
        start, end = (0, self._choosing) if choosing else (self._choosing, self.total)
        per = self._smoothing.n0 if choosing else self._smoothing.n
        at = torch.arange(self.done - start, min(self.done - start + len(self._points), end - start))
        rows, draws = at // per, at % per
        probabilities = self._answers(rows, draws + (0 if choosing else self._smoothing.n0))
        rows, draws = rows.to(self._ids.device), draws.to(self._ids.device)
        if choosing:
            self._sums.index_add_(0, rows, probabilities.mul(_FIXED).round().long())
        else:
            self._count(probabilities, rows, draws)
        self.done += len(at)
        if choosing and self.done == self._choosing:
            self._classes = self._sums.argmax(dim=1)

    def _answers(self, rows: Tensor, draws: Tensor) -> Tensor:
        """(m, K) probabilities at the noisy images; rows (m,) ascending, both on the host."""
        points = self._points[: len(rows)]
        where = rows.to(self._ids.device)
        self._noise.fill(points, where, draws.to(self._ids.device), sigma=self._smoothing.sigma)
        for row in range(int(rows[0]), int(rows[-1]) + 1):
            first, end = torch.searchsorted(rows, torch.tensor([row, row + 1])).tolist()
            points[first:end] += self._images[row].flatten()
        return self._target.query(points.view(-1, *self._images.shape[1:]), self._ids[where]).probabilities

    def _count(self, probabilities: Tensor, rows: Tensor, draws: Tensor) -> None:
        measure = self._smoothing.measure
        score = measure.score(probabilities, self._classes[rows]).clamp(measure.low, measure.high)
        self._mean.index_add_(0, rows, score.mul(_FIXED).round().long())
        if self._exact:
            self._counts[rows, draws] = score.double()
            return
        per_unit = BINS / (measure.high - measure.low)  # all three are powers of two or whole: no rounding below
        bins = (score.double() * per_unit).floor().long() - int(measure.low * per_unit)
        self._counts.view(-1).index_add_(0, rows * BINS + bins.clamp_max(BINS - 1), self._ones[: len(rows)])

    def state(self) -> dict[str, Tensor]:
        """Everything that a stream of the same arguments needs to go on: counts so far, and how many draws."""
        parts = {"sums": self._sums, "classes": self._classes, "mean": self._mean, "counts": self._counts}
        return {name: value.detach().cpu().clone() for name, value in parts.items()} | {"done": torch.tensor(self.done)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`.

        Raises:
            InputError: it is one of other arguments.
        """
        mine = self.state()
        if mine.keys() != state.keys() or any(state[k].shape != v.shape for k, v in mine.items()):
            raise InputError("Stream: state must be one of a stream of the same images and n, got another")
        for name in ("sums", "classes", "mean", "counts"):
            part: Tensor = getattr(self, f"_{name}")
            part.copy_(state[name])
        self.done = int(state["done"])

    @property
    def classes(self) -> Tensor:
        """(g,) int64: the classes that are measured; zeros until they are chosen."""
        return self._classes.cpu()

    @property
    def means(self) -> Tensor:
        """(g,) float64: the empirical means of the scores."""
        return (self._mean.double() / _FIXED / self._smoothing.n).cpu()

    def scores(self, row: int) -> Scores:
        """What was drawn of one image, by its place in the group; complete once `done` is `total`."""
        measure, counts = self._smoothing.measure, self._counts[row].cpu().numpy()
        made = Scores.exact if self._exact else Scores.binned
        return made(counts, measure.low, measure.high)


def _check(target: Target, images: Tensor, ids: Tensor, smoothing: Smoothing, classes: Tensor | None) -> None:
    if target.kind is OutputKind.LABELS or target.access < Access.SCORES:
        raise AccessError("certify: needs access 'scores', the target gives 'labels'")
    if images.ndim != 4 or not len(images) or ids.shape != images.shape[:1] or ids.dtype is not torch.int64:
        raise InputError(
            f"certify: images must be (g, C, H, W) with g at least 1 and ids (g,) int64, got {tuple(images.shape)} and "
            f"{tuple(ids.shape)} {ids.dtype}"
        )
    if classes is None and smoothing.n0 < 1:
        raise InputError("n0: must be at least 1 where the classes are not given, got 0")
    if classes is not None and (classes.shape != ids.shape or classes.dtype is not torch.int64):
        raise InputError(f"classes: must be ({len(ids)},) int64, got {tuple(classes.shape)} {classes.dtype}")
    if classes is not None and not 0 <= int(classes.min()) <= int(classes.max()) < target.num_classes:
        raise InputError(
            f"classes: must be in 0..{target.num_classes - 1}, got {int(classes.min())} to {int(classes.max())}"
        )
