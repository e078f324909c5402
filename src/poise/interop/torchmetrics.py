"""The calibration metrics as torchmetrics' `Metric`s, for Lightning, Ignite and distributed evaluation.

The arithmetic is that of `poise.metrics`, on float64 rows. What a metric is given (logits or probabilities) is
declared, not guessed from values. Metrics of the same rows share their states in a `MetricCollection`.
"""

from __future__ import annotations

from abc import abstractmethod
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise import metrics
from poise.data.vision import import_torchvision
from poise.errors import InputError, MissingExtraError
from poise.metrics.streamed import Tally
from poise.types import OutputKind, Outputs, exact

if find_spec("torchvision") is not None:  # torchmetrics imports it where it is installed
    import_torchvision("models", feature="torchmetrics")
try:
    from torchmetrics import Metric
except ImportError as missing:
    raise MissingExtraError("poise.interop.torchmetrics", "metrics") from missing

__all__ = [
    "AURC",
    "ECE",
    "MCE",
    "NLL",
    "AdaptiveECE",
    "Brier",
    "ClasswiseECE",
    "DebiasedECE",
    "KSError",
    "SmoothECE",
    "StreamedECE",
    "StreamedKSError",
]

Array = np.ndarray[Any, Any]


class _Answers(Metric):
    """What all share: how answers are read, and that a smaller value is better.

    Args:
        outputs: "logits" or "probabilities", what `update` is given.
        options: torchmetrics' own, such as `sync_on_compute`.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = False
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    def __init__(self, outputs: str = "logits", **options: Any) -> None:
        super().__init__(**options)
        kinds = {"logits": OutputKind.LOGITS, "probabilities": OutputKind.PROBABILITIES}
        if outputs not in kinds:
            raise InputError(f"{self}: outputs must be 'logits' or 'probabilities', got '{outputs}'")
        self._kind = kinds[outputs]

    def __str__(self) -> str:
        return type(self).__name__

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds answers.

        Args:
            preds: (m, K) logits or probabilities, as declared.
            target: (m,) true classes in 0..K-1.

        Raises:
            InputError: shapes, types or values that make no sense.
        """
        if preds.ndim != 2 or preds.shape[1] < 2 or not preds.is_floating_point():
            raise InputError(f"{self}: preds must be (m, K) floats with K of at least 2, got {_told(preds)}")
        if target.shape != preds.shape[:1] or target.is_floating_point() or target.dtype == torch.bool:
            raise InputError(f"{self}: target must be ({len(preds)},) integers, got {_told(target)}")
        if len(preds) == 0:
            return
        if int(target.min()) < 0 or int(target.max()) >= preds.shape[1]:
            values = f"{int(target.min())}..{int(target.max())}"
            raise InputError(f"{self}: target must be in 0..{preds.shape[1] - 1}, got values in {values}")
        scores = preds.detach()
        if not bool(torch.isfinite(scores).all()):
            raise InputError(f"{self}: preds must be finite, got NaN or infinite values")
        if self._kind is OutputKind.PROBABILITIES:
            slack = 1e-2 if scores.dtype.itemsize < 4 else 1e-5
            off = float((scores.double().sum(dim=1) - 1).abs().max()) if scores.device.type != "mps" else 0.0
            if float(scores.min()) < 0 or off > slack:
                raise InputError(f"{self}: preds must be probabilities (non-negative, rows of sum 1), declare outputs=")
        self._add(Outputs(scores, self._kind), target)

    @abstractmethod
    def _add(self, outputs: Outputs, target: Tensor) -> None:
        """Puts checked answers into the states."""

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=exact(self.device), device=self.device)

    def _refuse_nothing(self, rows: int) -> None:
        if rows == 0:
            raise InputError(f"{self}: at least one row must be added before compute(), got none")


class _Rows(_Answers):
    """Keeps the confidence and the correctness of every row, 9 bytes each; exact."""

    confidence: list[Tensor] | Tensor
    correct: list[Tensor] | Tensor

    def __init__(self, outputs: str = "logits", **options: Any) -> None:
        super().__init__(outputs, **options)
        self.add_state("confidence", default=[], dist_reduce_fx="cat")
        self.add_state("correct", default=[], dist_reduce_fx="cat")

    def _add(self, outputs: Outputs, target: Tensor) -> None:
        assert isinstance(self.confidence, list)
        assert isinstance(self.correct, list)
        self.confidence.append(outputs.confidence)
        self.correct.append((outputs.labels == target).to(torch.uint8))

    def compute(self) -> Tensor:
        """The metric of all rows, float64 () where the device has it.

        Raises:
            InputError: no rows.
        """
        columns = _joined(self.confidence), _joined(self.correct)
        self._refuse_nothing(len(columns[0]))
        return self._number(self._measure(*columns))

    @abstractmethod
    def _measure(self, confidence: Array, correct: Array) -> float:
        """The metric of columns (n,)."""


