"""What the tests of journaled audits share: specs on the toy endpoint, its log, and runs that are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from audit_cases import Silent, held_out, spec
from toy_endpoint import LOG, SECONDS

from poise.experiments import AuditSpec, run_audit

ENDPOINT = Path(__file__).with_name("toy_endpoint.py")

Question = tuple[int, str]
"""A sample and the digest of a point."""


def remote(factory: str = "endpoint", **given: Any) -> AuditSpec:
    """A spec on the toy endpoint: 40 images in chunks of 16, one recipe, the defences none and ts, 12 queries each."""
    usual = {"model": f"py:{ENDPOINT}:{factory}", "defences": ("none", "ts"), "fit_data": held_out()}
    return spec(**{**usual, **given})


@dataclass(frozen=True)
class Call:
    """One call that the endpoint answered: the process that made it, and its questions."""

    run: int
    points: tuple[Question, ...]


def calls(log: Path) -> list[Call]:
    """What the endpoint answered, in order; a line that a kill tore off was not answered."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [Call(one["run"], tuple((sample, digest) for sample, digest in one["points"])) for one in found]


def questions(made: list[Call]) -> Counter[Question]:
    """How often each question was answered."""
    return Counter(point for call in made for point in call.points)


def assert_asked_once(made: list[Call], reference: list[Call], killed: set[int]) -> int:
    """All questions of the reference, each as often as there, but for the last call of every killed process.

    Returns:
        how many were asked again.
    """
    ours, theirs = questions(made), questions(reference)
    assert not theirs - ours, "a question was never asked"
    last = {call.run: call for call in made if call.run in killed}  # the later ones replace the earlier
    in_flight = questions(list(last.values()))
    again = ours - theirs
    assert not again - in_flight, "a recorded question was asked again"
    return again.total()


def child(made: AuditSpec, out: str, log: str, seconds: float) -> None:
    """One audit, in a process of its own that may be killed."""
    os.environ.update({LOG: log, SECONDS: str(seconds)})
    torch.set_num_threads(1)
    run_audit(made, Path(out), resume=True, listener=Silent())


def processes() -> Any:
    """Makes processes that have torch imported and no threads: forked from one that did nothing else."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["torch", "polars", "poise.experiments", "poise.metrics", "poise.recipebook"])
    return found


def start(context: Any, made: AuditSpec, out: Path, log: Path, *, seconds: float) -> Any:
    """A running child."""
    process = context.Process(target=child, args=(made, str(out), str(log), seconds))
    process.start()
    return process


def kill_after(process: Any, log: Path, more: int, delay: float) -> int:
    """SIGKILL once so many more calls were answered and `delay` seconds have passed; the process's id."""
    before, end = answered(log), time.monotonic() + 60
    while process.is_alive() and time.monotonic() < end and answered(log) < before + more:
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.join()
    return int(process.pid)


def answered(log: Path) -> int:
    """How many calls the endpoint's log holds."""
    return log.read_bytes().count(b"\n") if log.exists() else 0
