"""Who runs shards: what an engine promises, and the one that runs them in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from poise.errors import MissingExtraError
from poise.experiments.bench.plan import Place, Shard
from poise.experiments.bench.store import Files
from poise.experiments.bench.tasks import perform
from poise.experiments.bench.workbench import Workbench

Fetch = Callable[[Shard], Files]
"""The files of a finished shard."""


@dataclass(frozen=True, slots=True)
class Started:
    """A shard has been begun, by a worker of this name."""

    shard: Shard
    worker: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A shard is done.

    Args:
        shard: which. content: its files. seconds: that it took.
    """

    shard: Shard
    content: Files
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A shard cannot be done.

    Args:
        shard: which. reason: one line.
    """

    shard: Shard
    reason: str


Event = Started | Finished | Failed


class Engine(Protocol):
    """Runs shards and tells what happens to each; the caller writes down what they left."""

    def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Generator[Event, None, None]:
        """Every shard ends as finished or as failed. What a shard needs is finished before this is called.

        Closing the generator stops the engine.
        """
        ...


def reason_of(error: BaseException) -> str:
    """An error as one line."""
    from poise.errors import PoiseError, brief

    return brief(error) if isinstance(error, PoiseError) else brief(f"{type(error).__name__}: {error}")


class Local:
    """One shard after the other, in this process."""

    def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Generator[Event, None, None]:
        """Every shard ends as finished or as failed.

        Raises:
            MissingExtraError: a shard needs an extra that is not installed; those before it are done.
        """
        bench = Workbench(place)
        for shard in shards:
            yield Started(shard, "local")
            began = time.monotonic()
            try:
                content = perform(bench, shard, {name: fetch(needed) for name, needed in shard.needs.items()})
            except MissingExtraError:  # nothing about the shard: it waits until the extra is there
                raise
            except Exception as error:  # a shard that fails must not take the others with it
                yield Failed(shard, reason_of(error))
            else:
                yield Finished(shard, content, time.monotonic() - began)
