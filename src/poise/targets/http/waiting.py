"""When the next request may be sent: the rate limit, `Retry-After`, and the wait between tries."""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Waits so long, or until `stop` is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


class Pace:
    """At most so many requests per second, and none before an endpoint's `Retry-After` has passed.

    A token bucket that holds one token: time in which nothing was sent is not made up for.

    Args:
        per_second: requests per second; None sets no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self._gap = 0.0 if per_second is None else 1 / per_second
        self._free = -math.inf
        self._held = -math.inf

    async def turn(self, stop: asyncio.Event) -> None:
        """Returns when the caller may send one request, or when `stop` is set."""
        at = max(time.monotonic(), self._free, self._held)
        self._free = at + self._gap
        while not stop.is_set() and (wait := max(at, self._held) - time.monotonic()) > 0:
            await pause(wait, stop)

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long."""
        self._held = max(self._held, time.monotonic() + seconds)


class Backoff:
    """Waits that double, each shortened by up to a half at random, so that clients do not return all at once.

    The random numbers change no result and come from the operating system: no generator of the process is touched.

    Args:
        first: seconds before the first retry.
        longest: no wait is longer.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._random = random.SystemRandom()

    def wait(self, retry: int) -> float:
        """Seconds before the retry with this number, 0 the first."""
        return min(self._first * 2.0 ** min(retry, 60), self._longest) * self._random.uniform(0.5, 1)


def retry_after(text: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, from a number or an HTTP date; None where it says neither.

    >>> retry_after("2.5"), retry_after("soon"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    (2.5, None, 0.0)
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
