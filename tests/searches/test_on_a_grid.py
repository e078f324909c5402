"""Every search under the 8-bit constraint: what the model sees is an 8-bit image, and so is what is returned."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import poise
import toys
from poise.checks.searches import check_search
from poise.constraints import L2, Anywhere, Box, Constraint, EightBit, Linf
from poise.errors import InputError
from poise.objectives import MMA, OCA, UCA, CrossEntropy, KeepLabel, Margin, MaxConfidence, MinConfidence, Objective
from poise.searches import (
    ACE,
    APGD,
    EOT,
    FAB,
    PGD,
    AdaptivePGD,
    Aimed,
    Ask,
    Cascade,
    ConfidencePGD,
    CrossingSquare,
    DropoutPGD,
    EveryClass,
    MomentumPGD,
    Negative,
    Noise,
    Search,
    Square,
)
from poise.searches.grid import steps_of
from poise.types import Outputs

KEEP = KeepLabel(MMA(under=MinConfidence(), over=OCA(tol=1e-3, follow="cross-entropy")))
ATTACKS: list[tuple[Objective, Search]] = [
    (Margin(), Square(start="stripes")),
    (KeepLabel(UCA()), Square(start="clean", inclusive=False)),
    (Margin(), CrossingSquare()),
    (CrossEntropy(), PGD(steps=8, random_start=True, undo=False)),
    (CrossEntropy(), PGD(steps=1, step=None)),
    (CrossEntropy(), PGD(steps=3, source=EOT(2))),
    (KeepLabel(OCA()), DropoutPGD(mask_target="delta")),
    (KeepLabel(UCA()), DropoutPGD(mask_target="step", rescale=True, radius=0.02)),
    (KeepLabel(UCA()), AdaptivePGD()),
    (CrossEntropy(), MomentumPGD(steps=5)),
    (CrossEntropy(), APGD(steps=10, random_start=True)),
    (KeepLabel(UCA()), ACE()),
    (Margin(), FAB(steps=6)),
    (KEEP, ConfidencePGD(steps=10)),
    (KEEP, Cascade((ConfidencePGD(steps=5), ConfidencePGD(steps=5, start="best", scale=0.05), Square(start="best")))),
    (KEEP, Aimed(APGD(steps=4), 4.0)),
    (MaxConfidence(), EveryClass(PGD(steps=4, random_start=True, undo=False))),
    (MaxConfidence(), Noise(points=6)),
]


def on_grid(x: Tensor) -> bool:
    return torch.equal(x, (x * 255).round().to(torch.uint8).to(x.dtype) / 255)


class Camera(toys.RecordingTarget):
    """Refuses every image that no camera could have delivered."""

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        assert on_grid(x)
        return super().query(x, ids)

    def gradient(self, x: Tensor, ids: Tensor, loss) -> tuple[Outputs, Tensor]:
        assert on_grid(x)
        return super().gradient(x, ids, loss)


def eight_bit_case(dtype: torch.dtype = torch.float32) -> toys.Case:
    case = toys.linear_case(5, shape=(3, 5, 4), classes=4, dtype=dtype)
    return dataclasses.replace(case, images=(case.images * 255).round().to(torch.uint8).to(dtype) / 255)


def attacked(goal: Objective, search: Search, constraint: Constraint, **settings) -> poise.types.AttackResult:
    case = settings.pop("case", None) or eight_bit_case()
    target = Camera(case.module(), num_classes=4)
    return poise.attack(target, goal, search, constraint, case.images, case.labels, case.ids, **settings)


@pytest.mark.parametrize("inner", [Linf(0.05), L2(0.2)], ids=repr)
@pytest.mark.parametrize(("goal", "search"), ATTACKS, ids=repr)
def test_the_model_sees_nothing_but_8_bit_images(goal: Objective, search: Search, inner: Constraint) -> None:
    """linf 0.05 is 12.75 levels: no search's own step would be on the grid."""
    clean = eight_bit_case().images
    result = attacked(goal, search, EightBit(inner), budget=25)
    assert on_grid(result.images)
    assert bool(inner.contains(result.images, clean).all())
    if isinstance(inner, Linf):
        assert float((255 * (result.images - clean)).abs().max()) < 12.01
    assert (result.table["loss_after"] <= result.table["loss_before"]).all()
    assert (result.table["loss_after"] < result.table["loss_before"]).any()


