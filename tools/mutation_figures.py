"""The tables of docs/testing.md, rendered from results/mutation.json, which tools/mutation.py writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"
HEAD = [
    "area", "mutants", "sampled", "timed out", "score at first", "score now [95 %]",
    "still survive", "equivalent", "message text", "accepted",
]  # fmt: skip
KINDS = ("equivalent", "message text", "accepted")
"""How a judgement begins."""


def wilson(killed: int, sampled: int) -> tuple[float, float]:
    """The 95 % interval of Wilson of a share; (0, 1) where nothing was sampled.

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if not sampled:
        return 0.0, 1.0
    z, share = 1.959964, killed / sampled
    middle, half = share + z * z / (2 * sampled), z * math.sqrt(share * (1 - share) / sampled + (z / sampled / 2) ** 2)
    return (middle - half) / (1 + z * z / sampled), (middle + half) / (1 + z * z / sampled)


@dataclass(frozen=True)
class Score:
    """What the tests did to the sampled mutants of one area, before tests were added for survivors and now."""

    sampled: int
    before: int
    now: int

    @staticmethod
    def of(found: dict[str, Any]) -> Score:
        """Counts a record's area; a mutant that timed out was found."""
        before, later = (
            len(found["killed"]) + len(found["timed_out"]),
            sum(bool(row["by"]) for row in found["survived"]),
        )
        return Score(before + len(found["survived"]), before, before + later)


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "mutation.json").read_text(encoding="utf-8"))
    return found


def scores(record: dict[str, Any]) -> str:
    """A row per area, and what its survivors are."""
    rows = []
    for name, found in record["areas"].items():
        score, left = Score.of(found), [row["judgement"] for row in found["survived"] if not row["by"]]
        low, high = wilson(score.now, score.sampled)
        rows.append(
            [
                name, f"{found['mutants']:,}", f"{score.sampled:,}", f"{len(found['timed_out']):,}",
                f"{100 * score.before / score.sampled:.1f} %",
                f"**{100 * score.now / score.sampled:.1f} %** [{100 * low:.0f}, {100 * high:.0f}]",
                str(len(left)), *(str(sum(judgement.startswith(kind) for judgement in left)) for kind in KINDS),
            ]
        )  # fmt: skip
    return markdown_table(HEAD, rows)


def survivors(record: dict[str, Any]) -> str:
    """A row per survivor of the first run: where, what was changed, and what became of it."""
    rows = []
    for found in record["areas"].values():
        for row in sorted(found["survived"], key=lambda row: (row["file"], row["line"], row["name"])):
            where = f"`{row['file'].removeprefix('src/poise/')}:{row['line']}`"
            lines = row["diff"].replace("|", "\\|").splitlines()
            fate = f"killed now by `{row['by'].rpartition('::')[2]}`" if row["by"] else row["judgement"]
            rows.append([where, "<br>".join(f"`` {line} ``" for line in lines), fate])
    return markdown_table(["where", "change", "what it is"], rows, "l")


FIGURES: dict[str, Callable[[], str]] = {
    "mutation": lambda: scores(_read()),
    "mutation-survivors": lambda: survivors(_read()),
}
