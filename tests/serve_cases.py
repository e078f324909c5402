"""What the tests of the server share: small models, bodies, the application without a network, a server in a thread."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
import torch
from fastapi import FastAPI
from torch import Tensor, nn

from poise import ModuleTarget
from poise.serve import Limits, ServedModel, Wire, bind, create_app, url
from poise.serve.server import make_server
from poise.types import OutputKind

T = TypeVar("T")

SHAPE, CLASSES = (3, 4, 5), 4

NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}


class Linear(nn.Module):
    """Logits of (n, 3, 4, 5) images that records how many images each call saw; `hook` may wait or raise."""

    def __init__(self, hook: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(60, CLASSES, generator=torch.Generator().manual_seed(3)))
        self.calls: list[int] = []
        self.hook = hook

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        if self.hook is not None:
            self.hook(x)
        return (x - 0.5).flatten(1) @ self.weight


def served(module: nn.Module | None = None, **options: Any) -> ServedModel:
    """A model of four classes, for images (3, 4, 5)."""
    target = ModuleTarget(module or Linear(), num_classes=CLASSES, batch_size=10_000)
    return ServedModel(target, "toy", **{"shape": SHAPE, **options})


def images(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random((n, *shape), dtype=np.float32)


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def from_npy(body: bytes) -> np.ndarray:
    return np.load(io.BytesIO(body), allow_pickle=False)


def png(width: int, height: int, colour: int = 2, depth: int = 8, data: bytes | None = None) -> bytes:
    """A PNG image made by hand; black unless its rows are given, each with its filter byte first."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = bytes((1 + width * channels * depth // 8) * height) if data is None else data

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    body = chunk(b"IHDR", head) + palette + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def expected(array: np.ndarray, kind: OutputKind = OutputKind.LOGITS) -> np.ndarray:
    """What the toy answers, from its weights alone, in float64."""
    weight = Linear().weight.detach().double().numpy()
    logits = (array.astype(np.float64) - 0.5).reshape(len(array), -1) @ weight
    if kind is OutputKind.LOGITS:
        return logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def without_network(app: FastAPI, talk: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    """Talks to the application in this process, as one client of it."""

    async def conversation() -> T:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://toy") as client,
        ):
            return await talk(client)

    return asyncio.run(conversation())


def ask(app: FastAPI, body: bytes, headers: dict[str, str]) -> httpx.Response:
    """One POST /predict."""
    return without_network(app, lambda client: client.post("/predict", content=body, headers=headers))


@contextmanager
def serving(
    model: ServedModel | None = None, limits: Limits | None = None, wire: Wire | None = None, **options: Any
) -> Iterator[str]:
    """A server in a thread, at a port of its own; gives its address."""
    with bind("127.0.0.1", 0) as listening:
        server = make_server(create_app(model or served(), limits, **options), wire)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield url(listening)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive(), "the server does not stop"
