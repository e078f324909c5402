"""The page's short facts: the line under its title, the figures under the verdict, how the run was made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from poise.report.folder import Summary
from poise.report.words import (
    MOVED,
    Row,
    base_rows,
    best_defence,
    count,
    error,
    exact,
    headline,
    interval,
    keeps_label,
    percent,
    short,
    threshold,
    value,
    worst,
)


@dataclass(frozen=True)
class Figure:
    """One of the large figures under the verdict."""

    name: str
    figure: str
    note: str


def subtitle(summary: Summary) -> str:
    """The line under the title: data, classes, date, version."""
    target, data = summary["target"], summary["data"]
    parts = [
        str(target.get("description") or ""),
        f"{count(int(data['samples']), 'test image')} of {data.get('name', 'unnamed data')}",
        count(int(target["num_classes"]), "class", "classes"),
        str(summary.get("created", ""))[:10],
    ]
    return " · ".join(part for part in parts if part)


def keys(summary: Summary) -> list[Figure]:
    """The large figures: clean accuracy, the worst ECE, what is accepted, the best defence."""
    rows = base_rows(summary)
    row = worst(headline(summary, rows)) or rows[0]
    n = count(int(summary["data"]["samples"]), "image")
    span, bound = interval(row, "ece_after"), summary["bound"].get(row["defence"])
    interval_told = f"95 % interval [{short(span[0])}, {short(span[1])}], " if span else ""
    bound_told = f"at most {error(float(bound))} possible, " if bound is not None and keeps_label(summary, row) else ""
    accepted = [_accepted(row, when) for when in ("before", "after")]
    found = [
        Figure("Clean accuracy", exact(value(row, "accuracy_before")), f"on {n}"),
        Figure(
            "Calibration error (ECE)",
            f"{error(value(row, 'ece_before'))} → {error(value(row, 'ece_after'))}",
            f"{interval_told}{bound_told}recipe {row['recipe']}",
        ),
        Figure(
            f"Accepted automatically at {threshold(float(summary['threshold']))}",
            f"{percent(accepted[0])} → {percent(accepted[1])}",
            f"of all cases, recipe {row['recipe']}",
        ),
    ]
    best = best_defence(summary)
    if best is None:
        return [*found, Figure("Best defence", "–", "no defence was tried")]
    left = f"ECE {error(value(best, 'ece_after'))} against an attacker who knows it, recipe {best['recipe']}"
    if _helps(best, row):
        return [*found, Figure("Best defence", best["defence"], f"leaves {left}")]
    return [*found, Figure("Best defence", "none helps", f"the mildest, {best['defence']}, leaves {left}")]


def _helps(best: Row, undefended: Row) -> bool:
    """Whether what a defence leaves is less than what there is without one."""
    left, whole = value(best, "ece_after"), value(undefended, "ece_after")
    return left is not None and whole is not None and left < whole - MOVED


def _accepted(row: Row, when: str) -> float | None:
    parts = [value(row, f"accepted_{name}_{when}") for name in ("right", "wrong")]
    return None if None in parts else sum(part for part in parts if part is not None)


def board_lead(summary: Summary) -> str:
    """The sentence over the scoreboard: what the best defence leaves, or that there is none."""
    top, best = worst(headline(summary, base_rows(summary))), best_defence(summary)
    if top is None:
        return "No recipe has a calibration error."
    lead = f"The worst recipe, {top['recipe']}, reaches ECE {error(value(top, 'ece_after'))} on the undefended model"
    if best is None:
        return f"{lead}; no defence was tried."
    left = f"ECE {error(value(best, 'ece_after'))} (recipe {best['recipe']})"
    if _helps(best, top):
        return f"{lead}; against an attacker who knows the defence, {best['defence']} is best and leaves {left}."
    return f"{lead}; no defence helps against an attacker who knows it: the mildest, {best['defence']}, leaves {left}."


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Name and text of each fact of the run, in the order of the page; facts the summary lacks are left out."""
    target, data, spec = summary["target"], summary["data"], summary["spec"]
    prints, versions = summary.get("fingerprints") or {}, summary.get("versions") or {}
    rows = (
        ("model", target.get("model")),
        ("parameters", None if target.get("parameters") is None else f"{target['parameters']:,}"),
        ("access", target.get("access")),
        ("data", data.get("name")),
        ("images", _images(data)),
        ("image shape", " × ".join(str(size) for size in data.get("shape") or []) or None),
        ("norm and size", f"{spec['norm']}, ε = {spec['eps']}" if {"norm", "eps"} <= set(spec) else None),
        ("asked of the model", _endpoint(summary.get("endpoint"))),
        ("budget", count(int(spec["budget"]), "query", "queries") if "budget" in spec else None),
        ("seed", spec.get("seed")),
        ("device", spec.get("device")),
        ("made", summary.get("created")),
        ("took", None if summary.get("seconds") is None else f"{float(summary['seconds']):,.1f} s"),
        ("poise", summary.get("poise")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
        *((f"fingerprint of {name}", text) for name, text in prints.items()),
    )
    return [(name, str(told)) for name, told in rows if told is not None]


def _endpoint(asked: dict[str, float | None] | None) -> str | None:
    """What a run asked of a model that costs; None for others.

    >>> _endpoint({"queries": 12345, "cost": 24.69})
    '12,345 queries, for 24.69 in all'
    """
    if asked is None:
        return None
    told = count(int(asked["queries"] or 0), "query", "queries")
    return told if asked["cost"] is None else f"{told}, for {asked['cost']:,.2f} in all"


def _images(data: dict[str, object]) -> str:
    told = f"{data['samples']:,}" + (f" of {data['available']:,}" if "available" in data else "")
    fitted = data.get("fit_samples")
    return told + (f", {fitted:,} others to fit the defences" if fitted else "")


def costs_told(costs: dict[str, Any], class_names: list[str] | None = None) -> str:
    """The cost matrix in words.

    >>> costs_told({"wrong_accepted": 10.0, "deferred": 1.0, "classes": {"1": {"deferred": 9.5}}}, ["cat", "dog"])
    'wrong accepted 10, deferred 1; of the true class dog: deferred 9.5'
    """
    parts = [
        f"{name.replace('_', ' ')} {json.dumps(float(cost)).removesuffix('.0')}"
        for name, cost in costs.items()
        if name != "classes"
    ]
    names = dict(enumerate(class_names or []))
    told = [
        f"of the true class {names.get(int(number), number)}: {costs_told(part)}"
        for number, part in (costs.get("classes") or {}).items()
    ]
    return "; ".join([", ".join(parts), *told])
