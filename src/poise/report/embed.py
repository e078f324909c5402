"""What the page's script works on: every image's answers, packed so that the browser counts exactly as numpy does."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from markupsafe import Markup

from poise.report.folder import Block, Floats, Ints, Key
from poise.report.words import column

GRID = 1_000_000
"""Thresholds on the page are multiples of 1/GRID."""

LARGEST = 2**24 - 1


def codes(confidence: Floats) -> Ints:
    """How many grid thresholds 0, 1/GRID, 2/GRID, … lie strictly below each confidence.

    `confidence > i / GRID` holds exactly where `codes(confidence) > i`: the browser compares whole numbers and no
    rounding moves a case across a threshold. `codes(c) / GRID` is the confidence rounded up to six decimals.

    >>> codes(np.array([0.0, 0.9, np.nextafter(0.9, 1), 1.0])).tolist()
    [0, 900000, 900001, 1000000]
    """
    guess = np.ceil(confidence * GRID).astype(np.int64)
    guess -= (guess - 1) / GRID >= confidence
    guess += guess / GRID < confidence
    return np.maximum(guess, 0)


def pack(values: Ints) -> str | list[int]:
    """Whole numbers in [0, 2^24) as base64 of three bytes each, the high one first; others as a list.

    >>> pack(np.array([0, 1, 66051])), pack(np.array([-1, 7]))
    ('AAAAAAABAQID', [-1, 7])
    """
    if len(values) and (values.min() < 0 or values.max() > LARGEST):
        return [int(number) for number in values]
    high_first = values.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    return base64.b64encode(high_first.tobytes()).decode("ascii")


class Pool:
    """Arrays that occur more than once (a model's clean answers, untouched labels) are embedded once."""

    def __init__(self) -> None:
        self.entries: list[str | list[int]] = []
        self._known: dict[str, int] = {}

    def add(self, values: Ints) -> int:
        """The place of an array in `entries`."""
        entry = pack(values)
        text = entry if isinstance(entry, str) else json.dumps(entry)
        if text not in self._known:
            self._known[text] = len(self.entries)
            self.entries.append(entry)
        return self._known[text]


def attacks(blocks: dict[Key, Block]) -> dict[str, Any]:
    """The embedded object: `pool`, `grid`, and per attack its names and the places of its arrays in the pool."""
    pool = Pool()
    found = []
    for (recipe, defence, view), block in blocks.items():
        arrays = {
            "id": block.id,
            "label": block.label,
            "pb": block.prediction_before,
            "pa": block.prediction_after,
            "cb": codes(block.confidence_before),
            "ca": codes(block.confidence_after),
            "q": block.queries,
        }
        names = {"recipe": recipe, "defence": defence, "view": view, "column": column(defence, view)}
        found.append({**names, **{name: pool.add(values) for name, values in arrays.items()}})
    return {"grid": GRID, "attacks": found, "pool": pool.entries}


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no <, > or & that could end it or start a comment.

    >>> print(script_json({"name": "</script><b>"}))
    {"name":"\\u003c/script\\u003e\\u003cb\\u003e"}
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - every sign that HTML reads is escaped above
