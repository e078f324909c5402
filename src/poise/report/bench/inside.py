"""Figures of single images, features and certificates: traces, margins, perturbations, Grad-CAM, t-SNE, bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.report.bench.frames import Drawn, Panels, differing, named, panels_of, parts, style, title_of, written
from poise.report.curve_figures import _pale
from poise.report.explain_features import feature_map
from poise.report.explain_folder import CLEAN
from poise.report.explain_grid import Picture, caption, colour_bar, grid, heat
from poise.report.style import CLEAR, MUTED, RIGHT, WRONG, axis, escaped, share_axis
from poise.report.words import count, percent

OWNER = ("dataset", "model", "defence")
"""The keys of what was attacked."""

IMAGE = "image"
"""What the pixels of the image itself are called among the attacks."""

PICTURE = 400
"""Pixels of a picture's longer side up to which every value is drawn."""


def trace(result: Drawn) -> go.Figure:
    """Confidence in the clean prediction (above) and its margin (below) over the iterations, a line for each attack and
    image; below the dotted line another class wins.

    Martinez et al., Underconfidence Adversarial Training, Fig. S1.
    """
    figure, points = result.spec.figure, result.points
    panels = panels_of(points, figure.panels)
    series = (*figure.series, *(("place",) if points["place"].n_unique() > 1 else ()))
    names = [name for name, _ in parts(points, series)]
    columns = min(len(panels), 2)
    drawn, told = Panels(2 * len(panels), columns=columns, tall=190), []
    for at, (heading, part) in enumerate(panels):
        line, column = divmod(at, columns)
        for row, name in enumerate(("confidence", "margin")):
            place = (2 * line + row) * columns + column
            if name == "confidence":
                up = share_axis("confidence in the clean prediction", steps=(0, 50, 100)) | {"range": [-0.02, 1.04]}
            else:
                up = axis("margin (logits)")
            lines = _over(part, points, series, names, ("iteration", name))
            drawn.add(place, heading if not row else "", axis("iteration"), up, lines)
            if name == "margin":
                drawn.level(place, 0.0, MUTED)
        for name, one in parts(part, series, like=points):
            ends = one.sort("iteration")["confidence"]
            told.append(f"{name} {percent(float(ends[0]))} to {percent(float(ends[-1]))}")
    return drawn.figure(title_of(result), f"Confidence from the first iteration to the last: {'; '.join(told)}.")


def _over(
    part: pl.DataFrame, points: pl.DataFrame, series: tuple[str, ...], names: list[str], axes: tuple[str, str]
) -> Iterator[dict[str, Any]]:
    across, column = axes
    for name, one in parts(part, series, like=points):
        one = one.sort(across)
        look = style(name, names.index(name))
        form = "%{y:.1%}" if column == "confidence" else "%{y:.4g}"
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escaped(name or column),
            "x": one[across].to_list(),
            "y": one[column].to_list(),
            "line": look["line"],
            "marker": look["marker"] | {"maxdisplayed": 9},
            "hovertemplate": f"{form} at {across} %{{x}}<extra>{escaped(name)}</extra>",
        }


def margins(result: Drawn) -> go.Figure:
    """The margin of the true class at every query: as the attacker sees it, and without the defence; a panel an image.

    Chen et al., Adversarial Attack on Attackers, Figs. 2, 6 and 7. An attacker drives the margin down; below the dotted
    line the answer is wrong.
    """
    figure, points = result.spec.figure, result.points
    keys = (*differing(points, (*figure.panels, *figure.series)), *differing(points, ("place",)))
    panels = parts(points, keys)
    drawn, told = Panels(len(panels), columns=2 if len(panels) > 1 else 1, tall=260), []
    for place, (heading, part) in enumerate(panels):
        up = axis(named(figure.y_label, "margin of the true class (logits)"))
        drawn.add(place, heading, axis(named(figure.x_label, "query")), up, _both(part))
        drawn.level(place, 0.0, MUTED)
        least = {column: float(part[column].to_numpy().min()) for column in ("seen", "bare")}
        told.append(f"{heading} seen {least['seen']:.2f}, undefended {least['bare']:.2f}".strip())
    return drawn.figure(title_of(result), f"Margins over queries; lowest: {'; '.join(told)}.")


