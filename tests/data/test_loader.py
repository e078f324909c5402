"""Reading ahead: the same batches as without threads, errors where they belong, no thread left, flat memory."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poise.data import Dataset, Loader, epoch_batches, epoch_length, from_arrays, load
from poise.data.loader import THREADS
from poise.errors import InputError


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert reading_threads() == []


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]


@dataclass(eq=False)
class Watched:
    """Images whose reading takes time, fails at one row, and is noted down."""

    n: int = 100
    seconds: float = 0.0
    bad: int = -1
    taken: list[int] = field(default_factory=list)
    shape: tuple[int, int, int] = (1, 2, 2)
    storage: str = "watched"

    def __len__(self) -> int:
        return self.n

    def take(self, rows: np.ndarray) -> torch.Tensor:
        if self.bad in rows:
            raise InputError(f"row {self.bad} cannot be read")
        time.sleep(self.seconds * len(rows))
        self.taken += rows.tolist()
        return torch.from_numpy(rows).float().view(-1, 1, 1, 1).expand(-1, *self.shape) / self.n

    def stored(self, rows: np.ndarray) -> bytes:
        return rows.tobytes()

    def dataset(self) -> Dataset:
        return Dataset("watched", ("a", "b"), self, np.arange(self.n) % 2, np.arange(self.n))


def batches_of(n: int, size: int) -> list[list[int]]:
    return [list(range(n))[::-1][start : start + size] for start in range(0, n, size)]


@pytest.mark.parametrize("workers", [0, 1, 3, 8])
@pytest.mark.parametrize("prefetch", [1, 4])
def test_the_batches_are_those_of_the_set(workers: int, prefetch: int) -> None:
    data = from_arrays(np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8), np.arange(30) % 7)
    data = data[3:]
    given = [[26, 0, 3], torch.tensor([5]), np.array([1, 2]), [], list(range(20))]
    found = list(Loader(data, given, workers=workers, prefetch=prefetch))
    assert len(found) == len(given)
    for (images, labels, ids), positions in zip(found, given, strict=True):
        part = data.select(positions)
        assert torch.equal(images, part.images)
        assert torch.equal(labels, part.labels)
        assert torch.equal(ids, part.ids)
    assert list(Loader(data, [], workers=workers)) == []


def test_a_loader_with_a_list_can_be_gone_through_again() -> None:
    loader = Loader(Watched().dataset(), batches_of(100, 30))
    first, second = ([ids.tolist() for _, _, ids in loader] for _ in range(2))
    assert first == second == batches_of(100, 30)


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_no_more_is_read_than_was_allowed(prefetch: int) -> None:
    source = Watched()
    stream = iter(Loader(source.dataset(), (batch for batch in batches_of(100, 5)), workers=2, prefetch=prefetch))
    for i in range(10):
        next(stream)
        time.sleep(0.01)
        assert len(source.taken) <= 5 * (i + 1 + prefetch)
    assert len(source.taken) >= 5 * (10 + min(prefetch, 1))  # it does read ahead
    del stream


def test_without_threads_a_batch_is_read_when_it_is_asked_for() -> None:
    source = Watched()
    stream = iter(Loader(source.dataset(), batches_of(100, 5), workers=0))
    assert source.taken == []
    next(stream)
    assert source.taken == [99, 98, 97, 96, 95]
    assert reading_threads() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_arrives_with_its_batch(workers: int) -> None:
    seen: list[list[int]] = []
    with pytest.raises(InputError, match=r"^row 42 cannot be read$"):
        note(Loader(Watched(bad=42).dataset(), batches_of(100, 10), workers=workers, prefetch=4), seen)
    assert seen == batches_of(100, 10)[:5]
    assert reading_threads() == []
    seen = []
    with pytest.raises(InputError, match=r"positions must be in 0\.\.99, got 100\.\.100"):
        note(Loader(Watched().dataset(), [[1], [2], [100], [3]], workers=workers), seen)
    assert seen == [[1], [2]]


def note(loader: Loader, seen: list[list[int]]) -> None:
    """Goes through a loader and notes the ids of every batch down."""
    for _, _, ids in loader:
        seen.append(ids.tolist())


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt(loader: Loader) -> None:
    for _ in loader:
        raise Interrupted


@pytest.mark.parametrize("workers", [1, 4])
def test_leaving_early_leaves_no_thread(workers: int) -> None:
    source = Watched(seconds=0.001)
    for _ in Loader(source.dataset(), batches_of(100, 5), workers=workers):
        assert reading_threads()
        break
    assert reading_threads() == []
    with pytest.raises(Interrupted):
        interrupt(Loader(source.dataset(), batches_of(100, 5), workers=workers))
    assert reading_threads() == []
    assert len(source.taken) < 2 * 5 * 5  # what had not begun was called off
    stream = iter(Loader(source.dataset(), batches_of(100, 5), workers=workers))
    next(stream)
    assert reading_threads()  # the broken twin: a stream that is held open is seen
    stream.close()


def test_an_interrupt_while_waiting_leaves_no_thread() -> None:
    """Ctrl-C in the main thread while it waits for the first batch."""
    source = Watched(seconds=0.05)
    stream = iter(Loader(source.dataset(), batches_of(100, 20), workers=2))
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert reading_threads() == []


def test_reading_in_parallel_and_ahead_is_faster() -> None:
    """Reading waits 2 ms per image, the consumer 20 ms per batch: 4 threads hide the one behind the other."""

    def seconds(workers: int) -> float:
        start = time.perf_counter()
        for _ in Loader(Watched(seconds=0.002).dataset(), batches_of(100, 10), workers=workers):
            time.sleep(0.02)
        return time.perf_counter() - start

    assert seconds(0) / seconds(4) > 1.4  # 400 ms against about 200 ms


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """240 names of one JPEG of 224 x 224 per class: 144 MB as float32."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        first = root / name / "000.jpg"
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(first, quality=75)
        for i in range(1, 120):
            os.link(first, root / name / f"{i:03d}.jpg")
    return root


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from Linux's /proc")
def test_memory_stays_flat(photographs: Path) -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    data = load(f"folder:{photographs}")
    list(Loader(data, batches_of(24, 8)))  # what is imported and cached once
    before = resident()
    growth = max(resident() - before for _ in Loader(data, epoch_batches(240, 8, seed=0, epoch=0), workers=2))
    assert growth < 48  # a batch is 4.6 MiB, at most four are alive
    held = list(Loader(data, batches_of(120, 8)))
    assert resident() - before > 60  # the broken twin: holding half of the set is seen
    del held


