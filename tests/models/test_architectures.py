"""The architectures: sizes of the papers, names of the checkpoints, an independent SqueezeNet."""

import pytest
import torch
from torch import nn

from poise.data.vision import import_torchvision
from poise.models import BUILTIN
from poise.models.resnet import BasicBlock, CifarResNet
from poise.models.squeezenet import SqueezeNet


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("digits", 38_282),
        ("resnet20-cifar10", 269_722),
        ("resnet32-cifar10", 464_154),
        ("resnet44-cifar10", 658_586),  # He et al., table 6: .66 M; the others as counted in the checkpoints
        ("resnet56-cifar10", 853_018),
        ("resnet2b-cifar10", 112_006),
        ("cnn-a-cifar10", 214_918),
        ("lenet5-mnist", 648_226),
        ("resnet18-cifar10", 11_173_962),  # published as 11.17 M
        ("resnet50-cifar10", 23_520_842),  # 23.5 M
        ("wrn50-2-cifar10", 66_847_050),  # torchvision's 68,883,240 with 10 classes and a 3x3 first layer
        ("wrn16-4-cifar10", 2_748_890),  # Zagoruyko & Komodakis, table 4: 2.7 M; next line: 36.5 M
        ("wrn28-10-cifar10", 36_479_194),
        ("wrn34-10-cifar10", 46_160_474),  # 46.2 M
        ("vit-small-cifar10", 2_693_578),
        ("model-a-mnist", 316_426),
        ("model-a-cifar10", 317_578),
    ],
)
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert size(BUILTIN[name].build(10)) == parameters


@pytest.mark.parametrize("name", BUILTIN)
def test_table(name: str) -> None:
    entry = BUILTIN[name]
    with torch.no_grad(), torch.device("meta"):  # shapes without sums: some of these are large
        assert entry.build(7).eval()(torch.rand(2, *entry.shape)).shape == (2, 7)
    assert entry.summary
    assert "\n" not in entry.summary
    assert 0 < entry.eps <= 1
    if entry.normalisation is not None:
        assert all(len(part) == entry.shape[0] for part in entry.normalisation)


def test_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    block = BasicBlock(2, 4, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.rand(1, 2, 4, 4)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert torch.count_nonzero(out[:, [0, 3]]) == 0
    assert not torch.equal(out[:, 0:2], x[:, :, ::2, ::2])  # the broken twin: zeros at one end only


def test_names_of_the_keys() -> None:
    keys = set(CifarResNet(3, 10).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"} <= keys
    assert not any("shortcut" in key or "downsample" in key for key in keys)


def test_squeezenet_is_torchvisions_with_padding_and_turned_channels() -> None:
    ours, generator = SqueezeNet(11).eval(), torch.Generator().manual_seed(0)
    for part in ours.modules():
        if isinstance(part, nn.Conv2d):  # so that the image is still seen in the logits
            nn.init.kaiming_normal_(part.weight, generator=generator)
    theirs = import_torchvision("models", feature="test").squeezenet1_0(num_classes=11).eval()
    theirs.classifier[1].padding = (1, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 97, 97, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x.flip(1)))
        assert not torch.allclose(ours(x), theirs(x))  # the broken twin: channels as they come
