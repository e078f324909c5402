"""A small HTTP server that answers as a toy model does, and goes wrong on purpose."""

from __future__ import annotations

import io
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""A self-signed certificate for localhost and its key, which guards nothing but these tests."""


@dataclass
class Seen:
    """One request as it came, and when."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


Fault = Callable[["Handler", bytes], None]
"""Answers a request wrongly; is given the right answer."""


@dataclass
class Endpoint:
    """What a server does and what it has seen.

    Args:
        answer: the right answer's body, from the request's body; called under a lock.
        faults: what to do instead, by the number of the request from 0.
        always: what to do instead on every request.
        gets: bodies of GET requests, by path.
        slow: seconds before every answer.
    """

    answer: Callable[[bytes], bytes]
    faults: dict[int, Fault] = field(default_factory=dict)
    always: Fault | None = None
    gets: dict[str, bytes] = field(default_factory=dict)
    slow: float = 0.0
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    answered: int = 0
    connections: int = 0
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive; one instance per connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    endpoint: Endpoint

    def setup(self) -> None:
        super().setup()
        with self.endpoint.lock:
            self.endpoint.connections += 1

    def do_GET(self) -> None:
        body = self.endpoint.gets.get(self.path.partition("?")[0])
        with self.endpoint.lock:
            self.endpoint.seen.append(Seen("GET", self.path, dict(self.headers), b"", time.monotonic()))
        self.reply(404 if body is None else 200, body or b'{"error": "no such page"}')

    def do_POST(self) -> None:
        endpoint = self.endpoint
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with endpoint.lock:
            number = len(endpoint.seen)
            endpoint.seen.append(Seen("POST", self.path, dict(self.headers), body, time.monotonic()))
            endpoint.busy += 1
            endpoint.busiest = max(endpoint.busiest, endpoint.busy)
        try:
            endpoint.closing.wait(endpoint.slow)
            with endpoint.lock:
                right = endpoint.answer(body)
            fault = endpoint.always or endpoint.faults.get(number)
            if fault is not None:
                fault(self, right)
                return
            with endpoint.lock:
                endpoint.answered += 1
            self.reply(200, right)
        finally:
            with endpoint.lock:
                endpoint.busy -= 1

    def reply(self, status: int, body: bytes, *, claimed: int | None = None, **headers: str) -> None:
        """An answer; `claimed` is a Content-Length that is not true."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up here, and faults cut connections: no traceback on the terminal."""


@contextmanager
def serving(endpoint: Endpoint, *, tls: bool = False) -> Iterator[Endpoint]:
    """Runs the endpoint on a free port of this machine; its address is in `endpoint.url`."""
    handler = type("Bound", (Handler,), {"endpoint": endpoint})
    with Server(("127.0.0.1", 0), handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        endpoint.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.closing.set()
            server.shutdown()
            thread.join()


def scored(module: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the module answers to images (m, C, H, W)."""
    with torch.no_grad():
        return module(torch.from_numpy(np.array(images, dtype=np.float32))).numpy()


def json_answer(module: nn.Module) -> Callable[[bytes], bytes]:
    """{"images": …} → {"scores": …}."""
    return lambda body: json.dumps({"scores": scored(module, json.loads(body)["images"]).tolist()}).encode()


def npy_answer(module: nn.Module) -> Callable[[bytes], bytes]:
    """.npy → .npy."""

    def answer(body: bytes) -> bytes:
        found = io.BytesIO()
        np.save(found, scored(module, np.load(io.BytesIO(body))))
        return found.getvalue()

    return answer


# --- faults ---


def hang(handler: Handler, right: bytes) -> None:
    """No answer until the server ends."""
    handler.endpoint.closing.wait(20)
    handler.close_connection = True


def drip(handler: Handler, right: bytes) -> None:
    """One byte at a time: each read is in time, the whole answer never is."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(right)))
    handler.end_headers()
    for byte in right:
        handler.wfile.write(bytes([byte]))
        if handler.endpoint.closing.wait(0.05):
            return


def reset(handler: Handler, right: bytes) -> None:
    """The connection is reset (RST) before an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def reset_midway(handler: Handler, right: bytes) -> None:
    """The connection is reset in the middle of an answer."""
    handler.reply(200, right[: len(right) // 2], claimed=len(right))
    handler.wfile.flush()
    reset(handler, right)


def hang_up(handler: Handler, right: bytes) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True


def cut_off(handler: Handler, right: bytes) -> None:
    """Fewer bytes than the header says."""
    handler.reply(200, right[: len(right) // 2], claimed=len(right))
    handler.close_connection = True


def cut_json(handler: Handler, right: bytes) -> None:
    """A complete answer whose JSON ends in the middle."""
    handler.reply(200, right[: len(right) // 2])


def status(code: int, body: bytes = b'{"error": "not now"}', **headers: str) -> Fault:
    """An answer with another status."""
    return lambda handler, right: handler.reply(code, body, **headers)


def remade(change: Callable[[Any], Any]) -> Fault:
    """The right JSON answer, passed through a function."""
    return lambda handler, right: handler.reply(200, json.dumps(change(json.loads(right))).encode())


def text(body: bytes, **headers: str) -> Fault:
    """An answer with status 200 and any body."""
    return lambda handler, right: handler.reply(200, body, **headers)
