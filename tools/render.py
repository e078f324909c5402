"""Renders every figure in the pages at the top and in docs/ from the result tables in results/ and leaderboard/.

    python tools/render.py            # writes the blocks
    python tools/render.py --check    # exit code 1 where a block differs from what the results say

A block stands between `<!-- figure: NAME -->` and `<!-- /figure -->`; NAME is a key of FIGURES below.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- figure: (?P<name>[\w-]+) -->\n).*?(<!-- /figure -->)", re.DOTALL)
PAGES = ("README.md", "CONTRIBUTING.md", "RELEASE.md", "docs/*.md", "docs/*/*.md")


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _audit(name: str) -> str:
    """Recipes of an audit: attacked ECE with interval, confidence of right answers, ECE with each defence."""
    summary = _read(f"{name}/summary.json")
    by = {(row["recipe"], row["defence"], row["view"]): row["metrics"] for row in summary["rows"]}
    defences = [name for name in summary["spec"]["defences"] if name != "none"]
    rows = []
    for recipe, about in summary["recipes"].items():
        first = by[recipe, "none", "aware"]
        ece = first["ece_after"]
        rows.append(
            [
                f"`{recipe}`",
                "white" if about["whitebox"] else "black",
                f"{first['ece_before']['value']:.3f} → **{ece['value']:.3f}** [{ece['low']:.2f}, {ece['high']:.2f}]",
                _percent(first["confidence_right_before"]["value"])
                + " → "
                + _percent(first["confidence_right_after"]["value"]),
                *(f"{by[recipe, defence, 'aware']['ece_after']['value']:.3f}" for defence in defences),
            ]
        )
    head = ["recipe", "box", "ECE clean → attacked [95 %]", "confidence, right answers"]
    return markdown_table(head + [f"attacked ECE with `{defence}`" for defence in defences], rows, "llr")


def _about(name: str) -> str:
    """One sentence: what was attacked, how."""
    summary = _read(f"{name}/summary.json")
    spec, row = summary["spec"], summary["rows"][0]["metrics"]
    return (
        f"{summary['target']['num_classes']} classes, {summary['data']['samples']} images, {spec['norm']} "
        f"eps {spec['eps']:.3g}, at most {spec['budget']} queries per image; clean accuracy "
        f"{_percent(row['accuracy_before']['value'])}, ECE {row['ece_before']['value']:.3f}, bound "
        f"{summary['bound']['none']:.3f}. Intervals from {spec['bootstrap']:,} paired bootstrap resamples.\n"
    )


def _verdict(name: str) -> str:
    from poise import report

    return "> " + report.verdict(_read(f"{name}/summary.json")) + "\n"


def _queries() -> str:
    """ECE over queries of the two black-box maximum-miscalibration attacks."""
    curves = _read("resnet20/queries.json")
    columns = sorted(int(count) for count in next(iter(curves.values())))
    rows = [[f"`{name}`", *(f"{curve[str(count)]:.3f}" for count in columns)] for name, curve in curves.items()]
    return markdown_table(["ECE after queries", *(f"{count:,}" for count in columns)], rows)


def _speed() -> str:
    """Ratios of an attack to the same number of bare passes."""
    found = _read("speed.json")
    rows = [
        [row["what"], f"{row['ratio']:.3f}", "–" if row["limit"] is None else f"{row['limit']:.2f}"]
        for row in found["rows"]
    ]
    return markdown_table(["attack against bare passes", "ratio (median)", "limit"], rows)


def _defenses() -> str:
    """How many times faster the exact solutions are than the released per-image search."""
    rows = [
        [row["data"], row["shape"], f"{row['cs_speedup']:,.0f}×", f"{row['ts_speedup']:,.0f}×"]
        for row in _read("defenses.json")["rows"]
    ]
    return markdown_table(["logits", "images × classes", "compression scaling", "temperature scaling"], rows, "llr")


def _share(row: dict[str, Any]) -> str:
    digits = 2 if row["share"] > 0.99 else 1
    share, low, high = (f"{100 * row[name]:.{digits}f}" for name in ("share", "low", "high"))
    return f"{share} % [{low}, {high}]"


def _strength(steps: int) -> str:
    """ECE as a share of the bound, recipes × networks, at one number of gradient steps."""
    rows = [row for row in _read("strength.json") if row["part"] == "main" and row["steps"] == steps]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    by = {(row["name"], row["network"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    body = [[f"`{name}`", *(_share(by[name, network]) for network in networks)] for name in names]
    return markdown_table([f"{steps} gradient steps", *networks], body)


def _lower() -> str:
    """Mean confidence of the right answers after the papers' underconfidence attacks (UAT paper, Table 1)."""
    rows = [row for row in _read("strength.json") if row["part"] == "main" and row["steps"] == 20]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    by = {(row["name"], row["network"]): row for row in rows}
    names = ("standard", "confsmooth", "adaptive", "pgd-uca")
    body = [[f"`{name}`", *(f"{by[name, at]['confidence_right']:.3f}" for at in networks)] for name in names]
    return markdown_table(["confidence, right answers, 20 steps", *networks], body)


