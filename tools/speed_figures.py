"""Figures of docs/speed.md, and its drawing: `python tools/speed_figures.py [--check]` makes docs/assets/speed.svg.

The drawing is made with plotly.js in headless Chromium and says in a comment which file it was made of, by its sha256;
`--check` needs no browser and exits 1 where the drawing is missing or stale. A table whose file is missing says so.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from poise.report.markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
DRAWING = ROOT / "docs" / "assets" / "speed.svg"
TITLES = {"tiny": "tiny CNN", "resnet20": "ResNet-20", "resnet50": "ResNet-50"}
LIBRARIES = {
    "poise": "poise",
    "torchattacks": "torchattacks",
    "art": "ART",
    "art-autoattack": "ART's AutoAttack",
    "foolbox": "Foolbox",
}
COLOURS = {"poise": "#0b6e6e", "torchattacks": "#b3541e", "art": "#5b5b8c", "foolbox": "#8a6d1d"}
WIDTH, HEIGHT = 860, 360


def _read(name: str) -> Any:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _table(head: list[str], rows: list[list[str]]) -> str:
    return markdown_table(head, rows) if rows else "Not measured yet.\n"


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _rows(attacks: tuple[str, ...]) -> list[dict[str, Any]]:
    found = _read("peers.json") or {"rows": []}
    return [row for row in found["rows"] if row["attack"] in attacks and row["variant"] == "fp32"]


def _settings(rows: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    """Attack, network, K and batch of the cells, ascending."""
    keys = {(row["attack"], row["model"], row["classes"], row["batch"]) for row in rows if "share" in row}
    return sorted(keys, key=lambda key: (key[0], list(TITLES).index(key[1]), key[2], key[3]))


def _cells(*attacks: str, cell: Callable[[dict[str, Any]], str], limit: bool) -> str:
    """Networks × libraries."""
    rows = _rows(attacks)
    names = [name for name in LIBRARIES if any(row["library"] == name and "share" in row for row in rows)]
    by = {(row["attack"], row["model"], row["classes"], row["batch"], row["library"]): row for row in rows}
    body = []
    for key in _settings(rows):
        attack, model, classes, batch = key
        there = [by[(*key, name)] for name in names if "share" in by.get((*key, name), {})]
        title = f"{TITLES[model]}, K = {classes:,}, batch {batch}"
        title = title if len(attacks) == 1 else f"{attack.upper() if attack == 'apgd' else 'SimBA'}, {title}"
        bare = [_seconds(min(row["limit"] for row in there))] if limit else []
        body.append([title, *bare, *(cell(by.get((*key, name), {})) for name in names)])
    return _table(["", *(["bare passes"] if limit else []), *(LIBRARIES[name] for name in names)], body)


def _time(row: dict[str, Any]) -> str:
    return f"{_seconds(row['seconds'])} ({100 * row['share']:.0f} %)" if "share" in row else "–"


def _memory(row: dict[str, Any]) -> str:
    return f"{row['memory'] / 2**20:.0f}" if "share" in row else "–"


def _about() -> str:
    found = _read("peers.json")
    if found is None:
        return "Not measured yet.\n"
    about, rows = found["about"], [row for row in found["rows"] if "share" in row]
    loads = sorted(row["load"] for row in rows if row["load"] is not None)
    return (
        f"Measured on {about['machine']}, {about['cores']} cores that other work shared (load averages from "
        f"{loads[0]:.1f} to {loads[-1]:.1f}), one thread, torch {about['torch']}; {len(rows)} cells.\n"
    )


def _left_out() -> str:
    """Cells of the whole grid that the file does not hold."""
    rows = _rows(("square", "pgd"))
    measured = {(row["attack"], row["model"], row["classes"], row["batch"]) for row in rows if "share" in row}
    grid = itertools.product(("square", "pgd"), TITLES, (10, 1000), (1, 32, 256))
    lines = [
        f"{attack} on {TITLES[model]}, K = {classes:,}, batch {batch}"
        for attack, model, classes, batch in grid
        if (attack, model, classes, batch) not in measured
    ]
    said = f"Not measured here, where a cell takes ten minutes and more: {'; '.join(lines)}."
    return (said if lines else "Every cell was measured.") + "\n"


def _missed() -> str:
    found = _read("peers.json")
    lines = [] if found is None else found.get("missed", [])
    return "".join(f"- {line}\n" for line in lines) or "None.\n"


def _gpu() -> str:
    """Square and PGD on a GPU: variants × libraries."""
    found = _read("peers-cuda.json")
    rows = [] if found is None else [row for row in found["rows"] if "share" in row]
    body = [
        [
            f"{row['attack']}, {LIBRARIES[row['library']]}, {TITLES[row['model']]}, K = {row['classes']:,}, "
            f"batch {row['batch']}, {row['variant']}",
            _seconds(row["limit"]),
            _time(row),
            _memory(row),
        ]
        for row in rows
    ]
    table = _table(["", "bare passes", "seconds per 1,000", "memory, MiB"], body)
    return table if found is None else f"{found['about']['machine']}, torch {found['about']['torch']}.\n\n{table}"


def _left() -> str:
    curves = (_read("peers.json") or {"curves": []})["curves"]
    if not curves:
        return "Not measured yet.\n"
    columns = list(curves[0]["left"])
    body = [[LIBRARIES[one["library"]], *(f"{100 * one['left'][q]:.0f}" for q in columns)] for one in curves]
    return _table([f"left of {curves[0]['samples']} images, %, after queries", *columns], body)


def _scaling(axis: str) -> str:
    found = _read("scaling.json")
    if found is None:
        return "Not measured yet.\n"
    part, image = found[axis], found["about"]["image_bytes"]
    fit = part["time"]
    body = [
        [f"{row[axis]:,}", f"{row['seconds']:.2f}", f"{100 * residual:+.1f} %", f"{row['memory'] / 2**20:.1f}"]
        for row, residual in zip(part["rows"], fit["residuals"], strict=True)
    ]
    text = (
        f"Straight line: {fit['start']:.3f} s + {1e3 * fit['slope']:.3f} ms each, R² {fit['r2']:.4f}; "
        f"exponent on logarithmic axes {fit['exponent']:.2f}."
    )
    if axis == "samples":
        text += f" Memory grows by {part['memory']['slope'] / image:.2f} images per sample."
    return _table([axis, "seconds", "off the line", "peak over the images, MiB"], body) + f"\n{text}\n"


def _guard() -> str:
    limits = runpy.run_path(str(ROOT / "benchmarks" / "guard.py"))["LIMITS"]
    rows = [
        [name, f"{cost.passes:g}", f"{cost.calls:g}", f"{cost.operations:g}", f"{cost.ratio:g}"]
        for name, cost in limits.items()
    ]
    head = ["at most", "model calls per query", "function calls beyond", "tensor operations beyond", "time ratio"]
    return _table(head, rows)


def _startup() -> str:
    found = _read("startup.json") or {"rows": []}
    rows = [
        [
            f"`{row['what']}`",
            f"{row['minimum']:.2f}",
            f"{row['torch_minimum']:.2f}",
            f"{row['cpu']:.2f}",
            f"{row['torch_cpu']:.2f}",
            "–" if row["limit"] is None else f"{row['limit']:.2f}" + (" (processor)" if row["busy"] else ""),
        ]
        for row in found["rows"]
    ]
    return _table(["seconds", "process", "`import torch`", "processor time", "of `import torch`", "limit"], rows)


def _metrics() -> str:
    found = _read("metrics_scale.json")
    if found is None:
        return "Not measured yet.\n"
    rows = [
        [name, f"{found[name]['seconds']:.1f}", f"{found[name]['gib']:.2f}"]
        for name in ("streamed", "exact")
        if name in found
    ]
    limits = found["limits"]
    text = f"Limits of the streamed part: {limits['seconds']:g} s and {limits['gib']:g} GiB."
    return _table([f"2 × {found['rows']:,} answers", "seconds", "peak memory, GiB"], rows) + f"\n{text}\n"


def _audit() -> str:
    found = _read("audit_share.json")
    if found is None:
        return "Not measured yet.\n"
    totals = {kind: sum(row[kind] for what, row in found["seconds"].items() if what != "imports") for kind in ("cpu",)}
    rows = [
        [name, f"{row['cpu']:.2f}", "–" if name == "imports" else f"{100 * row['cpu'] / totals['cpu']:.1f} %"]
        for name, row in sorted(found["seconds"].items(), key=lambda item: -item[1]["cpu"])
    ]
    own, limit = found["own"], found["limit"]
    text = f"The audit's own work: {100 * own['wall']:.1f} % of wall time (limit {100 * limit:.0f} %)."
    return _table(["phase", "processor seconds", "share"], rows) + f"\n{text}\n"


FIGURES: dict[str, Callable[[], str]] = {
    "speed-about": _about,
    "speed-left-out": _left_out,
    "speed-square": lambda: _cells("square", cell=_time, limit=True),
    "speed-pgd": lambda: _cells("pgd", cell=_time, limit=True),
    "speed-others": lambda: _cells("apgd", "simba", cell=_time, limit=True),
    "speed-memory": lambda: _cells("square", cell=_memory, limit=False),
    "speed-memory-pgd": lambda: _cells("pgd", cell=_memory, limit=False),
    "speed-missed": _missed,
    "speed-gpu": _gpu,
    "speed-left": _left,
    "speed-samples": lambda: _scaling("samples"),
    "speed-queries": lambda: _scaling("queries"),
    "speed-guard": _guard,
    "speed-startup": _startup,
    "speed-metrics": _metrics,
    "speed-audit": _audit,
}


def made_of() -> str:
    """The comment that the drawing of the results as they are carries."""
    return f"<!-- made of peers.json sha256 {hashlib.sha256((RESULTS / 'peers.json').read_bytes()).hexdigest()} -->"


def is_fresh() -> bool:
    return DRAWING.exists() and made_of() in DRAWING.read_text(encoding="utf-8")[:1000]


def figure() -> Any:
    """Accuracy left over queries beside the share of the limit by batch."""
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    found = _read("peers.json")
    titles = ("Square on ResNet-20: accuracy left, %", "Square, K = 10: share of the forward rate, %")
    drawing: Figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.09)
    for one in found["curves"]:
        name, queries = one["library"], [int(q) for q in one["left"]]
        left = [100 * value for value in one["left"].values()]
        line = {"color": COLOURS[name], "width": 3 if name == "poise" else 1.5}
        trace = Scatter(
            x=queries, y=left, name=LIBRARIES[name], legendgroup=name, line=line, mode="lines+markers", showlegend=False
        )
        drawing.add_trace(trace, row=1, col=1)
    for model, dash in (("tiny", "dot"), ("resnet20", "solid")):
        for name in COLOURS:
            rows = sorted(
                (row["batch"], 100 * row["share"])
                for row in found["rows"]
                if (row["attack"], row["library"], row["model"], row["classes"], row["variant"])
                == ("square", name, model, 10, "fp32")
                and "share" in row
            )
            if not rows:
                continue
            batches, shares = zip(*rows, strict=True)
            line = {"color": COLOURS[name], "dash": dash, "width": 3 if name == "poise" else 1.5}
            label = f"{LIBRARIES[name]}, {TITLES[model]}"
            trace = Scatter(x=[str(b) for b in batches], y=shares, name=label, line=line, mode="lines+markers")
            drawing.add_trace(trace, row=1, col=2)
    drawing.update_xaxes(type="log", title="queries per image", row=1, col=1)
    drawing.update_xaxes(type="category", title="batch", row=1, col=2)
    drawing.update_yaxes(rangemode="tozero")
    drawing.update_layout(
        template="plotly_white",
        height=HEIGHT,
        font={"family": "sans-serif", "size": 12},
        margin={"l": 45, "r": 10, "t": 40, "b": 50},
        paper_bgcolor="#fdfdfc",
    )
    return drawing


def draw() -> None:
    """Writes the drawing."""
    tool = runpy.run_path(str(ROOT / "tools" / "paper_figures.py"))
    with tool["browser"]() as driver:
        answer = driver.execute_async_script(tool["DRAW"], figure().to_json(), WIDTH)
    kind, _, content = str(answer).partition(",")
    if not kind.startswith("data:image/svg+xml"):
        raise SystemExit(f"speed.svg: {answer}")
    DRAWING.write_text(f"{made_of()}\n{unquote(content)}\n", encoding="utf-8")


def main() -> int:
    """Draws or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description="The drawing of docs/speed.md.")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the drawing is missing or stale")
    given = parser.parse_args()
    if given.check:
        if not is_fresh():
            sys.stderr.write("stale: speed.svg; run tools/speed_figures.py\n")
            return 1
        return 0
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
