"""`poise serve` under clients that misbehave: does it stay up, answer in one line, and give its memory back?

    python benchmarks/serve_load.py [--clients 200] [--rounds 5] [--json results/serve_load.json]

A server of the embedded digits runs in a process of its own. Before and after each kind of abuse it must answer an
image as it did at first; resident memory is read from /proc. Throughput is that of good clients alone, as a share of
what the same model answers in this process without HTTP, in the same batches.
Exit code 1 where the server dies, an answer holds a traceback or an error is not one line of JSON, a good client gets
another answer than the model's, or memory after all rounds is more than 64 MiB above what it was after the second:
until then it grows to what the server's limits allow.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from poise import data, models

MIB = 2**20
ROOM = 64
"""MiB that the server may hold more after all rounds than after the second."""


@dataclass
class Server:
    """A server in a process of its own, and all that was seen of its answers."""

    process: subprocess.Popen[str]
    place: tuple[str, int]
    statuses: Counter[str] = field(default_factory=Counter)
    tracebacks: int = 0
    unclear: list[str] = field(default_factory=list)

    def connect(self, seconds: float = 30.0) -> socket.socket:
        return socket.create_connection(self.place, timeout=seconds)

    def mib(self) -> float:
        """Resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    def note(self, answer: bytes) -> str:
        """Keeps what a client got: its status, and whether an error is one line of JSON."""
        head, _, body = answer.partition(b"\r\n\r\n")
        body = body[: _length(head)]  # another answer may follow
        status = head.split(b" ", 2)[1].decode("ascii", "replace") if head.startswith(b"HTTP/1.1 ") else "closed"
        self.statuses[status] += 1
        self.tracebacks += b"Traceback" in answer or b'File "' in answer
        if status.startswith(("4", "5")) and not _one_line(body, head):
            self.unclear.append(f"{status}: {answer[:200]!r}")
        return status


def _length(head: bytes) -> int:
    """What Content-Length says."""
    sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(sizes[0]) if sizes else 0


def _one_line(body: bytes, head: bytes) -> bool:
    if b"application/json" not in head.lower():  # h11 answers a request that is no HTTP by itself, in plain text
        return len(body.splitlines()) <= 1 and len(body) < 200
    with suppress(ValueError):
        told = json.loads(body)
        return set(told) == {"error"} and len(told["error"].splitlines()) == 1
    return False


