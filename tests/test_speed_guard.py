"""The guard against slow inner loops holds, and fails on every kind of slowdown that is planted."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from poise.searches.squares import LinfSquares, Move
from poise.targets import ModuleTarget

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("guard")


def test_the_limits_hold(guard: ModuleType) -> None:
    assert guard.missed(guard.measure()) == []


def test_a_second_call_of_the_model_is_found(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ModuleTarget._forward

    def twice(self: ModuleTarget, part: Tensor, lasting: bool) -> Tensor:
        forward(self, part, lasting)
        return forward(self, part, lasting)

    monkeypatch.setattr(ModuleTarget, "_forward", twice)
    found = guard.measure(rounds=0)
    assert found["square"].passes == found["pgd"].passes == 2
    assert {line.split(" 2.00")[0] for line in guard.missed(found)} >= {"square: passes", "pgd: passes"}


def test_work_image_by_image_is_found(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    move = LinfSquares.move

    def one_by_one(self: LinfSquares, x: Tensor, *rest: Any) -> Move:
        for image in x:
            image.clamp_(0, 1)
        return move(self, x, *rest)

    monkeypatch.setattr(LinfSquares, "move", one_by_one)
    lines = guard.missed(guard.measure(rounds=0))
    assert any(line.startswith("square: calls") for line in lines)
    assert any(line.startswith("square: operations") for line in lines)


def test_arithmetic_without_calls_is_found_by_the_clock(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    move = LinfSquares.move

    def slowly(self: LinfSquares, x: Tensor, *rest: Any) -> Move:
        total = 0
        for number in range(20_000 * len(x)):
            total += number
        return move(self, x, *rest)

    monkeypatch.setattr(LinfSquares, "move", slowly)
    at = guard.Guard()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratio = guard.time_ratio(at.square, at.forward, guard.QUERIES, rounds=3)
    finally:
        torch.set_num_threads(threads)
    assert ratio > guard.LIMITS["square"].ratio
