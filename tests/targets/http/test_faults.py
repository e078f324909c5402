"""Every fault of an endpoint: the run goes on to the same table, or stops with one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_server import (
    Endpoint,
    Fault,
    cut_json,
    cut_off,
    drip,
    hang,
    hang_up,
    json_answer,
    remade,
    reset,
    reset_midway,
    serving,
    status,
    text,
)
from http_cases import CASE, NOWHERE, asking, described

import poise
from poise.constraints import Linf
from poise.errors import TargetError
from poise.objectives import UCA, KeepLabel
from poise.searches import Square
from poise.targets import Journal
from poise.targets.http import HttpTarget
from poise.targets.stream import StreamingTarget

BUDGET = 4
SAME = ("prediction_after", "confidence_after", "loss_after", "queries")


def attacked(target: poise.Target) -> poise.AttackResult:
    return poise.attack(
        target, KeepLabel(UCA()), Square(), Linf(0.1), CASE.images, CASE.labels, ids=CASE.ids, budget=BUDGET
    )


def scores_with(value: Any) -> Fault:
    """The right answer but for its first number."""
    return remade(lambda answer: {"scores": [[value, *answer["scores"][0][1:]], *answer["scores"][1:]]})


def classes(count: int) -> Fault:
    """The right answer with another number of classes."""
    return remade(lambda answer: {"scores": [[0.5] * count for _ in answer["scores"]]})


PASSING: dict[str, Fault] = {
    "hang": hang,
    "drip": drip,
    "reset": reset,
    "reset midway": reset_midway,
    "hang up": hang_up,
    "cut off": cut_off,
    "cut JSON": cut_json,
    "HTML instead of JSON": text(b"<html>maintenance</html>"),
    "429": status(429),
    "429, Retry-After": status(429, Retry_After="0.1"),
    "429, Retry-After that says nothing": status(429, Retry_After="soon"),
    "500": status(500),
    "502, no JSON": status(502, b"<html>bad gateway</html>"),
    "503, Retry-After": status(503, Retry_After="0"),
    "504, empty": status(504, b""),
}
"""What another try may cure."""

STAYING: dict[str, str] = {
    "hang": r"must answer within 0.15 s \(after 3 tries\)",
    "drip": r"must answer within 0.15 s \(after 3 tries\)",
    "reset": r"must answer, got (ReadError|WriteError|RemoteProtocolError): .* \(after 3 tries\)",
    "reset midway": r"must answer, got (ReadError|RemoteProtocolError): .* \(after 3 tries\)",
    "hang up": r"must answer, got RemoteProtocolError: Server disconnected .* \(after 3 tries\)",
    "cut off": r"must answer, got RemoteProtocolError: peer closed connection .* \(after 3 tries\)",
    "cut JSON": r"the answer must be JSON, got \d+ bytes \(.* at character \d+\) \(after 3 tries\)",
    "HTML instead of JSON": r"the answer must be JSON, got 24 bytes .* \(after 3 tries\)",
    "429": r"status 200, got 429 Too Many Requests: not now \(requests_per_second sets a limit\) \(after 3 tries\)",
    "500": r"must answer with status 200, got 500 Internal Server Error: not now \(after 3 tries\)",
    "502, no JSON": r"must answer with status 200, got 502 Bad Gateway \(after 3 tries\)",
    "504, empty": r"must answer with status 200, got 504 Gateway Timeout \(after 3 tries\)",
}
"""What is said when it does not."""

FATAL: dict[str, tuple[Fault, str]] = {
    "429, a long Retry-After": (
        status(429, Retry_After="3600"),
        r"got 429 .*; it asks to wait 3600 s, longest_wait_seconds is 120",
    ),
    "401": (status(401), "must answer with status 200, got 401 Unauthorized: not now$"),
    "404": (status(404, b""), "must answer with status 200, got 404 Not Found$"),
    "418 with lines": (status(418, b'{"detail": "a\\nb\\u001b[31m"}'), r"got 418 I'm a Teapot: a b \[31m$"),
    "an unknown status": (status(599, b"{}"), "must answer with status 200, got 599$"),
    "redirect": (status(307, Location="https://elsewhere.example"), r"got 307 .* \(redirects are not followed"),
    "NaN": (scores_with(float("nan")), "the scores must be finite, got 1 NaN or infinite values in 'scores'"),
    "infinite": (scores_with(float("inf")), "the scores must be finite, got 1 NaN or infinite values in 'scores'"),
    "null": (scores_with(None), r"must be \(1, 3\) numbers, got null"),
    "text": (scores_with("0.5"), r"must be \(1, 3\) numbers, got a text"),
    "fewer classes": (classes(2), r"the scores of 1 images must be \(1, 3\), got \(1, 2\)"),
    "more classes": (classes(4), r"the scores of 1 images must be \(1, 3\), got \(1, 4\)"),
    "a row too many": (remade(lambda answer: {"scores": answer["scores"] * 2}), r"must be \(1, 3\), got \(2, 3\)"),
    "no rows": (text(b'{"scores": []}'), r"must be \(1, 3\), got \(0,\)"),
    "other field": (
        text(b'{"error": "x"}'),
        "an object with the field 'scores', got an object with the fields 'error'",
    ),
    "a huge answer": (text(b" " * 200_001), "must answer at most 200000 bytes, got more"),
    "a deep answer": (text(b"[" * 100_000), "the answer must not be nested so deeply"),
    "compressed": (text(b"\x1f\x8b", Content_Encoding="gzip"), "without compression, .* got 'gzip'"),
}
"""What no other try can cure."""


@pytest.mark.parametrize("name", PASSING)
def test_the_run_goes_on_to_the_same_table(name: str) -> None:
    """The third and the eleventh request go wrong; each is sent once more, and no sample is asked beyond its budget."""
    faults = {2: PASSING[name], 10: PASSING[name]}
    with serving(Endpoint(json_answer(CASE.module()), faults=faults)) as served:
        target = asking(served, timeout_seconds=1.5 if name in ("hang", "drip") else 20)
        found = attacked(target).table
    assert found.select(SAME).equals(attacked(CASE.target()).table.select(SAME))
    assert found["queries"].max() <= BUDGET
    assert served.answered == found["queries"].sum()
    assert (target.retries, target.requests_sent) == (2, served.answered + 2)


def test_a_burst_of_500_is_ridden_out() -> None:
    """Every first try of the first nine fails."""
    with serving(Endpoint(json_answer(CASE.module()), faults=dict.fromkeys(range(9), status(500)))) as served:
        target = asking(served, retries=9)
        found = attacked(target).table
    assert found.select(SAME).equals(attacked(CASE.target()).table.select(SAME))
    assert (target.retries, served.answered) == (9, found["queries"].sum())


def stops(fault: Fault, message: str, **given: Any) -> HttpTarget:
    with serving(Endpoint(json_answer(CASE.module()), always=fault)) as served:
        target = asking(served, **given)
        with pytest.raises(TargetError, match=message) as caught:
            attacked(target)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{served.url}/predict: ")
        return target


@pytest.mark.parametrize("name", STAYING)
def test_a_fault_that_stays_stops_with_one_line(name: str) -> None:
    target = stops(PASSING[name], STAYING[name], timeout_seconds=0.15)
    assert 3 <= target.requests_sent <= 3 * 4  # nobody begins anew after the first failure


@pytest.mark.parametrize("name", FATAL)
def test_what_cannot_be_cured_stops_at_once(name: str) -> None:
    fault, message = FATAL[name]
    target = stops(fault, message, max_answer_bytes=200_000)
    assert target.retries == 0
    assert target.requests_sent <= 4


def test_one_try() -> None:
    stops(status(500), r"got 500 Internal Server Error: not now \(after 1 try\)", retries=0)


def test_nobody_listens() -> None:
    target = HttpTarget(described(NOWHERE))
    with pytest.raises(TargetError, match=r"127.0.0.1:9/predict: must answer, got ConnectError: .* \(after 3 tries\)"):
        attacked(target)


def kept(parts: Iterator[tuple[torch.Tensor, poise.Outputs]]) -> tuple[list[int], str]:
    """Positions that were answered before the error, and the error."""
    rows: list[int] = []
    try:
        for found, _ in parts:
            rows += found.tolist()
    except TargetError as error:
        return rows, str(error)
    return rows, ""


@pytest.mark.parametrize("connections", [1, 3])
def test_what_was_answered_before_a_failure_is_given(connections: int) -> None:
    """Requests under way are waited for: what the endpoint has answered is never lost."""
    faults = {4: scores_with(float("nan"))}
    with serving(Endpoint(json_answer(CASE.module()), faults=faults, slow=0.05)) as served:
        rows, error = kept(asking(served, connections=connections).stream(CASE.images, CASE.ids))
    assert "finite" in error
    assert len(rows) == served.answered
    assert 4 <= len(rows) < len(CASE.images)
    if connections == 1:
        assert rows == [0, 1, 2, 3]


def test_a_journal_keeps_what_was_answered_before_a_failure(tmp_path: Path) -> None:
    """The run that goes on asks for the rest alone."""
    file = tmp_path / "answers.log"
    faults = {4: scores_with(float("nan"))}
    with serving(Endpoint(json_answer(CASE.module()), faults=faults, slow=0.02)) as served:
        with Journal(asking(served), file) as journal, pytest.raises(TargetError, match="finite"):
            attacked(journal)
        kept_answers = served.answered
        target = asking(served)
        assert isinstance(target, StreamingTarget)
        with Journal(target, file) as journal:
            found = attacked(journal).table
    assert found.select(SAME).equals(attacked(CASE.target()).table.select(SAME))
    assert kept_answers >= 4
    assert target.requests_sent == found["queries"].sum() - kept_answers