@contextmanager
def serving(*words: str) -> Iterator[Server]:
    """`poise serve` of the embedded digits at a free port."""
    command = [str(Path(sys.executable).parent / "poise"), "serve", "--port", "0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("address"))
        parts = urlsplit(line.split()[1])
        assert parts.hostname is not None
        assert parts.port is not None
        yield Server(process, (parts.hostname, parts.port))
    finally:
        process.terminate()
        process.communicate(timeout=60)


def request(body: bytes, *more: str, kind: str = "application/x-npy", length: int | None = None) -> bytes:
    """A POST /predict."""
    size = len(body) if length is None else length
    lines = ["POST /predict HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {size}", *more]
    return "\r\n".join([*lines, "", ""]).encode("latin1") + body


def read_answer(client: socket.socket) -> bytes:
    """One answer, by its length; what there is where the server closes."""
    found = b""
    with suppress(OSError):
        while b"\r\n\r\n" not in found and (part := client.recv(2**16)):
            found += part
        head, _, body = found.partition(b"\r\n\r\n")
        left = _length(head) - len(body)
        while left > 0 and (part := client.recv(2**16)):
            found, left = found + part, left - len(part)
    return found


def send(server: Server, content: bytes) -> str:
    """Sends and notes the answer; a server may close before all is sent."""
    with server.connect() as client:
        with suppress(OSError):
            client.sendall(content)
        return server.note(read_answer(client))


def read_rest(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    with suppress(OSError):
        while part := client.recv(2**16):
            found += part
    return found


def npy(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, images)
    return stream.getvalue()


IMAGES = data.load("builtin:digits", samples=64).images.numpy()
ONE = npy(IMAGES[:1])


# what clients do to it


def oversized(server: Server, number: int) -> None:
    """A body of 40 MB, or one that says it is a terabyte."""
    if number % 4:
        send(server, request(b"", length=2**40))
    else:
        send(server, request(bytes(40_000_000)))


def chunked(server: Server, number: int) -> None:
    """A body in chunks that never ends."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as client:
        with suppress(OSError):
            client.sendall(head)
            for _ in range(500):
                client.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
        server.note(read_answer(client))


def slow_loris(server: Server, number: int) -> None:
    """A head, or a body, byte by byte; the server must end it."""
    content, at = (request(ONE), 0) if number % 2 else (request(b"x" * 100), 110)
    with server.connect() as client, suppress(OSError):
        client.sendall(content[:at])
        client.settimeout(0.3)
        began = time.monotonic()
        while time.monotonic() - began < 20:
            client.sendall(content[at : at + 1])
            at = min(at + 1, len(content) - 2)
            with suppress(TimeoutError):
                first = client.recv(2**16)
                client.settimeout(5)
                server.note(first + (read_rest(client) if first else b""))
                return
    server.statuses["closed"] += 1


def wrong_types(server: Server, number: int) -> None:
    """Content types and encodings that are not served, and bodies that are not what they say."""
    kinds = (
        "text/html",
        "",
        "application/x-npy; charset=x",
        "x" * 5000,
        "multipart/form-data",
        "image/png",
        "application/json",
    )
    bodies = (ONE, b"", b"[" * 10_000, b"\x89PNG\r\n\x1a\n" + bytes(100), b'{"images": NaN}', os.urandom(1000))
    extra = ("Content-Encoding: gzip",) if number % 5 == 0 else ()
    send(server, request(bodies[number % len(bodies)], *extra, kind=kinds[number % len(kinds)]))


def garbage(server: Server, number: int) -> None:
    """What is no HTTP."""
    rng = random.Random(number)
    contents = (
        rng.randbytes(2000), b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 5000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00" + rng.randbytes(500),
        b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )  # fmt: skip
    send(server, contents[number % len(contents)])


def keep_alive(server: Server, number: int) -> None:
    """Two hundred requests on one connection, ten at a time without reading."""
    with server.connect() as client, suppress(OSError):
        for _ in range(20):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            for _ in range(10):
                answer = read_answer_of(client)
                server.note(answer)
                if not answer:
                    return


def read_answer_of(client: socket.socket) -> bytes:
    """One of several answers on their way: byte by byte up to its body."""
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        part = client.recv(1)
        if not part:
            return found
        found += part
    size = _length(found)
    while size > 0:
        part = client.recv(size)
        found, size = found + part, size - len(part)
    return found


def half_closed(server: Server, number: int) -> None:
    """A client that ends its side at once, or goes without reading."""
    with server.connect() as client:
        content = request(ONE)
        client.sendall(content if number % 3 else content[: len(content) // 2])
        if number % 2:
            return
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        server.note(read_answer(client))


def idle(server: Server, number: int) -> None:
    """A connection on which nothing comes."""
    with server.connect() as client, suppress(OSError):
        client.settimeout(20)
        server.note(client.recv(2**16))


ABUSES: dict[str, Callable[[Server, int], None]] = {
    "oversized bodies": oversized,
    "endless chunks": chunked,
    "slow clients": slow_loris,
    "wrong content types": wrong_types,
    "garbage": garbage,
    "keep-alive abuse": keep_alive,
    "half-closed connections": half_closed,
    "idle connections": idle,
}


# what good clients get


def good(server: Server, count: int) -> int:
    """So many requests on one connection; how many answers were the model's."""
    right, before = 0, np.asarray(server_expected())
    with server.connect() as client:
        for _ in range(count):
            client.sendall(request(ONE, "Accept: application/x-npy"))
            answer = read_answer(client)
            if server.note(answer) == "200":
                scores = np.load(io.BytesIO(answer.partition(b"\r\n\r\n")[2]), allow_pickle=False)
                right += bool(np.abs(scores - before).max() < 1e-3)
    return right


_expected: list[np.ndarray] = []


def server_expected() -> np.ndarray:
    """What the model answers to the one image."""
    if not _expected:
        target = models.load("builtin:digits")
        _expected.append(target.query(torch.from_numpy(IMAGES[:1]), torch.arange(1)).scores.detach().numpy())
    return _expected[0]


def in_parallel(server: Server, clients: int, requests: int) -> dict[str, Any]:
    """Good clients at the same time."""
    server_expected()
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        right = sum(pool.map(lambda _: good(server, requests), range(clients)))
    seconds = time.perf_counter() - began
    return {
        "clients": clients,
        "requests": clients * requests,
        "right": right,
        "per_second": clients * requests / seconds,
    }


def directly(requests: int) -> float:
    """Images per second of the model in this process, one by one."""
    target = models.load("builtin:digits")
    image, ids = torch.from_numpy(IMAGES[:1]), torch.arange(1)
    began = time.perf_counter()
    for _ in range(requests):
        target.query(image, ids)
    return requests / (time.perf_counter() - began)


def abused(server: Server, name: str, clients: int) -> dict[str, Any]:
    """One kind of abuse by so many clients at a time, and whether good clients are served right after it."""
    before, seen, began = server.mib(), server.statuses.copy(), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda number: ABUSES[name](server, number), range(clients)))
    return {
        "abuse": name, "clients": clients, "seconds": round(time.perf_counter() - began, 1),
        "statuses": dict(sorted((server.statuses - seen).items())), "mib_before": round(before, 1),
        "mib_after": round(server.mib(), 1), "well_after": good(server, 3) == 3, "alive": server.process.poll() is None,
    }  # fmt: skip


