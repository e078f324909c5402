"""A real server at a port of its own: clients that are slow, many, rude, or stay for long."""

from __future__ import annotations

import http.client
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from torch import Tensor

from poise.errors import InputError
from poise.serve import Limits, Wire, bind, is_loopback, url
from serve_cases import NPY, Linear, expected, from_npy, images, npy, served, serving

WIRE = Wire(connections=40, header_seconds=0.3, idle_seconds=2, send_seconds=0.5)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One server for the clients that misbehave; it must still answer when all of them have been there."""
    with serving(limits=Limits(body_bytes=20_000, body_seconds=0.4), wire=WIRE) as at:
        yield at
        assert_well(at)


def assert_well(at: str) -> None:
    answer = httpx.post(f"{at}/predict", content=npy(images(2)), headers=NPY)
    assert np.abs(from_npy(answer.content) - expected(images(2))).max() < 1e-5


def connect(at: str) -> socket.socket:
    place = urlsplit(at)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port), timeout=10)


def until_closed(client: socket.socket) -> tuple[bytes, float]:
    """What the server sends until it closes, and how long that takes."""
    began, found = time.monotonic(), b""
    try:
        while part := client.recv(2**16):
            found += part
    except ConnectionError:
        pass
    return found, time.monotonic() - began


def head(length: int | None, *more: str, path: str = "/predict", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/x-npy", *more]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def parts(answer: bytes) -> tuple[int, bytes]:
    """Status and body of one answer."""
    top, _, body = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), body


def test_answers_are_the_models(address: str) -> None:
    for _ in range(2):
        assert_well(address)


def test_an_answer_does_not_wait_for_nagle(address: str) -> None:
    """40 ms a request, where the accepted sockets hold back the last small packet."""
    with httpx.Client(base_url=address) as client:
        spent = []
        for _ in range(15):
            began = time.monotonic()
            client.get("/health")
            spent.append(time.monotonic() - began)
    assert sorted(spent)[4] < 0.035
    with bind("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP, "else asyncio does not set TCP_NODELAY"


def test_a_slow_head_is_cut_off(address: str) -> None:
    with connect(address) as silent, connect(address) as dripping:
        dripping.sendall(b"POST /pre")
        for client in (silent, dripping):
            answer, spent = until_closed(client)
            assert answer == b""
            assert spent < 5


def test_a_head_that_drips_after_a_good_request_is_cut_off(address: str) -> None:
    body = npy(images(1))
    with connect(address) as client:
        client.sendall(head(len(body)) + body)
        assert b" 200 " in client.recv(2**16)
        began = time.monotonic()
        try:
            for byte in head(len(body)):
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass
        until_closed(client)
        assert time.monotonic() - began < 2


def test_a_slow_body_is_cut_off_with_a_line(address: str) -> None:
    with connect(address) as client:
        client.sendall(head(1000) + bytes(10))
        answer, spent = until_closed(client)
    status, body = parts(answer)
    assert (status, json.loads(body)) == (408, {"error": "body: must arrive within 0.4 seconds"})
    assert 0.3 < spent < 3


def test_an_idle_connection_is_closed(address: str) -> None:
    with connect(address) as client:
        client.sendall(head(None, path="/health", method="GET"))
        answer, spent = until_closed(client)
    assert parts(answer)[0] == 200
    assert 1 < spent < 8


@pytest.mark.parametrize("pipelined", [1, 50])
def test_a_client_that_reads_no_answers_is_dropped(pipelined: int) -> None:
    """Answers of 16 MB, which no buffer of the network takes whole; the server gives them up."""
    names = tuple(letter * 4_000_000 for letter in "abcd")
    with serving(served(classes=names), wire=WIRE) as at, connect(at) as client:
        client.sendall(head(None, path="/metadata", method="GET") * pipelined)
        time.sleep(2 * WIRE.send_seconds)
        found, spent = until_closed(client)
        assert found.startswith(b"HTTP/1.1 200 OK")
        assert len(found) < 16_000_000, "cut off in the middle"
        assert spent < 5
        assert len(httpx.get(f"{at}/metadata").content) > 16_000_000, "who reads it gets it"


def test_an_oversized_body_is_refused_before_it_is_read(address: str) -> None:
    with connect(address) as client:
        client.sendall(head(10**12) + bytes(1000))
        answer, spent = until_closed(client)
    status, body = parts(answer)
    assert (status, json.loads(body)) == (413, {"error": "body: must be at most 20000 bytes"})
    assert spent < 2
    with connect(address) as client:
        client.sendall(head(30_000, "Expect: 100-continue"))
        assert parts(until_closed(client)[0])[0] == 413, "and not 100: go on"


def test_an_endless_body_is_refused_while_it_comes(address: str) -> None:
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    with connect(address) as client:
        client.sendall(head(None, "Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 2**30:
                client.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
        assert sent < 2**24


def test_a_body_where_none_is_read_ends_the_connection(address: str) -> None:
    """Else a client could send to /health for ever."""
    with connect(address) as client:
        client.sendall(head(10**12, path="/health"))
        assert parts(until_closed(client)[0])[0] == 405
        began = time.monotonic()
    with connect(address) as client:
        client.sendall(head(10**12, path="/health", method="GET"))
        answer, spent = until_closed(client)
    assert parts(answer)[0] == 200
    assert max(spent, time.monotonic() - began) < WIRE.idle_seconds - 0.2


RUDE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "a head without end": b"GET /health HTTP/1.1\r\nX: " + b"y" * 10**6,
    "two lengths": head(3, "Content-Length: 4") + b"abcd",
    "a negative length": head(-5),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "bad chunks": head(None, "Transfer-Encoding: chunked") + b"zz\r\n",
    "a line in a header": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
    "websocket": head(None, "Connection: Upgrade, close", "Upgrade: websocket", path="/predict", method="GET"),
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", RUDE)
def test_rude_bytes_get_no_traceback(name: str, address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), connect(address) as client:
        with suppress(OSError):
            client.sendall(RUDE[name])
        answer, spent = until_closed(client)
    assert spent < 5
    assert b"Traceback" not in answer
    if answer:
        assert 400 <= parts(answer)[0] < 500
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_leaves_in_the_middle_leaves_no_trace(address: str, caplog: pytest.LogCaptureFixture) -> None:
    body = npy(images(1))
    with caplog.at_level(logging.DEBUG):
        for cut in (40, 150, 250, len(body)):
            with connect(address) as client:
                client.sendall((head(len(body)) + body)[: len(head(len(body))) + cut])
        time.sleep(0.1)
        assert_well(address)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_more_connections_than_allowed_are_told_so(address: str) -> None:
    clients = [connect(address) for _ in range(WIRE.connections + 20)]
    try:
        time.sleep(0.05)
        answers = [until_closed(client)[0] for client in clients]
    finally:
        for client in clients:
            client.close()
    told = [parts(answer) for answer in answers if answer]
    assert 15 <= len(told) <= 25
    for status, body in told:
        assert (status, json.loads(body)) == (503, {"error": "server: has too many connections, try again"})


def test_many_requests_on_one_connection(address: str) -> None:
    """Sent all at once, answered in their order."""
    bodies = [npy(images(1, seed)) for seed in range(50)]
    with connect(address) as client:
        client.sendall(b"".join(head(len(body), "Accept: application/x-npy") + body for body in bodies))
        stream = client.makefile("rb")
        for seed in range(50):
            assert b" 200 " in stream.readline()
            length = 0
            while (line := stream.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            found = np.load(io.BytesIO(stream.read(length)))
            assert np.abs(found - expected(images(1, seed))).max() < 1e-5


def post(at: str, body: bytes) -> tuple[int, bytes, str | None]:
    """Status, body and Retry-After of one request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(at).netloc, timeout=20)
    try:
        connection.request("POST", "/predict", body, NPY)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Retry-After")
    finally:
        connection.close()


