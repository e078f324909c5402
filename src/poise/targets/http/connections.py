"""A pool of connections in an event loop of its own, and whom it trusts."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import httpx

from poise.errors import InputError
from poise.targets.http.endpoint import Endpoint

T = TypeVar("T")


_LOG = logging.getLogger("httpcore.http11")
"""At level DEBUG it gets the headers of answers, and an endpoint may repeat what it was sent (a redirect does)."""


class _Redacting(logging.Filter):
    """Takes the secrets out of what one thread logs."""

    def __init__(self, thread: threading.Thread, redacted: Callable[[str], str]) -> None:
        super().__init__()
        self._thread = thread
        self._redacted = redacted

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread == self._thread.ident:
            record.msg, record.args = self._redacted(record.getMessage()), ()
        return True


class Connections:
    """An event loop in a thread, and the pool that lives in it.

    Args:
        most: connections.
        tls: whom they trust.
        redacted: takes the secrets out of a text.
    """

    def __init__(self, most: int, tls: ssl.SSLContext, redacted: Callable[[str], str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="poise-http", daemon=True)
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=30.0)
        self.transport = httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits)
        self._thread.start()
        self._filter = _Redacting(self._thread, redacted)
        _LOG.addFilter(self._filter)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """A future of the work, which runs in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancels what is under way, closes the connections and ends the thread."""
        with suppress(TimeoutError):
            self.start(self._cancel()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        _LOG.removeFilter(self._filter)

    async def _cancel(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.transport.aclose()


def trusted(endpoint: Endpoint) -> ssl.SSLContext:
    """TLS that verifies certificates and names."""
    if endpoint.verify is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(endpoint.verify))
    except (ssl.SSLError, OSError):
        raise InputError(f"verify: must be a file with CA certificates (PEM), got '{endpoint.verify}'") from None
