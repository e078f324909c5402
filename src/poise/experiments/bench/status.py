"""How far a run has come: done, running, failed, left out, and how long the rest will take."""

from __future__ import annotations

import fcntl
import statistics
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from poise.errors import RunError
from poise.experiments.bench.plan import Plan
from poise.experiments.bench.run import FAILED, RUNNING, note
from poise.experiments.bench.store import LocalStore, Store


@dataclass
class Status:
    """Shards of a plan by their state.

    Args:
        total, done: how many. running: names of those at work now. failed: reason by name. left_out: names by the file
            that they miss. seconds: median time of a finished shard; None where none is. left: seconds that the rest
            takes at that pace on as many workers as are at work; None where unknown.
    """

    total: int
    done: int = 0
    running: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    left: float | None = None

    @property
    def waiting(self) -> int:
        """Shards that nobody has begun."""
        return self.total - self.done - len(self.running) - sum(self.left_out.values())


def status(plan: Plan, store: Store) -> Status:
    """The state of a run in its place; writes nothing."""
    shards = plan.shards()
    there = store.finished()
    found = Status(total=len(shards))
    spent = []
    for shard in shards:
        key = shard.key(plan.place)
        if key in there:
            with suppress(RunError, KeyError, TypeError, ValueError):  # a damaged one is not done
                spent.append(float(store.about(key)["about"]["seconds"]))
                found.done += 1
        elif lacking := shard.missing(plan.place):
            found.left_out[lacking[0]] = found.left_out.get(lacking[0], 0) + 1
    at_work = store.read_note(note(plan, RUNNING))
    if isinstance(at_work, dict) and isinstance(at_work.get("shards"), dict) and _alive(store, plan):
        found.running = [str(name) for key, name in at_work["shards"].items() if key not in there]
    failed = store.read_note(note(plan, FAILED))
    if isinstance(failed, dict) and not found.running:
        found.failed = {str(name): str(reason) for name, reason in failed.items()}
    if spent:
        found.seconds = statistics.median(spent)
        rest = found.total - found.done - sum(found.left_out.values())
        found.left = rest * statistics.fmean(spent) / max(len(found.running), 1)
    return found


def _alive(store: Store, plan: Plan) -> bool:
    """A process holds the run; of other places nobody knows, so what they say is believed."""
    if not isinstance(store, LocalStore):
        return True
    try:
        with (store.folder / Path(note(plan, RUNNING)).parent / ".lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