def _ablation() -> str:
    """The white-box part of `standard` with one thing changed."""
    rows = [row for row in _read("strength.json") if row["part"] == "ablation"]
    by = {(row["name"], row["network"], row["steps"]): row for row in rows}
    columns = list(dict.fromkeys((row["network"], row["steps"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    body = [[name, *(f"{100 * by[(name, *column)]['share']:.1f} %" for column in columns)] for name in names]
    return markdown_table(["share of the bound", *(f"{at}, {n} steps" for at, n in columns)], body)


def _light() -> str:
    """The black-box version beside the papers' black-box attacks."""
    rows = [row for row in _read("strength.json") if row["part"] == "light"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    by = {(row["name"], row["network"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    body = [[f"`{name}`", *(_share(by[name, at]) for at in networks)] for name in names]
    return markdown_table(["1,000 queries", *networks], body)


def _illusion() -> str:
    """Accuracy or confidence after each attack, by the temperature that the model is served at."""
    found = _read("illusion.json")["rows"]
    body = [
        [
            row["network"],
            f"{row['served']:g}",
            f"{row['clean']:.3f}",
            *(f"{row[f'pgd, {which}']['accuracy']:.3f}" for which in ("plain", "cal", "opt")),
            *(f"{row[f'square, {which} margin']['accuracy']:.3f}" for which in ("logit", "probability")),
            *(f"{row[name]['at 1']:.3f}" for name in ("sa-uca", "standard-under")),
            "**yes**" if row["found"] else "no",
        ]
        for row in found
    ]
    head = [
        "network",
        "served at T",
        "clean",
        "PGD",
        "PGD, `cal`",
        "PGD, `opt`",
        "Square, logits",
        "Square, probabilities",
    ]
    return markdown_table([*head, "sa-uca", "standard-under", "illusion found"], body, "lrrrrrrrrrl")


FIGURES: dict[str, Callable[[], str]] = {
    "digits-about": lambda: _about("digits"),
    "digits-table": lambda: _audit("digits"),
    "digits-verdict": lambda: _verdict("digits"),
    "resnet20-about": lambda: _about("resnet20"),
    "resnet20-table": lambda: _audit("resnet20"),
    "resnet20-verdict": lambda: _verdict("resnet20"),
    "resnet20-queries": _queries,
    "speed": _speed,
    "defense-speed": _defenses,
    "strength-20": lambda: _strength(20),
    "strength-100": lambda: _strength(100),
    "strength-lower": _lower,
    "strength-ablation": _ablation,
    "strength-light": _light,
    "illusion": _illusion,
    **runpy.run_path(str(ROOT / "tools" / "certify_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "coverage_table.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "defence_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "detect_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "leaderboard_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "mutation_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "query_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "security_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "speed_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "training_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "version_figures.py"))["FIGURES"],
    **runpy.run_path(str(ROOT / "tools" / "paper_pages.py"))["FIGURES"],
}


def render(text: str) -> str:
    """The text with every block filled in."""
    return BLOCK.sub(lambda block: block[1] + "\n" + FIGURES[block["name"]]() + "\n" + block[3], text)


def main(check: bool) -> int:
    """Renders, or compares; returns the exit code."""
    stale = []
    for path in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
        before = path.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and stale:
        print(f"figures differ from results/ in {', '.join(stale)}; run: make figures", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    sys.exit(main(parser.parse_args().check))
