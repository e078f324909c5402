"""Mixed: searches in half precision, and every figure of a result is the module's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poise
import toys
from poise.constraints import Linf
from poise.errors import InputError
from poise.objectives import MMA, KeepLabel, MinConfidence
from poise.recipebook import RECIPES
from poise.searches import PGD, Square
from poise.targets import Mixed, ModuleTarget
from poise.types import Access

HALVES = (torch.bfloat16, torch.float16)


class Net(nn.Module):
    """Small and not linear; notes what its layers computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 6 * 6, 5)
        generator = toys.generator(0)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        self.seen: list[tuple[torch.dtype, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.features(x).relu()
        self.seen.append((hidden.dtype, len(x)))
        return self.head(hidden.flatten(1))


def case(n: int = 12, **given: object) -> tuple[ModuleTarget, Tensor, Tensor]:
    target = ModuleTarget(Net(), num_classes=5, **given)
    images = torch.rand(n, 3, 8, 8, generator=toys.generator(1))
    return target, images, target.query(images, torch.arange(n)).labels


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_figure_of_a_result_is_the_modules_own(name: str, dtype: torch.dtype) -> None:
    target, images, labels = case(6)
    result = poise.run_recipe(name, Mixed(target, dtype), images, labels, eps=0.05, budget=20, steps=8)
    before, after = (target.query(x, torch.arange(6)) for x in (images, result.images))
    table = result.table
    for outputs, when in ((before, "before"), (after, "after")):
        assert outputs.labels.tolist() == table[f"prediction_{when}"].to_list()
        np.testing.assert_allclose(outputs.confidence, table[f"confidence_{when}"], rtol=1e-6)
    assert table["queries"].max() <= 20


@pytest.mark.parametrize("search", [Square(), PGD(steps=20)])
def test_only_what_may_become_a_result_is_asked_in_full(search: object) -> None:
    target, images, labels = case()
    target.module.seen.clear()
    goal = KeepLabel(MMA())
    table = poise.attack(Mixed(target), goal, search, Linf(0.05), images, labels, budget=60).table
    full = sum(rows for dtype, rows in target.module.seen if dtype == torch.float32)
    half = sum(rows for dtype, rows in target.module.seen if dtype == torch.bfloat16)
    assert half == table["queries"].sum()
    assert len(images) <= full < 0.7 * half


def improves(target: object, images: Tensor, labels: Tensor) -> float:
    table = poise.attack(target, KeepLabel(MinConfidence()), Square(), Linf(0.05), images, labels, budget=100).table
    return float((table["confidence_before"] - table["confidence_after"]).mean())


def test_it_finds_nearly_what_full_precision_finds() -> None:
    target, images, labels = case(32)
    assert improves(Mixed(target), images, labels) == pytest.approx(improves(target, images, labels), rel=0.1)


class Wrong(Mixed):
    """Half precision that errs so much that nothing it says holds."""

    def query(self, x: Tensor, ids: Tensor) -> poise.Outputs:
        answer = super().query(x, ids)
        return poise.Outputs(answer.scores.roll(1, dims=1) * 0.01, answer.kind)


def test_a_half_precision_that_errs_costs_strength_and_never_truth() -> None:
    target, images, labels = case(16)
    result = poise.run_recipe("sa-mma", Wrong(target), images, labels, eps=0.05, budget=60)
    after = target.query(result.images, torch.arange(16))
    assert after.labels.tolist() == result.table["prediction_after"].to_list()
    assert (result.table["loss_after"] <= result.table["loss_before"]).all()
    np.testing.assert_allclose(after.confidence, result.table["confidence_after"], rtol=1e-6)


def test_one_that_answers_in_half_alone_is_caught_by_the_same_check() -> None:
    """What the table would say without the second answer."""
    target, images, labels = case()
    low = Mixed(target)._low
    result = poise.run_recipe("pgd-mma", low, images, labels, eps=0.05, budget=20)
    after = target.query(result.images, torch.arange(len(images)))
    assert not np.allclose(after.confidence, result.table["confidence_after"], rtol=1e-6)


def test_what_it_cannot_wrap() -> None:
    target, *_ = case()
    with pytest.raises(InputError, match=r"Mixed: dtype must be torch\.bfloat16 or torch\.float16, got torch\.float64"):
        Mixed(target, torch.float64)
    with pytest.raises(InputError, match="Mixed: target must be a ModuleTarget, got Mixed"):
        Mixed(Mixed(target))
    assert Mixed(case(access=Access.SCORES)[0]).access is Access.SCORES
