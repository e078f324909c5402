"""The batching queue: it gathers, keeps the order, splits back, and a bad request harms no other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.serve.batching import Batcher
from poise.serve.limits import Limits, Refusal

Shape = tuple[int, ...]


class Echo:
    """Answers an image with its first two values and records every call; waits for `gate` where one is given."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.calls: list[Shape] = []
        self.threads: set[str] = set()
        self.gate = gate

    def __call__(self, images: Tensor) -> np.ndarray:
        self.calls.append(tuple(images.shape))
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            assert self.gate.wait(10)
        if (images < 0).any():
            raise ValueError("negative")
        return images.flatten(1)[:, :2].numpy()


def point(value: float, n: int = 1, side: int = 2) -> Tensor:
    return torch.full((n, 1, 1, side), float(value))


def run(echo: Echo, limits: Limits, talk: Callable[[Batcher], Awaitable[None]]) -> None:
    async def conversation() -> None:
        async with Batcher(echo, limits) as batcher:
            await talk(batcher)

    asyncio.run(asyncio.wait_for(conversation(), 20))


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=30), batch_size=st.integers(7, 20))
def test_everyone_gets_their_own_answer_in_full_batches(sizes: list[int], batch_size: int) -> None:
    echo = Echo()

    async def talk(batcher: Batcher) -> None:
        found = await asyncio.gather(*(batcher.submit(point(at, n)) for at, n in enumerate(sizes)))
        for at, (n, scores) in enumerate(zip(sizes, found, strict=True)):
            assert scores.tolist() == [[at, at]] * n
        assert batcher.points == sum(sizes)

    run(echo, Limits(batch_size=batch_size), talk)
    calls = [call[0] for call in echo.calls]
    assert sum(calls) == sum(sizes)
    assert max(calls) <= batch_size
    assert calls == _first_fit(sizes, batch_size), "as many as fit, in order"
    assert len(echo.threads) == 1


def _first_fit(sizes: list[int], batch_size: int) -> list[int]:
    batches = [0]
    for size in sizes:
        if batches[-1] + size > batch_size:
            batches.append(0)
        batches[-1] += size
    return batches


def test_images_of_another_shape_make_another_batch() -> None:
    echo = Echo()

    async def talk(batcher: Batcher) -> None:
        sides = (2, 2, 3, 3, 2)
        found = await asyncio.gather(*(batcher.submit(point(at, side=side)) for at, side in enumerate(sides)))
        assert [scores[0, 0] for scores in found] == [0, 1, 2, 3, 4]

    run(echo, Limits(), talk)
    assert echo.calls == [(2, 1, 1, 2), (2, 1, 1, 3), (1, 1, 1, 2)]


def test_a_bad_request_spoils_no_neighbour() -> None:
    echo = Echo()

    async def talk(batcher: Batcher) -> None:
        values = [1, 2, -3, 4]
        found = await asyncio.gather(*(batcher.submit(point(v)) for v in values), return_exceptions=True)
        assert [type(f).__name__ for f in found] == ["ndarray", "ndarray", "ValueError", "ndarray"]
        assert [f[0, 0] for f in found if not isinstance(f, BaseException)] == [1, 2, 4]
        assert batcher.points == 3
        assert (await batcher.submit(point(5))).tolist() == [[5, 5]], "and the queue goes on"

    run(echo, Limits(), talk)
    assert [call[0] for call in echo.calls] == [4, 1, 1, 1, 1, 1]


def test_what_arrives_while_the_model_computes_is_the_next_batch() -> None:
    gate = threading.Event()
    echo = Echo(gate)

    async def talk(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.submit(point(0)))
        while not echo.calls:
            await asyncio.sleep(0.001)
        rest = asyncio.gather(*(batcher.submit(point(v)) for v in range(1, 9)))
        await asyncio.sleep(0)
        gate.set()
        await first
        await rest

    run(echo, Limits(wait_seconds=0), talk)
    assert [call[0] for call in echo.calls] == [1, 8]


def test_a_lone_request_waits_no_longer_than_it_must() -> None:
    async def timed(batcher: Batcher) -> None:
        began = time.monotonic()
        await batcher.submit(point(1))
        spent.append(time.monotonic() - began)
        await asyncio.gather(batcher.submit(point(1, 5)), batcher.submit(point(2, 5)))
        spent.append(time.monotonic() - began - spent[0])

    for wait in (0.0, 0.8):
        spent: list[float] = []
        run(Echo(), Limits(batch_size=10, wait_seconds=wait), timed)
        assert wait <= spent[0]
        assert spent[0 if wait == 0 else 1] < 0.7, "nobody waits who need not; a full batch waits for nobody"


def test_too_many_waiting_requests_are_refused_and_none_is_lost() -> None:
    gate = threading.Event()

    async def talk(batcher: Batcher) -> None:
        waiting = [asyncio.ensure_future(batcher.submit(point(0)))]
        while not batcher.busy_seconds:
            await asyncio.sleep(0.001)
        waiting += [asyncio.ensure_future(batcher.submit(point(v))) for v in range(1, 5)]
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(Refusal, match="4 requests wait already") as caught:
                await batcher.submit(point(9))
            assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "1")
        gate.set()
        assert [scores[0, 0] for scores in await asyncio.gather(*waiting)] == [0, 1, 2, 3, 4]

    run(Echo(gate), Limits(waiting=4), talk)


def test_stopping_answers_everyone() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    waiting: list[asyncio.Future[np.ndarray]] = []

    async def talk(batcher: Batcher) -> None:
        waiting.append(asyncio.ensure_future(batcher.submit(point(0))))
        while not echo.calls:
            await asyncio.sleep(0.001)
        waiting.append(asyncio.ensure_future(batcher.submit(point(1))))
        await asyncio.sleep(0)

    async def conversation() -> list[object]:
        async with Batcher(echo, Limits()) as batcher:
            await talk(batcher)
        gate.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(conversation(), 20))
    assert [(type(f), f.status) for f in found if isinstance(f, Refusal)] == [(Refusal, 503)] * 2


def test_busy_seconds_are_those_of_the_model() -> None:
    class Slow(Echo):
        def __call__(self, images: Tensor) -> np.ndarray:
            time.sleep(0.1)
            assert 0.1 <= self.batcher.busy_seconds - self.before < 2, "the running call counts"
            return super().__call__(images)

    slow = Slow()

    async def talk(batcher: Batcher) -> None:
        slow.batcher = batcher
        for at in range(2):
            slow.before = batcher.busy_seconds
            assert 0.1 * at <= slow.before <= 2 * at
            await batcher.submit(point(1))
            await asyncio.sleep(0.05)
        assert 0.2 <= batcher.busy_seconds < 4

    run(slow, Limits(), talk)
