"""Figures of certificates, for tools/render.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"


def _found() -> Any:
    return json.loads((RESULTS / "certify.json").read_text(encoding="utf-8"))


def certificate() -> str:
    """The table of `poise certify`, with the sentence above it and the one on its attacks below."""
    from poise.report.certify_figures import about, head, notes, table_rows

    summary = _found()["certificate"]
    table = markdown_table(head(summary), table_rows(summary), "r")
    return f"{about(summary)}\n\n{table}\n{notes(summary)[-1]}\n"


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 360, 60, 14, 96


def chart() -> str:
    """Bounds and attacks as a small drawing in the page's own colours; told apart by dash and marker."""
    rows = _found()["certificate"]["rows"]
    last = rows[-1]["radius"]

    def at(radius: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 20) * radius / last
        return round(across, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value), 1)

    def points(name: str) -> list[tuple[float, float]]:
        here = [row for row in rows if name in row["metrics"]]
        return [at(row["radius"], row["metrics"][name]["value"]) for row in here]

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'

    def path(places: list[tuple[float, float]], more: str = "") -> str:
        joined = " ".join(f"{x:g},{y:g}" for x, y in places)
        return f'<polyline points="{joined}" fill="none" stroke="currentColor" {more}/>'

    def marks(places: list[tuple[float, float]], down: int) -> list[str]:
        tips = (f"M{x - 6:g} {y - 4 * down:g}H{x + 6:g}L{x:g} {y + 6 * down:g}Z" for x, y in places)
        return [f'<path d="{tip}" fill="currentColor"/>' for tip in tips]

    low, high, base = points("lower"), points("upper"), HEIGHT - BOTTOM
    band = " ".join(f"{x:g},{y:g}" for x, y in [*low, *reversed(high)])
    parts = [f'<polygon points="{band}" fill="currentColor" fill-opacity="0.12"/>', path(low, 'stroke-width="2"')]
    parts.append(path(high, 'stroke-width="2" stroke-dasharray="8 5"'))
    for name, down in (("attacked_down", 1), ("attacked_up", -1)):
        parts += [path(points(name), 'stroke-opacity="0.7"'), *marks(points(name), down)]
    parts.append(path([(LEFT, TOP), (LEFT, base), (WIDTH - 20, base)]))
    parts += [text(LEFT - 8, at(0, share)[1] + 4, f"{100 * share:.0f} %", "end") for share in (0, 0.25, 0.5, 0.75, 1)]
    parts += [text(at(row["radius"], 0)[0], base + 18, f"{row['radius']:g}") for row in rows]
    middle = (LEFT + WIDTH - 20) / 2
    parts.append(text(middle, base + 40, "l2 radius of the attack (pixel units, images in [0, 1])"))
    parts.append(text(middle, base + 64, "mean smoothed confidence; band: certified, solid at least, dashed at most"))
    parts.append(text(middle, base + 84, "▼ after attacks that lower it, ▲ after attacks that raise it"))
    style = 'style="max-width:100%;height:auto" font-size="13" font-family="sans-serif" fill="currentColor"'
    label = "Certified bounds of the mean smoothed confidence over the l2 radius, and attacks inside them"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" {style}>{"".join(parts)}</svg>\n'


def recipes() -> str:
    """What every recipe does within one radius, the strongest downwards first, and how near a bound it comes."""
    rows = [row for row in _found()["recipes"] if row["inside"]]
    rows.sort(key=lambda row: row["confidence"])
    body = [
        [
            f"`{row['recipe']}`",
            f"{100 * row['confidence']:.1f} %",
            f"{100 * row['least_above_lower']:.1f}",
            f"{100 * row['least_below_upper']:.1f}",
            str(row["outside_bounds"]),
        ]
        for row in rows
    ]
    head = ["recipe", "mean confidence left", "nearest to a lower bound, points", "to an upper bound", "outside"]
    return markdown_table(head, body)


def recipes_about() -> str:
    """One sentence: at which radius, and what came of it."""
    rows = [row for row in _found()["recipes"] if row["inside"]]
    near = min(min(row["least_above_lower"], row["least_below_upper"]) for row in rows)
    outside = sum(row["outside_bounds"] for row in rows)
    return (
        f"{len(rows)} recipes at radius {rows[0]['radius']:g}: {outside or 'no'} results outside the certificates; the "
        f"nearest of all comes to {100 * near:.1f} points of a bound.\n"
    )


def cost() -> str:
    """A stream's batch against bare passes."""
    body = [
        [
            row["network"],
            f"{row['microseconds_per_pass']:,.0f} µs",
            f"{row['ratio']:.3f}",
            "–" if row["limit"] is None else f"{row['limit']:.2f}",
        ]
        for row in _found()["cost"]
    ]
    return markdown_table(["network, batch 256, one core", "bare pass, per image", "ratio (median)", "limit"], body)


FIGURES: dict[str, Callable[[], str]] = {
    "certificate": certificate,
    "certificate-chart": chart,
    "certificate-recipes": recipes,
    "certificate-recipes-about": recipes_about,
    "certificate-cost": cost,
}
