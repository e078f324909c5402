"""Runs: computed once, damaged shards again, failures kept apart, faults of disk, clock and user."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from bench_cases import TINY, Quiet
from polars.testing import assert_frame_equal

from poise.errors import MissingExtraError, RunError
from poise.experiments import files
from poise.experiments.bench.engine import Event, Fetch, Finished, Local, Started
from poise.experiments.bench.plan import Place, Plan, Shard, make_plan
from poise.experiments.bench.reduce import tidy
from poise.experiments.bench.run import PLAN, note, run_bench
from poise.experiments.bench.spec import BenchSpec, Training, read_bench_spec
from poise.experiments.bench.status import status
from poise.experiments.bench.store import LocalStore, open_store
from poise.experiments.bench.tasks import TASKS

PLACE = Place("nowhere")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BenchSpec:
    path = tmp_path_factory.mktemp("spec") / "mine.toml"
    text = TINY.replace("samples = 4", "samples = 6\nshard = 2\nbudgets = [8]\nseeds = [0, 1]\nbootstrap = 20")
    path.write_text(text, encoding="utf-8")
    return read_bench_spec(path)


@pytest.fixture(scope="module")
def plan(spec: BenchSpec) -> Plan:
    return make_plan(spec, "small", PLACE)


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    store = open_store(str(tmp_path_factory.mktemp("finished")))
    assert isinstance(store, LocalStore)
    run_bench(plan, store, Local(), Quiet())
    return store


def copy_of(store: LocalStore, folder: Path) -> LocalStore:
    import shutil

    shutil.copytree(store.folder, folder / "copy")
    return LocalStore(str(folder / "copy"))


def test_a_second_run_does_nothing_and_one_missing_shard_runs_alone(
    plan: Plan, finished: LocalStore, tmp_path: Path
) -> None:
    store = copy_of(finished, tmp_path)
    again = Quiet()
    outcome = run_bench(plan, store, Local(), again)
    assert (outcome.ran, outcome.before, outcome.total, again.ran) == (0, 6, 6, [])
    store.discard(plan.shards()[3].key(PLACE))
    alone = Quiet()
    outcome = run_bench(plan, store, Local(), alone)
    assert (outcome.ran, outcome.before, outcome.repeated) == (1, 5, 0)
    assert len(alone.ran) == 1
    assert "seed 1, images 0:2" in alone.ran[0]
    assert_frame_equal(tidy(plan, store), tidy(plan, finished))


def test_a_missing_extra_ends_the_run_and_is_no_fault_of_a_shard(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, attack, ran = LocalStore(str(tmp_path / "store")), TASKS["attack"], list[Shard]()

    def lacking(bench: object, shard: Shard, inputs: object) -> dict[str, bytes]:
        if len(ran) == 2:
            raise MissingExtraError("train", "train")
        ran.append(shard)
        return attack(bench, shard, inputs)  # type: ignore[arg-type]

    monkeypatch.setitem(TASKS, "attack", lacking)
    with pytest.raises(MissingExtraError, match="train needs the extra 'train'"):
        run_bench(plan, store, Local(), Quiet())
    monkeypatch.undo()
    assert status(plan, store).failed == {}
    outcome = run_bench(plan, store, Local(), Quiet())
    assert (outcome.before, outcome.ran, outcome.failed) == (2, 4, {})


def test_a_damaged_shard_is_seen_and_run_again(plan: Plan, finished: LocalStore, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path)
    key = plan.shards()[2].key(PLACE)
    path = store.folder / "shards" / key[:2] / key / "rows.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    outcome = run_bench(plan, store, Local(), Quiet())
    assert (outcome.ran, outcome.repeated) == (1, 1)
    assert_frame_equal(tidy(plan, store), tidy(plan, finished))


def test_shards_do_not_change_the_rows(spec: BenchSpec, plan: Plan, finished: LocalStore, tmp_path: Path) -> None:
    whole = spec.model_copy(update={"small": spec.small.model_copy(update={"shard": 100})})
    other = make_plan(whole, "small", PLACE)
    store = open_store(str(tmp_path))
    run_bench(other, store, Local(), Quiet())
    assert len(other.shards()) == 2
    assert_frame_equal(tidy(other, store), tidy(plan, finished))


def test_every_setting_and_every_file_is_in_the_key(spec: BenchSpec, tmp_path: Path) -> None:
    def key(place: Place = PLACE, **changed: object) -> str:
        found = spec.model_copy(update={"small": spec.small.model_copy(update=changed)})
        return make_plan(found, "small", place).shards()[0].key(place)

    first = key()
    assert key() == first
    changes: list[dict[str, object]] = [
        {"eps": (0.1,)}, {"budgets": (9,)}, {"seeds": (1,)}, {"norm": "l2"}, {"shard": 3}, {"samples": 7},
        {"checkpoints": (2,)}, {"eight_bit": True}, {"options": {"costs": True}}, {"batch_size": 3},
    ]  # fmt: skip
    assert len({first, *(key(**change) for change in changes)}) == 1 + len(changes)
    victim = spec.small.victims[0].model_copy(update={"source": "builtin:lenet5-mnist?weights={files}/w.pth"})
    keys = []
    for content in (b"a", b"b"):
        folder = tmp_path / content.decode()
        folder.mkdir()
        (folder / "w.pth").write_bytes(content)
        keys.append(key(Place(str(folder)), victims=(victim,)))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "w.pth").write_bytes(b"a")
    assert keys[0] != keys[1]
    assert key(Place(str(moved)), victims=(victim,)) == keys[0], "the same file in another folder is the same shard"


def test_how_a_victim_is_trained_is_in_its_key_and_in_the_fingerprint(spec: BenchSpec) -> None:
    def plan_with(epochs: int) -> Plan:
        trained = Training(recipe="standard", model="builtin:digits", data="builtin:digits", change={"epochs": epochs})
        victim = spec.small.victims[0].model_copy(update={"source": None, "trained": "it"})
        small = spec.small.model_copy(update={"victims": (victim,), "training": {"it": trained}})
        return make_plan(spec.model_copy(update={"small": small}), "small", PLACE)

    one, other = plan_with(1), plan_with(2)
    assert one.fingerprint == plan_with(1).fingerprint != other.fingerprint
    assert one.cells[0].shards[0].key(PLACE) != other.cells[0].shards[0].key(PLACE)
    assert [shard.task for shard in one.shards()[:2]] == ["train", "train"], "one per seed, before all others"


class Failing(Local):
    """Every second shard raises."""

    def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Iterator[Event]:
        broken = [
            Shard(shard.task, {**shard.settings, "data": "npz:nothing.npz"} if at % 2 else shard.settings,
                  shard.start, shard.stop, shard.needs)
            for at, shard in enumerate(shards)
        ]  # fmt: skip
        originals = dict(zip(map(id, broken), shards, strict=True))
        for event in super().run(broken, place, fetch):
            yield type(event)(originals[id(event.shard)], *[getattr(event, n) for n in event.__slots__[1:]])


def test_a_shard_that_fails_does_not_take_the_others(plan: Plan, finished: LocalStore, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    outcome = run_bench(plan, store, Failing(), Quiet())
    assert (outcome.ran, len(outcome.failed)) == (3, 3)
    assert all("nothing.npz" in reason for reason in outcome.failed.values())
    at = status(plan, store)
    assert (at.done, len(at.failed), at.total) == (3, 3, 6)
    outcome = run_bench(plan, store, Local(), Quiet())
    assert (outcome.ran, outcome.failed) == (3, {})
    assert status(plan, store).failed == {}
    assert_frame_equal(tidy(plan, store), tidy(plan, finished))


def test_two_runs_of_one_spec_in_one_place_are_refused(plan: Plan, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with files.locked(store.folder / Path(note(plan, PLAN)).parent), pytest.raises(RunError, match="in use"):
        run_bench(plan, store, Local(), Quiet())


def test_a_folder_of_something_else_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"must be empty or hold runs of poise bench, it holds 'thesis\.tex'"):
        run_bench(plan, open_store(str(tmp_path)), Local(), Quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_stops_the_run_and_loses_nothing(
    plan: Plan, finished: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write, written = LocalStore(str(tmp_path)), Path.write_bytes, []

    def limited(self: Path, content: bytes) -> int:
        if len(written) >= 5:
            raise OSError(28, "No space left on device")
        written.append(self)
        return write(self, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", limited)
        with pytest.raises(RunError, match="No space left"):
            run_bench(plan, store, Local(), Quiet())
    assert all(store.intact(key) for key in store.finished())
    before = len(store.finished())
    outcome = run_bench(plan, store, Local(), Quiet())
    assert outcome.before == before > 0
    assert_frame_equal(tidy(plan, store), tidy(plan, finished))


def test_a_clock_that_goes_backwards_changes_nothing(
    plan: Plan, finished: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    store = open_store(str(tmp_path))
    assert run_bench(plan, store, Local(), Quiet()).ran == 6
    assert run_bench(plan, store, Local(), Quiet()).ran == 0
    assert_frame_equal(tidy(plan, store), tidy(plan, finished))


class Interrupted(Local):
    """The user presses Ctrl-C in the third shard."""

    def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Iterator[Event]:
        begun = 0
        for event in super().run(shards, place, fetch):
            begun += isinstance(event, Started)
            yield event
            if begun == 3:
                raise KeyboardInterrupt


def test_an_interrupt_keeps_what_is_finished(plan: Plan, finished: LocalStore, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_bench(plan, store, Interrupted(), Quiet())
    assert len(store.finished()) == 2
    at = status(plan, store)
    assert (at.done, at.running, at.waiting) == (2, [], 4)
    assert at.left is not None
    assert run_bench(plan, store, Local(), Quiet()).ran == 4
    assert_frame_equal(tidy(plan, store), tidy(plan, finished))


class Looking(Local):
    """Asks for the status while a shard is at work."""

    def __init__(self, plan: Plan, store: LocalStore) -> None:
        self.plan, self.store, self.seen = plan, store, []

    def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Iterator[Event]:
        for event in super().run(shards, place, fetch):
            yield event
            if isinstance(event, Started) and not self.seen:
                self.seen.append(status(self.plan, self.store))


def test_status_while_a_run_goes_on(plan: Plan, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    engine = Looking(plan, store)
    run_bench(plan, store, engine, Quiet())
    (at,) = engine.seen
    assert at.done == 0
    assert len(at.running) == 1
    assert at.waiting == 5
    assert status(plan, store).running == []


def test_shards_without_their_files_are_left_out_and_named(spec: BenchSpec, tmp_path: Path) -> None:
    absent = spec.small.victims[0].model_copy(update={"model": "other", "data": "npz:{files}/none.npz"})
    both = spec.small.model_copy(update={"victims": (spec.small.victims[0], absent)})
    plan = make_plan(spec.model_copy(update={"small": both}), "small", PLACE)
    store = open_store(str(tmp_path))
    outcome = run_bench(plan, store, Local(), Quiet())
    assert outcome.ran == 6
    assert {path: len(keys) for path, keys in outcome.left_out.items()} == {"nowhere/none.npz": 6}
    assert status(plan, store).left_out == {"nowhere/none.npz": 6}
    assert set(tidy(plan, store)["model"].to_list()) == {"CNN"}


def test_ten_thousand_shards_are_scheduled_quickly(spec: BenchSpec, tmp_path: Path) -> None:
    class Nothing:
        def run(self, shards: Iterable[Shard], place: Place, fetch: Fetch) -> Iterator[Event]:
            for shard in shards:
                yield Started(shard, "none")
                yield Finished(shard, {}, 0.0)

    many = spec.small.model_copy(update={"samples": 1000, "shard": 1, "seeds": (0,)})
    plan = make_plan(spec.model_copy(update={"small": many, "task": "noop"}), "small", PLACE)
    began = time.process_time()
    assert run_bench(plan, open_store(str(tmp_path)), Nothing(), Quiet()).ran == 1000
    assert time.process_time() - began < 5  # 200 a second of processor time


def test_a_run_into_a_url_gives_the_same_table(plan: Plan, finished: LocalStore) -> None:
    store = open_store("memory://a-run-of-poise-bench")
    try:
        assert run_bench(plan, store, Local(), Quiet()).ran == 6
        assert run_bench(plan, store, Local(), Quiet()).ran == 0
        at = status(plan, store)
        assert (at.done, at.failed, at.running) == (6, {}, [])
        assert_frame_equal(tidy(plan, store), tidy(plan, finished))
    finally:
        store.system.store.clear()  # type: ignore[attr-defined]
