"""From the body of an answer to scores, with every way in which it can be wrong told in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.errors import TargetError
from poise.targets.http.endpoint import Answer, Endpoint
from poise.targets.http.path import describe, follow, parse_path

Scores = NDArray[np.float64]

_LOGITS_TOLERANCE = 1e-5


class UnreadableError(TargetError):
    """An answer that was cut off or damaged on its way; the same request may get a good one."""


def decode(raw: bytes, count: int, endpoint: Endpoint) -> Scores:
    """Scores (count, K) from an answer to `count` images.

    Top-k answers: every class that is not named gets an equal share of what is left of 1, just below the lowest named
    probability at most, so that the label is the endpoint's. Labels become one-hot rows.

    Raises:
        UnreadableError: no JSON, no .npy.
        TargetError: a field is missing; a wrong shape or number of classes; NaN, infinities; no probabilities.

    >>> from poise.targets.http import make_endpoint
    >>> decode(b'{"scores": [[0.25, 0.75]]}', 1, make_endpoint(url="https://example.org", num_classes=2))
    array([[0.25, 0.75]])
    """
    value = _npy(raw, endpoint) if endpoint.answer == "npy" else follow(_json(raw), parse_path(endpoint.scores))
    scores = READERS[endpoint.outputs](value, count, endpoint)
    assert scores.shape == (count, endpoint.num_classes)
    return scores


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except RecursionError:
        raise TargetError("the answer must not be nested so deeply") from None
    except ValueError as error:  # JSON, UTF-8 or a number of thousands of digits
        reason = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "damaged text"
        raise UnreadableError(f"the answer must be JSON, got {len(raw)} bytes ({reason})") from None


def _npy(raw: bytes, endpoint: Endpoint) -> NDArray[Any]:
    """The array of a .npy file; its size is checked against the bytes before anything is allocated."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy raises one of several types
        raise UnreadableError(f"the answer must be a .npy file, got {len(raw)} bytes") from error
    valid = "iu" if endpoint.outputs is Answer.LABELS else "f"
    if dtype.kind not in valid:
        kind = "whole numbers" if endpoint.outputs is Answer.LABELS else "floats"
        raise TargetError(f"the scores must be {kind}, got {dtype}")
    size, held = int(np.prod(shape, dtype=object)), len(raw) - stream.tell()
    if min(shape, default=0) < 0 or size * dtype.itemsize != held:
        raise UnreadableError(f"the .npy file must hold {size * dtype.itemsize} bytes of scores, got {held}")
    return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def _rows(value: Any, count: int, endpoint: Endpoint) -> Scores:
    """Numbers as (count, K) float64; a single image's may come without the outer list."""
    shape = (count, endpoint.num_classes)
    if _larger(value, 4 * count * endpoint.num_classes + 1000):
        raise TargetError(f"the scores must be {shape} numbers, got far more in {describe(value)}")
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError):
        raise TargetError(f"the scores must be {shape} numbers, got rows of different lengths") from None
    if found.dtype.kind not in "fiu" and found.size:
        raise TargetError(f"the scores must be {shape} numbers, got {_odd(value)}")
    if count == 1 and found.shape == shape[1:]:
        found = found[None]
    if found.shape != shape:
        raise TargetError(f"the scores of {count} images must be {shape}, got {found.shape}")
    scores = found.astype(np.float64)
    if not np.isfinite(scores).all():
        raise TargetError(
            f"the scores must be finite, got {int((~np.isfinite(scores)).sum())} NaN or infinite values"
            + (f" in '{endpoint.scores}'" if endpoint.answer == "json" and endpoint.scores else "")
        )
    return scores


def _larger(value: Any, most: int) -> bool:
    """Nested lists hold more than so many things: numpy would take minutes over them."""
    level, found = [value], 0
    while level and found <= most:
        level = [part for item in level if isinstance(item, list) for part in item]
        found += len(level)
    return found > most