def _both(part: pl.DataFrame) -> Iterator[dict[str, Any]]:
    part = part.sort("query")
    names = (("bare", "without the defence", RIGHT, "solid"), ("seen", "as the attacker sees it", WRONG, "dot"))
    for column, name, colour, dash in names:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": part["query"].to_list(),
            "y": part[column].to_list(),
            "line": {"color": colour, "width": 1.5, "dash": dash},
            "hovertemplate": f"%{{y:.3f}} at query %{{x}}<extra>{name}</extra>",
        }


def perturbations(result: Drawn) -> go.Figure:
    """What each attack adds to one image: heat maps from the least to the largest change of all attacks, a row a model.

    Martinez et al., Underconfidence Adversarial Training, Fig. 1.
    """
    points = result.points
    changes = points.filter(pl.col("attack") != IMAGE)["value"]
    low, high = float(changes.min() or 0.0), float(changes.max() or 0.0)  # type: ignore[arg-type]
    owners = parts(points, OWNER)
    attacks = points["attack"].unique(maintain_order=True).to_list()
    alt = f"Changes of one image under {count(len(attacks) - 1, 'attack')}, from {low:.3f} to {high:.3f}."
    names = [name if len(owners) > 1 else "" for name, _ in owners]
    shown = grid(names, len(attacks), title=title_of(result), alt=alt, below=62)
    traces = []
    for line, (_, part) in enumerate(owners):
        for column, attack in enumerate(attacks):
            here = part.filter(pl.col("attack") == attack)
            if len(here):
                traces.append(_heat(here, line, column, len(attacks), grey=attack == IMAGE, note="change"))
                shown["annotations"].append(caption(escaped(written("attack", attack)), line, column, len(attacks)))
    ticks = [round(low + share * (high - low), 3) for share in (0, 0.5, 1)]
    shown["coloraxis"] = colour_bar("change of the pixel, units of the pixel range", low, high or 1e-3, ticks)
    return go.Figure(data=traces, layout=shown | _grey(points))


def _grey(points: pl.DataFrame) -> dict[str, Any]:
    """The colour axis of the image itself."""
    values = points.filter(pl.col("attack") == IMAGE)["value"]
    most = max(1.0, float(values.max())) if len(values) else 1.0  # type: ignore[arg-type]
    scale = [[0, "#000000"], [1, "#ffffff"]]
    return {"coloraxis2": {"cmin": 0, "cmax": most, "colorscale": scale, "showscale": False}}


def _heat(rows: pl.DataFrame, line: int, column: int, columns: int, *, grey: bool, note: str) -> dict[str, Any]:
    found = heat(_picture(rows), line, column, columns, note="pixel" if grey else note, side=PICTURE)
    return found | ({"coloraxis": "coloraxis2"} if grey else {})


def _picture(rows: pl.DataFrame) -> Picture:
    """The values (H, W) at their rows and columns."""
    row, column = rows["row"].to_numpy(), rows["column"].to_numpy()
    found = np.zeros((int(row.max()) + 1, int(column.max()) + 1), dtype=np.float32)
    found[row, column] = rows["value"].cast(pl.Float64).to_numpy()
    return found


def cams(result: Drawn) -> go.Figure:
    """Images, their Grad-CAM maps, and the maps after each attack; a row an image.

    Obadinma et al., Calibration Attacks, Fig. 3. Confidence of the model under each map.
    """
    points = result.points
    keys = (*differing(points, OWNER), "id")
    images = points.partition_by(*keys, maintain_order=True)
    attacks = points["attack"].unique(maintain_order=True).to_list()
    means = (
        points.filter(pl.col("attack") != IMAGE)
        .group_by("attack", maintain_order=True)
        .agg(pl.col("confidence").mean())
    )
    told = "; ".join(f"{written('attack', name)} {percent(value)}" for name, value in means.iter_rows())
    alt = f"Grad-CAM maps of {count(len(images), 'image')}. Mean confidence: {told}."
    names = [", ".join((*(str(part[key][0]) for key in keys[:-1]), f"image {part['id'][0]}")) for part in images]
    shown = grid(names, len(attacks), title=title_of(result), alt=alt, below=62)
    traces = []
    for line, part in enumerate(images):
        for column, attack in enumerate(attacks):
            here = part.filter(pl.col("attack") == attack)
            if not len(here):
                continue
            traces.append(_heat(here, line, column, len(attacks), grey=attack == IMAGE, note="Grad-CAM"))
            sure = f"{percent(float(here['confidence'][0]))} sure, class {here['prediction'][0]}"
            under = f"label {here['label'][0]}" if attack == IMAGE else escaped(sure)
            name = "image" if attack == IMAGE else written("attack", attack)
            shown["annotations"].append(caption(f"{escaped(name)}<br>{under}", line, column, len(attacks)))
    shown["coloraxis"] = colour_bar("Grad-CAM, share of the map’s largest value", 0, 1, [0, 0.5, 1])
    return go.Figure(data=traces, layout=shown | _grey(points))


