"""Selective prediction in words and tables: what each threshold accepts, defers and costs, clean and under attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poise import metrics
from poise.report.folder import Summary
from poise.report.words import column, exact, threshold

CLEAN = "clean"
CASES = 1000
"""Costs are told for so many cases."""


@dataclass(frozen=True)
class Line:
    """One threshold of a deferral table, ready for the page: its cells, and what is special about it."""

    threshold: str
    accepted: str
    wrong: str
    deferred: str
    cost: str
    marks: str


@dataclass(frozen=True)
class Table:
    """The deferral table of one model, the name of its column, and a sentence on it."""

    name: str
    lines: list[Line]
    told: str


def matrix(costs: dict[str, Any]) -> metrics.Costs:
    """The cost matrix of `summary.json` for the metrics.

    >>> matrix({"wrong_accepted": 9, "deferred": 1, "classes": {"3": {"wrong_accepted": 90, "deferred": 1}}}).classes[3]
    Costs(wrong_accepted=90, deferred=1, right_accepted=0.0, classes={})
    """
    shared = {name: cost for name, cost in costs.items() if name != "classes"}
    each = {int(number): metrics.Costs(**part) for number, part in (costs.get("classes") or {}).items()}
    return metrics.Costs(**shared, classes=each)


def tables(summary: Summary) -> list[Table]:
    """The deferral tables of a summary, in the order of the scoreboard; none where the run has none."""
    return [_table(summary, section) for section in summary.get("deferral") or []]


def _table(summary: Summary, section: dict[str, Any]) -> Table:
    by_threshold: dict[float, dict[str, dict[str, Any]]] = {}
    for row in section["rows"]:
        by_threshold.setdefault(row["threshold"], {})[row["case"]] = row
    marks = {float(summary["threshold"]): ["yours"]}
    for key, told in (("best_clean", "cheapest without attack"), ("worst_case", "least bad in the worst case")):
        if key in section:
            marks.setdefault(section[key]["threshold"], []).append(told)
    lines = [_line(at, cases, "; ".join(marks.get(at, []))) for at, cases in by_threshold.items()]
    return Table(column(section["defence"], section["view"]), lines, sentence(section))


def _line(at: float, cases: dict[str, dict[str, Any]], marks: str) -> Line:
    attacked = [row for name, row in cases.items() if name != CLEAN]
    risks = [row["risk"] for row in attacked if row["risk"] is not None]
    worst = max(attacked, key=lambda row: row["cost"] or 0.0)
    coverage = [row["coverage"] for row in attacked]
    least, most = exact(min(coverage)), exact(max(coverage))
    clean = cases[CLEAN]
    return Line(
        threshold=threshold(at),
        accepted=f"{exact(clean['coverage'])} → " + (least if least == most else f"{least} to {most}"),
        wrong=f"{exact(clean['risk'])} → {exact(max(risks, default=None))}",
        deferred=f"{exact(clean['deferred'])} → {exact(max(row['deferred'] for row in attacked))}",
        cost="" if clean["cost"] is None else f"{money(clean['cost'])} → {money(worst['cost'])} ({worst['case']})",
        marks=marks,
    )


def sentence(section: dict[str, Any]) -> str:
    """What the two best thresholds of a deferral table cost; empty where no costs were given.

    >>> best = {"threshold": 0.5, "cost": 0.1, "worst": 4.0, "case": "sa-mma"}
    >>> sentence({"best_clean": best, "worst_case": {"threshold": 0.8, "cost": 0.9, "case": "sa-oca", "clean": 0.4}})
    'Without attack, 0.50 is the cheapest threshold: 100 per 1,000 cases, but 4,000 under sa-mma. In the worst case, 0.80 is the least bad: at most 900 per 1,000 cases (under sa-oca), and 400 without attack.'
    """  # noqa: E501 - one line, as it is shown
    if "worst_case" not in section:
        return ""
    clean, best = section["best_clean"], section["worst_case"]
    under = f"but {money(clean['worst'])} under {clean['case']}"
    under = "and no attack makes it dearer" if clean["case"] == CLEAN else under
    where = "" if best["case"] == CLEAN else f" (under {best['case']})"
    return (
        f"Without attack, {threshold(clean['threshold'])} is the cheapest threshold: {money(clean['cost'])} per 1,000"
        f" cases, {under}. In the worst case, {threshold(best['threshold'])} is the least bad: at most"
        f" {money(best['cost'])} per 1,000 cases{where}, and {money(best['clean'])} without attack."
    )


def costs_line(summary: Summary) -> str:
    """One line for the terminal about the undefended model; empty where no costs were given."""
    sections = summary.get("deferral") or []
    told = sentence(sections[0]) if sections else ""
    return f"costs    {told}" if told else ""


def money(cost: float) -> str:
    """A mean cost of one case, told for 1,000 of them.

    >>> money(0.0123), money(1.5), money(0), money(-0.002)
    ('12.3', '1,500', '0', '-2.0')
    """
    amount = cost * CASES
    return f"{amount:,.0f}" if amount == 0 or abs(amount) >= 99.95 else f"{amount:,.1f}"
