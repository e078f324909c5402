"""Requests over a pool of connections: bounded concurrency, rate limit, time-outs, retries."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from queue import SimpleQueue
from typing import Generic, TypeVar

import httpx

from poise.errors import PoiseError, TargetError
from poise.targets.http.connections import Connections, trusted
from poise.targets.http.credentials import Credentials
from poise.targets.http.decode import UnreadableError
from poise.targets.http.encode import Content
from poise.targets.http.endpoint import Endpoint
from poise.targets.http.waiting import Backoff, Pace, pause, retry_after

T = TypeVar("T")

_RETRIED = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """One request.

    Args:
        content: makes the body, when its turn comes; None is a GET.
        read: makes the result from the answer's body; `UnreadableError` sends the request again.
    """

    content: Callable[[], Content] | None
    read: Callable[[bytes], T]


@dataclass(frozen=True, slots=True)
class _Again:
    """A try that failed in a way that another may not; the least wait that the endpoint asks for."""

    reason: str
    wait: float | None = None


class _Stopped(Exception):
    """A request is not sent any more, because another has failed for good."""


@dataclass(slots=True)
class _Round(Generic[T]):
    """One call of `exchange`: the jobs that wait, where results go (None is the end), and the first failure."""

    transport: httpx.AsyncHTTPTransport
    waiting: Iterator[tuple[int, Job[T]]]
    results: SimpleQueue[tuple[int, T] | None]
    failure: PoiseError | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, error: PoiseError) -> None:
        self.failure = self.failure or error
        self.stop.set()


class Sender:
    """Sends jobs to one endpoint, from an event loop in a thread of its own.

    httpx's transport is used without its client: a client writes whole URLs to the log, follows redirects, keeps
    cookies, and takes proxies and passwords from the environment. Here none of this happens.

    Args:
        endpoint: addresses and limits.
        credentials: make the requests.

    Attributes:
        requests_sent: requests so far, retries included; an endpoint may charge each.
        retries: those that were sent again.
    """

    def __init__(self, endpoint: Endpoint, credentials: Credentials) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._pace = Pace(endpoint.requests_per_second)
        self._backoff = Backoff(endpoint.backoff_seconds, endpoint.longest_wait_seconds)
        self._tls: ssl.SSLContext | None = None
        self._open: Connections | None = None
        self.requests_sent = 0
        self.retries = 0

    @contextmanager
    def opened(self) -> Iterator[Connections]:
        """Keeps the pool open inside; an inner one does nothing."""
        if self._open is not None:
            yield self._open
            return
        if self._tls is None:
            self._tls = trusted(self._endpoint)
        self._open = Connections(self._endpoint.connections, self._tls, self._credentials.redacted)
        try:
            yield self._open
        finally:
            connections, self._open = self._open, None
            connections.close()

    def exchange(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        """The number and the result of each job, in the order in which answers come.

        After a failure no further request is sent; those under way are waited for, and their results given, before it
        is raised. Leaving the iteration early cancels what is under way.

        Raises:
            TargetError: one line: which address, what it must answer, what it answered, after how many tries.
        """
        results: SimpleQueue[tuple[int, T] | None] = SimpleQueue()
        with self.opened() as connections:
            running = connections.start(self._all(_Round(connections.transport, iter(enumerate(jobs)), results)))
            try:
                while (result := results.get()) is not None:
                    yield result
                failure = running.result()
            finally:
                running.cancel()
        if failure is not None:
            raise failure

    async def _all(self, given: _Round[T]) -> PoiseError | None:
        """Works through the jobs; returns the first failure."""
        try:
            await asyncio.gather(*(self._work(given) for _ in range(self._endpoint.connections)))
        finally:
            given.results.put(None)
        return given.failure

    async def _work(self, given: _Round[T]) -> None:
        """One connection's share: the next job that waits, until none is left or one has failed."""
        for number, job in given.waiting:
            try:
                given.results.put((number, await self._one(given, job)))
            except _Stopped:
                return
            except PoiseError as error:
                given.fail(error)
                return

    async def _one(self, given: _Round[T], job: Job[T]) -> T:
        content, retry = None, 0
        while True:
            await self._pace.turn(given.stop)
            if given.stop.is_set():
                raise _Stopped
            if content is None and job.content is not None:
                content = job.content()
            self.requests_sent += 1
            self.retries += retry > 0
            outcome = await self._try(given.transport, content, job)
            if not isinstance(outcome, _Again):
                return outcome
            if given.stop.is_set() or retry == self._endpoint.retries:
                raise self._failure(f"{outcome.reason} (after {f'{retry + 1} tries' if retry else '1 try'})")
            if outcome.wait is not None:
                self._pace.hold(outcome.wait)
            await pause(self._backoff.wait(retry), given.stop)
            retry += 1

    async def _try(self, transport: httpx.AsyncHTTPTransport, content: Content | None, job: Job[T]) -> T | _Again:
        limit, useless = self._endpoint.timeout_seconds, None
        try:
            async with asyncio.timeout(limit):
                status, headers, body = await self._exchanged(transport, content)
        except (TimeoutError, httpx.TimeoutException):
            return _Again(f"must answer within {limit:g} s")
        except httpx.TransportError as error:
            useless = _useless(error)
            if useless is None:
                return _Again(f"must answer, got {type(error).__name__}: {self._line(str(error)) or 'connection lost'}")
        if useless is not None:  # raised here, so that the error drags no request with its headers along
            raise self._failure(useless)
        if 200 <= status < 300:
            return self._read(job, body)
        return self._refused(status, headers, body)

    def _read(self, job: Job[T], body: bytes) -> T | _Again:
        try:
            return job.read(body)
        except UnreadableError as error:
            return _Again(str(error))
        except TargetError as error:
            raise self._failure(str(error)) from None

    async def _exchanged(
        self, transport: httpx.AsyncHTTPTransport, content: Content | None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and the whole body, which is cut off where it is too long."""
        response = await transport.handle_async_request(self._credentials.request(content))
        try:
            most, size = self._endpoint.max_answer_bytes, 0
            parts = []
            async for part in response.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise self._failure(f"must answer at most {most} bytes, got more")
        finally:
            await response.aclose()
        coding = response.headers.get("content-encoding", "identity")
        if coding.lower() != "identity" and response.status_code < 300:
            raise self._failure(f"must answer without compression, which was not asked for, got '{self._line(coding)}'")
        return response.status_code, response.headers, b"".join(parts)

    def _refused(self, status: int, headers: httpx.Headers, body: bytes) -> _Again:
        """A status that is no success: tried again, or the end."""
        told = self._line(_told(body))
        reason = f"must answer with status 200, got {_named(status)}{f': {told}' if told else ''}"
        if 300 <= status < 400:
            raise self._failure(f"{reason} (redirects are not followed: write the final address)")
        if status not in _RETRIED:
            raise self._failure(reason)
        if status == 429 and self._endpoint.requests_per_second is None:
            reason += " (requests_per_second sets a limit)"
        wait, longest = retry_after(headers.get("retry-after")), self._endpoint.longest_wait_seconds
        if wait is not None and wait > longest:
            raise self._failure(f"{reason}; it asks to wait {wait:.0f} s, longest_wait_seconds is {longest:g}")
        return _Again(reason, wait)

    def _line(self, text: str, limit: int = 160) -> str:
        """One short line of what another program said, without secrets and control characters."""
        text = self._credentials.redacted(text)
        line = "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))
        return line if len(line) <= limit else f"{line[: limit - 1]}…"

    def _failure(self, reason: str) -> TargetError:
        return TargetError(self._credentials.redacted(f"{self._endpoint.where}: {reason}"))


def _useless(error: BaseException) -> str | None:
    """Why another try is useless; None where it may help."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"must have a valid TLS certificate, got '{cause.verify_message}' (verify = names a CA file)"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return f"the request cannot be sent: {error}"
    return None


def _told(body: bytes) -> str:
    """The reason that a JSON answer gives in its field error, message or detail, or nothing."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    found = next((answer[key] for key in ("error", "message", "detail") if key in answer), "")
    found = found.get("message", "") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
