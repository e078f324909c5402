"""The table of RELEASE.md, rendered from results/versions.json, which tools/check_versions.py writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"


def _versions() -> str:
    """One row per core dependency, and what came out; a set that has not been run yet says so."""
    path = RESULTS / "versions.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sets = [which for which in ("oldest", "newest") if which in found]
    if not sets:
        return "Not run yet: `tools/check_versions.py --json results/versions.json`.\n"
    parts = [found[which] for which in sets]
    rows = [[f"`{name}`", *(part["versions"][name] for part in parts)] for name in parts[0]["versions"]]
    rows.append(["Python", *(part["python"] for part in parts)])
    rows.append(["tests passed, failed", *("{passed:,}, {failed:,}".format(**part["tests"]) for part in parts)])
    rows.append(["`poise audit`, exit code", *(str(part["audit"]) for part in parts)])
    return markdown_table(["core dependency", *sets], rows)


FIGURES: dict[str, Callable[[], str]] = {"versions": _versions}