def _odd(value: Any) -> str:
    """The first thing in nested lists that is no number."""
    while isinstance(value, list) and value:
        value = next((part for part in value if isinstance(part, list) or not _is_number(part)), value[0])
    return describe(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _logits(value: Any, count: int, endpoint: Endpoint) -> Scores:
    return _rows(value, count, endpoint)


def _probabilities(value: Any, count: int, endpoint: Endpoint) -> Scores:
    scores = _rows(value, count, endpoint)
    total = scores.sum(axis=1)
    worst = int(np.abs(total - 1).argmax()) if count else 0
    if count and (scores.min() < 0 or abs(total[worst] - 1) > endpoint.sum_tolerance):
        given = f"a sum of {total[worst]:.6g}" if scores.min() >= 0 else f"{scores.min():.6g}"
        raise TargetError(
            f"probabilities must be at least 0 and sum to 1 within {endpoint.sum_tolerance:g}, got {given} "
            "(outputs = 'logits' or 'top-k' if that is what they are)"
        )
    return scores


def look_like_probabilities(scores: Scores) -> bool:
    """All rows are at least 0 and sum to 1: no logits do."""
    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) < _LOGITS_TOLERANCE).all())


def _top_k(value: Any, count: int, endpoint: Endpoint) -> Scores:
    alone = count == 1 and isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    images = _per_image([value] if alone else value, count, endpoint)
    scores = np.empty((count, endpoint.num_classes))
    for row, entries in zip(scores, images, strict=True):
        if not isinstance(entries, list) or not entries:
            raise TargetError(f"the top-k classes of an image must be a list of at least one, got {describe(entries)}")
        row[:] = np.nan
        for entry in entries:
            label, score = _entry(entry, endpoint)
            if not np.isnan(row[label]):
                raise TargetError(f"the top-k classes of an image must each be named once, got class {label} twice")
            row[label] = score
        _fill(row, endpoint.sum_tolerance)
    return scores


def _entry(entry: Any, endpoint: Endpoint) -> tuple[int, float]:
    fields = (endpoint.label_field, endpoint.score_field)
    if not isinstance(entry, dict) or any(field not in entry for field in fields):
        raise TargetError(
            f"a top-k class must be an object with '{fields[0]}' and '{fields[1]}', got {describe(entry)}"
        )
    score = entry[fields[1]]
    if not _is_number(score) or not 0 <= score <= 1 + endpoint.sum_tolerance:  # a NaN is not in the interval either
        given = f"{score:.6g}" if isinstance(score, float) else describe(score)
        raise TargetError(f"'{fields[1]}' must be a probability, got {given}")
    return _label(entry[fields[0]], endpoint), float(score)


def _fill(row: Scores, tolerance: float) -> None:
    """Gives what is left of 1 to the classes that were not named (NaN)."""
    unnamed = np.isnan(row)
    named = row[~unnamed]
    left = 1 - named.sum()
    if left < -tolerance or (not unnamed.any() and left > tolerance):
        raise TargetError(f"the top-k probabilities of an image must sum to 1 at most, got {named.sum():.6g}")
    if unnamed.any():
        row[unnamed] = min(max(left, 0) / unnamed.sum(), np.nextafter(named.min(), 0))


def _labels(value: Any, count: int, endpoint: Endpoint) -> Scores:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    alone = count == 1 and not isinstance(value, list)
    found = [_label(name, endpoint) for name in _per_image([value] if alone else value, count, endpoint)]
    scores: Scores = np.zeros((count, endpoint.num_classes))
    scores[np.arange(count), found] = 1
    return scores


def _per_image(value: Any, count: int, endpoint: Endpoint) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        where = f"'{endpoint.scores}'" if endpoint.scores else "the answer"
        raise TargetError(f"{where} must be a list of {count}, one per image, got {describe(value)}")
    return value


def _label(name: Any, endpoint: Endpoint) -> int:
    """The number of a class from its name, or from the number itself."""
    if isinstance(name, str) and endpoint.classes is not None and name in endpoint.classes:
        return endpoint.classes.index(name)
    if _is_number(name) and 0 <= name < endpoint.num_classes and name == int(name):
        return int(name)
    required = f"a number in 0..{endpoint.num_classes - 1}" + ("" if endpoint.classes is None else " or a known name")
    given = repr(name[:40]) if isinstance(name, str) else str(name)[:20] if _is_number(name) else describe(name)
    raise TargetError(f"a class must be {required}, got {given}")


READERS: dict[Answer, Callable[[Any, int, Endpoint], Scores]] = {
    Answer.LOGITS: _logits,
    Answer.PROBABILITIES: _probabilities,
    Answer.TOP_K: _top_k,
    Answer.LABELS: _labels,
}
