"""Concurrent requests in one model call: gathered, answered in a thread of their own, split again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from poise.serve.limits import Limits, Refusal
from poise.serve.model import Array


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One request's images (m, C, H, W), where its scores go, and when it came."""

    images: Tensor
    scores: asyncio.Future[Array]
    arrived: float


class Batcher:
    """Gathers images of several requests into one call of the model; open inside `async with`.

    A batch is closed when it is full, when the next request's images have another shape or do not fit, or when its
    first request has waited `wait_seconds`; what arrives while the model computes makes up the next batch, at once.
    Requests are answered in their order. Where the model fails on a batch, each of its requests is tried alone, so
    that a bad one takes no other with it.

    The rows of a batch may differ in the last bits with its size, because kernels add in another order then.

    Args:
        answer: images (m, C, H, W) to scores (m, K); called in one thread, never twice at a time.
        limits: `batch_size`, `wait_seconds` and `waiting`.

    Attributes:
        points: images answered so far.

    >>> async def two() -> list[list[float]]:
    ...     async with Batcher(lambda images: images.flatten(1).numpy(), Limits()) as batcher:
    ...         found = await asyncio.gather(*(batcher.submit(torch.full((1, 1, 1, 2), x)) for x in (0.25, 0.5)))
    ...         return [scores.tolist() for scores in found]
    >>> asyncio.run(two())
    [[[0.25, 0.25]], [[0.5, 0.5]]]
    """

    def __init__(self, answer: Callable[[Tensor], Array], limits: Limits) -> None:
        self._answer, self._limits = answer, limits
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._clock = (0.0, 0.0)  # seconds of past calls, start of the running one; one tuple, read from another thread
        self.points = 0

    @property
    def busy_seconds(self) -> float:
        """How long the model has been computing, the call that runs now included."""
        past, since = self._clock
        return past + (time.perf_counter() - since if since else 0.0)

    def check_room(self) -> None:
        """Raises `Refusal` 503 where too many requests wait."""
        if len(self._jobs) >= self._limits.waiting:
            raise Refusal(503, f"server: {len(self._jobs)} requests wait already, try again")

    async def submit(self, images: Tensor) -> Array:
        """Scores (m, K) of images (m, C, H, W), 1 <= m <= batch_size; raises what the model raised on them."""
        self.check_room()
        loop = asyncio.get_running_loop()
        job = _Job(images, loop.create_future(), loop.time())
        self._jobs.append(job)
        self._arrived.set()
        return await job.scores

    async def __aenter__(self) -> Batcher:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="poise-model")
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        for job in self._jobs:
            _fail(job, Refusal(503, "server: is stopping", close=True))
        self._jobs.clear()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._gather()
            batch = self._next()
            try:
                await self._compute(batch)
            finally:  # cancelled in the middle of a batch
                for job in batch:
                    _fail(job, Refusal(503, "server: is stopping", close=True))

    async def _gather(self) -> None:
        """Returns when a batch is due."""
        loop = asyncio.get_running_loop()
        while not self._jobs:
            await self._arrival()
        due = self._jobs[0].arrived + self._limits.wait_seconds
        while loop.time() < due and sum(len(job.images) for job in self._jobs) < self._limits.batch_size:
            try:
                async with asyncio.timeout_at(due):
                    await self._arrival()
            except TimeoutError:
                return

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _next(self) -> list[_Job]:
        """The first requests that make one batch."""
        batch = [self._jobs.popleft()]
        points = len(batch[0].images)
        while self._jobs and self._jobs[0].images.shape[1:] == batch[0].images.shape[1:]:
            points += len(self._jobs[0].images)
            if points > self._limits.batch_size:
                break
            batch.append(self._jobs.popleft())
        return batch

    async def _compute(self, batch: list[_Job]) -> None:
        try:
            images = batch[0].images if len(batch) == 1 else torch.cat([job.images for job in batch])
            scores = await asyncio.get_running_loop().run_in_executor(self._worker, self._timed, images)
        except Exception as error:  # the model may raise anything
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for job in batch:
                await self._compute([job])
            return
        self.points += len(images)
        start = 0
        for job in batch:
            if not job.scores.done():
                job.scores.set_result(scores[start : start + len(job.images)])
            start += len(job.images)

    def _timed(self, images: Tensor) -> Array:
        past, since = self._clock[0], time.perf_counter()
        self._clock = (past, since)
        try:
            return self._answer(images)
        finally:
            self._clock = (past + time.perf_counter() - since, 0.0)


def _fail(job: _Job, error: Exception) -> None:
    if not job.scores.done():
        job.scores.set_exception(error)
