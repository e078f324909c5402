"""Detectors against attacks: each fitted on one attack and tested on all, as Table 2 of the calibration attacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from poise import __version__, data, detectors, metrics
from poise.data import Dataset
from poise.detectors import Detector, gaussian_noise, perturbation_rms
from poise.detectors.splits import LEAST
from poise.errors import InputError
from poise.experiments import files
from poise.experiments.audit import AuditListener, audited
from poise.experiments.audit_spec import DIGITS, AuditSpec
from poise.experiments.detect_spec import OPTIONS, DetectOptions
from poise.experiments.detect_table import latex, markdown
from poise.experiments.prepare import Loaded, Prepared, load
from poise.experiments.run_folder import RunFolder
from poise.recipebook import recipe as recipe_named
from poise.spec import to_toml
from poise.targets import ModuleTarget
from poise.types import Access

MOST_REFERENCE = 5000
"""Images of the same data that class means are taken from where no reference is named."""


@dataclass(frozen=True)
class _Attacked:
    """The images of a run.

    Args:
        prepared: the model and the clean images.
        clean: (n, C, H, W).
        run: where the attacked ones lie.
        reference: labelled images; None where no detector needs them.
        options: of the detectors.
        plan: the resamples.
    """

    prepared: Prepared
    clean: Tensor
    run: RunFolder
    reference: Dataset | None
    options: DetectOptions
    plan: metrics.Bootstrap

    def images(self, recipe: str) -> Tensor:
        """(n, C, H, W) after the attack."""
        size = self.prepared.spec.batch_size
        parts = [self.run.images(recipe, "none", at)["images"] for at in range(math.ceil(len(self.clean) / size))]
        return torch.cat(parts)

    def noisy(self, recipe: str, rows: int) -> Tensor:
        """The first clean images with noise as large as the attack, or as the options say."""
        std = self.options.noise_std
        std = perturbation_rms(self.clean, self.images(recipe)) if std is None else std
        ids, seed, bounds = self.prepared.attacked.ids[:rows], self.prepared.spec.seed, self.prepared.target.bounds
        return gaussian_noise(self.clean[:rows], std, ids=ids, seed=seed, bounds=bounds)


def run_detect(
    spec: AuditSpec,
    options: DetectOptions,
    out: Path,
    *,
    resume: bool,
    listener: AuditListener,
    command: str = "",
) -> dict[str, Any]:
    """Attacks, fits every detector on every attack, tests it on all of them; writes detect.json, .md and .tex.

    `out` is a run folder like that of `poise audit`: attacks that are finished there are not run again. Every detector
    is fitted and tested on the rows of its own published protocol (`Detector.split`), LID beside the clean images of
    the same minibatch; LID and Mahalanobis have noisy images among the negatives, in the test as well. All attacked
    images count, whether or not the attack changed anything: those that kept the label are what it is about.

    Args:
        spec: the attacks; its only defence is "none".
        options: the detectors.
        out: the run folder; made if missing.
        resume: go on with a run of the same spec that lies there.
        listener: hears how it goes.
        command: the command that repeats the run.

    Raises:
        InputError, TargetError: model, data, spec and options do not fit; RunError: another run lies in `out`.
    """
    RunFolder(out).check(spec, resume=resume)
    reference = _checked(load(spec, lambda line: None), options)
    prepared, summary = audited(spec, out, resume=resume, listener=listener, command=command)
    run, plan = RunFolder(out), metrics.Bootstrap(resamples=spec.bootstrap, seed=spec.seed % 2**32)
    held = _Attacked(prepared, prepared.attacked.images, run, reference, options, plan)
    with files.locked(out):
        files.sweep(out)
        files.write_text(out / OPTIONS, to_toml(options.model_dump(exclude_none=True)))
        found = {name: _detector(held, name, listener) for name in options.detectors}
        result = {
            "poise": __version__,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": command,
            "model": spec.model,
            "data": spec.data,
            "samples": len(held.clean),
            "reference": None if reference is None else {"data": reference.name, "samples": len(reference)},
            "spec": spec.model_dump(mode="json"),
            "options": options.model_dump(mode="json"),
            "fingerprints": summary["fingerprints"],
            "attacks": {recipe: _attack(held, recipe) for recipe in spec.recipes},
            "detectors": found,
        }
        files.write_json(out / "detect.json", result)
        files.write_text(out / "detect.md", markdown(result))
        files.write_text(out / "detect.tex", latex(result))
    return result


def _checked(loaded: Loaded, options: DetectOptions) -> Dataset | None:
    """Refuses what no detector can do, before the first attack; returns the reference."""
    spec, n = loaded.spec, len(loaded.attacked)
    if n < 2 * LEAST:
        raise InputError(f"samples: detectors must have at least {2 * LEAST} images to fit and test on, got {n}")
    reference = small = _reference(loaded, options)
    if reference is not None:
        data.check_matches(reference, loaded.model.num_classes)
        if reference.shape != loaded.attacked.shape:
            given = f"{reference.shape} and {loaded.attacked.shape}"
            raise InputError(f"reference: must have images of the shape of the data, got {given}")
        labels = reference.labels.numpy()  # a few of every class are enough to see what does not fit
        few = np.union1d(np.arange(min(LEAST, len(labels))), np.unique(labels, return_index=True)[1])
        small = reference.select(few)
    probe = loaded.attacked[:LEAST].images
    for name in options.detectors:
        detector = options.make(name)
        if detector.needs_module and not isinstance(loaded.model, ModuleTarget):
            raise InputError(f"detectors: {name} reads layers, the model must be a module, got '{spec.model}'")
        detector.bind(loaded.model, probe, small)
        detector.features(probe[:2], detector.candidates[:1], beside=probe)
    return reference


def _reference(loaded: Loaded, options: DetectOptions) -> Dataset | None:
    needing = [name for name in options.detectors if options.make(name).needs_reference]
    if not needing:
        return None
    if options.reference is not None:
        return data.load(options.reference)
    if loaded.spec.data == DIGITS:
        return data.load(DIGITS, split="train")
    rest = data.load(loaded.spec.data).mixed()[len(loaded.attacked) :][:MOST_REFERENCE]
    if len(rest) < LEAST:
        raise InputError(
            f"reference: {needing[0]} needs labelled images that are not attacked, '{loaded.spec.data}' has "
            f"{len(rest)} beyond the {len(loaded.attacked)} attacked (give --reference, or fewer --samples)"
        )
    return rest


def _attack(held: _Attacked, recipe: str) -> dict[str, Any]:
    """What an attack did, for the reader of the table."""
    rows, about = held.run.rows(recipe, "none", "aware"), recipe_named(recipe)
    moved = rows["prediction_after"] != rows["prediction_before"]

    def mean(of: pl.Series) -> float:
        return float(of.cast(pl.Float64).to_numpy().mean())

    return {
        "summary": about.summary,
        "whitebox": about.access >= Access.GRADIENTS,
        "labels_changed": mean(moved),
        "unchanged": mean(rows["linf"] == 0),
        "rms": perturbation_rms(held.clean, held.images(recipe)),
        "confidence_before": mean(rows["confidence_before"]),
        "confidence_after": mean(rows["confidence_after"]),
        "queries": mean(rows["queries"]),
    }


def _detector(held: _Attacked, name: str, listener: AuditListener) -> dict[str, Any]:
    """One detector, fitted on every attack and tested on all of them; no more than one attack's features are held."""
    recipes, clean = held.prepared.spec.recipes, held.clean
    first = held.options.make(name).bind(held.prepared.target, clean, held.reference)
    train, test = first.split(len(clean))
    most = int(train.max()) + 1
    listener.begin(name, "none", 0, 2 * len(recipes))
    known = _taken(first.features(clean[:most], beside=clean), train)
    fitted: dict[str, Detector] = {}
    for at, recipe in enumerate(recipes):
        noisy = _taken(first.features(held.noisy(recipe, most), beside=clean), train) if first.uses_noisy else None
        attacked = _taken(first.features(held.images(recipe)[:most], beside=clean), train)
        fitted[recipe] = first.twin().learn(known, noisy, attacked)
        listener.advance(at + 1, 0)
    tested = _tested(held, first, fitted, lambda at: listener.advance(len(recipes) + at, 0))
    listener.note(f"{name:<26} fitted on {len(train)} images of {len(recipes)} attacks, tested on {len(test)}")
    return {
        "summary": detectors.summaries()[name],
        "fit": len(train),
        "test": len(test),
        "layers": list(first.read_layers),
        "trained": {
            recipe: {
                "chosen": one.chosen if len(first.candidates) > 1 else None,
                "converged": one.logistic is not None and one.logistic.converged,
                "tested": tested[recipe],
            }
            for recipe, one in fitted.items()
        },
    }


