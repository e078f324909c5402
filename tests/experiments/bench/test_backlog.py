"""Which shard is next: cells stay together, tiny shards go out together, what took a worker down goes out alone."""

from poise.experiments.bench.backlog import BATCH_MOST, Backlog, Batch
from poise.experiments.bench.plan import Shard


def shards(cells=2, of=4):
    return [Shard("noop", settings, n, n + 1) for settings in ({"cell": c} for c in range(cells)) for n in range(of)]


def taken(batch):
    return [(shard.settings["cell"], shard.start) for shard in batch.shards]


def test_each_worker_keeps_to_its_cell_and_then_helps_where_most_is_left():
    backlog = Backlog(shards(cells=2, of=3), tries=3)
    first, second = backlog.take(None, 2), backlog.take(None, 2)
    assert [taken(first), taken(second)] == [[(0, 0)], [(1, 0)]]
    assert [taken(backlog.take(second.cell, 2)) for _ in range(2)] == [[(1, 1)], [(1, 2)]]
    assert [taken(backlog.take(second.cell, 2)) for _ in range(2)] == [[(0, 1)], [(0, 2)]]
    assert backlog.take(first.cell, 2) is None
    assert backlog.open == 6


def test_shards_go_out_together_only_where_they_are_known_to_be_tiny():
    backlog = Backlog(shards(cells=1, of=1000), tries=3)
    first = backlog.take(None, 2)
    assert len(first.shards) == 1
    for seconds, size in ((0.00001, BATCH_MOST), (0.02, 5), (5.0, 1)):
        first.cell.seconds = seconds
        assert len(backlog.take(first.cell, 2).shards) == size
    first.cell.seconds = 0.0
    left = backlog.take(first.cell, 2)
    while (last := backlog.take(first.cell, 2)) is not None:
        left = last
    assert len(left.shards) == 1, "the last ones are shared out"


def test_every_shard_goes_out_once_and_in_its_order():
    backlog, seen, cell = Backlog(shards(cells=3, of=40), tries=3), [], None
    while (batch := backlog.take(cell, 1)) is not None:
        cell = batch.cell
        cell.learn(0.001)
        seen += taken(batch)
    assert seen == [(cell, n) for cell in range(3) for n in range(40)]


def test_what_was_not_begun_is_next_again_and_costs_no_try():
    backlog = Backlog(shards(cells=1, of=5), tries=1)
    batch = backlog.take(None, 1)
    batch.shards += backlog.take(batch.cell, 1).shards
    backlog.put_back(batch)
    assert [taken(backlog.take(None, 1)) for _ in range(5)] == [[(0, n)] for n in range(5)]
    assert backlog.open == 5


def test_shards_of_a_dead_worker_go_out_alone_and_are_given_up_after_their_tries():
    backlog = Backlog(shards(cells=1, of=50), tries=2)
    cell = backlog.take(None, 1).cell
    cell.seconds = 0.0
    batch = backlog.take(cell, 1)
    assert len(batch.shards) > 3
    assert backlog.died(batch) == []
    alone = backlog.take(cell, 1)
    assert alone.shards == batch.shards[:1]
    assert backlog.died(alone) == alone.shards
    assert backlog.open == 49
    assert [backlog.take(cell, 1).shards for _ in batch.shards[1:]] == [[shard] for shard in batch.shards[1:]]


def test_the_dead_come_before_the_rest_of_their_cell_even_where_it_had_run_out():
    backlog = Backlog(shards(cells=2, of=1), tries=3)
    batch = backlog.take(None, 1)
    other = backlog.take(None, 1)
    assert backlog.take(None, 1) is None
    backlog.died(batch)
    assert backlog.take(other.cell, 1).shards == batch.shards
    backlog.put_back(Batch(other.cell, []))
    assert backlog.take(other.cell, 1) is None
