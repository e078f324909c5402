"""HTTP connections that cannot be held open for nothing: uvicorn's, with deadlines and a cap."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from poise.serve.limits import Wire

_FULL = json.dumps({"error": "server: has too many connections, try again"}).encode()
_FULL = b"\r\n".join([
    b"HTTP/1.1 503 Service Unavailable", b"Content-Type: application/json", b"Retry-After: 1", b"Connection: close",
    b"Content-Length: %d" % len(_FULL), b"", _FULL,
])  # fmt: skip


class GuardedProtocol(H11Protocol):
    """One connection. uvicorn closes it when it is idle; this adds what uvicorn lets pass.

    - more connections than `wire.connections`: 503, closed;
    - a request whose head does not arrive within `header_seconds`: aborted;
    - an answer that is not read within `send_seconds`: aborted;
    - a body that nobody reads, after the answer to it: closed.

    The time for a body is the application's business.
    """

    wire = Wire()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.wire.connections:
            transport.write(_FULL)
            transport.close()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self.wire.send_seconds, self._give_up)

    def _watch_head(self) -> None:
        """The clock runs while a head is incomplete."""
        waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if waiting and self._head is None:
            self._head = self.loop.call_later(self.wire.header_seconds, self.transport.abort)
        elif not waiting and self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._unread = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def guarded(wire: Wire) -> type[GuardedProtocol]:
    """The protocol with these limits."""
    return type("GuardedProtocol", (GuardedProtocol,), {"wire": wire})
