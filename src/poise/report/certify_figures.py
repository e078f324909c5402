"""What is proved and what was seen: certified bounds of the smoothed confidence and attacks on it, on one chart."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.offline import get_plotlyjs

from poise.files import whole
from poise.report.embed import script_json
from poise.report.folder import Floats, Summary
from poise.report.markdown_table import markdown_table
from poise.report.page import no_break
from poise.report.style import BAND, CLEAR, INK, MUTED, RIGHT, WRONG, axis, layout, numbers, share_axis
from poise.report.words import address, count, error, percent

HEIGHT = 440
Attacked = tuple[Sequence[float], Sequence[float], Sequence[float]]
NOTE = "%{y:.1%} at radius %{x:.3g}<extra>%{fullData.name}</extra>"
MEASURES = {"pred_score": "confidence", "margin": "margin"}
"""What the measures are called on the axis."""


def certified_confidence(
    radius: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    attacked: Attacked | None = None,
    naive: ArrayLike | None = None,
    measure: str = "pred_score",
) -> go.Figure:
    """Certified bounds of the mean smoothed confidence over the radius, and what attacks did to it.

    Args:
        radius: (r,) l2 radii in pixel units, ascending.
        lower, upper: (r,) certified bounds of the mean over images.
        attacked: radii (a,), and at them the mean confidence after attacks that lower it and after attacks that raise
            it; None where none were run.
        naive: (r,) the lower bound from the mean alone, for comparison.
        measure: "pred_score" or "margin".

    Returns:
        A figure whose lines differ by dash and marker, not by colour alone; its title says what is proved
        and what was seen at one telling radius.

    >>> certified_confidence([0, 0.5], [0.8, 0.3], [0.85, 0.97], attacked=([0.5], [0.6], [0.9])).layout.title.text
    'At radius 0.5 a mean confidence of at least 30 % is proved, attacks leave 60 %'
    """
    x, low, high = (np.asarray(column, dtype=np.float64) for column in (radius, lower, upper))
    what = MEASURES[measure]
    bound = {"type": "scatter", "x": numbers(x), "mode": "lines", "hovertemplate": NOTE}
    line = {"color": RIGHT, "width": 2}
    traces: list[dict[str, Any]] = [
        bound | {"name": "certified, at most", "y": numbers(high), "line": line | {"dash": "dash"}},
        bound | {"name": "certified, at least", "y": numbers(low), "line": line, "fill": "tonexty", "fillcolor": BAND},
    ]
    if naive is not None:
        plain = {"color": MUTED, "width": 1.5, "dash": "dot"}
        values = numbers(np.asarray(naive, dtype=np.float64))
        traces.append(bound | {"name": "at least, by the mean alone", "y": values, "line": plain})
    if attacked is not None:
        tried, down, up = attacked
        seen = {"type": "scatter", "x": list(tried), "mode": "lines+markers", "hovertemplate": NOTE}
        for name, after, symbol in (("attacks up", up, "triangle-up"), ("attacks down", down, "triangle-down")):
            style = {"marker": {"symbol": symbol, "size": 10, "color": WRONG, "line": {"color": INK, "width": 1}}}
            traces.append(seen | style | {"name": name, "y": list(after), "line": {"color": WRONG, "width": 1.5}})
    title, alt = _words(x, low, high, attacked, what)
    shown = layout(title=title, alt=alt, height=HEIGHT)
    span = float(x[-1]) or 1.0
    across = axis("l2 radius of the attack (pixel units, images in [0, 1])") | {"range": [-0.03 * span, 1.04 * span]}
    lowest = 0.0 if measure == "pred_score" else min(0.0, float(low.min()))
    ticks = share_axis(f"mean smoothed {what}") if measure == "pred_score" else axis(f"mean smoothed {what}")
    shown |= {"xaxis": across, "yaxis": ticks | {"range": [lowest - 0.02, 1.02]}}
    return go.Figure(data=traces, layout=shown)


def _words(x: Floats, low: Floats, high: Floats, attacked: Attacked | None, what: str) -> tuple[str, str]:
    """Title and text alternative. The title speaks of the largest radius at which half of what is proved without an
    attacker still is; of the smallest above 0 where there is none."""
    above = np.flatnonzero(x > 0)
    good = [place for place in above if low[place] >= low[0] / 2]
    place = int(good[-1] if good else above[0] if len(above) else 0)
    title = f"At radius {x[place]:g} a mean {what} of at least {_share(low[place])} is proved"
    told = "; ".join(f"radius {r:g}: {_share(a)} to {_share(b)}" for r, a, b in zip(x, low, high, strict=True))
    alt = f"Certified mean smoothed {what}, {told}."
    if attacked is not None:
        found = dict(zip(attacked[0], attacked[1], strict=True))
        if float(x[place]) in found:
            title += f", attacks leave {_share(found[float(x[place])])}"
        each = zip(*attacked, strict=True)
        alt += " Attacks: " + "; ".join(f"radius {r:g}: {_share(a)} to {_share(b)}" for r, a, b in each) + "."
    return title, alt


def _share(value: float) -> str:
    return percent(float(value)) if value >= 0 else f"{100 * value:.0f} %"


def summary_figure(summary: Summary) -> go.Figure:
    """`certified_confidence` from the summary of `poise certify`: means over all images, abstaining or not."""
    rows = summary["rows"]

    def column(name: str, among: list[dict[str, Any]]) -> list[float]:
        return [row["metrics"][name]["value"] for row in among]

    tried = [row for row in rows if "attacked_down" in row["metrics"]]
    start, attacked = summary["smoothed"]["confidence"]["value"], None
    if tried:
        places = [0.0, *(row["radius"] for row in tried)]
        attacked = (places, [start, *column("attacked_down", tried)], [start, *column("attacked_up", tried)])
    return certified_confidence(
        [row["radius"] for row in rows],
        column("lower", rows),
        column("upper", rows),
        attacked=attacked,
        naive=column("naive_lower", rows),
        measure=summary["spec"]["measure"],
    )


COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("≥, abstentions 0 / left out", ("lower_abstentions_zero", "lower_without_abstentions")),
    ("≤, abstentions 0 / left out", ("upper_abstentions_zero", "upper_without_abstentions")),
    ("certified accuracy", ("certified_accuracy",)),
    ("Brier ≤, certified / all", ("brier_certified_images", "brier_all_images")),
    ("ECE ≤, certified / all", ("ece_bound_certified_images", "ece_bound_all_images")),
    ("ECE ≥, search", ("ece_found_certified_images",)),
    ("attacked down / up", ("attacked_down", "attacked_up")),
)
"""The table's columns after the radius, and the figures in each."""


