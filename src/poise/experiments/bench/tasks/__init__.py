"""What a shard does, by the name of its task; to add one, write its file and its line here."""

from __future__ import annotations

from collections.abc import Callable

from poise.experiments.bench.plan import Shard
from poise.experiments.bench.tasks.attack import attack
from poise.experiments.bench.tasks.certify import certify
from poise.experiments.bench.tasks.detect import detect
from poise.experiments.bench.tasks.explain import explain
from poise.experiments.bench.tasks.illusion import illusion
from poise.experiments.bench.tasks.margins import margins
from poise.experiments.bench.tasks.noop import noop
from poise.experiments.bench.tasks.train import train
from poise.experiments.bench.workbench import Inputs, Workbench

Task = Callable[[Workbench, Shard, Inputs], dict[str, bytes]]

TASKS: dict[str, Task] = {
    "attack": attack,
    "train": train,
    "noop": noop,
    "detect": detect,
    "certify": certify,
    "explain": explain,
    "margins": margins,
    "illusion": illusion,
}
"""Every task: a workbench, a shard and the files it needs to the files it leaves."""


def perform(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """The files of one shard.

    Args:
        bench: where models and data are kept between shards.
        shard: what to do.
        inputs: the files of the shards that it needs.
    """
    return TASKS[shard.task](bench, shard, inputs)
