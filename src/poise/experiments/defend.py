"""All defences on one split: clean, under images made against the bare model, and under an attacker who knows them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import polars as pl
import torch
from torch import Tensor, nn

from poise import __version__, defenses, metrics
from poise.defenses import PostHoc
from poise.experiments import files
from poise.experiments.audit import AuditListener, audited
from poise.experiments.audit_spec import AuditSpec
from poise.experiments.defend_adaptive import AdaptiveFolder, adapt, chunks
from poise.experiments.defend_attackers import BARE, THROUGH, knowledge
from poise.experiments.defend_figures import METRICS, figures, worse
from poise.experiments.defend_table import latex, markdown
from poise.experiments.measure import Figure
from poise.experiments.prepare import Prepared
from poise.experiments.run_folder import RunFolder
from poise.experiments.served import as_logits
from poise.targets import ModuleTarget

RECIPES = ("sa-mma", "standard")
"""What a comparison attacks with unless told otherwise."""

REPEATS = 7
"""Passes of a defence of which the median is its time."""


def run_compare(
    spec: AuditSpec,
    out: Path,
    *,
    resume: bool,
    listener: AuditListener,
    command: str = "",
    on_adaptive: Callable[[str, str], None] = lambda recipe, defence: None,
) -> dict[str, Any]:
    """Audits every defence, lets an adaptive attacker choose, writes compare.json, .md and .tex, returns the first.

    `out` is a run folder like that of `poise audit`, whose summary.json holds the audit's own figures. The adaptive
    attacker has, for every sample, the attack through the defence, the one on the bare model, and where the defence has
    no usable gradient one more (`poise.experiments.defend_attackers`); he keeps the one that serves the recipe's goal
    best on the defended model. So he spends up to three budgets per sample, the unaware one a single one. The
    columns may still cross, as a figure of the whole set is not a sum of goals: the headline is the worse of both.

    Args:
        spec: what to do; its defences are compared, "none" among them always.
        out: the run folder; made if missing.
        resume: go on with a run of the same spec that lies there.
        listener: hears how the audit goes.
        command: the command that repeats the run.
        on_adaptive: called with recipe and defence before the adaptive attacker's turn.

    Raises:
        InputError, TargetError: model, data and spec do not fit; RunError: another run lies in `out`.
    """
    prepared, summary = audited(spec, out, resume=resume, listener=listener, command=command)
    run, folder = RunFolder(out), AdaptiveFolder(out)
    with files.locked(out), prepared.part("adaptive") as asked:
        files.sweep(out)
        for recipe in spec.recipes:
            for name in spec.defences:
                if name != "none":
                    on_adaptive(recipe, name)
                    adapt(asked, run, folder, recipe, name)
        comparison = _comparison(asked, summary, run, folder, command)
        files.write_json(out / "compare.json", comparison)
        files.write_text(out / "compare.md", markdown(comparison))
        files.write_text(out / "compare.tex", latex(comparison))
    return comparison


def _comparison(
    prepared: Prepared, summary: dict[str, Any], run: RunFolder, folder: AdaptiveFolder, command: str
) -> dict[str, Any]:
    spec = prepared.spec
    plan = metrics.Bootstrap(resamples=spec.bootstrap, seed=spec.seed % 2**32)
    logits = _bare_logits(prepared)
    found = {}
    for name in spec.defences:
        defence, known = prepared.defences[name], knowledge(name, prepared.defences[name])
        first = run.rows(spec.recipes[0], name, "aware")
        found[name] = {
            "summary": defenses.summaries()[name],
            "keeps_label": defence.keeps_label,
            "gradient": known.gradient.value,
            "attacker": known.why,
            "ms_per_image": _milliseconds(prepared, name, logits),
            "clean": figures(first, "before", plan),
            "attacked": {recipe: _attacked(prepared, run, folder, recipe, name, plan) for recipe in spec.recipes},
        }
    return {
        "poise": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "model": spec.model,
        "data": spec.data,
        "samples": len(prepared.attacked),
        "fit_samples": prepared.loaded.fit_samples,
        "timed_batch": len(logits),
        "spec": spec.model_dump(mode="json"),
        "fingerprints": summary["fingerprints"],
        "defences": found,
    }


def _attacked(
    prepared: Prepared, run: RunFolder, folder: AdaptiveFolder, recipe: str, name: str, plan: metrics.Bootstrap
) -> dict[str, Any]:
    """Both columns of one recipe, the audit's own aware row, and the worse of the columns."""
    through = run.rows(recipe, name, "aware")
    aware = figures(through, "after", plan)
    if name == "none":
        columns, chosen = {"unaware": aware, "adaptive": aware}, pl.Series([THROUGH] * len(through))
    else:
        judged = folder.rows(recipe, name, len(chunks(prepared)))
        chosen = judged["attack"]
        bare = figures(run.rows(recipe, name, "unaware"), "after", plan)
        columns = {"unaware": bare, "adaptive": figures(judged, "after", plan)}
    counts = {attack: int((chosen == attack).sum()) for attack in (THROUGH, BARE, *chosen.unique().sort())}
    return {**columns, "aware": aware, "headline": _headline(columns), "chosen": counts}


def _headline(columns: dict[str, dict[str, Figure]]) -> dict[str, Any]:
    """For every metric the worse of the two columns, and which one it is; the adaptive one among equals."""
    found = {}
    for name in METRICS:
        unaware, adaptive = (columns[column][name] for column in ("unaware", "adaptive"))
        column = "unaware" if worse(name, unaware["value"], adaptive["value"]) else "adaptive"
        found[name] = {"column": column, **columns[column][name]}
    return found


def _bare_logits(prepared: Prepared) -> Tensor:
    """(m, K) logits of the undefended model for one batch of the images, on its device and of its type."""
    images, _, ids = next(iter(prepared.attacked[: prepared.spec.batch_size].batches(prepared.spec.batch_size)))
    device = prepared.target.device
    outputs = prepared.target.query(images.to(device), ids.to(device))
    return outputs.logits.to(outputs.scores.dtype)


def _milliseconds(prepared: Prepared, name: str, logits: Tensor) -> float:
    """Time that a defence adds per image: its own, or where it goes around the model the difference of both models."""
    defence = prepared.defences[name]
    if isinstance(defence, PostHoc):
        return milliseconds(defence, logits)
    images = prepared.attacked[: len(logits)].images.to(prepared.target.device)
    served, bare = (as_logits(cast(ModuleTarget, prepared.targets[at])) for at in (name, "none"))
    with prepared.target.session(0):
        return max(milliseconds(served, images) - milliseconds(bare, images), 0.0)


def milliseconds(defence: nn.Module, logits: Tensor, repeats: int = REPEATS) -> float:
    """Time of a module per row: the median of several passes over m of them, after one more.

    >>> from poise.defenses import Identity
    >>> milliseconds(Identity(), torch.zeros(8, 3)) < 10
    True
    """
    taken = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            _wait(logits)
            began = time.perf_counter()
            defence(logits)
            _wait(logits)
            taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken[1:]) / len(logits)


def _wait(logits: Tensor) -> None:
    """Until the device has done what it was asked."""
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    elif logits.device.type == "mps":
        torch.mps.synchronize()
