"""Connections, limits on their number and pace, waits, interruption, TLS."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
import torch
from fault_server import CERTIFICATE, Endpoint, hang, json_answer, serving, status
from http_cases import CASE, asking

from poise.errors import InputError, TargetError
from poise.targets.http import HttpTarget
from poise.targets.http.waiting import Backoff, Pace, retry_after
from toys import untouched_generators


def served_toy(**given) -> Endpoint:
    return Endpoint(json_answer(CASE.module()), **given)


def ask(target: HttpTarget, points: int = 8) -> torch.Tensor:
    rows = torch.arange(points) % 8
    return target.query(CASE.images[rows], rows).scores


def test_connections_are_bounded_used_and_kept() -> None:
    with serving(served_toy(slow=0.03)) as served:
        target = asking(served, connections=3)
        with target.session():
            ask(target, 12)
            with target.session(seed=1):
                ask(target, 12)
            ask(target, 1)
    assert served.busiest == 3
    assert served.connections == 3
    assert len(served.seen) == 25


def test_outside_a_session_nothing_stays_open() -> None:
    with serving(served_toy()) as served:
        target = asking(served, connections=2)
        for _ in range(3):
            ask(target, 2)
            assert running() == []
    assert 3 <= served.connections <= 6


def running() -> list[str]:
    """Threads of ours."""
    return [thread.name for thread in threading.enumerate() if thread.name == "poise-http"]


def test_the_rate_is_kept_over_connections_retries_and_calls() -> None:
    with serving(served_toy(faults={1: status(503)})) as served:
        target = asking(served, requests_per_second=50, connections=8)
        ask(target, 5)
        ask(target, 5)
    assert len(served.seen) == 11
    assert span(served) >= 10 * 0.02 * 0.9


def span(served: Endpoint) -> float:
    """Seconds from the first request to the last."""
    times = [seen.at for seen in served.seen]
    return max(times) - min(times)


def test_without_a_rate_nothing_waits() -> None:
    """The twin of the test above: the time between requests comes from the rate alone."""
    spans = []
    for _ in range(3):  # a busy machine may delay one of them
        with serving(served_toy()) as served:
            ask(asking(served, connections=8), 11)
        spans.append(span(served))
    assert min(spans) < 10 * 0.02 * 0.9


def test_retry_after_holds_every_connection() -> None:
    with serving(served_toy(faults={0: status(429, Retry_After="0.4")})) as served:
        ask(asking(served, connections=1), 3)
    first, *others = [seen.at for seen in served.seen]
    assert len(others) == 3
    assert min(others) - first >= 0.4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("", None), ("0", 0), ("7", 7), ("-1", 0), ("1.5", 1.5), ("nan", None), ("inf", None), ("x", None)],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_retry_after_a_date() -> None:
    ahead = datetime.now(UTC) + timedelta(seconds=30)
    assert retry_after(format_datetime(ahead, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after(format_datetime(ahead).replace("+0000", "-0000")) == pytest.approx(30, abs=2)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_waits_double_and_spread() -> None:
    with untouched_generators():
        waits = [[Backoff(1.0, 6.0).wait(retry) for _ in range(50)] for retry in (0, 1, 2, 3, 1000)]
    for found, longest in zip(waits, (1, 2, 4, 6, 6), strict=True):
        assert longest / 2 <= min(found) < max(found) <= longest
        assert len(set(found)) > 40


def test_pace_saves_nothing_up() -> None:
    async def turns() -> list[float]:
        pace, stop, times = Pace(20), asyncio.Event(), []
        for wait in (0, 0.2, 0, 0):
            await asyncio.sleep(wait)
            await pace.turn(stop)
            times.append(time.monotonic())
        stop.set()
        await pace.turn(stop)
        times.append(time.monotonic())
        return times

    times = asyncio.run(turns())
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 0.2
    assert min(gaps[1:3]) >= 0.04
    assert gaps[3] < 0.04


# --- interruption ---


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT: a process that a shell started in the background has none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupt_ends_the_call_at_once(inside: bool) -> None:
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    with serving(served_toy(always=hang)) as served:
        target = asking(served, timeout_seconds=60)
        timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), target.session() if inside else nullcontext():
            ask(target)
        assert time.monotonic() - began < 3
        assert running() == []
        assert len(served.seen) == 4
        served.always = None
        assert ask(target).shape == (8, 3)


def test_who_leaves_the_stream_cancels_the_rest() -> None:
    with serving(served_toy(slow=0.05)) as served:
        target = asking(served, connections=2)
        with target.session():
            parts = target.stream(CASE.images, CASE.ids)
            next(parts)
            parts.close()
            time.sleep(0.2)
            sent = target.requests_sent
            assert sent <= 4
            assert ask(target).shape == (8, 3)
        assert target.requests_sent == sent + 8
        assert running() == []


def test_a_failure_wakes_those_who_wait() -> None:
    """One connection is told to wait for a minute, another fails for good: the run does not wait for the minute."""
    with serving(served_toy(faults={0: status(429, Retry_After="60"), 1: status(401)}, slow=0.05)) as served:
        target = asking(served, connections=2)
        began = time.monotonic()
        with pytest.raises(TargetError, match="got 401 Unauthorized"):
            ask(target)
        assert time.monotonic() - began < 3
        assert len(served.seen) == 2


# --- TLS ---


def test_a_certificate_that_nobody_signed_is_refused() -> None:
    with serving(served_toy(), tls=True) as served:
        target = asking(served)
        with pytest.raises(TargetError, match=r"a valid TLS certificate, got 'self.signed certificate'"):
            ask(target)
        assert target.retries == 0
        assert served.seen == []
        assert ask(asking(served, verify=CERTIFICATE)).shape == (8, 3)


def test_a_file_without_certificates(tmp_path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    with (
        serving(served_toy()) as served,
        pytest.raises(InputError, match="verify: must be a file with CA certificates"),
    ):
        ask(asking(served, verify=tmp_path / "ca.pem"))
