"""The layer that the last linear one reads, found by running the model."""

import pytest
import torch
from torch import nn

from poise import models
from poise.defenses import ByFeatures, FeatureDefended, MultiDomainTemperature, features_and_logits, penultimate
from poise.experiments.served import as_logits

IMAGES = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def convolutional(*tail: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *tail)


class OwnLast(nn.Module):
    """Flattens outside any layer: the pooled layer's output is what the linear layer is given, flattened."""

    def __init__(self):
        super().__init__()
        self.body, self.head = convolutional(), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Changed(OwnLast):
    """Its linear layer is given what no layer puts out."""

    def forward(self, x):
        return self.head(2 * self.body(x).flatten(1) + 1)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (convolutional(nn.Flatten(), nn.Linear(3, 4)), "4"),
        (OwnLast(), "body"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 4)), "2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 4))), "2.0"),
        (convolutional(nn.Flatten()), None),
        (Changed(), None),
    ],
)
def test_it_is_the_layer_in_front_of_the_last_linear_one(model, layer):
    modes = [part.training for part in model.modules()]
    assert penultimate(model, IMAGES) == layer
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_hooks for part in model.modules())
    if layer is not None:
        model.eval()
        features, logits = features_and_logits(model, layer, IMAGES)
        last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
        assert torch.allclose(last(features), logits)


def test_the_hooks_are_gone_after_a_pass_that_fails():
    model = convolutional(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError):
        penultimate(model, IMAGES)
    assert not any(part._forward_hooks for part in model.modules())


def test_it_finds_the_layer_of_the_architectures_that_we_ship():
    target = models.load("builtin:digits")
    model = as_logits(target)
    layer = penultimate(model, torch.rand(2, 1, 8, 8))
    assert layer is not None
    features, logits = features_and_logits(model, layer, torch.rand(3, 1, 8, 8))
    assert features.shape[0] == 3
    assert logits.shape == (3, 10)


def test_around_a_model_it_is_the_tapped_model():
    model = convolutional(nn.Flatten(), nn.Linear(3, 4)).eval()
    around = ByFeatures("4", MultiDomainTemperature()).around(model)
    assert isinstance(around, FeatureDefended)
    assert around.layer == "4"
    assert ByFeatures.keeps_label
