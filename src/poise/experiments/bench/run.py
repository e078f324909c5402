"""A run of a spec: what is missing in its place, by an engine, each shard written down as it ends."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from poise import __version__, data
from poise.errors import RunError
from poise.experiments import files
from poise.experiments.bench.engine import Engine, Finished, Started
from poise.experiments.bench.keys import missing
from poise.experiments.bench.plan import Place, Plan, Shard, make_plan
from poise.experiments.bench.spec import BenchSpec, Profile
from poise.experiments.bench.store import Files, LocalStore, Store

PLAN, RUNNING, FAILED = "plan.json", "running.json", "failed.json"
MARK = "bench.json"
"""What tells a folder of poise bench from any other."""

NOTE_SECONDS = 1.0
"""Between two notes of what is running."""


class Listener(Protocol):
    """Hears how a run goes. Every method may do nothing."""

    def begin(self, total: int, done: int, left_out: dict[str, list[str]]) -> None:
        """So many shards in all, so many of them there already; those left out by the file that they miss."""
        ...

    def started(self, what: str) -> None:
        """A shard of the cell `what` has been begun."""
        ...

    def finished(self, what: str, seconds: float) -> None:
        """It is done."""
        ...

    def failed(self, what: str, reason: str) -> None:
        """It cannot be done."""
        ...


@dataclass
class Outcome:
    """What a run did.

    Args:
        total: shards of the plan. before: that were there. ran: that were run now. repeated: damaged ones among them.
        failed: reason by cell and samples. left_out: shards by the file that they miss.
    """

    total: int
    before: int = 0
    ran: int = 0
    repeated: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def plan_for(spec: BenchSpec, profile: str, place: Place) -> Plan:
    """The plan, with the sizes of data sets that are taken whole."""
    return make_plan(spec, profile, place, _sizes(spec.profile(profile), place))


def _sizes(profile: Profile, place: Place) -> dict[str, int]:
    whole = {victim.data for victim in profile.victims if victim.samples is None and profile.samples is None}
    return {at: len(data.load(place.address(at))) for at in whole if not missing(place.address(at))}


def run_bench(plan: Plan, store: Store, engine: Engine, listener: Listener) -> Outcome:
    """Runs what is missing or damaged, writes each shard as it ends, and tells what happened.

    Raises:
        RunError: the place cannot be written, or another process is writing to it.
    """
    with _held(store, plan):
        shards = plan.shards()
        names = _names(plan)
        outcome = Outcome(total=len(shards))
        todo = _todo(shards, plan, store, outcome)
        listener.begin(outcome.total, outcome.before, outcome.left_out)
        store.write_note(note(plan, PLAN), about_plan(plan))
        ledger = _Ledger(store, plan, names)
        first = [shard for shard in todo if shard.task == "train"]
        rest = [shard for shard in todo if shard.task != "train"]
        try:
            for part in (first, rest):
                ready = [shard for shard in part if _is_ready(shard, plan, store, outcome, names)]
                _work(ready, plan, store, engine, (outcome, ledger, listener))
        finally:
            ledger.close(outcome)
    return outcome


def _todo(shards: list[Shard], plan: Plan, store: Store, outcome: Outcome) -> list[Shard]:
    """What is neither there and intact nor impossible for want of a file."""
    there, todo = store.finished(), []
    for shard in shards:
        key = shard.key(plan.place)
        if key in there:
            if store.intact(key):
                outcome.before += 1
                continue
            outcome.repeated += 1
        if lacking := shard.missing(plan.place):
            outcome.left_out.setdefault(lacking[0], []).append(key)
        else:
            todo.append(shard)
    return todo


def _is_ready(shard: Shard, plan: Plan, store: Store, outcome: Outcome, names: dict[str, str]) -> bool:
    """What the shard needs is there; else it has failed with it."""
    for needed in shard.needs.values():
        if not store.intact(needed.key(plan.place)):
            outcome.failed[names[shard.key(plan.place)]] = f"needs '{names[needed.key(plan.place)]}', which failed"
            return False
    return True


def _work(
    shards: list[Shard], plan: Plan, store: Store, engine: Engine, notes: tuple[Outcome, _Ledger, Listener]
) -> None:
    outcome, ledger, listener = notes
    place = plan.place

    def fetch(shard: Shard) -> Files:
        return store.files(shard.key(place))

    with closing(engine.run(shards, place, fetch)) as events:
        for event in events:
            key = event.shard.key(place)
            what = ledger.names[key]
            if isinstance(event, Started):
                ledger.started(key)
                listener.started(what)
            elif isinstance(event, Finished):
                store.write(key, event.content, _about(event, what))
                outcome.ran += 1
                ledger.ended(key)
                listener.finished(what, event.seconds)
            else:
                outcome.failed[what] = event.reason
                ledger.ended(key)
                listener.failed(what, event.reason)


def _about(event: Finished, what: str) -> dict[str, Any]:
    return {
        "what": what,
        "seconds": round(event.seconds, 4),
        "task": event.shard.task,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),  # for the reader; nothing is decided by it
        "poise": __version__,
    }


@contextmanager
def _held(store: Store, plan: Plan) -> Iterator[None]:
    """The run for this process alone, where that can be had; runs of other specs may write to the same place."""
    if not isinstance(store, LocalStore):
        yield
        return
    with files.refusals(store.folder):
        foreign = _foreign(store)
    if foreign:
        raise RunError(f"out: '{store.root}' must be empty or hold runs of poise bench, it holds '{foreign}'")
    with files.locked(store.folder / Path(note(plan, PLAN)).parent):
        store.sweep()
        if store.read_note(MARK) is None:
            store.write_note(MARK, {"poise": __version__, "holds": "shards and notes of poise bench"})
        yield


def note(plan: Plan, name: str) -> str:
    """Where a run's notes lie in its store."""
    return f"runs/{plan.label}/{name}"


