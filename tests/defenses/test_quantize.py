"""Quantize: the grid, its two roundings, the float32 hazard, and an attacker who knows it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal

import pytest
import torch
from torch import Tensor, nn

import poise
from poise import ModuleTarget
from poise.defenses import Quantize, defended
from poise.errors import InputError
from poise.targets.bpda import BPDA
from toys import Fixed, SmallCNN, generator

LEVELS = torch.arange(256, dtype=torch.float64)
X = torch.rand(5, 1, 8, 8, generator=generator(3))


def row(values: Tensor) -> Tensor:
    return values.view(1, 1, 1, -1)


def bare_floor(x: Tensor) -> Tensor:
    """The published line, without a guard."""
    return (255 * x).floor() / 255


def lost(quantize: Callable[[Tensor], Tensor], change: int, dtype: torch.dtype) -> int:
    """For how many legal k the image k/255 + change/255, taken in `dtype`, is not seen as the legal k + change."""
    k = LEVELS[(LEVELS + change >= 0) & (LEVELS + change <= 255)]
    moved = (k.to(dtype) / 255) + torch.tensor(change, dtype=dtype) / 255
    seen = (quantize(row(moved)).double() * 255).round().flatten()
    return int((seen != k + change).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["round", "floor"])
def test_levels_stay_to_the_last_bit_and_quantising_twice_changes_nothing(mode: str, dtype: torch.dtype) -> None:
    for bits in range(1, 9):
        grid = row(torch.arange(2**bits).to(dtype) / (2**bits - 1))
        quantize = Quantize(bits, mode=mode)
        assert torch.equal(quantize(grid), grid)
        once = quantize(X.to(dtype))
        assert torch.equal(quantize(once), once)
        assert len(once.unique()) <= 2**bits


@pytest.mark.parametrize(
    ("change", "dtype", "count"),
    [
        (-8, torch.float32, 15),
        (8, torch.float32, 0),
        (-8, torch.float64, 4),
        (8, torch.float64, 5),
    ],
)
def test_hazard_of_the_published_floor(change: int, dtype: torch.dtype, count: int) -> None:
    """Spec attacks 22: how many grey levels the bare floor loses; the guard and the rounding lose none."""
    assert lost(bare_floor, change, dtype) == count
    for mode in ("round", "floor"):
        assert all(lost(Quantize(mode=mode), step, dtype) == 0 for step in (change, change // 2, change // 8))


@pytest.mark.parametrize("mode", ["round", "floor"])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_against_decimal_arithmetic(mode: str, bits: int) -> None:
    levels = 2**bits - 1
    x = torch.rand(300, generator=generator(bits), dtype=torch.float64)
    way = ROUND_HALF_UP if mode == "round" else ROUND_FLOOR
    exact = [int((Decimal(value) * levels).quantize(Decimal(1), rounding=way)) for value in x.tolist()]
    found = (Quantize(bits, mode=mode)(row(x)).flatten() * levels).round()
    clear = (x * levels + 1e-4).floor() == (x * levels).floor()  # the guard itself moves what is this near
    assert found[clear].tolist() == torch.tensor(exact, dtype=torch.float64)[clear].tolist()
    assert int(clear.sum()) > 290


def test_how_far_a_pixel_moves() -> None:
    x = torch.rand(1, 1, 100, 100, generator=generator(0))
    nearest, lower = Quantize()(x), Quantize(mode="floor")(x)
    assert float((nearest - x).abs().max()) <= 0.5 / 255 + 1e-7
    assert float((x - lower).max()) < 1 / 255
    assert float((lower - x).max()) <= 1e-4 / 255 + 1e-7
    assert not torch.equal(nearest, lower)
    half = row(torch.tensor([0.5, 127.5 / 255, 0.25]))
    assert Quantize(1)(half).flatten().tolist() == [1, 1, 0]


def test_clipping_bounds_and_types() -> None:
    assert Quantize()(row(torch.tensor([-0.5, 0.0, 1.0, 1.5]))).flatten().tolist() == [0, 0, 1, 1]
    symmetric = Quantize(1, bounds=(-1, 1))
    assert symmetric(row(torch.tensor([-0.1, 0.1, -3.0]))).flatten().tolist() == [-1, 1, -1]
    for dtype in (torch.float16, torch.bfloat16):
        grid = row((LEVELS / 255).to(dtype))
        assert Quantize()(grid).dtype is dtype
        assert torch.equal(Quantize()(grid), (Quantize()(grid.float())).to(dtype))
    assert torch.equal(Quantize()(row(LEVELS.half() / 255)), row(LEVELS.half() / 255))


@pytest.mark.parametrize("bits", [0, -1, 9, 8.0, True, "8"])
def test_bad_bits(bits: object) -> None:
    with pytest.raises(InputError, match=rf"^Quantize: bits must be an integer in \[1, 8\], got {bits}$"):
        Quantize(bits)  # type: ignore[arg-type]


def test_bad_mode() -> None:
    with pytest.raises(InputError, match=r"^Quantize: mode: must be one of .*did you mean floor\?"):
        Quantize(mode="flor")  # type: ignore[arg-type]


def moves(module: nn.Module) -> Tensor:
    """How far each image moves under PGD that starts at the image itself."""
    labels = SmallCNN().eval()(X).argmax(dim=1)
    target = ModuleTarget(module, num_classes=4)
    return poise.run_recipe("adaptive", target, X, labels, eps=0.1).table["linf"].to_torch()


def test_bpda_opens_what_stops_a_plain_gradient() -> None:
    model = SmallCNN().eval()
    assert not moves(defended(model, inference=[Quantize(4)])).any()
    assert bool((moves(defended(model, inference=[BPDA(Quantize(4), nn.Identity())])) > 0).all())
    x = X.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(Quantize()(x).sum(), x)
    assert not gradient.any()
    assert not Quantize.differentiable
    opened = BPDA(Quantize(4), nn.Identity())
    assert torch.equal(opened(X.clone().requires_grad_(True)), Quantize(4)(X))
    assert bool((moves(defended(model, inference=[Fixed(lambda x: x)])) > 0).all()), "no attack moves this model"
