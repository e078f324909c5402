"""Fitting one defence on held-out answers of a model, measured on others, and saved with where it comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise import __version__, data, defenses, metrics, models
from poise.data import Dataset
from poise.data.npz import open_arrays
from poise.defenses import PostHoc
from poise.errors import InputError
from poise.experiments.audit_spec import DIGITS
from poise.experiments.defend_adaptive import answered
from poise.experiments.defend_figures import figures
from poise.experiments.served import ask
from poise.rng import Rng
from poise.targets import ModuleTarget, Target
from poise.types import OutputKind, Outputs

FEWEST = 4
"""Rows below which there are no two halves to speak of."""


@dataclass(frozen=True)
class Answers:
    """What a model answered, and the truth.

    Args:
        logits: (n, K).
        labels: (n,) in 0..K-1.
        origin: where they come from, for the provenance: names and fingerprints.
    """

    logits: Tensor
    labels: Tensor
    origin: dict[str, str]

    def part(self, rows: Tensor) -> Answers:
        """The rows with these indices."""
        return Answers(self.logits[rows], self.labels[rows], self.origin)


@dataclass(frozen=True)
class Fitted:
    """A fitted defence, its provenance and what it changes.

    Args:
        defence: fitted.
        report: plain data: the name, where the fit comes from, the figures before and after on held-out rows.
    """

    defence: PostHoc
    report: dict[str, Any]


def fit(name: str, held_out: Answers, measured: Answers, *, bootstrap: int = 1000, seed: int = 0) -> Fitted:
    """Fits the defence of that name on some rows and measures it on others.

    Args:
        name: in the registry.
        held_out: what it learns from.
        measured: what the figures are made from; none of its rows is learned from.
        bootstrap: resamples behind the intervals.
        seed: of the resamples.

    Raises:
        InputError: an unknown name, rows that do not suit the defence, or different numbers of classes.

    >>> logits = torch.tensor([[4.0, 0.0]]).repeat(40, 1)
    >>> rows = Answers(logits, torch.tensor([0, 0, 0, 0, 1]).repeat(8), {})
    >>> found = fit("ts", rows, rows, bootstrap=10)
    >>> round(found.report["before"]["ece"]["value"], 3), round(found.report["after"]["ece"]["value"], 3)
    (0.182, 0.0)
    """
    classes = held_out.logits.shape[1], measured.logits.shape[1]
    if classes[0] != classes[1]:
        raise InputError(
            f"defend fit: both parts must have as many classes, got {classes[0]} to fit on, {classes[1]} to measure on"
        )
    defence = defenses.make(name).fit(held_out.logits, held_out.labels)
    with torch.no_grad():
        after = defence(measured.logits)
    rows = pl.DataFrame({"label": measured.labels.numpy()}).with_columns(
        *answered(Outputs(measured.logits), measured.labels, "before"),
        *answered(Outputs(after), measured.labels, "after"),
    )
    plan = metrics.Bootstrap(resamples=bootstrap, seed=seed % 2**32)
    report = {
        "defence": name,
        "class": type(defence).__name__,
        "hyperparameters": defence.hyperparameters(),
        "keeps_label": defence.keeps_label,
        "poise": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "num_classes": classes[0],
        "fitted_on": {"n": len(held_out.labels) if defence.needs_fit else 0, **held_out.origin},
        "measured_on": {"n": len(measured.labels), **measured.origin},
        "labels_changed": int((rows["prediction_before"] != rows["prediction_after"]).sum()),
        "before": figures(rows, "before", plan),
        "after": figures(rows, "after", plan),
    }
    return Fitted(defence, report)


def halves(answers: Answers, seed: int = 0) -> tuple[Answers, Answers]:
    """Two halves without common rows, drawn with the seed: to fit on, and to measure on."""
    n = len(answers.labels)
    if n < FEWEST:
        raise InputError(f"defend fit: must have at least {FEWEST} samples, got {n}")
    rows = torch.arange(n)
    order = Rng(seed, rows).bits("defend-halves", 0, rows, ()).argsort(stable=True)
    return answers.part(order[: n // 2].sort().values), answers.part(order[n // 2 :].sort().values)


def from_logits(path: Path, seed: int = 0) -> tuple[Answers, Answers]:
    """Both halves of an archive with the arrays logits or probabilities (n, K), and labels (n,).

    Raises:
        InputError: the file is missing or damaged, or holds other arrays.
    """
    archive = _arrays(path)
    scores = [name for name in ("logits", "probabilities") if name in archive]
    if len(scores) != 1:
        raise InputError(
            f"logits: '{path}' must hold one of the arrays logits and probabilities, got {_named(archive)}"
        )
    if "labels" not in archive:
        raise InputError(f"logits: '{path}' must hold the array labels, got {_named(archive)}")
    values, labels = archive[scores[0]], archive["labels"]
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind != "f":
        raise InputError(f"logits: {scores[0]} must be (n, K) floats with K >= 2, got {values.shape} {values.dtype}")
    if labels.shape != values.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(f"logits: labels must be ({len(values)},) integers, got {labels.shape} {labels.dtype}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < values.shape[1]):
        raise InputError(
            f"logits: labels must be in 0..{values.shape[1] - 1} for {values.shape[1]} classes, "
            f"got values in {labels.min()}..{labels.max()}"
        )
    if not np.isfinite(values).all():
        raise InputError(f"logits: {scores[0]} must be finite, got NaN or inf")
    logits = torch.from_numpy(values if values.dtype.itemsize >= 4 else values.astype(np.float32))
    if scores[0] == "probabilities":
        logits = _log(values)
    digest = hashlib.sha256(np.ascontiguousarray(values).tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    origin = {"logits": path.name, "data": f"sha256:{digest}"}
    return halves(Answers(logits, torch.from_numpy(labels.astype(np.int64)), origin), seed)


def _log(probabilities: NDArray[Any]) -> Tensor:
    """(n, K) log-probabilities, checked."""
    if (probabilities < 0).any() or (np.abs(probabilities.astype(np.float64).sum(axis=1) - 1) > 1e-3).any():
        raise InputError("logits: probabilities must be non-negative with rows that sum to 1, got others")
    return Outputs(torch.from_numpy(probabilities.astype(np.float64)), OutputKind.PROBABILITIES).logits


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise InputError(
            f"logits: '{path}' must be a .npz file, got {'a folder' if path.is_dir() else 'nothing there'}"
        )
    with open_arrays(path, lambda reason: InputError(f"logits: '{path}': {reason}")) as archive:
        return {name: archive.read(name) for name in archive.names if name in ("logits", "probabilities", "labels")}


def _named(archive: dict[str, NDArray[Any]]) -> str:
    return ", ".join(archive) or "none of them"


def from_model(
    model: str, source: str, fit_source: str | None, *, target: Target, batch_size: int, seed: int = 0
) -> tuple[Answers, Answers]:
    """What a model answers to held-out images, and to those that the figures are made from.

    Args:
        model: the model's address, for the provenance.
        source: images to measure on.
        fit_source: images to fit on. None takes the validation part of the embedded digits; of other data one half,
            and measures on the other.
        target: the model.
        batch_size: images per pass.
        seed: of the halves.

    Raises:
        InputError: images that the model does not take, or labels that it does not have.
    """
    measured = _answers(model, data.load(source), target, batch_size)
    if fit_source is not None:
        return _answers(model, data.load(fit_source), target, batch_size), measured
    if source == DIGITS:
        return _answers(model, data.load(DIGITS, split="val"), target, batch_size), measured
    return halves(measured, seed)


def _answers(model: str, images: Dataset, target: Target, batch_size: int) -> Answers:
    data.check_matches(images, target.num_classes)
    logits, labels = [], []
    with target.session(0):
        for batch, truth, ids in images.batches(batch_size):
            logits.append(ask(target, batch, ids, images).logits.cpu())
            labels.append(truth)
    origin = {"model": model, "data": images.name, "data_fingerprint": images.fingerprint()}
    if isinstance(target, ModuleTarget):
        origin["weights"] = models.fingerprint(target)
    if (code := models.code_fingerprint(model)) is not None:
        origin["code"] = code
    return Answers(torch.cat(logits), torch.cat(labels), origin)


def save(fitted: Fitted, path: Path) -> None:
    """Writes the defence, with its report as the file's provenance; the folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    defenses.save(fitted.defence, path, fitted.report)
