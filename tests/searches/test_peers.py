"""Against foolbox and ART: the same gradient steps, and a Square Attack that is no weaker at equal queries."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poise
from libraries import global_seed, peer
from poise.constraints import L2, Linf
from poise.objectives import CrossEntropy, Margin
from poise.searches import PGD, Square
from toys import RecordingTarget, SmallCNN, generator

SIZE, CLASSES = 12, 4
FGSM = PGD(steps=1, step=None, undo=False)


def network() -> nn.Module:
    return SmallCNN(classes=CLASSES, size=SIZE).eval()


def data(n: int, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Images and the network's own predictions as labels, so that every sample starts correct."""
    images = low + (high - low) * torch.rand(n, 1, SIZE, SIZE, generator=generator(4))
    with torch.no_grad():
        return images, network()(images).argmax(dim=1)


def last_iterate(search: PGD, constraint: Linf | L2, images: Tensor, labels: Tensor) -> Tensor:
    """The point that the peers return: the last one, not the best."""
    target = RecordingTarget(network(), num_classes=CLASSES)
    poise.attack(target, CrossEntropy(), search, constraint, images, labels)
    return target.log[-1][1]


def assert_same_images(ours: Tensor, theirs: Tensor, clean: Tensor) -> None:
    """Equal to 1e-5 but for the few pixels whose gradient is 0 up to rounding; and not simply both unmoved."""
    moved = (ours - clean).abs().flatten(1).amax(dim=1)
    assert bool((moved > 1e-3).all())
    equal = ((ours - theirs).abs() < 1e-5).double().mean().item()
    assert equal > 0.999, f"only {equal:.5f} of the pixels agree"


@pytest.mark.parametrize("attack", ["LinfPGD", "LinfFastGradientAttack", "L2PGD", "L2FastGradientAttack"])
def test_gradient_steps_equal_foolbox(attack: str) -> None:
    foolbox = peer("foolbox")
    images, labels = data(16)
    constraint = Linf(0.05) if attack.startswith("Linf") else L2(0.5)
    one_step = attack.endswith("FastGradientAttack")
    search = FGSM if one_step else PGD(steps=7, step=constraint.eps / 4, undo=False)
    options = {} if one_step else {"abs_stepsize": constraint.eps / 4, "steps": 7}
    theirs_attack = getattr(foolbox.attacks, attack)(random_start=False, **options)
    model = foolbox.PyTorchModel(network(), bounds=(0, 1))
    _, theirs, _ = theirs_attack(model, images, foolbox.criteria.Misclassification(labels), epsilons=constraint.eps)
    assert_same_images(last_iterate(search, constraint, images, labels), theirs, images)


def art_classifier() -> object:
    return peer("art.estimators.classification").PyTorchClassifier(
        network(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, SIZE, SIZE),
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


@pytest.mark.parametrize(("norm", "constraint"), [(np.inf, Linf(0.05)), (2, L2(0.5))])
@pytest.mark.parametrize("steps", [1, 5])
def test_gradient_steps_equal_art(norm: float, constraint: Linf | L2, steps: int) -> None:
    """Images away from 0 and 1: in the l2 ball ART clips to the box first and scales afterwards (spec 4)."""
    images, labels = data(16, 0.3, 0.7)
    step = constraint.eps if steps == 1 else constraint.eps / 3
    attack = peer("art.attacks.evasion").ProjectedGradientDescent(
        art_classifier(), norm=norm, eps=constraint.eps, eps_step=step, max_iter=steps, num_random_init=0, verbose=False
    )
    with global_seed(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    ours = last_iterate(PGD(steps=steps, step=step, undo=False), constraint, images, labels)
    assert_same_images(ours, theirs, images)


def test_square_is_no_weaker_than_arts_at_equal_queries() -> None:
    """300 images, linf, p = 0.05, 60 proposals: the share of labels left, within three standard errors."""
    images, labels = data(300)
    proposals, eps = 60, 0.04
    attack = peer("art.attacks.evasion").SquareAttack(
        art_classifier(), norm=np.inf, eps=eps, p_init=0.05, max_iter=proposals, batch_size=512, verbose=False
    )
    with global_seed(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.from_numpy(attack.generate(images.numpy().copy(), labels.numpy()))
    with torch.no_grad():
        theirs = (network()(found).argmax(dim=1) == labels).double().mean().item()
    target = poise.ModuleTarget(network(), num_classes=CLASSES, batch_size=512)
    result = poise.attack(target, Margin(), Square(start="stripes"), Linf(eps), images, labels, budget=proposals + 2)
    ours = (result.table["prediction_after"] == result.table["label"]).mean()
    assert 0.1 < theirs < 0.9  # neither too easy nor too hard to tell anything
    assert ours <= theirs + 3 * (theirs * (1 - theirs) / 300) ** 0.5


def test_a_weaker_attack_would_be_noticed() -> None:
    """A third of the radius leaves far more labels than the tolerance above allows."""
    images, labels = data(300)
    target = poise.ModuleTarget(network(), num_classes=CLASSES, batch_size=512)
    left = [
        (poise.attack(target, Margin(), Square(start="stripes"), Linf(eps), images, labels, budget=62).table)
        for eps in (0.04, 0.015)
    ]
    strong, weak = ((table["prediction_after"] == table["label"]).mean() for table in left)
    assert weak > strong + 0.15