def measure(server: Server, clients: int, rounds: int, requests: int) -> dict[str, Any]:
    """All kinds of abuse, several times over."""
    first = in_parallel(server, 8, requests)
    memory, rows = [], []
    for _ in range(rounds):
        rows += [abused(server, name, clients) for name in ABUSES]
        memory.append(round(server.mib(), 1))
    many = in_parallel(server, clients, requests)
    alone = directly(500)
    return {
        "abuses": rows, "memory_after_round": memory, "good": [first, many],
        "direct_per_second": alone, "share_of_direct": [each["per_second"] / alone for each in (first, many)],
        "tracebacks": server.tracebacks, "unclear": server.unclear[:5], "statuses": dict(server.statuses),
        "crashes": int(server.process.poll() is not None),
    }  # fmt: skip


def failures(found: dict[str, Any]) -> list[str]:
    """What is not as promised."""
    wrong = [
        f"{row['abuse']}: not well afterwards" for row in found["abuses"] if not (row["well_after"] and row["alive"])
    ]
    wrong += [f"{each['clients']} clients: {each}" for each in found["good"] if each["right"] != each["requests"]]
    wrong += [f"{found['tracebacks']} tracebacks"] * bool(found["tracebacks"]) + found["unclear"]
    grown = found["memory_after_round"][-1] - found["memory_after_round"][:2][-1]
    return wrong + [f"memory grew by {grown:.0f} MiB"] * (grown > ROOM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20, help="of each good client")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with serving() as server:
        found = measure(server, given.clients, given.rounds, given.requests)
    for row in found["abuses"][-len(ABUSES) :]:
        held = f"{row['mib_before']} → {row['mib_after']} MiB"
        print(f"{row['abuse']:26} {row['seconds']:6.1f} s, {row['statuses']}, {held}")
    print(f"memory after each round: {found['memory_after_round']} MiB; {found['tracebacks']} tracebacks")
    for each, share in zip(found["good"], found["share_of_direct"], strict=True):
        print(f"{each['clients']} good clients: {each['right']}/{each['requests']} right, {share:.2f} of direct calls")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wrong = failures(found)
    print(*(f"FAILED {line}" for line in wrong), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
