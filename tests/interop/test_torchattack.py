"""A recipe called as torchattacks' attacks are: the same points as the recipe's, and the model left as it was."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import poise
from poise import ModuleTarget
from poise.errors import AccessError, InputError, TargetError
from poise.interop import TorchAttack
from poise.types import Access
from toys import Constant, SmallCNN, Softmax, generator, untouched_generators

IMAGES = torch.rand(6, 3, 8, 8, generator=generator(1))
RECIPES = ["sa-mma", "pgd-uca", "standard", "pgd"]


def net() -> SmallCNN:
    """In training mode, as a model often is when it is attacked."""
    return SmallCNN(channels=3).train()


def labels_of(module: nn.Module) -> Tensor:
    return ModuleTarget(module, num_classes=4).query(IMAGES, torch.arange(6)).labels


@pytest.mark.parametrize("name", RECIPES)
def test_the_points_are_those_of_the_recipe_and_the_model_stays(name: str) -> None:
    module = net()
    labels, weights = labels_of(module), {key: value.clone() for key, value in module.state_dict().items()}
    attack = TorchAttack(name, module, eps=0.1, budget=60, seed=3)
    with untouched_generators():
        found = attack(IMAGES, labels)
    wanted = poise.run_recipe(name, ModuleTarget(module, num_classes=4), IMAGES, labels, eps=0.1, budget=60, seed=3)
    assert torch.equal(found, wanted.images)
    assert not torch.equal(found, IMAGES)
    assert not found.requires_grad
    assert all(part.training for part in module.modules())
    assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    assert all(value.grad is None for value in module.parameters())
    assert attack.run(IMAGES, labels).table["spec"].to_list() == wanted.table["spec"].to_list()


def test_labels_are_kept_and_confidence_falls() -> None:
    module = net()
    result = TorchAttack("confsmooth", module, eps=0.1).run(IMAGES, labels_of(module))
    assert (result.table["prediction_after"] == result.table["prediction_before"]).all()
    assert result.table["confidence_after"].mean() < result.table["confidence_before"].mean() - 0.05


def test_normalisation_is_the_targets() -> None:
    """A target with mean and std, and a module that holds them: the same points, no set_normalization_used."""
    module = net()
    target = ModuleTarget(module, num_classes=4, mean=[0.4] * 3, std=[0.3] * 3)
    labels = target.query(IMAGES, torch.arange(6)).labels
    ours, whole = TorchAttack("pgd", target, eps=0.05), TorchAttack("pgd", target.module, eps=0.05)
    assert torch.equal(ours(IMAGES, labels), whole(IMAGES, labels))
    assert not torch.equal(ours(IMAGES, labels), TorchAttack("pgd", module, eps=0.05)(IMAGES, labels))


def test_ids_and_not_positions_decide_the_draws() -> None:
    module, order = net(), torch.tensor([3, 1, 5, 0, 2, 4])
    attack, labels = TorchAttack("sa-mma", module, eps=0.1, budget=30), labels_of(module)
    given = attack.run(IMAGES, labels).images
    shuffled = attack.run(IMAGES[order], labels[order], ids=order).images
    torch.testing.assert_close(shuffled, given[order])


def test_it_is_a_member_of_torchattacks_multiattack(torchattacks: ModuleType) -> None:
    """Theirs runs first on the model itself, ours on what is still right; each finds something."""
    module = net().eval()
    labels = labels_of(module)
    weak = torchattacks.FGSM(module, eps=0.004)
    ours = TorchAttack("pgd", module, eps=0.05, steps=20)
    found = torchattacks.MultiAttack([weak, ours])(IMAGES, labels)
    after, alone = (labels_of_images(module, images) for images in (found, weak(IMAGES, labels)))
    assert int((alone != labels).sum()) < int((after != labels).sum())
    assert float((found - IMAGES).abs().max()) <= 0.05 + 1e-6


def labels_of_images(module: nn.Module, images: Tensor) -> Tensor:
    return ModuleTarget(module, num_classes=4).query(images, torch.arange(len(images))).labels


def test_no_images_and_doubles() -> None:
    module = net()
    attack = TorchAttack("pgd", module, eps=0.05, steps=2)
    assert attack(IMAGES[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 8, 8)
    assert attack(IMAGES.double(), labels_of(module)).dtype is torch.float64


def test_repr_names_what_it_does() -> None:
    assert repr(TorchAttack("sa-mma", net(), eps=0.1)) == (
        "TorchAttack(sa-mma, Linf(eps=0.1), budget=1000, steps=None, seed=0)"
    )


def test_refusals_are_one_line() -> None:
    module = net()
    labels = labels_of(module)
    for message, error, call in (
        (r"^recipe: .* got 'sa-mm' \(did you mean sa-mma", InputError, lambda: TorchAttack("sa-mm", module)),
        ("^TorchAttack: model must be an nn.Module or a target, got str$", InputError, lambda: TorchAttack("pgd", "m")),
        ("^norm must be one of", InputError, lambda: TorchAttack("pgd", module, norm="l1")),
        (r"^Linf: eps must be in .* got 8", InputError, lambda: TorchAttack("pgd", module, eps=8)),
        ("^TorchAttack: steps must be at least 1, got 0$", InputError, lambda: TorchAttack("pgd", module, steps=0)),
        (
            "^attack: budget must be at least 1",
            InputError,
            lambda: TorchAttack("pgd", module, budget=0)(IMAGES, labels),
        ),
        ("^attack: images must lie in", InputError, lambda: TorchAttack("pgd", module)(IMAGES * 255, labels)),
        ("^attack: labels must be in 0..3", InputError, lambda: TorchAttack("pgd", module)(IMAGES, labels + 9)),
        (
            "its rows are probabilities",
            TargetError,
            lambda: TorchAttack("pgd", Softmax(module))(IMAGES, labels),
        ),
        (
            r"^TorchAttack: the model must answer \(m, K\) logits .* got \(1, 1\)$",
            TargetError,
            lambda: TorchAttack("pgd", Constant(1))(IMAGES, labels),
        ),
        (
            "needs access 'gradients', the target gives 'scores'$",
            AccessError,
            lambda: TorchAttack("pgd", ModuleTarget(module, num_classes=4, access=Access.SCORES))(IMAGES, labels),
        ),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert all(part.training for part in module.modules())
