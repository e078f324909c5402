"""Shards by the workers of a Ray cluster: a worker that is lost costs the shard it was at, and nothing else."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from poise import __version__
from poise.errors import InputError, RunError, brief
from poise.experiments.bench.backlog import Backlog, Batch, Cell
from poise.experiments.bench.engine import Event, Failed, Fetch, Finished, Started, reason_of
from poise.experiments.bench.keys import CODE, missing
from poise.experiments.bench.plan import Place, Shard
from poise.experiments.bench.ray_session import check_form, joined

POLL_SECONDS, FOLLOW_SECONDS, CLOSE_SECONDS = 0.5, 2.0, 3.0
"""Longest wait for news; between two looks at the nodes; for idle workers to tidy up."""

AHEAD_SECONDS = 1.0
"""A worker has a second batch waiting where a shard takes less: longer ones gain nothing, and others might do them."""

BAD_STARTS = 3
"""Workers in a row that die before they have begun, after which none will."""

Answer = tuple[dict[str, bytes] | str, float]
"""Files of a shard, or why it failed; and its seconds."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Shards by the workers of a Ray cluster, each with its own models.

    Where poise is in a Ray session already (`ray.init`), it stays in that one.

    Args:
        address: of the cluster's head, "auto" or HOST:PORT; None starts a Ray on this machine that ends with the run.
        workers: at most so many; None for as many as the nodes have room for, while nodes come and go: one for
            every GPU where the device is cuda, else one for every `threads` CPU cores.
        threads: of torch in each worker, and the CPU cores that Ray keeps for it.
        tries: workers that one shard may take down before it fails.
        memory: bytes that Ray keeps for each worker; None for no promise.
        patience: seconds to wait for a first worker, and for a next one where all are lost.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    tries: int = 3
    memory: int | None = None
    patience: float = 300.0

    def __post_init__(self) -> None:
        """The address may be one, and counts are at least 1."""
        if self.address is not None:
            check_form(self.address)
        for name in ("workers", "threads", "tries", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"ray: {name} must be at least 1, got {value}")

    def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Generator[Event, None, None]:
        """Every shard ends as finished or as failed; one whose worker was lost is started again.

        Raises:
            MissingExtraError: Ray is not installed.
            InputError: no cluster answers at the address.
            RunError: no worker can be started, or the whole cluster is lost.
        """
        backlog = Backlog(shards, self.tries)
        if not backlog.open:
            return
        on_gpu = place.device.startswith("cuda")
        cpus = None if self.workers is None else self.workers * self.threads
        if on_gpu and cpus is not None:
            cpus = max(cpus, os.cpu_count() or 1)
        with joined(self.address, cpus) as (ray, scratch):
            crew = _Crew(ray, self, place, fetch, backlog)
            crew.scratch = scratch
            try:
                yield from crew.events()
            except ray.exceptions.RayError as error:
                raise RunError(f"ray: the cluster must stay up during a run, got: {brief(error)}") from error
            finally:
                crew.dismiss()


class _Actor:
    """A process of a cluster that runs shards.

    Args:
        place: as on its node. threads: of torch. scratch: a folder for temporary files; None for the node's own.
    """

    def __init__(self, place: Place, threads: int, scratch: str | None = None) -> None:
        import tempfile

        import torch

        from poise.experiments.bench.tasks import perform
        from poise.experiments.bench.workbench import Workbench

        torch.set_num_threads(threads)
        tempfile.tempdir = scratch
        self.place, self.perform = place, perform
        self.bench: Workbench | None = Workbench(place)

    def hello(self) -> tuple[str, int, str]:
        """Node, process and versions."""
        return socket.gethostname(), os.getpid(), f"poise {__version__}, results {CODE}"

    def run(self, shards: list[Shard], keys: list[str], inputs: dict[str, Any]) -> list[Answer]:
        """One answer for each shard.

        Args:
            shards: of one cell. keys: theirs, where the run was started. inputs: references to the files they need.
        """
        import ray

        given = {name: ray.get(reference) for name, reference in inputs.items()}
        answers: list[Answer] = []
        for shard, key in zip(shards, keys, strict=True):
            began = time.monotonic()
            try:
                self._check(shard, key)
                assert self.bench is not None
                found: dict[str, bytes] | str = self.perform(self.bench, shard, given)
            except Exception as error:  # a shard that fails must not take the others with it
                found = reason_of(error)
            answers.append((found, time.monotonic() - began))
        return answers

    def _check(self, shard: Shard, key: str) -> None:
        """The files of this node are those that the key was made from."""
        if lacking := missing(*map(self.place.address, shard.addresses())):
            raise InputError(f"files: '{lacking[0]}' must be on every node, it is not on {socket.gethostname()}")
        if shard.key(self.place) != key:
            named = ", ".join(shard.addresses())
            raise InputError(f"files: {named} must be the same on every node, they differ on {socket.gethostname()}")

    def close(self) -> None:
        """Leaves nothing behind in the node's folder for temporary files."""
        self.bench = None