def test_files_are_decoded_as_without_threads(photographs: Path) -> None:
    data = load(f"folder:{photographs}?size=32&resize=40")
    order = list(epoch_batches(240, 64, seed=1, epoch=0))
    for threaded, plain in zip(Loader(data, order[:2], workers=3), Loader(data, order[:2], workers=0), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(threaded, plain, strict=True))


def test_a_damaged_file_is_named(photographs: Path, tmp_path: Path) -> None:
    for i in range(6):
        whole = (photographs / "cat" / "000.jpg").read_bytes()
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{i}.jpg").write_bytes(whole if i != 4 else whole[: len(whole) // 2])
    seen: list[list[int]] = []
    with pytest.raises(InputError, match=r"4\.jpg: must be a readable image"):
        note(Loader(load(f"folder:{tmp_path}"), [[0, 1], [2, 3], [4, 5]], workers=2), seen)
    assert seen == [[0, 1], [2, 3]]


def test_an_epoch_holds_every_position_once() -> None:
    for n, size in [(1, 1), (10, 4), (12, 4), (7, 100), (1000, 128)]:
        parts = list(epoch_batches(n, size, seed=3, epoch=2))
        assert sorted(torch.cat(parts).tolist()) == list(range(n))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert len(parts) == epoch_length(n, size) == -(-n // size)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, size: int = 10) -> list[int]:
        return torch.cat(list(epoch_batches(100, size, seed=seed, epoch=epoch))).tolist()

    assert order(0, 0) == order(0, 0) == order(0, 0, size=33)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    assert order(0, 0)[:5] == [91, 24, 89, 98, 49]  # fixed for good: resumed runs depend on it


def test_going_on_inside_an_epoch() -> None:
    whole = [part.tolist() for part in epoch_batches(50, 8, seed=0, epoch=4)]
    for start in (0, 1, 5, 6, 7, 100):
        assert [part.tolist() for part in epoch_batches(50, 8, seed=0, epoch=4, start=start)] == whole[start:]


@pytest.mark.parametrize(("n", "size", "world"), [(48, 8, 2), (50, 8, 4), (51, 8, 4), (49, 8, 4), (8, 8, 8), (3, 4, 4)])
def test_processes_share_every_batch(n: int, size: int, world: int) -> None:
    alone = list(epoch_batches(n, size, seed=1, epoch=1))
    shares = [list(epoch_batches(n, size, seed=1, epoch=1, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {epoch_length(n, size, world=world)}
    for g, parts in enumerate(zip(*shares, strict=True)):
        assert len({len(part) for part in parts}) == 1
        kept = len(alone[g]) // world * world
        assert torch.equal(torch.stack(parts, dim=1).flatten(), alone[g][:kept])
    assert sum(len(part) for share in shares for part in share) == n - n % world


def test_the_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(Loader(Watched().dataset(), epoch_batches(100, 8, seed=0, epoch=0)))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_page_locked_memory_needs_a_device() -> None:
    data = Watched().dataset()
    if torch.cuda.is_available():
        for workers in (0, 2):
            assert all(images.is_pinned() for images, _, _ in Loader(data, [[1, 2]], workers=workers, pin_memory=True))
    else:
        with pytest.raises(InputError, match="Loader: pin_memory=True needs a CUDA device, got none"):
            Loader(data, [], pin_memory=True)


def test_refused_in_one_line() -> None:
    data = Watched().dataset()
    for call, message in [
        (lambda: Loader(data, [], workers=-1), "Loader: workers must be at least 0, got -1"),
        (lambda: Loader(data, [], prefetch=0), "Loader: prefetch must be at least 1, got 0"),
        (lambda: epoch_batches(0, 4, seed=0, epoch=0), "n must be at least 1, got 0"),
        (lambda: epoch_batches(9, 0, seed=0, epoch=0), "a positive multiple of world, got 0 with world=1"),
        (lambda: epoch_batches(9, 5, seed=0, epoch=0, world=2), "a positive multiple of world, got 5 with world=2"),
        (lambda: epoch_batches(9, 4, seed=0, epoch=0, rank=2, world=2), r"rank must be in 0\.\.1, got 2"),
        (lambda: epoch_batches(9, 4, seed=0, epoch=0, start=-1), "at least 0, got start=-1, epoch=0"),
        (lambda: epoch_batches(9, 4, seed=0, epoch=-1), "at least 0, got start=0, epoch=-1"),
        (lambda: epoch_length(9, 4, world=0), "a positive multiple of world, got 4 with world=0"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
