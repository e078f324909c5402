"""Grad-CAM against its definition, the layer it is read at, and a model that is left as it was."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_models import CLASSES, SIDE, Convolved, Linear

from poise.data.vision import import_torchvision
from poise.errors import MissingExtraError
from poise.experiments import explain_cams
from poise.experiments.explain_cams import cams, map_layer, untouched
from poise.models.vision import cifar_resnet, small_vit


def images(n: int = 5, *, side: int = SIDE, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(3))


def scaled(maps: np.ndarray) -> np.ndarray:
    """Minus the least value, divided by the largest, map by map; maps of 0 stay."""
    least = maps.min(axis=(1, 2), keepdims=True)
    return (maps - least) / (1e-7 + (maps - least).max(axis=(1, 2), keepdims=True))


def by_definition(model: Convolved, x: Tensor, classes: Tensor) -> np.ndarray:
    """relu(sum_k W_kc A_k): after a mean over places, the gradient of z_c by A_k is W_kc over the number of places."""
    with torch.no_grad():
        maps = torch.einsum("nk,nkhw->nhw", model.head.weight[classes], model.body(x)).relu()
    return scaled(maps.double().numpy())


def test_with_a_linear_head_after_the_mean_the_map_is_the_weighted_sum() -> None:
    model, x = Convolved(), images()
    layer = map_layer(model, x)
    assert layer is not None
    assert (layer.name, layer.kind) == ("body", "convolution")
    found, predicted = cams(model, layer, x), model(x).argmax(dim=1)
    assert found.shape == (5, SIDE, SIDE)
    assert found == pytest.approx(by_definition(model, x, predicted), abs=1e-5)
    assert found.max(axis=(1, 2)) == pytest.approx(np.ones(5), abs=1e-5)
    other = by_definition(model, x, (predicted + 1) % CLASSES)
    assert np.abs(found - other).max() > 0.1, "the broken twin: the maps of another class are other maps"


def test_a_map_comes_to_the_size_of_the_image() -> None:
    model = Convolved()
    model.body.append(nn.MaxPool2d(2))
    x = images()
    layer = map_layer(model, x)
    small = torch.from_numpy(by_definition(model, x, model(x).argmax(dim=1)))
    large = functional.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    assert cams(model, layer, x) == pytest.approx(scaled(large.numpy()), abs=1e-4)


def test_a_map_without_positive_parts_stays_dark() -> None:
    model = Convolved()
    with torch.no_grad():
        model.head.weight.copy_(-model.head.weight.abs())
    assert (cams(model, map_layer(model, images()), images()) == 0).all()


def test_rows_do_not_depend_on_the_batch() -> None:
    model, x = Convolved(), images()
    layer = map_layer(model, x[:2])
    each = np.concatenate([cams(model, layer, x[k : k + 1]) for k in range(len(x))])
    assert cams(model, layer, x) == pytest.approx(each, abs=1e-5)


class InPlace(nn.Module):
    """Writes into what it is given, before the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Convolved()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2).sub_(1))


def test_frozen_models_and_in_place_layers_are_read_too() -> None:
    plain, x = Convolved(), images()
    expected = cams(plain, map_layer(plain, x), x)
    frozen = Convolved().requires_grad_(False)
    assert cams(frozen, map_layer(frozen, x), x) == pytest.approx(expected, abs=1e-6)
    model, kept = InPlace(), x.clone()
    layer = map_layer(model, x)
    assert layer is not None
    assert layer.name == "inner.body"
    cams(model, layer, x)
    assert torch.equal(x, kept)


def state(model: nn.Module) -> list[object]:
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) for part in model.modules()]
    weights = [(w.requires_grad, None if w.grad is None else w.grad.clone()) for w in model.parameters()]
    return [hooks, [part.training for part in model.modules()], [wanted for wanted, _ in weights], weights[0][1]]


class Breaks(Convolved):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise ZeroDivisionError


@pytest.mark.parametrize("factory", [Convolved, Breaks])
def test_the_model_is_left_as_it_was_even_after_an_exception(factory: type[Convolved]) -> None:
    model = factory()
    model.body.eval()
    model.head.bias.requires_grad_(False)
    next(model.parameters()).grad = torch.full((6, 1, 3, 3), 7.0)
    before, layer = state(model), map_layer(Convolved(), images())
    for ask in (lambda: map_layer(model, images()), lambda: cams(model, layer, images())):
        if factory is Breaks:
            with pytest.raises(ZeroDivisionError):
                ask()
        else:
            ask()
        after = state(model)
        assert before[:3] == after[:3]
        assert torch.equal(before[3], after[3])
    with pytest.raises(KeyError), untouched(model):
        raise KeyError
    assert state(model)[:3] == before[:3]


class ChannelsLast(nn.Module):
    """A patch convolution, then a normalisation over the last axis of (n, h, w, C), as in Swin of timm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(1, 4, 2, stride=2), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.patches(x).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


def vit_of_torchvision() -> nn.Module:
    models = import_torchvision("models", feature="the test")
    made: nn.Module = models.VisionTransformer(
        image_size=12, patch_size=3, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )
    with torch.no_grad():
        made.heads.head.weight.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))
    return made


@pytest.mark.parametrize(
    ("make", "side", "channels", "name", "kind"),
    [
        (lambda: cifar_resnet("resnet18", 10), 32, 3, "layer4", "convolution"),
        (lambda: import_torchvision("models", feature="x").resnet18(num_classes=10), 32, 3, "layer3", "convolution"),
        (lambda: small_vit(10), 32, 3, "blocks.5.norm1", "tokens"),
        (vit_of_torchvision, 12, 3, "encoder.layers.encoder_layer_1.ln_1", "tokens"),
        (ChannelsLast, 8, 1, "norm", "convolution"),
    ],
)  # fmt: skip
def test_the_last_layer_with_places_that_count(make, side: int, channels: int, name: str, kind: str) -> None:
    """layer4 of a ResNet, layer3 where layer4 has one place; in a ViT the norm before the last attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    x = images(2, side=side, channels=channels)
    layer = map_layer(model, x)
    assert layer is not None
    assert (layer.name, layer.kind) == (name, kind)
    found = cams(model, layer, x)
    assert found.shape == (2, side, side)
    assert np.isfinite(found).all()
    assert found.max() > 0.5


@pytest.mark.parametrize(
    "model",
    [Linear(), nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)), nn.Sequential(nn.LayerNorm(SIDE), Linear())],
)
def test_without_places_there_is_no_layer(model: nn.Module) -> None:
    assert map_layer(model, images()) is None


def test_without_the_library_one_line_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = map_layer(Convolved(), images())
    monkeypatch.setattr(explain_cams, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"explain: Grad-CAM needs the extra 'explain': pip install 'poise\[explain"
    ):
        cams(Convolved(), layer, images())
    assert "poise" in sys.modules