def _patient(at: str, seed: int, tries: list[int]) -> bool:
    """One client that asks until it is answered; whether its answer was its own."""
    sent = images(1 + seed % 3, seed)
    for _ in range(200):
        status, body, retry = post(at, npy(sent))
        tries.append(status)
        if status != 503:
            return bool(np.abs(from_npy(body) - expected(sent)).max() < 1e-5)
        assert retry == "1"
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("waiting", "refusals"), [(512, 0), (10, 1)])
def test_200_clients_at_once_and_none_is_lost(waiting: int, refusals: int) -> None:
    class Slow(Linear):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.01)
            return super().forward(x)

    module, tries = Slow(), list[int]()
    with serving(served(module), Limits(batch_size=16, waiting=waiting)) as at, ThreadPoolExecutor(200) as pool:
        began = threading.Barrier(200)

        def client(seed: int) -> bool:
            began.wait()
            return _patient(at, seed, tries)

        assert all(pool.map(client, range(200)))
        health = httpx.get(f"{at}/health").json()
    assert set(tries) == ({200, 503} if refusals else {200})
    assert tries.count(200) == 200
    assert health["queries"] == sum(module.calls) == sum(1 + seed % 3 for seed in range(200))
    assert 0.01 * len(module.calls) <= health["busy_seconds"] < health["up_seconds"]
    assert len(module.calls) < 150, "requests are gathered"


def test_stopping_answers_what_is_in_work() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hook(x: Tensor) -> None:
        entered.set()
        assert leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with serving(served(Linear(hook)), Limits(wait_seconds=0)) as at:
            answer = pool.submit(httpx.post, f"{at}/predict", content=npy(images(1)), headers=NPY, timeout=20)
            assert entered.wait(10)
            threading.Timer(0.3, leave.set).start()
        assert np.abs(from_npy(answer.result().content) - expected(images(1))).max() < 1e-5
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{at}/health")


def test_where_it_listens() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.5.5.5", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "", "192.0.2.1")] == [False] * 4
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert url(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=rf"must be free to listen at, got '127.0.0.1', {port} \(Address already"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match="must be a name or an address of this machine, got 'no such host'"):
        is_loopback("no such host")
    with pytest.raises(InputError, match=r"port: must be in 0..65535, got 70000"):
        bind("127.0.0.1", 70_000)