def embedding(result: Drawn) -> go.Figure:
    """Features in two dimensions before and after each attack, one panel a version, all in one embedding.

    Obadinma et al., Calibration Attacks, Fig. 5. Where a spec embeds several models, the first is drawn and the title
    says so.
    """
    owners = parts(result.points, OWNER)
    name, points = owners[0]
    profile = result.spec.profile(result.about["profile"])
    method = str(profile.options.get("method", "tsne"))
    versions = pl.when(pl.col("attack") == "none").then(pl.lit(CLEAN)).otherwise(pl.col("attack"))
    found = points.select(
        versions.alias("version"), "id", "label", "prediction", "confidence",
        pl.col("first").alias(f"{method}_x"), pl.col("second").alias(f"{method}_y"),
    )  # fmt: skip
    rows = result.rows.filter(
        (pl.col("metric") == "separation") & pl.all_horizontal(pl.col(key) == points[key][0] for key in OWNER)
    )
    apart = {CLEAN if attack == "none" else attack: value for attack, value in rows.select("attack", "value").rows()}
    drawn = feature_map(found, method=method, separation=apart)
    more = f"<br>{escaped(name)}, the first of {len(owners)}" if len(owners) > 1 else ""
    drawn.update_layout(title_text=title_of(result) + more)
    return drawn


def bounds(result: Drawn) -> go.Figure:
    """Mean certified lower bound of the smoothed confidence over the radius, with its 95 % interval; dotted the upper
    bound. A line for each version of the images.

    Obadinma et al., Calibration Attacks, Fig. 7.
    """
    figure, points = result.spec.figure, result.points
    panels = panels_of(points, figure.panels)
    names = [name for name, _ in parts(points, figure.series)]
    drawn, told = Panels(len(panels), columns=2 if len(panels) > 1 else 1, tall=300), []
    for place, (heading, part) in enumerate(panels):
        traces = []
        for name, one in parts(part, figure.series, like=points):
            one = one.sort("radius")
            traces += list(_bound_lines(one, name, style(name, names.index(name))))
            told.append(f"{name} {percent(float(one['lower'][0]))} to {percent(float(one['lower'][-1]))}")
        x = axis(named(figure.x_label, "l2 radius (pixel units, images in [0, 1])"))
        up = share_axis(named(figure.y_label, "smoothed confidence, mean")) | {"range": [-0.02, 1.04]}
        drawn.add(place, heading, x, up, iter(traces))
    alt = f"Certified lower bound from the least radius to the largest: {'; '.join(told)}."
    return drawn.figure(title_of(result), alt)


def _bound_lines(one: pl.DataFrame, name: str, look: dict[str, Any]) -> Iterator[dict[str, Any]]:
    at, shown = one["radius"].to_list(), escaped(name)
    common = {"type": "scatter", "legendgroup": shown or "bounds"}
    yield common | {
        "x": [*at, *reversed(at)],
        "y": [*one["lower_high"].to_list(), *reversed(one["lower_low"].to_list())],
        "mode": "lines",
        "fill": "toself",
        "fillcolor": _pale(look["line"]["color"]),
        "line": {"color": CLEAR, "width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    yield common | {
        "name": f"{shown}: at least" if shown else "at least",
        "x": at,
        "y": one["lower"].to_list(),
        "mode": "lines+markers",
        "hovertemplate": f"at least %{{y:.1%}} at radius %{{x}}<extra>{shown}</extra>",
        **look,
    }
    yield common | {
        "x": at,
        "y": one["upper"].to_list(),
        "mode": "lines",
        "line": look["line"] | {"dash": "dot", "width": 1.2},
        "hovertemplate": f"at most %{{y:.1%}} at radius %{{x}}<extra>{shown}</extra>",
        "showlegend": False,
    }
