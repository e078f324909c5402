"""summary.json: every figure of a run with its interval, and all that is needed to repeat it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from poise import __version__, metrics
from poise.experiments import files
from poise.experiments.deferral import deferral_section
from poise.experiments.gallery import write_gallery
from poise.experiments.measure import measure, query_views
from poise.experiments.run_folder import RunFolder
from poise.experiments.trust import trust
from poise.objectives import MaxConfidence
from poise.recipebook import recipe as recipe_named
from poise.spec import fingerprint
from poise.targets import ModuleTarget
from poise.types import Access

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared


def summarise(prepared: Prepared, folder: RunFolder, *, seconds: float, command: str) -> dict[str, Any]:
    """Measures every attack of a complete run, writes the gallery and summary.json, and returns the summary."""
    spec, classes = prepared.spec, prepared.target.num_classes
    plan = metrics.Bootstrap(resamples=spec.bootstrap, seed=spec.seed % 2**32)
    rows: list[dict[str, Any]] = []
    for recipe in spec.recipes:
        for defence in spec.defences:
            for view in ("aware",) if defence == "none" else ("aware", "unaware"):
                table = folder.rows(recipe, defence, view)
                figures = measure(table, threshold=spec.threshold, num_classes=classes, plan=plan)
                row = {"recipe": recipe, "defence": defence, "view": view, "n": len(table), "metrics": figures}
                rows.append(row | {"queries": query_views(table)})
    accuracy = {row["defence"]: row["metrics"]["accuracy_before"]["value"] for row in rows}
    write_gallery(prepared, folder)
    summary = {
        "poise": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 1),
        "command": command,
        "target": _target(prepared),
        "data": _data(prepared),
        "spec": spec.model_dump(mode="json"),
        "fingerprints": {**prepared.loaded.recorded, "spec": fingerprint(spec.measured())},
        "versions": {"poise": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "threshold": spec.threshold,
        "costs": None if spec.costs is None else spec.costs.plain(),
        "bound": {name: metrics.mma_bound(value, classes) for name, value in accuracy.items()},
        "recipes": {name: _recipe(name) for name in spec.recipes},
        "rows": rows,
    }
    summary["deferral"] = _deferral(prepared, folder, rows)
    with prepared.part("checks") as part:
        summary["checks"] = trust(part, folder, rows)
    summary["endpoint"] = _endpoint(prepared)
    files.write_json(folder.root / "summary.json", summary)
    return summary


def _deferral(prepared: Prepared, folder: RunFolder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The deferral table of every model, as the scoreboard's columns."""
    spec = prepared.spec
    costs = None if spec.costs is None else spec.costs.matrix()
    found = []
    for defence, view in dict.fromkeys((row["defence"], row["view"]) for row in rows):
        tables = {recipe: folder.rows(recipe, defence, view) for recipe in spec.recipes}
        section = deferral_section(tables, threshold=spec.threshold, costs=costs)
        found.append({"defence": defence, "view": view, **section})
    return found


def _target(prepared: Prepared) -> dict[str, Any]:
    model, target, seen = prepared.loaded.model, prepared.target, prepared.spec.view
    count = sum(p.numel() for p in model.module.parameters()) if isinstance(model, ModuleTarget) else None
    about = f"{count:,} parameters" if count is not None else type(model).__name__
    return {
        "model": prepared.spec.model,
        "description": about if seen is None else f"{about}, seen as {seen}",
        "num_classes": target.num_classes,
        "access": target.access.name.lower(),
        "parameters": count,
    }


def _endpoint(prepared: Prepared) -> dict[str, Any] | None:
    """What the whole run asked of a model that costs, and for how much; None for others."""
    if prepared.till is None:
        return None
    return {"queries": prepared.till.purse.spent, "cost": prepared.till.purse.cost}


def _data(prepared: Prepared) -> dict[str, Any]:
    attacked = prepared.attacked
    return {
        "name": prepared.spec.data,
        "samples": len(attacked),
        "available": prepared.loaded.available,
        "fit_samples": prepared.loaded.fit_samples,
        "shape": list(attacked.shape),
        "class_names": list(attacked.class_names),
    }


def _recipe(name: str) -> dict[str, Any]:
    found = recipe_named(name)
    return {
        "summary": found.summary,
        "paper": found.paper,
        "whitebox": found.access == Access.GRADIENTS,
        "keeps_label": found.keeps_label,
        "max_confidence": isinstance(found.objective, MaxConfidence) and found.access == Access.GRADIENTS,
    }
