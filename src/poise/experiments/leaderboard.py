"""The leaderboard: entries made from audits, read back from their files and checked, and ranked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from poise.errors import InputError, RunError, brief
from poise.experiments import files
from poise.experiments.leaderboard_address import data_name, public_address
from poise.experiments.leaderboard_entry import (
    COSTS,
    FEWEST_IMAGES,
    LEAST_BUDGET,
    RECIPE,
    THRESHOLD,
    Entry,
    Figure,
    Known,
    expected_cost,
    kept,
    parse,
    refused,
)
from poise.report.leaderboard import radius

__all__ = ["COSTS", "THRESHOLD", "Entry", "Group", "entries_from", "file_name", "rank", "read_entries", "write_entries"]

LARGEST = 64 * 1024
"""Bytes of an entry's file, at most."""

Summary = dict[str, Any]


def entries_from(
    summary: Summary, *, name: str, author: str | None = None, url: str | None = None, note: str | None = None
) -> list[Entry]:
    """The entries of an audit, one for each of its defences, in its order.

    Args:
        summary: what `summary.json` of a finished audit holds; its recipes include `standard`.
        name: what the model is called on the leaderboard.
        author, url, note: who submits, where the model is told of, what is special.

    Raises:
        InputError: the audit cannot be ranked: another setting than the leaderboard's, too few images, a weaker attack.
    """
    try:
        _check(summary)
        rows = [row for row in summary["rows"] if row["recipe"] == RECIPE]
        shared = _shared(summary) | {"name": name, "author": author, "url": url, "note": note}
        found = []
        for defence in dict.fromkeys(row["defence"] for row in rows):
            row = max((row for row in rows if row["defence"] == defence), key=_attacked_ece)
            found.append(Entry.model_validate(shared | _measured(row)))
    except ValidationError as error:
        raise refused(error) from None
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"leaderboard: must be the summary of a finished audit, lacks {brief(error)}") from None
    return found


def _check(summary: Summary) -> None:
    """Refuses audits whose figures would not compare with the others."""
    spec = summary["spec"]
    if RECIPE not in summary["recipes"]:
        run = ", ".join(summary["recipes"])
        raise InputError(f"leaderboard: recipes must include '{RECIPE}', by which entries are ranked, got {run}")
    least = (("samples", summary["data"]["samples"], FEWEST_IMAGES), ("budget", spec["budget"], LEAST_BUDGET))
    for what, given, fewest in least:
        if given < fewest:
            raise InputError(f"leaderboard: {what} must be at least {fewest}, got {given}")
    wanted = {"threshold": (THRESHOLD, f"{THRESHOLD}"), "steps": (None, "left out"), "view": (None, "left out")}
    for what, (value, told) in (wanted | {"eight_bit": (False, "off")}).items():
        if (given := spec.get(what, value)) != value:
            raise InputError(f"leaderboard: {what} must be {told}, the same for all entries, got {given}")
    if "weights" not in summary["fingerprints"]:
        raise InputError("leaderboard: model must be one whose weights have a fingerprint, a module or an ONNX file")


def _shared(summary: Summary) -> dict[str, Any]:
    """What all entries of an audit have in common."""
    spec, prints = summary["spec"], summary["fingerprints"]
    names = ("weights", "data", "fit_data", "code", "spec")
    return {
        "format": 1,
        "model": public_address(spec["model"]),
        "data": data_name(spec["data"]),
        "num_classes": summary["target"]["num_classes"],
        "recipe": RECIPE,
        **{key: spec[key] for key in ("norm", "eps", "budget", "steps", "seed")},
        "warned": tuple(check["name"] for check in summary["checks"] if check["status"] != "passed"),
        "fingerprints": {key: prints[key] for key in names if prints.get(key) is not None},
        "poise": summary["poise"],
        "date": date.fromisoformat(summary["created"][:10]),
    }


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """What an entry takes from a row of the summary."""
    figures = {name: _rounded(figure) for name, figure in row["metrics"].items()}
    clean, attacked = _state(figures, "before"), _state(figures, "after")
    right = (Figure(**state["confidence_right"]) for state in (clean, attacked))
    return {
        "defence": row["defence"],
        "view": row["view"],
        "n": row["n"],
        "accuracy": figures["accuracy_before"],
        "clean": clean,
        "attacked": attacked,
        "kept": kept(*right).model_dump(),
        "bound_share": {key: None if at is None else min(1.0, at) for key, at in figures["bound_share"].items()},
    }


def _state(figures: dict[str, dict[str, float | None]], when: str) -> dict[str, Any]:
    wrong, deferred = (figures[f"{name}_{when}"]["value"] or 0.0 for name in ("accepted_wrong", "deferred"))
    names = ("ece", "confidence", "confidence_right")
    return {
        **{name: figures[f"{name}_{when}"] for name in names},
        "accepted_wrong": wrong,
        "deferred": deferred,
        "cost": round(expected_cost(wrong, deferred), 6),
    }


def _rounded(figure: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if at is None else round(at, 6) for key, at in figure.items()}


def _attacked_ece(row: dict[str, Any]) -> float:
    return float(row["metrics"]["ece_after"]["value"] or 0.0)


