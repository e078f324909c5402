"""The contract of a detector: it learns from clean, noisy and attacked images, and scores others."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.detectors.logistic import Logistic, fit_logistic
from poise.detectors.splits import lee_split
from poise.detectors.taps import Reduce, default_layers, pooled, tapped
from poise.errors import InputError, NotFittedError
from poise.targets import ModuleTarget, Target

FloatArray = NDArray[np.float64]
Features = dict[float, NDArray[np.floating]]
"""For each candidate of the hyper-parameter the features (n, F) of n images."""

FEWEST = 10
"""Clean images, and attacked ones, below which nothing is learned: half of them choose, in five folds the others."""


@runtime_checkable
class Batches(Protocol):
    """Labelled images that are streamed, such as `poise.data.Dataset`."""

    def batches(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images (b, C, H, W), labels (b,), ids (b,)) in order."""
        ...


Images = Tensor | Batches
"""(n, C, H, W) in the target's bounds, or the same streamed."""

Labelled = Batches | tuple[Tensor, Tensor]
"""Images with their true labels: streamed, or (images (n, C, H, W), labels (n,))."""


class Detector(ABC):
    """Tells attacked images from others: `fit` learns, `score` gives a number per image, higher for more suspicious.

    A score is a probability of the fitted regression. Where it becomes an alarm is not decided here: thresholds belong
    to `poise.metrics`. A subclass writes `features`; those of many attacks can be computed once and given to `learn`
    and `judge`, which is all that `fit` and `score` do.

    Args:
        layers: names of the layers that are read, as `taps.tapped` takes them; None leaves it to `default_layers`.
        scale: standardise the features before the regression; None is `scaled`. Where the strength is cross-validated
            that changes little but the time: unscaled Mahalanobis scores take thousands of iterations.
        max_iter: of the regression.
        batch_size: images per pass; None takes the target's.

    Attributes (after `fit`):
        chosen: the value of the hyper-parameter that was best on the validation half, by AUROC.
        logistic: the regression.
        read_layers: what it reads, in order.
        fit_share: of the images that `split` gives to fit on, where the published protocol has a share of its own: 0.1.
        needs_reference: it needs a labelled reference; where it does not find one, `fit` says so.

    Class data:
        name: on the command line; paper: where it comes from.
        needs_module: it reads layers, so the target must be a `ModuleTarget`.
        uses_noisy: noisy images are negatives beside the clean ones.
        cross_validated: the regression's strength is, see `fit_logistic`; scaled: features are standardised.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_module: ClassVar[bool] = True
    uses_noisy: ClassVar[bool] = True
    cross_validated: ClassVar[bool] = True
    scaled: ClassVar[bool] = True
    reduce: ClassVar[Reduce] = staticmethod(pooled)

    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        scale: bool | None = None,
        max_iter: int = 1000,
        batch_size: int | None = None,
    ) -> None:
        if max_iter < 1 or (batch_size is not None and batch_size < 1):
            raise InputError(f"{self.name}: max_iter and batch_size must be at least 1, got {max_iter}, {batch_size}")
        self.needs_reference = False
        self.layers = None if layers is None else tuple(layers)
        self.scale = self.scaled if scale is None else scale
        self.max_iter, self.batch_size = max_iter, batch_size
        self.fit_share = 0.1
        self.candidates: tuple[float, ...] = (0.0,)
        self.chosen: float | None = None
        self.logistic: Logistic | None = None
        self.read_layers: tuple[str, ...] = ()
        self._target: Target | None = None

    def fit(
        self,
        target: Target,
        clean: Images,
        noisy: Images | None,
        attacked: Images,
        *,
        reference: Labelled | None = None,
    ) -> Self:
        """Learns to tell attacked images from clean and noisy ones, and forgets every earlier fit.

        Where there is something to choose (k of LID, the magnitude of Mahalanobis), the regression is fitted on the
        first half of each group's rows and the choice made on the second, by AUROC, as Lee et al. 2018 do.

        Args:
            target: the model under attack; shared, not copied.
            clean: n >= 10 images.
            noisy: the same images with noise about as large as the attack (`gaussian_noise`), which are negatives too;
                None leaves them out.
            attacked: the same images attacked, row by row.
            reference: further clean images with their true labels, which nothing else is learned from: Mahalanobis
                takes its Gaussians from them. None takes `clean`, which must then be labelled where labels are needed.

        Raises:
            InputError: the target is no module where layers are read; too few images; images that the model refuses.
        """
        self.bind(target, clean, reference)
        parts = [clean, attacked, *([noisy] if noisy is not None and self.uses_noisy else [])]
        groups = [self._usable_rows(self.features(part, beside=clean)) for part in parts]
        return self.learn(groups[0], groups[2] if len(groups) > 2 else None, groups[1])

    def score(self, images: Images) -> FloatArray:
        """(n,) how suspicious each image is, in [0, 1].

        Args:
            images: (n, C, H, W) in the target's bounds, or streamed.

        Raises:
            NotFittedError: before `fit`.
        """
        if self.chosen is None:
            raise NotFittedError(f"{self.name}: must be fitted before use, call fit(target, clean, noisy, attacked)")
        return self.judge(self.features(images, [self.chosen])[self.chosen])

    def bind(self, target: Target, clean: Images, reference: Labelled | None = None) -> Self:
        """Takes the model and what is known of clean images; the first part of `fit`. Arguments as there."""
        if self.needs_module and not isinstance(target, ModuleTarget):
            raise InputError(f"{self.name}: reads layers, the target must be a module, got a {type(target).__name__}")
        self.chosen = self.logistic = None
        self._target = target
        if isinstance(target, ModuleTarget) and self.needs_module:
            self.read_layers = default_layers(target.module) if self.layers is None else self.layers
        self._bind(clean, reference)
        return self

    def _bind(self, clean: Images, reference: Labelled | None) -> None:
        """What a subclass keeps of the clean images; nothing unless it says so."""
        return

    @abstractmethod
    def features(
        self, images: Images, candidates: Sequence[float] | None = None, *, beside: Images | None = None
    ) -> Features:
        """What the regression sees of images, for each candidate (all unless named): (n, F) each.

        Args:
            images: n of them.
            candidates: values of the hyper-parameter.
            beside: the clean images that these were made of, and more of them; row i belongs to row i. Only LID looks.
        """

    def learn(self, clean: Features, noisy: Features | None, attacked: Features) -> Self:
        """Fits the regression on features, choosing among the candidates; the last part of `fit`.

        Raises:
            InputError: fewer than 10 clean or attacked rows.
        """
        groups = [clean, *([noisy] if noisy is not None else []), attacked]
        sizes = [len(next(iter(group.values()))) for group in groups]
        if min(sizes) < FEWEST:
            raise InputError(f"{self.name}: must have at least {FEWEST} images of each kind to fit, got {sizes}")
        found: list[tuple[float, float, Logistic]] = []
        for candidate in clean:
            parts = [np.asarray(group[candidate]) for group in groups]
            fit, check = (parts, parts) if len(clean) == 1 else _halves(parts)
            logistic = fit_logistic(
                *_rows(fit), cross_validated=self.cross_validated, scale=self.scale, max_iter=self.max_iter
            )
            found.append((logistic.auroc(*_rows(check)), candidate, logistic))
        _, self.chosen, self.logistic = max(found, key=lambda one: one[0])  # the first among equals
        return self

    def twin(self) -> Self:
        """Another one that knows the same model and reference, to `learn` from another attack."""
        other = copy.copy(self)
        other.chosen = other.logistic = None
        return other

    def judge(self, features: NDArray[np.floating]) -> FloatArray:
        """(n, F) features of the chosen candidate to (n,) scores."""
        if self.logistic is None:
            raise NotFittedError(f"{self.name}: must be fitted before use, call fit(target, clean, noisy, attacked)")
        return self.logistic.probability(features)

    def _usable_rows(self, features: Features) -> Features:
        return {candidate: rows[: self.usable(len(rows))] for candidate, rows in features.items()}

    def usable(self, n: int) -> int:
        """How many of n images, from the first, the published evaluation uses."""
        return n

    def split(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that the published protocol fits on, and rows that it tests on."""
        return lee_split(self.usable(n), self.fit_share)

    def _module(self) -> ModuleTarget:
        if not isinstance(self._target, ModuleTarget):
            raise NotFittedError(f"{self.name}: must know its model first, call bind or fit")
        return self._target

    def _layers_of(self, images: Images) -> list[NDArray[np.floating]]:
        """What every layer holds of the images, reduced and flattened: (n, F) per layer, one pass per batch."""
        target, size = self._module(), self.batch_size or self._module().batch_size
        tap = tapped(target.module, self.read_layers, type(self).reduce)
        with target.session(0), torch.inference_mode(False), torch.no_grad(), tap as read:
            batches = (read(batch.to(target.device)) for batch in stream(images, size))
            kept = [[part.cpu().numpy() for part in parts] for parts in batches]
        return [np.concatenate(parts) for parts in zip(*kept, strict=True)]


