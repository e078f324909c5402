"""check_objective accepts every objective of the table and refuses a twin for every promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from poise.checks.objectives import CheckError, check_objective
from poise.objectives import (
    MMA,
    OBJECTIVES,
    OCA,
    RCA,
    UCA,
    ConfSmooth,
    KeepLabel,
    Margin,
    Moved,
    Targeted,
    ThroughTemperature,
    TowardsClass,
)
from poise.objectives.base import Bound, downwards, of_class
from poise.rng import Rng
from poise.types import Access, Outputs

SPECIAL = {
    "KeepLabel": [KeepLabel(UCA()), KeepLabel(UCA(), 0.0)],
    "Moved": [Moved(UCA(), 0.1), Moved(KeepLabel(OCA()), 0.3)],
    "TowardsClass": [TowardsClass(1)],
    "ThroughTemperature": [ThroughTemperature(UCA(), 3.0), ThroughTemperature(KeepLabel(OCA()), 0.2)],
}
VARIANTS = [
    *(one for name, kind in OBJECTIVES.items() for one in SPECIAL.get(name, [kind])),
    UCA(follow="cross-entropy", label="true"),
    OCA(follow="cross-entropy"),
    RCA(mode="direction"),
    Targeted(classes=1, margin=True),
    Margin(stop=False),
    KeepLabel(MMA(under=ConfSmooth(), over=OCA(follow="cross-entropy"))),
]


@pytest.mark.parametrize("objective", VARIANTS, ids=repr)
def test_accepts(objective: object) -> None:
    check_objective(objective() if isinstance(objective, type) else objective)


@dataclass(frozen=True)
class Goal:
    """An objective whose bound goal is remade by a function of (bound, clean, labels, ids, rng)."""

    remake: Callable[..., Bound]
    access: ClassVar[Access] = Access.SCORES

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return self.remake(UCA().bind(clean, labels, ids, rng), clean, labels, ids, rng)


def reading(name: str, function: Callable[[Bound, Outputs, Tensor], Tensor]) -> Goal:
    """UCA with one of its four readings replaced."""

    def remake(bound: Bound, *rest: object) -> Bound:
        kind = type(bound)
        twin = type("Twin", (kind,), {name: lambda self, outputs, ids: function(kind(**vars(self)), outputs, ids)})
        return twin(**vars(bound))

    return Goal(remake)


def gap(bound: Bound, outputs: Outputs, ids: Tensor) -> Tensor:
    return bound.loss(outputs, ids)


def naive_gap(bound: Bound, outputs: Outputs, ids: Tensor) -> Tensor:
    """log of a float32 probability: infinite where it is 0."""
    return -of_class(outputs.scores.float().softmax(dim=1), bound.k[ids]).log().double()


def scribble(bound: Bound, outputs: Outputs, ids: Tensor) -> Tensor:
    outputs.scores[0] += 1.0
    return bound.loss(outputs, ids)


calls = [0]


def drifting(bound: Bound, outputs: Outputs, ids: Tensor) -> Tensor:
    calls[0] += 1
    return bound.loss(outputs, ids) + 1e-3 * calls[0]


def global_draw(bound: Bound, outputs: Outputs, ids: Tensor) -> Tensor:
    return bound.loss(outputs, ids) + 0 * torch.rand(1)


def by_row(bound: Bound, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
    """RCA whose draws go by the row, not by the sample's name."""
    return RCA().bind(clean, labels, ids, Rng(rng.seed, ids))


def true_label(bound: Bound, clean: Outputs, labels: Tensor, *rest: object) -> Bound:
    return UCA().bind(Outputs(clean.scores.roll(1, dims=1)), labels, *rest)


def wrong_over(bound: Bound, clean: Outputs, *rest: object) -> Bound:
    return type(bound)(**vars(bound) | {"over": downwards(clean).double()})


def margin_in_scores(bound: Bound, outputs: Outputs, ids: Tensor) -> Tensor:
    """Takes the declared scores for what they are not: probabilities and logits give different values."""
    return of_class(outputs.scores, bound.k[ids]).double()


@dataclass(frozen=True)
class Detached:
    access: ClassVar[Access] = Access.SCORES

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return reading("loss", lambda b, o, i: b.loss(o, i).detach()).bind(clean, labels, ids, rng)


@dataclass(frozen=True)
class BadAccess:
    access: ClassVar[str] = "scores"


TWINS: dict[str, tuple[object, str]] = {
    "access": (BadAccess(), "access must be an Access, got 'scores'"),
    "k": (Goal(true_label), "k must be the clean prediction"),
    "over": (Goal(wrong_over), r"over must be \(8,\) bool"),
    "shape": (reading("loss", lambda b, o, i: gap(b, o, i)[:, None]), r"loss must be \(8,\) floats, got \(8, 1\)"),
    "sum": (reading("loss", lambda b, o, i: gap(b, o, i).sum().expand(len(i))), "loss of a row must not depend"),
    "mean": (reading("merit", lambda b, o, i: gap(b, o, i) - gap(b, o, i).mean()), "merit of a row must not depend"),
    "accept": (reading("accept", lambda b, o, i: gap(b, o, i)), r"accept must be \(8,\) bool"),
    "done": (
        reading("done", lambda b, o, i: gap(b, o, i) <= gap(b, o, i).min()),
        "done of a row must not depend on the other rows",
    ),
    "position": (
        reading("loss", lambda b, o, i: gap(b, o, i) * (1 + torch.arange(len(i)))),
        "loss of a row must not depend",
    ),
    "by row": (Goal(by_row), "must not depend on the order of the samples in bind"),
    "writes": (reading("loss", scribble), "must"),
    "drifts": (reading("loss", drifting), "must"),
    "global draw": (reading("loss", global_draw), "global random generators"),
    "infinite": (reading("loss", naive_gap), "loss and merit must be finite on saturated"),
    "gradient": (
        reading("loss", lambda b, o, i: gap(b, o, i) + (o.logits.sum(dim=1) - o.logits.detach().sum(dim=1))),
        "the gradient of loss must equal finite differences",
    ),
    "no gradient": (Detached(), "loss must be differentiable in the scores unless access is LABELS"),
    "kinds": (reading("merit", margin_in_scores), "merit must be the same for logits and for their probabilities"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_refuses(twin: str) -> None:
    objective, message = TWINS[twin]
    with torch.random.fork_rng(), pytest.raises(CheckError, match=message) as caught:
        check_objective(objective)
    assert "\n" not in str(caught.value)