@pytest.mark.parametrize(("goal", "search"), ATTACKS[:2] + ATTACKS[3:4], ids=repr)
def test_the_camera_notices_the_ball_itself(goal: Objective, search: Search) -> None:
    with pytest.raises(AssertionError):
        attacked(goal, search, Linf(0.05), budget=25)


@pytest.mark.parametrize("mode", ["round", "floor"])
def test_whole_levels_cost_nothing(mode: str) -> None:
    """With eps = 8/255 Square's points are on the grid anyway: the same attack, up to the last bit."""
    case = eight_bit_case()
    free = poise.attack(
        case.target(), Margin(), Square(start="stripes"), Linf(8 / 255), case.images, case.labels, case.ids, budget=40
    )
    bound = attacked(Margin(), Square(start="stripes"), EightBit(Linf(8 / 255), mode), budget=40)
    torch.testing.assert_close(bound.images, free.images, rtol=0, atol=1e-6)
    assert bound.table["queries"].to_list() == free.table["queries"].to_list()
    assert bound.table["spec"][0] != free.table["spec"][0]


def test_steps_below_one_level_add_up() -> None:
    """A search that was projected onto the grid at every step would never leave the clean image."""
    result = attacked(CrossEntropy(), PGD(steps=20, step=0.3 / 255, undo=False), EightBit(Linf(8 / 255)))
    assert min(result.table["linf"]) > 3 / 255


def test_the_images_survive_the_file() -> None:
    result, case = attacked(Margin(), Square(start="stripes"), EightBit(L2(0.3)), budget=60), eight_bit_case()
    saved = (result.images * 255).round().to(torch.uint8)
    assert torch.equal(case.module()(saved.float() / 255).detach(), result.scores)


def test_other_bounds() -> None:
    """A model of images in -1..1."""
    case = eight_bit_case()
    target = poise.ModuleTarget(toys.Rescaled(case.module(), 0.5, 0.5), num_classes=4, bounds=(-1.0, 1.0))
    images = 2 * case.images - 1
    grid = EightBit(Linf(0.1), box=Box(-1.0, 1.0))
    result = poise.attack(target, Margin(), Square(start="stripes"), grid, images, case.labels, budget=20)
    level = (result.images.double() + 1) * 127.5
    torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-4)
    assert result.table["linf"].max() <= 0.1
    with pytest.raises(InputError, match="EightBit: box must be the target's"):
        poise.attack(target, Margin(), Square(), EightBit(Linf(0.1)), images, case.labels, budget=20)


def test_without_a_radius() -> None:
    result = attacked(poise.objectives.Unconditional(), Negative(), EightBit(Anywhere()))
    assert on_grid(result.images)
    assert torch.equal((255 * result.images).round(), 255 - (255 * eight_bit_case().images).round())


def test_images_off_the_grid_are_asked_for_once_and_refused_where_the_ball_holds_no_level() -> None:
    case = toys.linear_case(4, dtype=torch.float32)
    target = case.target()
    result = poise.attack(
        target, Margin(), Aimed(PGD(steps=4), 0.0), EightBit(Linf(0.05)), case.images, case.labels, budget=20
    )
    first, *rest = target.log
    assert torch.equal(first[1], case.images)
    assert rest
    assert all(on_grid(x) for _, x, *_ in rest)
    kept = (result.images == case.images).flatten(1).all(dim=1)
    assert on_grid(result.images[~kept])
    with pytest.raises(InputError, match=r"EightBit: eps must be at least 0\.00\d+, the distance of image 0"):
        poise.attack(case.target(), Margin(), Square(), EightBit(Linf(1e-4)), case.images, case.labels)


@pytest.mark.parametrize("inner", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize(
    "search", [Square(), CrossingSquare(), PGD(), FAB(), Noise(), Cascade(), EveryClass()], ids=repr
)
def test_searches_keep_their_contract(search: Search, inner: Constraint) -> None:
    check_search(search, constraint=EightBit(inner), budget=12)


def test_the_search_is_closed_with_the_attack() -> None:
    """An attack that breaks off half-way ends the search's own generator."""
    closed = []

    class Watched:
        access = poise.types.Access.LABELS

        def run(self, problem):
            try:
                while True:
                    yield Ask(problem.clean, problem.everyone)
            finally:
                closed.append(problem.constraint)

    clean = eight_bit_case().images
    steps = steps_of(Watched(), toys.problem(clean, EightBit(Linf(0.1))))
    next(steps)
    steps.close()
    assert closed == [Linf(0.1)]