def file_name(entry: Entry) -> str:
    """The name of an entry's file: its data, ball, model and defence.

    >>> radius(0.05), radius(8 / 255)
    ('0.05', '8/255')
    """
    parts = (entry.data, entry.norm, radius(entry.eps), entry.name, entry.defence)
    slugs = (re.sub(r"[^\w.]+", "-", part.lower()).strip("-.") for part in parts)
    return "-".join(slugs) + ".json"


def write_entries(folder: Path, entries: Iterable[Entry]) -> list[Path]:
    """Adds entries to a folder, which may be missing; one takes the place of an older measurement of the same thing.

    Raises:
        InputError: with them the folder would not pass `read_entries`, or a name is taken; nothing is written then.
        RunError: the folder cannot be written.
    """
    made = {file_name(entry): entry for entry in entries}
    there = {file_name(entry): entry for entry in read_entries(folder)} if folder.exists() else {}
    for name, entry in made.items():
        if name in there and _subject(there[name]) != _subject(entry):
            raise InputError(f"name: must be one that no other model has, got '{entry.name}', which '{name}' holds")
    _check_together((there | made).values())
    return [files.write_json(folder / name, entry.model_dump(mode="json")) for name, entry in made.items()]


def read_entries(folder: Path) -> list[Entry]:
    """Every entry of a folder's *.json files, in the order of their names.

    Raises:
        InputError: the folder is missing; a file is no entry, has another name than its entry's, measures what another
            one does, or says something else of the same images. The message begins with the file's name.
    """
    if not folder.is_dir():
        raise InputError(f"entries: must be a folder of entries, got '{folder}'")
    entries = []
    for path in sorted(folder.glob("*.json")):
        entries.append(_read(path))
        if path.name != (name := file_name(entries[-1])):
            raise InputError(f"{path.name}: must be named after its entry, '{name}'")
    _check_together(entries)
    return entries


def _check_together(entries: Iterable[Entry]) -> None:
    """Refuses entries that measure the same, or that tell different things of the same images."""
    found: dict[tuple[Any, ...], Entry] = {}
    images: dict[str, Entry] = {}
    for entry in entries:
        first = images.setdefault(entry.fingerprints.data, entry)
        for what in ("data", "n", "num_classes"):
            if (given := getattr(entry, what)) != (there := getattr(first, what)):
                raise InputError(
                    f"{file_name(entry)}: {what} must be '{there}' as in other entries on these images, got '{given}'"
                )
        if (other := found.setdefault(_subject(entry), entry)) is not entry:
            raise InputError(
                f"{file_name(entry)}: must measure what no other entry does, got the same as '{file_name(other)}'"
            )


def _read(path: Path) -> Entry:
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"must be at most {LARGEST // 1024} KiB, got {path.stat().st_size // 1024}")
        return parse(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path.name}: must be readable, got: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None


def _subject(entry: Entry) -> tuple[Any, ...]:
    """What is measured: two entries of the same are duplicates, whatever they are called."""
    prints, bare = entry.fingerprints, entry.defence == "none"
    fitted_on = None if bare else prints.fit_data
    return prints.weights, prints.code, prints.data, fitted_on, entry.defence, entry.norm, entry.eps


@dataclass(frozen=True)
class Group:
    """Entries that can be compared: on the same images, under the same ball.

    Args:
        data, n: the images. norm, eps: the ball.
        entries: by attacked ECE, the lowest first.
        ranks: of each entry: 1 and the number of entries whose interval lies wholly below its own. A chain of overlaps
            does not put its two ends on one rank.
        shared: whether an entry's interval overlaps that of the one above or below: not distinguishable from it.
    """

    data: str
    n: int
    norm: str
    eps: float
    entries: tuple[Entry, ...]
    ranks: tuple[int, ...]
    shared: tuple[bool, ...]

    def plain(self) -> dict[str, Any]:
        """Plain data: the group, and its entries as in their files with `rank` and `shared`."""
        lines = [
            {"rank": rank, "shared": shared, **entry.model_dump(mode="json")}
            for rank, shared, entry in zip(self.ranks, self.shared, self.entries, strict=True)
        ]
        return {"data": self.data, "n": self.n, "norm": self.norm, "eps": self.eps, "entries": lines}


def rank(entries: Iterable[Entry]) -> list[Group]:
    """The entries by images and ball, each group ranked by attacked ECE; groups by data set, norm and radius."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        key = (entry.data, entry.norm, entry.eps, entry.fingerprints.data)
        groups.setdefault(key, []).append(entry)
    return [_ranked(groups[key]) for key in sorted(groups)]


def _ranked(group: list[Entry]) -> Group:
    ordered = sorted(group, key=lambda entry: (entry.attacked.ece.value, entry.name, entry.defence))
    figures = [entry.attacked.ece for entry in ordered]
    ranks = tuple(1 + sum(other.high < figure.low for other in figures) for figure in figures)
    tied = [_overlap(one, other) for one, other in pairwise(figures)]
    shared = tuple(above or below for above, below in zip([False, *tied], [*tied, False], strict=True))
    first = ordered[0]
    return Group(first.data, first.n, first.norm, first.eps, tuple(ordered), ranks, shared)


def _overlap(one: Known, other: Known) -> bool:
    return one.low <= other.high and other.low <= one.high
