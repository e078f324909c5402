"""The embedded numbers: thresholds never move a case, and packing loses nothing."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.report.embed import GRID, Pool, codes, pack, script_json


def rounded(confidence: np.ndarray) -> np.ndarray:
    """The broken twin: nearest grid point."""
    return np.rint(confidence * GRID).astype(np.int64)


def ceiling(confidence: np.ndarray) -> np.ndarray:
    """Another broken twin: the ceiling of a product that floating point rounds."""
    return np.ceil(confidence * GRID).astype(np.int64)


def agrees(encode: object, confidence: np.ndarray, at: np.ndarray) -> bool:
    """Whether whole numbers give the same strict comparisons with every threshold at / GRID."""
    assert callable(encode)
    return bool(np.array_equal(encode(confidence)[:, None] > at, confidence[:, None] > at / GRID))


EVERY = np.arange(0, GRID + 1, 997)


def test_comparisons_are_exact_on_and_beside_the_grid() -> None:
    grid = np.arange(0, GRID + 1) / GRID
    near = [part for part in (grid, np.nextafter(grid, 0), np.nextafter(grid, 2)) for part in [np.clip(part, 0, 1)]]
    for confidence in near:
        number = codes(confidence)
        at = np.arange(0, GRID + 1)
        for shift in (-1, 0, 1):
            threshold = np.clip(at + shift, 0, GRID)
            assert np.array_equal(number > threshold, confidence > threshold / GRID)


def test_broken_encodings_are_noticed() -> None:
    grid = np.arange(0, GRID + 1, 991) / GRID
    confidence = np.clip(np.concatenate([grid, np.nextafter(grid, 2)]), 0, 1)
    at = np.rint(confidence * GRID).astype(np.int64)
    assert agrees(codes, confidence, np.unique(at))
    assert not agrees(rounded, confidence, np.unique(at))
    tricky = np.arange(0, GRID + 1) / GRID
    assert np.any(ceiling(tricky) != codes(tricky)), "floating point makes the plain ceiling wrong"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_comparisons_are_exact_anywhere(values: list[float]) -> None:
    confidence = np.array(values)
    assert agrees(codes, confidence, EVERY)
    assert np.all(codes(confidence) / GRID - confidence < 1.1 / GRID)


def unpack(entry: str | list[int]) -> list[int]:
    if isinstance(entry, list):
        return entry
    data = base64.b64decode(entry)
    return [int.from_bytes(data[k : k + 3], "big") for k in range(0, len(data), 3)]


@given(st.lists(st.integers(0, 2**24 - 1)))
def test_pack_round_trip(values: list[int]) -> None:
    entry = pack(np.array(values, dtype=np.int64))
    assert isinstance(entry, str)
    assert len(entry) == 4 * len(values)
    assert unpack(entry) == values


@pytest.mark.parametrize("values", [[-1], [2**24], [5, -3, 2**40]])
def test_other_numbers_are_a_list(values: list[int]) -> None:
    assert pack(np.array(values)) == values


def test_pool_keeps_an_array_once() -> None:
    pool = Pool()
    first = pool.add(np.array([1, 2, 3]))
    assert pool.add(np.array([3, 2, 1])) != first
    assert pool.add(np.array([1, 2, 3])) == first
    assert len(pool.entries) == 2


HOSTILE = ["</script><script>alert(1)</script>", "<!--", "]]>", "a & b", "\u2028", 'quo"te', "snow \u2603"]


class Scripts(HTMLParser):
    """The texts of the script elements of a page, as a browser would cut them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_cannot_end_it(text: str) -> None:
    parser = Scripts()
    parser.feed(f"<script>{script_json({'name': text})}</script>")
    (script,) = parser.found
    assert json.loads(script) == {"name": text}


def test_plain_json_would_end_the_script() -> None:
    parser = Scripts()
    parser.feed(f"<script>{json.dumps({'name': HOSTILE[0]})}</script>")
    assert len(parser.found) == 2


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))