@dataclass(eq=False)
class _Worker:
    """An actor as seen from here.

    Args:
        actor: its handle. hello: the answer that says that it is up. name: node and process; empty until it is up.
        cell: of its last batch. flight: batches it has not answered, with the answers to come.
    """

    actor: Any
    hello: Any
    name: str = ""
    cell: Cell | None = None
    flight: deque[tuple[Any, Batch]] = field(default_factory=deque)


class _Crew:
    """The workers of one run and what each is at."""

    def __init__(self, ray: ModuleType, engine: RayEngine, place: Place, fetch: Fetch, backlog: Backlog) -> None:
        self.ray, self.engine, self.place, self.fetch, self.backlog = ray, engine, place, fetch, backlog
        self.on_gpu = place.device.startswith("cuda")
        self.scratch: str | None = None
        self.workers: list[_Worker] = []
        self._files: dict[str, Any] = {}
        self._looked, self._bad_starts = -FOLLOW_SECONDS, 0
        self._since = time.monotonic()  # when a worker was last up
        options = {"num_cpus": engine.threads, "num_gpus": int(self.on_gpu), "max_restarts": 0, "max_task_retries": 0}
        if engine.memory is not None:
            options["memory"] = engine.memory
        self._make = ray.remote(_Actor).options(**options).remote

    def events(self) -> Iterator[Event]:
        """What happens until no shard is left."""
        while self.backlog.open:
            self._follow()
            yield from self._hand_out()
            waiting = [worker.flight[0][0] if worker.name else worker.hello for worker in self.workers
                       if worker.flight or not worker.name]  # fmt: skip
            if not waiting:
                time.sleep(POLL_SECONDS)
                continue
            self.ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            there = set(self.ray.wait(waiting, num_returns=len(waiting), timeout=0)[0])
            for worker in list(self.workers):
                if not worker.name and worker.hello in there:
                    self._welcome(worker)
                elif worker.flight and worker.flight[0][0] in there:
                    yield from self._hear(worker)

    def dismiss(self) -> None:
        """Ends every worker, idle ones after they have tidied up."""
        with suppress(Exception):  # the cluster may be gone, and so are they then
            idle = [worker.actor.close.remote() for worker in self.workers if worker.name and not worker.flight]
            if idle:
                self.ray.wait(idle, num_returns=len(idle), timeout=CLOSE_SECONDS)
        for worker in self.workers:
            self._kill(worker)
        self.workers.clear()

    def _kill(self, worker: _Worker) -> None:
        with suppress(Exception):  # it may be dead already
            self.ray.kill(worker.actor, no_restart=True)

    def _follow(self) -> None:
        """As many workers as there is room and work for."""
        now = time.monotonic()
        if any(worker.name for worker in self.workers):
            self._since = now
        if now - self._looked < FOLLOW_SECONDS:
            return
        self._looked = now
        room = self._room()
        wanted = min(self.engine.workers or max(room, 1), self.backlog.open)
        for worker in [worker for worker in self.workers if not worker.name][: max(len(self.workers) - wanted, 0)]:
            self._kill(worker)
            self.workers.remove(worker)
        while len(self.workers) < wanted:
            place = replace(self.place, device="cuda") if self.on_gpu else self.place
            actor = self._make(place, self.engine.threads, self.scratch)
            self.workers.append(_Worker(actor, actor.hello.remote()))
        if (room == 0 and self.scratch is not None) or now - self._since > self.engine.patience:
            gpu = "1 GPU and " if self.on_gpu else ""
            needs = f"{gpu}{self.engine.threads} CPU cores"
            has = Counter[str]()
            for node in self._nodes():
                has.update({name: int(node.get(name, 0)) for name in ("CPU", "GPU")})
            raise RunError(f"ray: a worker needs {needs}, got none ({has['CPU']} CPU cores, {has['GPU']} GPUs in all)")

    def _nodes(self) -> list[dict[str, float]]:
        """What each node has."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """Workers that the nodes can hold."""
        needs = {"CPU": self.engine.threads, "GPU": int(self.on_gpu), "memory": self.engine.memory or 0}
        return sum(
            min(int(node.get(name, 0) // amount) for name, amount in needs.items() if amount) for node in self._nodes()
        )

    def _welcome(self, worker: _Worker) -> None:
        """It is up, or it never will be."""
        try:
            host, process, versions = self.ray.get(worker.hello)
        except self.ray.exceptions.RayError as error:
            self.workers.remove(worker)
            self._kill(worker)
            self._bad_starts += 1
            if self._bad_starts >= BAD_STARTS:
                raise RunError(f"ray: workers must start, {BAD_STARTS} in a row did not: {_why(error)}") from error
            return
        if versions != (own := f"poise {__version__}, results {CODE}"):
            raise RunError(f"ray: every node must have {own}, got {versions} on {host}")
        worker.name, self._bad_starts = f"{host}:{process}", 0

    def _hand_out(self) -> Iterator[Event]:
        """One batch to everyone, and a second one to those with short shards."""
        for depth in (1, 2):
            for worker in self.workers:
                quick = worker.cell is not None and (worker.cell.seconds or AHEAD_SECONDS) < AHEAD_SECONDS
                if not worker.name or len(worker.flight) >= depth or (depth == 2 and not quick):
                    continue
                batch = self.backlog.take(worker.cell, len(self.workers))
                if batch is None:
                    return
                try:
                    inputs = {name: self._reference(needed) for name, needed in batch.shards[0].needs.items()}
                except RunError as error:
                    for shard in batch.shards:
                        self.backlog.ended()
                        yield Failed(shard, reason_of(error))
                    continue
                worker.cell = batch.cell
                bare = [replace(shard) for shard in batch.shards]  # without the keys that each remembers
                keys = [shard.key(self.place) for shard in batch.shards]
                worker.flight.append((worker.actor.run.remote(bare, keys, inputs), batch))
                if len(worker.flight) == 1:
                    yield from [Started(shard, worker.name) for shard in batch.shards]

    def _reference(self, needed: Shard) -> Any:
        """The files of a shard, put into the cluster once."""
        key = needed.key(self.place)
        if key not in self._files:
            self._files[key] = self.ray.put(dict(self.fetch(needed)))
        return self._files[key]

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        """The answer to a worker's first batch; its next one begins."""
        coming, batch = worker.flight[0]
        try:
            answers: list[Answer] = self.ray.get(coming)
        except self.ray.exceptions.RayTaskError as error:
            answers = [(reason_of(error.cause), 0.0)] * len(batch.shards)
        except self.ray.exceptions.RayError as error:
            yield from self._lose(worker, error)
            return
        worker.flight.popleft()
        if worker.flight:
            yield from [Started(shard, worker.name) for shard in worker.flight[0][1].shards]
        for shard, (found, seconds) in zip(batch.shards, answers, strict=True):
            self.backlog.ended()
            batch.cell.learn(seconds)
            yield Failed(shard, found) if isinstance(found, str) else Finished(shard, found, seconds)

    def _lose(self, worker: _Worker, error: Exception) -> Iterator[Event]:
        """A worker is dead: what it was at counts a try, what it had not begun does not."""
        self.workers.remove(worker)
        self._kill(worker)
        self._looked = -FOLLOW_SECONDS
        (_, running), *queued = worker.flight
        for _, batch in reversed(queued):
            self.backlog.put_back(batch)
        for shard in self.backlog.died(running):
            count = f"{self.engine.tries} workers" if self.engine.tries > 1 else "a worker"
            yield Failed(shard, f"took down {count}: {_why(error)}")


def _why(error: Exception) -> str:
    """Of what Ray tells in many lines about a death, the line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for mark in ("Worker exit detail:", "killed due to", "node was", "died because its node", "Error:"):
        for line in reversed(lines):
            if mark in line:
                return brief(line.partition("Worker exit detail:")[2] or line)
    return brief(lines[0] if lines else type(error).__name__)
