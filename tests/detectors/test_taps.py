"""Reading layers: the same numbers as a pass by hand, hooks that are gone, and the choice of layers."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detector_cases import hooks
from poise.detectors import default_layers, tapped
from poise.detectors.taps import maps, pooled
from poise.errors import InputError
from poise.models.resnet import CifarResNet
from poise.models.small import CnnA, DigitsCNN, LeNet5
from poise.models.wide_resnet import WideResNet
from poise.targets.module import Normalize
from toys import generator


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (CifarResNet(1, 10), ("layer1:input", "layer1", "layer2", "layer3")),
        (
            nn.Sequential(Normalize([0.5], [0.2]), CifarResNet(1, 10)),
            ("1.layer1:input", "1.layer1", "1.layer2", "1.layer3"),
        ),
        (WideResNet(10, 1, 10), ("block1:input", "block1", "block2", "block3")),
        (DigitsCNN(10), ("0", "2")),
        (CnnA(10), ("0", "2")),
        (LeNet5(10), ("conv1", "conv2")),
    ],
    ids=["resnet", "normalised", "wide", "digits", "cnn-a", "lenet"],
)
def test_the_layers_it_chooses(model: nn.Module, layers: tuple[str, ...]) -> None:
    assert default_layers(model) == layers


def test_torchvision_networks_have_a_stem_and_four_stages() -> None:
    torchvision = pytest.importorskip("poise.models.vision")
    model = torchvision.cifar_resnet("resnet18", 10)
    assert default_layers(model) == (*("layer1:input", "layer1", "layer2", "layer3", "layer4"),)


def test_a_network_without_convolutions_must_name_its_layers() -> None:
    with pytest.raises(InputError, match="layers: must be named for a model without stages and convolutions"):
        default_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_features_are_those_of_an_independent_pass() -> None:
    model = CifarResNet(1, 10).eval()
    x = torch.rand(3, 3, 32, 32, generator=generator(0))
    stem = F.relu(model.bn1(model.conv1(x)))
    by_hand = [stem, model.layer1(stem)]
    by_hand += [model.layer2(by_hand[1])]
    by_hand += [model.layer3(by_hand[2])]
    with tapped(model, default_layers(model)) as read:
        found = read(x)
    assert [tuple(part.shape) for part in found] == [(3, 16), (3, 16), (3, 32), (3, 64)]
    for part, values in zip(found, by_hand, strict=True):
        assert torch.equal(part, values.flatten(2).mean(2))
    with tapped(model, default_layers(model), maps) as read:
        assert all(torch.equal(part, values) for part, values in zip(read(x), by_hand, strict=True))


def test_a_pass_for_one_layer_ends_there() -> None:
    ran: list[str] = []
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(5, 1, 4, 4, generator=generator(0))
    watch = model[3].register_forward_hook(lambda *_: ran.append("3"))
    with tapped(model, ["0", "3:input"]) as read:
        (found,) = read(x, "0")
        assert ran == []
        whole = read(x)
    assert ran == ["3"]
    assert torch.equal(found, whole[0])
    watch.remove()
    assert hooks(model) == 0


def in_place() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))


def check_before_the_relu(reduce) -> None:
    """What a convolution gives, although the next layer writes over it."""
    model, x = in_place(), torch.randn(5, 1, 4, 4, generator=generator(1))
    with tapped(model, ["0"], reduce) as read:
        (found,) = read(x)
    assert torch.allclose(found, reduce(model[0](x)))
    assert found.min() < 0


def test_a_later_layer_in_place_changes_nothing_and_the_check_can_fail() -> None:
    check_before_the_relu(maps)
    check_before_the_relu(pooled)
    with pytest.raises(AssertionError):
        check_before_the_relu(lambda values: values)


def test_images_are_not_written_into() -> None:
    x = torch.randn(2, 1, 4, 4, generator=generator(2))
    before = x.clone()
    with tapped(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 1, 3)), ["1"]) as read:
        read(x)
    assert torch.equal(x, before)


class Breaks(nn.Module):
    """A convolution, then an error."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.conv(x)
        raise ValueError("no such pass")


@contextmanager
def forgetful(model: nn.Module, layers: list[str]):
    """The broken twin: no `finally`."""
    handles = [model.get_submodule(layer).register_forward_hook(lambda *_: None) for layer in layers]
    yield model
    for handle in handles:
        handle.remove()


def check_gone_after_an_exception(tap) -> None:
    model = Breaks()
    with pytest.raises(ValueError, match="no such pass"), tap(model, ["conv"]) as read:
        read(torch.zeros(1, 1, 4, 4))
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_exception_and_the_check_can_fail() -> None:
    check_gone_after_an_exception(tapped)
    with pytest.raises(AssertionError):
        check_gone_after_an_exception(forgetful)


def test_hooks_are_gone_where_a_later_layer_is_unknown() -> None:
    model = in_place()
    with pytest.raises(InputError, match=r"layers: must be parts of the model, got '9'"), tapped(model, ["0", "9"]):
        raise AssertionError("not reached")
    assert hooks(model) == 0


def test_tokens_are_averaged_and_flat_features_kept() -> None:
    assert pooled(torch.ones(2, 7, 5)).shape == (2, 5)
    assert pooled(torch.ones(2, 7)).shape == (2, 7)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused, self.pair = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.LSTM(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.pair(x[:, 0])
        return self.conv(self.conv(x))


@pytest.mark.parametrize(
    ("layers", "reduce", "message"),
    [
        ([], pooled, "layers: must be at least one name, got none"),
        (["conf"], pooled, "did you mean: conv"),
        (["conv"], pooled, "'conv' must run once in a pass of the model, ran 2 times"),
        (["unused"], pooled, "'unused' must run once in a pass of the model, ran 0 times"),
        (["pair"], pooled, "'pair' must hold a tensor of 3 rows, got tuple"),
        (["pair:input"], maps, "must give feature maps (n, C, H, W), got a layer that gives (3, 4, 4)"),
    ],
)
def test_bad_layers_are_one_line(layers, reduce, message) -> None:
    model = Twice()
    with pytest.raises(InputError) as caught, tapped(model, layers, reduce) as read:
        read(torch.zeros(3, 1, 4, 4))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hooks(model) == 0