def _foreign(store: LocalStore) -> str | None:
    if not store.folder.exists() or (store.folder / MARK).exists():
        return None
    others = sorted(path.name for path in store.folder.iterdir() if path.name not in ("runs", "shards"))
    return next((name for name in others if not name.endswith(".tmp")), None)


def about_plan(plan: Plan) -> dict[str, Any]:
    """What was asked, for whoever opens the folder."""
    return {
        "title": plan.spec.title,
        "profile": plan.profile_name,
        "fingerprint": plan.fingerprint,
        "shards": len(plan.shards()),
        "poise": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {plan.place.device}",
    }


def _names(plan: Plan) -> dict[str, str]:
    """What each shard is called: its cell and samples."""
    found: dict[str, str] = {}
    for cell in plan.cells:
        keys = cell.keys
        for shard in cell.shards:
            for needed in shard.needs.values():
                trained = f"train {needed.settings['recipe']}, seed {needed.settings['seed']}"
                found.setdefault(needed.key(plan.place), f"{trained} ({cell.victim.trained})")
            what = " ".join(str(keys[name]) for name in ("dataset", "model", "defence", "attack"))
            more = f"eps {cell.eps:.3g}, {cell.budget} queries, seed {cell.seed}"
            found.setdefault(shard.key(plan.place), f"{what}, {more}, images {shard.start}:{shard.stop or ''}")
    return found


class _Ledger:
    """What is running and what has failed, beside the shards; for `poise bench status`."""

    def __init__(self, store: Store, plan: Plan, names: dict[str, str]) -> None:
        self.store, self.plan, self.names = store, plan, names
        self._running: dict[str, str] = {}
        self._written = -NOTE_SECONDS

    def started(self, key: str) -> None:
        self._running[key] = self.names[key]
        self._note()

    def ended(self, key: str) -> None:
        self._running.pop(key, None)  # written with the next that starts, or at the end

    def close(self, outcome: Outcome) -> None:
        """Nothing runs any more."""
        self._running.clear()
        self._written = -NOTE_SECONDS
        self._note()
        self.store.write_note(note(self.plan, FAILED), outcome.failed)

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._written >= NOTE_SECONDS:
            self.store.write_note(
                note(self.plan, RUNNING), {"pid": os.getpid(), "host": platform.node(), "shards": self._running}
            )
            self._written = now
