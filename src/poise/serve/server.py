"""Where a server listens, and running it until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from poise.errors import InputError
from poise.serve.connections import guarded
from poise.serve.limits import Wire

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_loopback(host: str) -> bool:
    """Whether a host name or address reaches this machine alone.

    Raises:
        InputError: there is no such host.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return all(ipaddress.ip_address(place[0]).is_loopback for _, place in _places(host, 0))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at the first address of a host.

    Args:
        host: a name or an address.
        port: 0 to 65535; 0 takes a free one.

    Raises:
        InputError: there is no such host, or the port is not free.

    >>> with bind("127.0.0.1", 0) as listening:
    ...     url(listening).rpartition(":")[0]
    'http://127.0.0.1'
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port: must be in 0..65535, got {port}")
    family, place = _places(host, port)[0]
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay on
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((place[0], port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise InputError(f"host, port: must be free to listen at, got '{host}', {port} ({error.strerror})") from error
    return listening


def url(listening: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listening: socket.socket, wire: Wire | None = None) -> bool:
    """Serves until SIGINT or SIGTERM; requests in work are answered first, the socket is closed.

    Args:
        app: from `create_app`.
        listening: from `bind`.
        wire: what connections may take; the defaults where None.

    Returns:
        Whether it was SIGINT.
    """
    server = make_server(app, wire)
    server.run([listening])
    return server.interrupted


def make_server(app: FastAPI, wire: Wire | None = None) -> Server:
    """A server for another thread: `run([listening])` serves until `should_exit` is set."""
    wire = wire or Wire()
    config = uvicorn.Config(
        app,
        http=guarded(wire),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=wire.idle_seconds,
        timeout_graceful_shutdown=wire.stop_seconds,
    )
    return Server(config)


class Server(uvicorn.Server):
    """uvicorn's server, which says how it was stopped and raises no signal again."""

    interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _places(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, ...]]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host: must be a name or an address of this machine, got '{host}'") from error
    return [(family, tuple(map(str, place))) for family, _, _, _, place in found]
