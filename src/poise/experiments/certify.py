"""A certification in a folder: draws that are counted once, groups of images that are written whole, then attacks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch

from poise import data, models
from poise.certify import GROUP, Certificate, Stream, certificates
from poise.data import Dataset
from poise.errors import InputError
from poise.experiments import files
from poise.experiments.certify_attack import attack_group
from poise.experiments.certify_folder import SAMPLES, CertifyFolder
from poise.experiments.certify_spec import CertifySpec
from poise.experiments.certify_summary import summarise
from poise.experiments.served import ask
from poise.targets import ModuleTarget, OnnxTarget
from poise.types import Access, OutputKind

SAVE_SECONDS = 10.0
"""Between two records of how far a group has come: what an interruption costs at most."""


class CertifyListener(Protocol):
    """Hears how a certification goes. Every method may do nothing."""

    def note(self, line: str) -> None:
        """Something the user should know."""
        ...

    def begin(self, what: str, done: int, total: int) -> None:
        """A part starts, or goes on where `done` of its `total` steps are on disk already."""
        ...

    def advance(self, done: int) -> None:
        """So many steps of the part are done."""
        ...


@dataclass(frozen=True)
class Loaded:
    """Model and images of a certification."""

    target: ModuleTarget | OnnxTarget
    images: Dataset
    available: int

    def groups(self) -> Iterator[tuple[int, Dataset]]:
        """Numbered groups of images."""
        for number, start in enumerate(range(0, len(self.images), GROUP)):
            yield number, self.images[start : start + GROUP]


def run_certify(
    spec: CertifySpec, out: Path, *, resume: bool, listener: CertifyListener, command: str = ""
) -> dict[str, Any]:
    """Draws what is missing in the folder `out`, attacks, writes summary.json and returns it.

    Args:
        spec: what to do.
        out: the run folder; made if missing.
        resume: go on with a run of the same spec that lies there.
        listener: hears how it goes.
        command: the command that repeats the run.

    Raises:
        InputError, TargetError: model, data and spec do not fit; RunError: another run lies in `out`.
    """
    began, folder = time.time(), CertifyFolder(out)
    folder.check(spec, resume=resume)
    loaded, recorded = _load(spec, listener)
    with files.locked(out):
        folder.check(spec, resume=resume)
        folder.open(spec, recorded)
        _draw(spec, loaded, folder, listener)
        _attack(spec, loaded, folder, listener)
        about = _about(spec, loaded, recorded)
        summary = summarise(
            spec, folder.samples(), folder.attacks(), about, seconds=time.time() - began, command=command
        )
        files.write_json(out / "summary.json", summary)
    return summary


def _load(spec: CertifySpec, listener: CertifyListener) -> tuple[Loaded, dict[str, str]]:
    """Model and images, matched, and their fingerprints."""
    target = models.load(spec.model, device=spec.device, batch_size=spec.batch_size, on_note=listener.note)
    if not isinstance(target, ModuleTarget | OnnxTarget) or target.kind is OutputKind.LABELS:
        given = "one that answers labels alone" if target.kind is OutputKind.LABELS else f"a {type(target).__name__}"
        raise InputError(
            f"model: must be a PyTorch module or an ONNX file that answers scores, since a certificate takes "
            f"{spec.n:,} answers per image to points outside of [0, 1], got {given}"
        )
    whole = data.load(spec.data).mixed()
    if spec.samples is not None and len(whole) < spec.samples:
        raise InputError(f"samples: must be at most the {len(whole)} images of '{spec.data}', got {spec.samples}")
    images = whole if spec.samples is None else whole[: spec.samples]
    data.check_matches(images, target.num_classes)
    ask(target, images[:2].images, images[:2].ids, images)
    recorded = {"data": images.fingerprint()}
    recorded["weights"] = models.fingerprint(target) if isinstance(target, ModuleTarget) else target.fingerprint
    if (code := models.code_fingerprint(spec.model)) is not None:
        recorded["code"] = code
    return Loaded(target, images, len(whole)), recorded


def _draw(spec: CertifySpec, loaded: Loaded, folder: CertifyFolder, listener: CertifyListener) -> None:
    """The certificates of all groups that are not there."""
    each = spec.n0 + spec.n
    missing = [(number, part) for number, part in loaded.groups() if not folder.samples_file(number).exists()]
    before = each * (len(loaded.images) - sum(len(part) for _, part in missing))
    listener.begin("draws", before, each * len(loaded.images))
    for number, part in missing:
        stream = Stream(loaded.target, part.images, part.ids, spec.smoothing)
        if (state := folder.state(number)) is not None:
            stream.load(state)
        _count(stream, folder, number, before, listener)
        found = certificates(stream, part.ids.tolist(), spec.smoothing)
        files.write_parquet(folder.samples_file(number), _rows(spec, found, part.labels.tolist()))
        with suppress(FileNotFoundError):
            folder.state_file(number).unlink()
        before += each * len(part)


def _count(stream: Stream, folder: CertifyFolder, number: int, before: int, listener: CertifyListener) -> None:
    """Runs a stream to its end, and records between two batches how far it has come."""
    saved = time.monotonic()

    def on_draws(done: int, total: int) -> None:
        nonlocal saved
        listener.advance(before + done)
        if time.monotonic() - saved >= SAVE_SECONDS and done < total:
            files.write_tensors(folder.state_file(number), stream.state())
            saved = time.monotonic()

    stream.run(on_draws)


def _rows(spec: CertifySpec, found: list[Certificate], labels: list[int]) -> pl.DataFrame:
    """One row per image and radius."""
    frames = []
    radii = np.array(spec.radii)
    for one, label in zip(found, labels, strict=True):
        bounds = {
            "radius": radii, "lower": one.lower(radii), "upper": one.upper(radii), "certified": one.certified(radii),
            "naive_lower": one.naive_lower(radii), "naive_upper": one.naive_upper(radii),
        }  # fmt: skip
        about = {"id": one.id, "label": label, "prediction": one.prediction, "confidence": one.mean}
        frames.append(pl.DataFrame(bounds).with_columns(**(about | {"abstained": one.abstains})))
    return pl.concat(frames).select(pl.col(name).cast(kind) for name, kind in SAMPLES.items())


def _attack(spec: CertifySpec, loaded: Loaded, folder: CertifyFolder, listener: CertifyListener) -> None:
    """Attacks on the smoothed model, at every radius above 0 and for every group that are not there."""
    target = loaded.target
    if not spec.attack:
        return
    if not isinstance(target, ModuleTarget) or target.access < Access.GRADIENTS:
        listener.note("no attack on the smoothed model: it needs gradients, which this model does not give")
        return
    classes = dict(folder.samples().select("id", "prediction").unique().iter_rows())
    places = [(place, radius) for place, radius in enumerate(spec.radii) if radius > 0]
    groups = list(loaded.groups())
    todo = [(p, r, g, part) for p, r in places for g, part in groups if not folder.attack_file(p, g).exists()]
    done = len(places) * len(loaded.images) - sum(len(part) for *_, part in todo)
    listener.begin("attacks", done, len(places) * len(loaded.images))
    for place, radius, group, part in todo:
        certified = torch.tensor([classes[name] for name in part.ids.tolist()])
        rows = attack_group(spec, target, part.images, part.ids, certified, radius)
        files.write_parquet(folder.attack_file(place, group), rows)
        done += len(part)
        listener.advance(done)


def _about(spec: CertifySpec, loaded: Loaded, recorded: dict[str, str]) -> dict[str, Any]:
    images = loaded.images
    return {
        "target": {"model": spec.model, "num_classes": loaded.target.num_classes},
        "data": {"name": spec.data, "samples": len(images), "available": loaded.available, "shape": list(images.shape)},
        "fingerprints": recorded,
    }
