"""A shard that does nothing, to measure what scheduling costs."""

from __future__ import annotations

from poise.experiments.bench.plan import Shard
from poise.experiments.bench.workbench import Inputs, Workbench


def noop(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """Nothing."""
    return {}
