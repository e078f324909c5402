"""The linear layer that runs last, found by running the model, and its input as features."""

import pytest
import torch
from torch import nn

from poise import models
from poise.defenses import ByFeatures, FeatureDefended, MultiDomainTemperature, features_and_logits, last_linear
from poise.errors import InputError
from poise.experiments.served import as_logits

IMAGES = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def convolutional(*tail: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *tail)


class Functional(nn.Module):
    """Pools and flattens outside any layer, and defines its layers in another order than they run."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.middle = nn.Linear(5, 4), nn.Conv2d(1, 3, 3), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(2 * self.middle(self.body(x).mean(dim=(2, 3))).tanh() + 1)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (convolutional(nn.Flatten(), nn.Linear(3, 4)), "5"),
        (Functional(), "head"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 4))), "2.1"),
        (convolutional(nn.Flatten()), None),
    ],
)
def test_it_is_the_one_that_runs_last(model, layer):
    modes = [part.training for part in model.modules()]
    assert last_linear(model, IMAGES) == layer
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_hooks for part in model.modules())
    if layer is not None:
        model.eval()
        features, logits = features_and_logits(model, layer, IMAGES, "input")
        assert torch.equal(dict(model.named_modules())[layer](features), logits)


def test_the_hooks_are_gone_after_a_pass_that_fails():
    model = convolutional(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError):
        last_linear(model, IMAGES)
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("address", "shape"),
    [("builtin:digits", (1, 8, 8)), ("builtin:resnet20-cifar10", (3, 32, 32)), ("builtin:cnn-a-cifar10", (3, 32, 32))],
)
def test_it_finds_the_layer_of_the_architectures_that_we_ship(address, shape, tmp_path):
    if address != "builtin:digits":
        from poise.models.builtin import BUILTIN

        model = BUILTIN[address.removeprefix("builtin:")].build(10).eval()
    else:
        model = as_logits(models.load(address))
    layer = last_linear(model, torch.rand(2, *shape))
    assert layer is not None
    features, logits = features_and_logits(model, layer, torch.rand(3, *shape), "input")
    assert len(features) == 3
    assert logits.shape == (3, 10)


def test_an_input_that_is_no_row_per_image_is_refused():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(36, 4)

        def forward(self, x):
            return self.head(x.flatten(1).mean(dim=0)).expand(len(x), 4)

    with pytest.raises(InputError, match=r"layer 'head' must be given a tensor of 2 rows, got \(36,\)"):
        features_and_logits(Merged(), "head", IMAGES, "input")


def test_around_a_model_it_is_the_tapped_model():
    model = Functional().eval()
    around = ByFeatures("head", MultiDomainTemperature(), "input").around(model)
    assert isinstance(around, FeatureDefended)
    assert (around.layer, around.side) == ("head", "input")
    assert ByFeatures.keeps_label
