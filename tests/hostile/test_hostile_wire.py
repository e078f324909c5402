"""Endpoints that answer with what is no HTTP, never ends, or unpacks: one line, within the endpoint's own limits."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import repeat
from random import Random

import pytest
import torch
from harness import examples, measured
from hypothesis import given, strategies
from mutations import damaged

from poise.targets.http import HttpTarget, make_endpoint

GOOD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\nConnection: close\r\n\r\n"
    b'{"scores": [[0.25,  0.75]]}'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BOMB = gzip.compress(bytes(2**27), 1)


@contextmanager
def answering(parts: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """A server that sends these bytes to whoever asks, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with suppress(OSError):
                    client, _ = listening.accept()
                    with client, suppress(OSError):
                        client.settimeout(5)
                        client.recv(2**16)
                        for part in parts():
                            if over.is_set():
                                break
                            client.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/predict"
        finally:
            over.set()
            thread.join()


def ask(url: str) -> None:
    endpoint = make_endpoint(
        url=url, num_classes=2, timeout_seconds=1, retries=0, max_answer_bytes=2**20, connections=1
    )
    HttpTarget(endpoint).query(torch.zeros(1, 1, 2, 2), torch.arange(1))


def dripping() -> Iterator[bytes]:
    for byte in GOOD:
        time.sleep(0.05)
        yield bytes([byte])


ANSWERS: dict[str, Callable[[], Iterator[bytes]]] = {
    "nothing": lambda: iter(()),
    "no HTTP": lambda: iter([b"\x16\x03\x01\x02\x00" + bytes(500)]),
    "endless status line": lambda: repeat(b"H" * 2**16),
    "endless headers": lambda: iter([HEAD, *[b"X-More: yes\r\n" * 5000] * 1000]),
    "endless body": lambda: iter([HEAD + b"\r\n", *[b" " * 2**16] * 10_000]),
    "a body of a terabyte": lambda: iter([HEAD + b"Content-Length: 1099511627776\r\n\r\n", b"{}"]),
    "two lengths": lambda: iter([HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "]),
    "a negative length": lambda: iter([HEAD + b"Content-Length: -5\r\n\r\n{}"]),
    "a chunk of a terabyte": lambda: iter([HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n{}"]),
    "chunks of nothing": lambda: iter([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 10**6]),
    "a gzip bomb": lambda: iter([HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB]),
    "a redirect to a file": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"]),
    "a hundred informations": lambda: iter([b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000]),
    "control characters": lambda: iter([b'HTTP/1.1 400 \x1b[2J\r\n\r\n{"error": "\\u001b]0;owned\\u0007"}']),
    "a byte at a time": dripping,
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_an_endpoint_answers_is_one_line(name: str) -> None:
    began = time.monotonic()
    with answering(ANSWERS[name]) as url:
        outcome = measured(lambda: ask(url))
    assert not outcome.fault
    assert outcome.kind == "refused", outcome
    assert outcome.text.isprintable()
    assert time.monotonic() - began < 10


@examples(12)
@given(rng=strategies.randoms(use_true_random=False))
def test_damaged_answers_on_the_wire(rng: Random) -> None:
    content = damaged(GOOD, rng)
    with answering(lambda: iter([content])) as url:
        assert not measured(lambda: ask(url)).fault
