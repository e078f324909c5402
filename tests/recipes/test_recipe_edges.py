"""Edge cases of every recipe: radius zero, a constant model, nothing to do, tiny images, a real network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import poise
import toys
from poise.objectives import UCA, KeepLabel
from poise.objectives.base import Bound, downwards
from poise.recipebook import Setting, ball
from poise.rng import Rng
from poise.searches import PGD
from poise.types import Access, Outputs
from recipe_cases import PROPERTIES, RECIPES, WITHOUT_RADIUS, Setup, every_recipe, run, run_own


@every_recipe
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radius_zero_returns_the_images_themselves(name: str, norm: str, dtype: torch.dtype) -> None:
    """Except where there is no radius: a negative is the whole way off, whatever was asked for."""
    attacked = run(name, Setup(eps=0.0, norm=norm, dtype=dtype, shape=(3, 5, 4)))
    expected = 1 - attacked.case.images if name in WITHOUT_RADIUS else attacked.case.images
    assert torch.equal(attacked.result.images, expected)


@every_recipe
@pytest.mark.parametrize("classes", [2, 10])
def test_constant_model_moves_nothing(name: str, classes: int) -> None:
    target = poise.ModuleTarget(toys.Constant(classes), num_classes=classes)
    images = torch.rand(3, 1, 4, 4, generator=toys.generator(0))
    result = poise.run_recipe(name, target, images, torch.tensor([0, 1, 1]), eps=0.1, budget=10)
    assert torch.equal(result.images, images)
    assert result.table["prediction_after"].to_list() == [0, 0, 0]
    assert result.table["confidence_after"].to_list() == pytest.approx([1 / classes] * 3)


@dataclass(frozen=True)
class Finished:
    """A goal that every sample has reached before the attack begins."""

    access: ClassVar[Access] = Access.LABELS

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Finished(k=clean.labels, over=downwards(clean))


class _Finished(Bound):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.logits.sum(dim=1)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.ones_like(ids, dtype=torch.bool)


@every_recipe
def test_a_batch_that_is_finished_costs_one_query_each(name: str) -> None:
    search = RECIPES[name].search(Setting(ball("linf", 0.1)))
    attacked = run_own(Finished(), search, Setup())
    assert attacked.passes["forward"] == 3
    assert attacked.result.table["queries"].to_list() == [1, 1, 1]
    assert attacked.result.table["stop"].to_list() == ["success"] * 3
    assert torch.equal(attacked.result.images, attacked.case.images)


@every_recipe
@pytest.mark.parametrize("n", [0, 1])
def test_no_image_and_one_image(name: str, n: int) -> None:
    attacked = run(name, Setup(n=n, classes=10))
    assert attacked.result.table.height == n
    assert attacked.result.images.shape == (n, 1, 4, 4)
    assert attacked.result.scores.shape == attacked.result.scores_before.shape == (n, 10)


@every_recipe
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (1, 2, 2), (1, 6, 1)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_and_narrow_images(name: str, shape: tuple[int, int, int], norm: str) -> None:
    attacked = run(name, Setup(shape=shape, norm=norm, budget=15))
    for check in PROPERTIES.values():
        check(attacked)


# --- on a real network, where another batch shape may change the last bits ---


@every_recipe
def test_label_survives_prediction_one_by_one_on_a_cnn(name: str) -> None:
    target = poise.ModuleTarget(toys.SmallCNN(classes=3), num_classes=3)
    images = torch.rand(24, 1, 8, 8, generator=toys.generator(2))
    labels = torch.arange(24) % 3
    result = poise.run_recipe(name, target, images, labels, eps=0.3, budget=40)
    alone = torch.cat([target.query(x[None], torch.zeros(1, dtype=torch.long)).scores for x in result.images])
    torch.testing.assert_close(alone, result.scores, rtol=1e-4, atol=1e-5)
    assert bool((result.table["loss_after"] < result.table["loss_before"]).any())
    if RECIPES[name].keeps_label:
        assert alone.argmax(dim=1).tolist() == result.table["prediction_before"].to_list()


def test_without_the_margin_a_label_may_sit_on_a_tie() -> None:
    """Why the margin is there: a goal of exactly zero gap is reached, and no margin would be left."""
    case = toys.binary_case(2, margin=1.0)
    strict = poise.attack(
        case.target(), KeepLabel(UCA(tol=0)), PGD(20, 0.01), ball("linf", 0.3), case.images, case.labels
    )
    gap = [2 * confidence - 1 for confidence in strict.table["confidence_after"]]
    assert min(gap) > 1e-4
