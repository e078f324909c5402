"""Learning rates against torch's own schedulers, stepped once per iteration; optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from poise.training.recipe import Optimizer, Schedule
from poise.training.schedule import learning_rate, made_optimizer

Rate = Callable[[Schedule, float, int, int, int], float]


def torchs(make: Callable[[torch.optim.Optimizer], LRScheduler], lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def cosine_is_torchs(rate: Rate) -> None:
    for steps, lr in ((1, 0.1), (7, 0.1), (100, 3.0)):
        ours = [rate(Schedule(name="cosine"), lr, step, steps, 7) for step in range(steps)]
        theirs = torchs(lambda o, steps=steps: CosineAnnealingLR(o, T_max=steps), lr, steps)
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def steps_are_torchs(rate: Rate) -> None:
    """A milestone at share s of N steps is torch's milestone at ceil(s N), also where .55 * 100 is above 55."""
    for steps in (4, 30, 100, 157):
        for shares in ((0.5, 0.75), (0.55,), (0.07, 0.3, 0.9), (0.33, 0.66)):
            at = [math.ceil(round(share * steps, 9)) for share in shares]
            ours = [rate(Schedule(name="steps", milestones=shares), 0.1, step, steps, 3) for step in range(steps)]
            theirs = torchs(lambda o, at=at: MultiStepLR(o, milestones=at, gamma=0.1), 0.1, steps)
            assert ours == pytest.approx(theirs, rel=1e-9)


def constant_is_constant(rate: Rate) -> None:
    assert {rate(Schedule(name="constant"), 0.3, step, 9, 3) for step in range(9)} == {0.3}


def a_warmup_rises_to_the_highest_rate(rate: Rate) -> None:
    """Two epochs of 4 steps: (i + 1) / 9 of the rate, then the rest of the run on its own."""
    for name in ("cosine", "steps", "constant"):
        spec = Schedule(name=name, warmup=2, milestones=(0.5,))
        rates = [rate(spec, 0.9, step, 24, 4) for step in range(24)]
        assert rates[:9] == pytest.approx([0.1 * (i + 1) for i in range(9)])
        assert max(rates) == rates[8]
    cosine = [rate(Schedule(warmup=2), 0.9, step, 24, 4) for step in range(8, 24)]
    assert cosine == pytest.approx([0.9 * 0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])


CHECKS = [cosine_is_torchs, steps_are_torchs, constant_is_constant, a_warmup_rises_to_the_highest_rate]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_learning_rate(check: Callable[[Rate], None]) -> None:
    check(learning_rate)


def one_late(spec: Schedule, highest: float, step: int, steps: int, per_epoch: int) -> float:
    return learning_rate(spec, highest, max(step - 1, 0), steps, per_epoch)


def per_epoch_only(spec: Schedule, highest: float, step: int, steps: int, per_epoch: int) -> float:
    return learning_rate(spec, highest, step // per_epoch * per_epoch, steps, per_epoch)


@pytest.mark.parametrize("check", [*CHECKS[:2], CHECKS[3]], ids=lambda check: check.__name__)
@pytest.mark.parametrize("twin", [one_late, per_epoch_only])
def test_other_rates_are_noticed(check: Callable[[Rate], None], twin: Rate) -> None:
    with pytest.raises(AssertionError):
        check(twin)


@pytest.mark.parametrize(
    ("spec", "kind", "group"),
    [
        (Optimizer(), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
        (Optimizer(momentum=0.0), torch.optim.SGD, {"momentum": 0.0, "nesterov": False}),
        (Optimizer(nesterov=False), torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        (Optimizer(name="adam", lr=1e-3, weight_decay=0.0), torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.0}),
        (Optimizer(name="adamw", weight_decay=0.2), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}),
    ],
    ids=repr,
)
def test_optimizers(spec: Optimizer, kind: type, group: dict[str, object]) -> None:
    parameters = list(nn.Linear(2, 2).parameters())
    made = made_optimizer(spec, iter(parameters))
    assert type(made) is kind
    assert made.param_groups[0]["params"] == parameters
    assert {name: made.param_groups[0][name] for name in group} == group