class _Binned(_Rows):
    """A metric of rows with a number of bins."""

    def __init__(self, bins: int = 15, outputs: str = "logits", **options: Any) -> None:
        super().__init__(outputs, **options)
        self.bins = _positive(bins, self)


class ECE(_Binned):
    """Expected calibration error, `poise.metrics.ece`: right-closed bins, so that a confidence of 1 is in the last.

    Args:
        bins: number of bins of equal width.
        outputs: "logits" or "probabilities", what `update` is given.
        options: torchmetrics' own.

    >>> metric = ECE(bins=5)
    >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.4251
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.ece(confidence, correct, self.bins)


class MCE(_Binned):
    """Maximum calibration error, `poise.metrics.mce`; arguments as for `ECE`.

    >>> metric = MCE(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.6
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.mce(confidence, correct, self.bins)


class AdaptiveECE(_Binned):
    """ECE in bins of equal numbers of rows, `poise.metrics.adaptive_ece`; arguments as for `ECE`.

    >>> metric = AdaptiveECE(bins=1, outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.3
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.adaptive_ece(confidence, correct, self.bins)


class DebiasedECE(_Binned):
    """Root of the debiased squared calibration error, `poise.metrics.debiased_ece`; arguments as for `ECE`.

    >>> metric = DebiasedECE(bins=1, outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.1, 0.9]] * 20), torch.tensor([0, 0] * 20))
    >>> round(float(metric.compute()), 4)
    0.3919
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.debiased_ece(confidence, correct, self.bins)


class KSError(_Rows):
    """Kolmogorov-Smirnov calibration error, `poise.metrics.ks_error`: no bins.

    Args:
        outputs: "logits" or "probabilities", what `update` is given.
        options: torchmetrics' own.

    >>> metric = KSError(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.35
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.ks_error(confidence, correct)


class SmoothECE(_Rows):
    """Smooth ECE, `poise.metrics.smooth_ece`; arguments as for `KSError`.

    >>> metric = SmoothECE(outputs="probabilities")
    >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    >>> round(float(metric.compute()), 3)
    0.0
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.smooth_ece(confidence, correct)


class AURC(_Rows):
    """Area under the risk-coverage curve, `poise.metrics.aurc`; arguments as for `KSError`.

    >>> metric = AURC(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.25
    """

    def _measure(self, confidence: Array, correct: Array) -> float:
        return metrics.aurc(confidence, correct)


class ClasswiseECE(_Answers):
    """Mean ECE of the classes, `poise.metrics.classwise_ece`: keeps all probabilities, 8 K bytes a row.

    Args:
        bins: number of bins of equal width.
        outputs: "logits" or "probabilities", what `update` is given.
        options: torchmetrics' own.

    >>> metric = ClasswiseECE(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    >>> round(float(metric.compute()), 4)
    0.1
    """

    probabilities: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor

    def __init__(self, bins: int = 15, outputs: str = "logits", **options: Any) -> None:
        super().__init__(outputs, **options)
        self.bins = _positive(bins, self)
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def _add(self, outputs: Outputs, target: Tensor) -> None:
        assert isinstance(self.probabilities, list)
        assert isinstance(self.labels, list)
        self.probabilities.append(outputs.probabilities)
        self.labels.append(target.long())

    def compute(self) -> Tensor:
        """The metric of all rows, float64 () where the device has it.

        Raises:
            InputError: no rows.
        """
        probabilities, labels = _joined(self.probabilities), _joined(self.labels)
        self._refuse_nothing(len(labels))
        return self._number(metrics.classwise_ece(probabilities, labels, self.bins))


class _Mean(_Answers):
    """The mean over rows of a score of probabilities: a sum and a count."""

    total: Tensor
    rows: Tensor

    def __init__(self, outputs: str = "logits", **options: Any) -> None:
        super().__init__(outputs, **options)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, outputs: Outputs, target: Tensor) -> None:
        score = self._scores(outputs.probabilities.cpu().numpy(), target.cpu().numpy())
        self.total = self.total + float(score.sum())
        self.rows = self.rows + len(score)

    def compute(self) -> Tensor:
        """The mean of all rows, float64 () where the device has it.

        Raises:
            InputError: no rows.
        """
        self._refuse_nothing(int(self.rows))
        return self._number(float(self.total) / int(self.rows))

    @abstractmethod
    def _scores(self, probabilities: Array, labels: Array) -> Array:
        """(m,) of probabilities (m, K) and labels (m,)."""