def stream(images: Images, batch_size: int) -> Iterator[Tensor]:
    """Images in batches.

    Raises:
        InputError: no image, or something else than images.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
            given = f"{tuple(images.shape)} {images.dtype}"
            raise InputError(f"images: must be (n, C, H, W) floats with n >= 1, got {given}")
        yield from torch.split(images, batch_size)
        return
    if not isinstance(images, Batches):
        raise InputError(f"images: must be a tensor or have batches(), got {type(images).__name__}")
    for batch, _, _ in images.batches(batch_size):
        yield batch


def first(images: Images, n: int, batch_size: int) -> Tensor:
    """The first n images, or all where there are fewer; no more than a batch beyond them is decoded."""
    held: list[Tensor] = []
    for batch in stream(images, batch_size):
        held.append(batch)
        if sum(map(len, held)) >= n:
            break
    return torch.cat(held)[:n]


def _halves(parts: list[NDArray[np.floating]]) -> tuple[list[NDArray[np.floating]], list[NDArray[np.floating]]]:
    return [part[: len(part) // 2] for part in parts], [part[len(part) // 2 :] for part in parts]


def _rows(parts: list[NDArray[np.floating]]) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """All rows one below the other, and 1 for those of the last group, which is the attacked one."""
    kinds = np.concatenate([np.full(len(part), int(at == len(parts) - 1)) for at, part in enumerate(parts)])
    return np.concatenate(parts), kinds
