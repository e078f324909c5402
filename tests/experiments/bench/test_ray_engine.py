"""Shards by Ray: the local table bit for bit, whatever dies on the way, and nothing left behind."""

import os
import signal
import socket
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from poise.errors import InputError, MissingExtraError
from poise.experiments.bench import ray_session
from poise.experiments.bench.engine import Failed, Finished, Local, Started
from poise.experiments.bench.plan import Place, make_plan
from poise.experiments.bench.ray_engine import RayEngine, _Actor
from poise.experiments.bench.spec import BenchSpec
from poise.experiments.bench.tasks import packing

ray = pytest.importorskip("ray")

pytestmark = [  # Ray leaves handles of its processes and logs to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PLACE = Place("")
GIB = 1 << 30


def shards_of(*sources, samples=24, of=6, budget=60):
    profile = {
        "samples": samples,
        "shard": of,
        "victims": [{"dataset": "digits", "model": at, "source": at, "data": "builtin:digits"} for at in sources],
        "attacks": [{"name": "SA-MMA", "recipe": "sa-mma"}],
        "budgets": [budget],
        "eps": [0.1],
    }
    about = {"paper": "x", "shows": "T1", "title": "t", "setting": "s", "table": {"metrics": ["ece"]}}
    return make_plan(BenchSpec(**about, full=profile, small=profile), "small", PLACE).shards()


@pytest.fixture(scope="module")
def shards():
    """Four good ones, whose model comes out of the files of another shard."""
    (trained,) = shards_of("builtin:digits", samples=1)
    return [replace(shard, needs={"train": trained}) for shard in shards_of("builtin:digits")]


@pytest.fixture(scope="module")
def expected(shards):
    return tables(Local().run(shards, PLACE, Fetch()))


class Fetch:
    """Files of the shard that the others need, and how often they were asked for."""

    def __init__(self):
        self.asked = 0

    def __call__(self, needed):
        self.asked += 1
        return {"model.safetensors": b"nothing", "address.txt": b"builtin:digits"}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    handler, before, mode = signal.getsignal(signal.SIGTERM), dict(os.environ), os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = mode or "disabled"
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2, "memory": GIB, "object_store_memory": GIB // 4, "include_dashboard": False,
                "_system_config": quick,
            },
        )  # fmt: skip
        yield found
        ray.shutdown()
        found.shutdown()
    signal.signal(signal.SIGTERM, handler)
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(scope="module")
def session(cluster):
    """This process is in the cluster already, so that not every test has to join it."""
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def tables(events):
    """Rows by first sample, without the one column that no two runs share; events must all be good ones."""
    found = {}
    for event in events:
        assert not isinstance(event, Failed), event
        if isinstance(event, Finished):
            rows = packing.read_table(event.content["rows.parquet"]).drop("seconds")
            assert event.shard.start not in found
            found[event.shard.start] = rows
    return pl.concat([found[start] for start in sorted(found)])


def process_of(event):
    return int(event.worker.rpartition(":")[2])


def started(events):
    return [event.shard for event in events if isinstance(event, Started)]


def state():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), dict(os.environ), sys.excepthook


def test_two_workers_give_the_local_table_and_leave_no_trace(cluster, shards, expected, capfd):
    before, fetch = state(), Fetch()
    bad = shards_of("builtin:nothing", samples=2)
    events = list(RayEngine(address=cluster.address, workers=2).run([*bad, *shards], PLACE, fetch))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    (local,) = [event for event in Local().run(bad, PLACE, None) if isinstance(event, Failed)]
    assert failed == local
    assert tables(event for event in events if event is not failed).equals(expected, null_equal=True)
    assert len({process_of(event) for event in events if isinstance(event, Started)}) == 2
    assert Counter(map(id, started(events))) == Counter(map(id, [*bad, *shards]))
    assert fetch.asked == 1
    assert state() == before
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")