class Brier(_Mean):
    """Brier score, `poise.metrics.brier`; arguments as for `KSError`.

    >>> metric = Brier(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    >>> round(float(metric.compute()), 4)
    0.02
    """

    plot_upper_bound: float | None = 2.0

    def _scores(self, probabilities: Array, labels: Array) -> Array:
        return metrics.brier_rows(probabilities, labels)


class NLL(_Mean):
    """Negative log-likelihood, `poise.metrics.nll`; arguments as for `KSError`.

    >>> metric = NLL(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    >>> round(float(metric.compute()), 4)
    0.6931
    """

    plot_upper_bound: float | None = None

    def _scores(self, probabilities: Array, labels: Array) -> Array:
        return metrics.nll_rows(probabilities, labels)


class _Stream(_Answers):
    """Keeps a fine grid of counts and sums (`poise.metrics.Streamed`) whatever the number of rows."""

    count: Tensor
    total: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bins: int = 15, outputs: str = "logits", *, cells: int = 2**14, **options: Any) -> None:
        super().__init__(outputs, **options)
        self.bins, self.cells = bins, cells
        nothing = metrics.Streamed(bins, cells=cells).tally
        for name, reduction in (("count", "sum"), ("total", "sum"), ("low", "min"), ("high", "max")):
            self.add_state(name, default=torch.from_numpy(getattr(nothing, name)), dist_reduce_fx=reduction)

    def _add(self, outputs: Outputs, target: Tensor) -> None:
        right = (outputs.labels == target).cpu().numpy()
        tally = (
            metrics.Streamed(self.bins, cells=self.cells).add(outputs.confidence.double().cpu().numpy(), right).tally
        )
        self.count = self.count + torch.from_numpy(tally.count).to(self.count)
        self.total = self.total + torch.from_numpy(tally.total).to(self.total)
        self.low = torch.minimum(self.low, torch.from_numpy(tally.low).to(self.low))
        self.high = torch.maximum(self.high, torch.from_numpy(tally.high).to(self.high))

    @property
    def stream(self) -> metrics.Streamed:
        """All rows so far, with intervals and thresholds."""
        kept = Tally(*(getattr(self, name).cpu().numpy() for name in ("count", "total", "low", "high")))
        return metrics.Streamed(self.bins, cells=self.cells).add_tally(kept)

    def compute(self) -> Tensor:
        """The metric of all rows, float64 () where the device has it.

        Raises:
            InputError: no rows.
        """
        self._refuse_nothing(int(self.count.sum()))
        return self._number(self._measure(self.stream))

    @abstractmethod
    def _measure(self, stream: metrics.Streamed) -> float:
        """The metric of a stream."""


class StreamedECE(_Stream):
    """ECE of any number of rows in the memory of a grid: that of `ECE` to rounding.

    Args:
        bins: number of bins of equal width.
        outputs: "logits" or "probabilities", what `update` is given.
        cells: of the grid, as for `poise.metrics.Streamed`.
        options: torchmetrics' own.

    Attributes:
        stream: the rows so far as a `poise.metrics.Streamed`, for bootstrap intervals.

    >>> metric = StreamedECE(bins=5)
    >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.4251
    """

    def _measure(self, stream: metrics.Streamed) -> float:
        return stream.ece()


class StreamedKSError(_Stream):
    """KS error of any number of rows in the memory of a grid: at most `stream.ks_slack` too small.

    Arguments as for `StreamedECE`, whose states it has.

    >>> metric = StreamedKSError(outputs="probabilities")
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
    >>> round(float(metric.compute()), 4)
    0.35
    """

    def _measure(self, stream: metrics.Streamed) -> float:
        return stream.ks_error()


def _joined(rows: list[Tensor] | Tensor) -> Array:
    """A state that is a list of parts, or joined already by a synchronisation."""
    parts = [rows] if isinstance(rows, Tensor) else rows
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def _positive(bins: int, metric: Metric) -> int:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(f"{metric}: bins must be a whole number of at least 1, got {bins!r}")
    return bins


def _told(value: Tensor) -> str:
    return f"{tuple(value.shape)} {value.dtype}"