def head(summary: Summary) -> list[str]:
    """What the columns of `table_rows` are called."""
    what = MEASURES[summary["spec"]["measure"]]
    return ["l2 radius", *(f"{what} {name}" if name[0] in "≥≤" else name for name, _ in COLUMNS)]


def table_rows(summary: Summary) -> list[list[str]]:
    """The cells of the table, one row a radius; a figure that is missing or undefined is a dash."""
    margin = summary["spec"]["measure"] == "margin"

    def cell(row: dict[str, Any], name: str) -> str:
        value = row["metrics"].get(name, {}).get("value")
        if value is None:
            return "–"
        if name.startswith(("brier", "ece")):
            return error(value)
        return f"{value:.2f}" if margin and name != "certified_accuracy" else percent(value)

    return [
        [f"{row['radius']:g}", *(" / ".join(cell(row, name) for name in pair) for _, pair in COLUMNS)]
        for row in summary["rows"]
    ]


def markdown(summary: Summary) -> str:
    """The table and what it means, as Markdown."""
    table = markdown_table(head(summary), table_rows(summary), "r")
    title = f"# Certificate of {address(summary['target']['model'])}"
    return f"{title}\n\n{about(summary)}\n\n{table}\n" + "".join(f"- {line}\n" for line in notes(summary))


def about(summary: Summary) -> str:
    """One sentence: what was certified, how."""
    spec, smoothed = summary["spec"], summary["smoothed"]
    return (
        f"{count(summary['images'], 'image')} of {summary['data']['name']}, noise sigma {spec['sigma']:g}, "
        f"{spec['n']:,} draws per image, alpha {spec['alpha']:g}: the smoothed model is right on "
        f"{percent(smoothed['accuracy']['value'])}, its mean {MEASURES[spec['measure']]} is "
        f"{_number(spec, smoothed['confidence']['value'])}, it abstains on {percent(smoothed['abstained']['value'])}."
    )


