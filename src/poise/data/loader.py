"""Batches for training: read ahead by a few threads, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from mmap import ACCESS_COPY, mmap

import torch
from torch import Tensor

from poise.data.arrays import Rows
from poise.data.dataset import Dataset
from poise.errors import InputError
from poise.rng import Rng

Batch = tuple[Tensor, Tensor, Tensor]
Positions = Sequence[int] | Rows | Tensor

THREADS = "poise-loader"
"""Prefix of the names of the threads that read."""

_AT_ONCE = 2**22
"""Bytes of images that a thread holds beside the batch it writes to."""

_OWN_PAGES = 2**20
"""Bytes from which a batch gets memory pages of its own."""


@dataclass(frozen=True, eq=False, slots=True)
class Loader:
    """Streams batches of a data set in the given order, reading ahead.

    At most `prefetch` batches are held beyond the one that is handed out, however large the set. Every iteration has
    its own threads; they end with it, also where it is left early (break, an exception, Ctrl-C).

    Args:
        data: the set.
        batches: the positions 0..n-1 of each batch, a list or an iterator (which can be gone through once).
        workers: threads that read, each a share of the batch; 0 reads when a batch is asked for, without threads.
            Decoding large files runs in parallel; reading files of a few pixels is Python's own work, where one thread,
            beside the training step, does as much as several.
        prefetch: batches that are read ahead, at least 1.
        pin_memory: page-locked images, which go to a CUDA device faster.

    Yields:
        images (b, C, H, W) float32 in [0, 1], labels (b,) int64, ids (b,) int64. What reading a batch raises is raised
        when that batch is due.

    Raises:
        InputError: for a negative number of workers, no batch ahead, or page-locked memory without CUDA.

    >>> import numpy as np
    >>> from poise.data.dataset import from_arrays
    >>> data = from_arrays(np.zeros((3, 4, 4), dtype=np.uint8), np.array([0, 1, 1]))
    >>> [(tuple(images.shape), ids.tolist()) for images, labels, ids in Loader(data, [[2, 0], [1]])]
    [((2, 1, 4, 4), [2, 0]), ((1, 1, 4, 4), [1])]
    """

    data: Dataset
    batches: Iterable[Positions]
    workers: int = 2
    prefetch: int = 2
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"Loader: workers must be at least 0, got {self.workers}")
        if self.prefetch < 1:
            raise InputError(f"Loader: prefetch must be at least 1, got {self.prefetch}")
        if self.pin_memory and not torch.cuda.is_available():
            raise InputError("Loader: pin_memory=True needs a CUDA device, got none")

    def __iter__(self) -> Iterator[Batch]:
        return self._ahead() if self.workers else self._plain()

    def _plain(self) -> Iterator[Batch]:
        for positions in self.batches:
            part = self.data.select(positions)
            images = self._room(part)
            _read(part, images)
            yield images, part.labels, part.ids

    def _ahead(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix=THREADS)
        started: deque[_Started] = deque()
        try:
            for positions in self.batches:
                started.append(self._start(pool, positions))
                if len(started) > self.prefetch:
                    yield started.popleft().finish()
            while started:
                yield started.popleft().finish()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, positions: Positions) -> _Started:
        """Begins to read a batch: every thread gets an equal share of it."""
        try:
            part = self.data.select(positions)
        except InputError as error:  # raised when this batch is due, after those before it
            failed: Future[None] = Future()
            failed.set_exception(error)
            nothing = self.data[:0]
            return _Started(torch.empty(0), nothing.labels, nothing.ids, (failed,))
        images = self._room(part)
        cuts = [len(part) * i // self.workers for i in range(self.workers + 1)]
        shares = [(start, stop) for start, stop in pairwise(cuts) if stop > start]
        reading = tuple(pool.submit(_read, part[start:stop], images[start:stop]) for start, stop in shares)
        return _Started(images, part.labels, part.ids, reading)

    def _room(self, part: Dataset) -> Tensor:
        """(b, C, H, W) float32, to be written: a large batch gets memory pages of its own.

        They go back to the system with the batch, while malloc keeps what large blocks of several threads leave
        behind: streaming 1,200 photographs of 224 x 224 in batches of 32 held up to 18 batches' worth, now three.
        """
        shape = (len(part), *part.shape)
        if self.pin_memory or 4 * prod(shape) < _OWN_PAGES:
            return torch.empty(shape, pin_memory=self.pin_memory)
        return torch.frombuffer(mmap(-1, 4 * prod(shape), access=ACCESS_COPY), dtype=torch.float32).view(shape)


@dataclass(frozen=True, eq=False, slots=True)
class _Started:
    """A batch whose images are being written by the threads."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    reading: tuple[Future[None], ...]

    def finish(self) -> Batch:
        """Waits for the images; raises what reading them raised."""
        for share in self.reading:
            share.result()
        return self.images, self.labels, self.ids


def _read(part: Dataset, into: Tensor) -> None:
    step = max(1, _AT_ONCE // (4 * prod(part.shape)))
    for start in range(0, len(part), step):
        into[start : start + step] = part[start : start + step].images


def epoch_length(n: int, batch_size: int, *, world: int = 1) -> int:
    """How many batches `epoch_batches` gives every process in a whole epoch.

    >>> epoch_length(10, 4), epoch_length(9, 4, world=2)
    (3, 2)
    """
    _check_sizes(n, batch_size, world)
    return n // batch_size + (n % batch_size >= world)


def epoch_batches(
    n: int, batch_size: int, *, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """The batches of one epoch: every position once, in an order that is a function of (seed, epoch).

    A global batch is the next `batch_size` positions of the order; process `rank` of `world` takes every world-th of
    them from `rank` on. The last, smaller batch is cut to a multiple of `world`, so that all processes have equally
    many rows and steps (one process keeps it whole).

    Args:
        n: number of samples, at least 1.
        batch_size: of a global batch, a multiple of `world`.
        seed, epoch: choose the order.
        start: global batches to leave out first, to go on inside an epoch.
        rank, world: which process of how many.

    Yields:
        (b,) int64 positions in 0..n-1, b = batch_size / world save in the last batch.

    Raises:
        InputError: for sizes that do not fit.

    >>> [batch.tolist() for batch in epoch_batches(5, 2, seed=0, epoch=0)]
    [[2, 3], [0, 4], [1]]
    >>> [batch.tolist() for batch in epoch_batches(5, 2, seed=0, epoch=0, start=1)]
    [[0, 4], [1]]
    """
    length = epoch_length(n, batch_size, world=world)
    if not 0 <= rank < world:
        raise InputError(f"epoch_batches: rank must be in 0..{world - 1}, got {rank}")
    if start < 0 or epoch < 0:
        raise InputError(f"epoch_batches: start and epoch must be at least 0, got start={start}, epoch={epoch}")
    positions = torch.arange(n)
    order = Rng(seed, positions).bits("epoch-order", epoch, positions, ()).argsort(stable=True)
    return _shares(order[: n - n % world], batch_size, range(start, length), rank, world)


def _shares(order: Tensor, batch_size: int, batches: range, rank: int, world: int) -> Iterator[Tensor]:
    for batch in batches:
        yield order[batch * batch_size : (batch + 1) * batch_size][rank::world]


def _check_sizes(n: int, batch_size: int, world: int) -> None:
    if n < 1:
        raise InputError(f"epoch_batches: n must be at least 1, got {n}")
    if world < 1 or batch_size < 1 or batch_size % world:
        raise InputError(
            f"epoch_batches: batch_size must be a positive multiple of world, got {batch_size} with world={world}"
        )
