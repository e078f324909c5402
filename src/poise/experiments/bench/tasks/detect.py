"""Detectors of attacks, each fitted and tested on every attack (Obadinma et al., Calibration Attacks, Table 2)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl

from poise.data import Dataset
from poise.errors import InputError
from poise.experiments.audit_spec import AuditSpec, make_spec
from poise.experiments.bench.plan import Plain, Shard
from poise.experiments.bench.tasks import measured, packing
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.experiments.detect import run_detect
from poise.experiments.detect_spec import DetectOptions, make_options
from poise.targets import Target

PUBLISHED = {
    "lid": "detector-LID",
    "lid-apart": "detector-LID-apart",
    "mahalanobis": "detector-MD",
    "input-mfs": "detector-SpectralDefense",
    "layer-mfs": "detector-LayerMFS",
}
"""Our detectors as they are called among the published numbers."""

AT_HALF = ("input-mfs", "layer-mfs")
"""Detectors whose accuracy is that at a score of 1/2, as published; of the others that of the best threshold."""

UNUSED = ("objective", "through", "moves")


def detect(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """metrics.parquet: `detection_auc` and `detection_accuracy` of each detector, fitted on the attack it is tested on.

    Options are those of `poise detect` (`DetectOptions`). Attacks of the same norm, radius and budget are run together
    by `poise.experiments.detect.run_detect`, on the model without a defence.

    Raises:
        InputError: a defence, limits of the confidence, or a changed objective, which `poise detect` does not take.
    """
    settings = shard.settings
    _check(settings)
    attacks = [measured.of_attack(settings, one) for one in settings["attacks"]]
    rows: list[measured.Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="poise-detect-") as scratch,
        bench.address_of(settings, inputs.get("train")) as model,
    ):
        options = _options(settings, bench)
        for number, alike in enumerate(_groups(attacks)):
            spec = _spec(bench, shard, model, alike)
            out = Path(scratch) / f"run{number}"
            found = run_detect(spec, options, out, resume=False, listener=_Silent())
            for name, detector in found["detectors"].items():
                for one in alike:
                    recipe = one["attack"]["recipe"]
                    tested = detector["trained"][recipe]["tested"][recipe]
                    keys = {"defence": PUBLISHED[name], **measured.threat(one)}
                    accuracy = "accuracy_at_half" if name in AT_HALF else "detection_accuracy"
                    for metric, figure in (("detection_auc", "auroc"), ("detection_accuracy", accuracy)):
                        rows.append(keys | {"metric": metric, **tested[figure], "n": int(detector["test"])})
    return {"metrics.parquet": packing.table(measured.table(rows))}


def _check(settings: Plain) -> None:
    chosen = settings["defence"]
    if chosen["use"] != "none" or chosen["temperature"] is not None:
        raise InputError(f"detect: the defence must be none, got '{chosen['use']}'")
    if settings["confidence"] is not None:
        raise InputError("detect: victims must not be chosen by confidence, got limits")
    if not settings.get("attacks"):
        raise InputError("detect: needs at least one attack, got none")
    for one in settings["attacks"]:
        changed = [name for name in UNUSED if one[name] is not None]
        if changed or one["against"] != "defended":
            raise InputError(f"detect: attacks must be recipes as they are, got '{one['name']}' with {changed}")


def _groups(attacks: list[Plain]) -> list[list[Plain]]:
    """Attacks that one run can hold: the same threat, each recipe once."""
    found: list[tuple[list[object], list[Plain]]] = []
    for one in attacks:
        at = [one[key] for key in ("norm", "eps", "budget", "steps")]
        for other, group in found:
            if other == at and one["attack"]["recipe"] not in [a["attack"]["recipe"] for a in group]:
                group.append(one)
                break
        else:
            found.append((at, [one]))
    return [group for _, group in found]


def _options(settings: Plain, bench: Workbench) -> DetectOptions:
    given = dict(settings["options"])
    if given.get("reference") is not None:
        given["reference"] = bench.place.address(given["reference"])
    return make_options(**given)


def _spec(bench: Workbench, shard: Shard, model: str, attacks: list[Plain]) -> AuditSpec:
    settings, place = shard.settings, bench.place
    first = attacks[0]
    return make_spec(
        model=model,
        data=place.address(settings["data"]),
        recipes=tuple(one["attack"]["recipe"] for one in attacks),
        defences=("none",),
        eps=first["eps"],
        norm=first["norm"],
        budget=first["budget"],
        steps=first["steps"],
        samples=settings["samples"],
        seed=settings["seed"],
        device=place.device,
        batch_size=settings["batch_size"],
        bootstrap=measured.RESAMPLES,
        eight_bit=settings["eight_bit"],
    )


class _Silent:
    """Hears nothing."""

    def note(self, line: str) -> None:
        pass

    def ready(self, target: Target, attacked: Dataset, clean: dict[str, float]) -> None:
        pass

    def begin(self, recipe: str, defence: str, done: int, total: int) -> None:
        pass

    def advance(self, samples: float, queries: int) -> None:
        pass

    def end(self, rows: pl.DataFrame) -> None:
        pass