def _number(spec: dict[str, Any], value: float) -> str:
    return percent(value) if spec["measure"] == "pred_score" else f"{value:.2f}"


def notes(summary: Summary) -> list[str]:
    """What the figures say and what they do not, a line each."""
    spec = summary["spec"]
    lines = [
        f"Bounds hold for each image with a probability of {1 - spec['alpha']:.4g}, both sides and all radii together; "
        "they speak of the smoothed model, not of the bare one.",
        "An image abstains where its lower bound at radius 0 does not show its class to be the prediction; the means "
        "count it as 0, or leave it out.",
        "Brier and ECE bounds are over the images whose prediction is certified at the radius, or over all, with the "
        "worst (1) for the others. The search is a lower estimate of the worst ECE, not a certificate.",
    ]
    if summary.get("judged_with"):
        outside = sum(row.get("attacks_outside_the_bounds", 0) for row in summary["rows"])
        lines.append(
            f"Attacks: PGD with {spec['attack_steps']} steps through the mean of {spec['attack_draws']} noisy copies, "
            f"judged with {summary['judged_with']:,} fresh draws; "
            + ("none got outside the bounds." if not outside else f"{count(outside, 'result')} outside the bounds.")
        )
    return lines


STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 66rem; padding: 1.2rem; background: #fdfdfc; color: #1d2126;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.25rem, 5vw, 1.7rem); line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.1rem; line-height: 1.35; margin: 1.6rem 0 .2rem; }
.figure { margin: 0; overflow: hidden; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #dfe3e8; overflow-wrap: normal; }
td { white-space: nowrap; }
th { vertical-align: bottom; font-weight: 600; min-width: 5rem; }
th:first-child, td:first-child { min-width: 0; padding-left: 0; position: sticky; left: 0; background: #fdfdfc; }
li { margin: .3rem 0; max-width: 72ch; }
"""

SCRIPT = """
const spec = JSON.parse(document.getElementById("figure-data").textContent);
const place = document.getElementById("figure");
const narrow = () => place.clientWidth < 560;
const fit = () => {
  const layout = JSON.parse(JSON.stringify(spec.layout));
  layout.width = place.clientWidth;
  if (narrow()) { layout.height += 110; layout.xaxis.title.text = "l2 radius (pixels in [0, 1])"; }
  return layout;
};
const draw = () => Plotly.react(place, spec.data, fit(), { displayModeBar: false });
draw();
window.addEventListener("resize", draw);
"""


def page(summary: Summary) -> str:
    """The page as text: figure, table and notes in one file that loads nothing."""
    figure = json.loads(summary_figure(summary).to_json())
    drawn = figure["layout"]
    title, alt = drawn.pop("title")["text"], drawn.pop("meta")["alt"]
    drawn.pop("template", None)
    drawn |= {"margin": drawn["margin"] | {"t": 12}, "paper_bgcolor": CLEAR}
    plotly, name = get_plotlyjs(), f"Certificate of {address(summary['target']['model'])}"
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, SCRIPT))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head(summary))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(no_break(cell))}</td>" for cell in cells) + "</tr>"
        for cells in table_rows(summary)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(name)}</h1>\n"
        f"<p>{escape(no_break(about(summary)))}</p>\n<h2>{escape(no_break(title))}</h2>\n"
        f'<div id="figure" class="figure" role="img" aria-label="{escape(alt)}"></div>\n'
        f'<h2>Per radius</h2>\n<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes(summary))}</ul>\n"
        f"<p><code>{escape(summary.get('command', ''))}</code></p>\n"
        f'<script type="application/json" id="figure-data">{script_json({"data": figure["data"], "layout": drawn})}'
        f"</script>\n<script>{plotly}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def write_page(summary: Summary, path: Path) -> Path:
    """Writes `page` to a temporary name first, then to `path`."""
    with whole(path) as temporary:
        temporary.write_text(page(summary), encoding="utf-8", newline="\n")
    return path


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
