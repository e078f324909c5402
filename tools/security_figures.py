"""The tables of docs/security.md, rendered from results/fuzz.json and results/serve_load.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _fuzz_rows(part: str) -> list[list[str]]:
    rows = _read("fuzz.json")[part]
    whole = {
        "reader": "**all**", "slowest_seconds": max(row["slowest_seconds"] for row in rows),
        "peak_mib": max(row["peak_mib"] for row in rows),
        **{key: sum(row[key] for row in rows) for key in ("cases", "refused", "accepted", "other")},
    }  # fmt: skip
    return [
        [
            row["reader"], *(f"{row[key]:,}" for key in ("cases", "refused", "accepted", "other")),
            f"{row['slowest_seconds']:.2f}", f"{row['peak_mib']:.0f}",
        ]
        for row in [*rows, whole]
    ]  # fmt: skip


HEAD = ["cases", "refused in one line", "accepted", "anything else", "slowest, CPU s", "peak, MiB"]


def _fuzz() -> str:
    """Every reader under damaged inputs."""
    return markdown_table(["reader", *HEAD], _fuzz_rows("readers"))


def _bombs() -> str:
    """What is small on disk and large in memory."""
    return markdown_table(["input", *HEAD], _fuzz_rows("bombs"))


def _serve_load() -> str:
    """Every kind of abuse, over all rounds: what the clients got, and the memory around it."""
    found = _read("serve_load.json")
    rows = []
    for name in dict.fromkeys(row["abuse"] for row in found["abuses"]):
        these = [row for row in found["abuses"] if row["abuse"] == name]
        statuses: Counter[str] = Counter()
        for row in these:
            statuses.update(row["statuses"])
        told = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
        well = all(row["well_after"] and row["alive"] for row in these)
        memory = f"{these[0]['mib_before']:.0f} → {these[-1]['mib_after']:.0f}"
        rows.append([name, f"{len(these)} × {these[0]['clients']}", told, memory, "yes" if well else "**no**"])
    head = ["abuse", "rounds × clients", "answers by status", "MiB, first → last", "good clients served after it"]
    return markdown_table(head, rows, "lrlrl")


def _serve_good() -> str:
    """One sentence on good clients, and on what was never seen."""
    found = _read("serve_load.json")
    told = [
        f"{each['clients']} at a time: {each['right']:,} of {each['requests']:,} right, at {100 * share:.0f} %"
        for each, share in zip(found["good"], found["share_of_direct"], strict=True)
    ]
    memory = found["memory_after_round"]
    return (
        f"Good clients, one image per request: {'; '.join(told)} of the images per second that direct calls of the "
        f"model, one by one, reach. Memory after each round: {', '.join(f'{mib:.0f}' for mib in memory)} MiB. "
        f"Crashes: {found['crashes']}. Tracebacks in answers: {found['tracebacks']}. "
        f"Errors that were not one line: {len(found['unclear'])}.\n"
    )


FIGURES: dict[str, Callable[[], str]] = {
    "fuzz": _fuzz,
    "fuzz-bombs": _bombs,
    "serve-load": _serve_load,
    "serve-load-good": _serve_good,
}