def test_a_run_closed_in_the_middle_ends_its_own_ray_and_every_process(shards, capfd):
    """Before that, a shard that takes its worker down fails, and another worker goes on."""
    before, old, events = state(), below(os.getpid()), []
    run = RayEngine(workers=1, tries=1).run(shards, PLACE, Fetch())
    first = next(run)
    os.kill(process_of(first), signal.SIGKILL)
    for event in run:
        events.append(event)
        if isinstance(event, Started):
            break
    assert [type(event) for event in events] == [Failed, Started]
    assert [event.shard for event in events] == shards[:2]
    assert events[0].reason.startswith("took down a worker: ")
    assert "\n" not in events[0].reason
    ours, folder = below(os.getpid()) - old, Path(ray.get_runtime_context().get_temp_dir())
    assert len(ours) > 2
    run.close()
    ends = time.monotonic() + 15
    while (left := [process for process in ours if alive(process)]) and time.monotonic() < ends:
        time.sleep(0.1)
    assert left == []
    assert not folder.exists()
    assert not ray.is_initialized()
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_an_address_where_nobody_listens(shards, capfd):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(InputError, match=f"a cluster must answer at '{address}'") as raised:
            next(RayEngine(address=address).run(shards, PLACE, None))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_an_address_where_something_else_listens(shards, capfd, monkeypatch):
    monkeypatch.setattr(ray_session, "ANSWER_SECONDS", 3.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match=r"a cluster must answer at .* got: nothing in 3 s"):
            next(RayEngine(address=f"127.0.0.1:{other.getsockname()[1]}").run(shards, PLACE, None))
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_costs_its_shard_and_nothing_else(session, shards, expected):
    events, killed = [], None
    for event in RayEngine(workers=2).run(shards, PLACE, Fetch()):
        events.append(event)
        if isinstance(event, Started) and killed is None and len(started(events)) == 3:
            killed = event
            os.kill(process_of(event), signal.SIGKILL)
    assert tables(events).equals(expected, null_equal=True)
    assert sorted(map(id, started(events))) == sorted(map(id, [*shards, killed.shard]))
    assert ray.is_initialized()


def test_a_node_that_comes_serves_and_one_that_goes_costs_its_shard(session, cluster, shards, expected):
    """Only nodes of 3 GiB have room; the second one comes while the first one works, which then goes."""
    of_three = {"num_cpus": 1, "memory": 3 * GIB, "object_store_memory": GIB // 4}
    node, events, gone = cluster.add_node(**of_three), [], None
    for event in RayEngine(memory=2 * GIB).run(shards, PLACE, Fetch()):
        events.append(event)
        if isinstance(event, Started) and gone is None and len(started(events)) == 2:
            gone = event
            os.kill(process_of(event), signal.SIGSTOP)  # it is at this shard still, however long a node takes to come
            second = cluster.add_node(**of_three)
            cluster.remove_node(node, allow_graceful=False)
            os.kill(process_of(event), signal.SIGCONT)  # a node that is gone takes its workers with it
    cluster.remove_node(second)
    assert tables(events).equals(expected, null_equal=True)
    assert len({process_of(event) for event in events if isinstance(event, Started)}) == 2
    assert sorted(map(id, started(events))) == sorted(map(id, [*shards, gone.shard]))


def test_files_of_a_node_must_be_those_of_the_run(tmp_path):
    """A worker elsewhere may have another file under the same name, or none."""
    weights = tmp_path / "w.onnx"
    weights.write_bytes(b"one")
    (shard,) = shards_of(f"onnx:{weights}", samples=2)
    key = shard.key(PLACE)
    weights.write_bytes(b"another")
    ((reason, _),) = _Actor(PLACE, 1).run([replace(shard)], [key], {})
    assert "must be the same on every node" in reason
    weights.unlink()
    ((reason, _),) = _Actor(PLACE, 1).run([replace(shard)], [key], {})
    assert f"files: '{weights}' must be on every node" in reason


def below(process):
    """Every process that this one or one of those started."""
    parents = {}
    for at in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = at.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(at.parent.name)] = int(fields[1])
    found, more = set(), {process}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        found |= more
    return found


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("address", ["here", "ray://127.0.0.1:10001", "127.0.0.1", ":6379", "127.0.0.1:port"])
def test_an_address_must_be_one(address):
    with pytest.raises(InputError, match="must be auto or HOST:PORT") as raised:
        RayEngine(address=address)
    assert "\n" not in str(raised.value)


def test_without_ray_the_extra_is_named(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"poise bench --ray needs the extra 'ray'"):
        next(RayEngine().run(shards, PLACE, None))


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(RayEngine().run([], PLACE, None)) == []


@pytest.mark.parametrize("name", ["workers", "threads", "tries", "memory"])
def test_counts_must_be_at_least_one(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        RayEngine(**{name: 0})