def _tested(
    held: _Attacked, first: Detector, fitted: dict[str, Detector], on_done: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """The figures of every fit (first key) on every attack (second key)."""
    n, (_, test) = first.usable(len(held.clean)), first.split(len(held.clean))
    chosen = sorted({one.chosen for one in fitted.values() if one.chosen is not None})

    def features(images: Tensor) -> detectors.Features:
        return _taken(first.features(images[:n], chosen, beside=held.clean), test)

    clean = features(held.clean)
    tested: dict[str, dict[str, Any]] = {recipe: {} for recipe in fitted}
    for at, recipe in enumerate(fitted):
        noisy = [features(held.noisy(recipe, n))] if first.uses_noisy else []
        versions = [clean, *noisy, features(held.images(recipe))]
        for learned, one in fitted.items():
            assert one.chosen is not None
            scores = np.stack([one.judge(version[one.chosen]) for version in versions], axis=1)
            tested[learned][recipe] = _figures(scores, held.plan)
        on_done(at + 1)
    return tested


def _taken(features: detectors.Features, rows: np.ndarray) -> detectors.Features:
    return {candidate: values[rows] for candidate, values in features.items()}


def _figures(scores: np.ndarray, plan: metrics.Bootstrap) -> dict[str, dict[str, float]]:
    """The figures with their intervals; all versions of an image are drawn together.

    `auroc_clean` is the area against the clean images alone, without the noisy ones.
    """
    found = plan.interval(metrics.separation, scores)
    clean = plan.interval(metrics.separation, scores[:, [0, -1]])
    columns = [(name, found, at) for at, name in enumerate(metrics.SEPARATION)] + [("auroc_clean", clean, 0)]
    return {
        name: {"value": float(of.value[at]), "low": float(of.low[at]), "high": float(of.high[at])}
        for name, of, at in columns
    }
