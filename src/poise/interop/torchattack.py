"""A recipe as torchattacks' users know attacks: made of a model, called with images and labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poise.errors import InputError, TargetError
from poise.recipebook import Recipe, Setting, ball
from poise.recipebook import recipe as recipe_named
from poise.targets import ModuleTarget, Target
from poise.types import AttackResult


class TorchAttack:
    """`attack(images, labels)` gives adversarial images, as the attacks of torchattacks do.

    It goes where theirs go, `torchattacks.MultiAttack` and training loops included. Unlike them it needs no
    `set_normalization_used` (normalisation is inside the model or the target), prints nothing, leaves mode, hooks and
    global generators as they were, and returns verified points: in the ball, in the pixel range, accepted by the
    recipe's objective; an image for which nothing was found comes back as it was given.

    Args:
        recipe: a name (`poise.recipes()`) or a `Recipe`.
        model: an `nn.Module` from images (m, C, H, W) in [0, 1] to logits (m, K), asked where it lies at the moment of
            the call; K is read from an answer. Anything else is declared by a target, such as
            `poise.ModuleTarget(module, num_classes=10, mean=…, std=…)`.
        eps, norm: the ball, in pixel units; "linf" or "l2".
        steps, budget, seed: as in `poise.run_recipe`. The same images get the same points again.

    Attributes:
        attack: name of the recipe.
        model: the module, with the normalisation of its target.

    Raises:
        InputError: an unknown recipe or norm, a radius or a budget that makes no sense, no model.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> attack = TorchAttack("sa-mma", model, eps=0.1, budget=20)
    >>> images = torch.rand(2, 1, 2, 2)
    >>> bool(((attack(images, torch.tensor([0, 1])) - images).abs() <= 0.1 + 1e-6).all())
    True
    """

    def __init__(
        self,
        recipe: str | Recipe,
        model: nn.Module | Target,
        *,
        eps: float = 8 / 255,
        norm: str = "linf",
        steps: int | None = None,
        budget: int = 1000,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module | Target):
            raise InputError(f"TorchAttack: model must be an nn.Module or a target, got {type(model).__name__}")
        if steps is not None and steps < 1:
            raise InputError(f"TorchAttack: steps must be at least 1, got {steps}")
        self.recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
        self.attack, self.seed = self.recipe.name, seed
        self.setting = Setting(ball(norm, eps), budget, steps)
        self.model = getattr(model, "module", model) if isinstance(model, Target) else model
        self._given = model

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (n, C, H, W), dtype and device as given; arguments as for `run`."""
        return self.run(images, labels).images

    def run(self, images: Tensor, labels: Tensor, ids: Tensor | None = None) -> AttackResult:
        """The same with the result table: what `poise.run_recipe` returns.

        Args:
            images: (n, C, H, W) in the target's bounds, without normalisation.
            labels: (n,) true classes.
            ids: (n,) names of the samples, on which random draws depend. Default 0..n-1.

        Raises:
            InputError, AccessError, TargetError: as `poise.attack`.
        """
        target = self._given if isinstance(self._given, Target) else _target_of(self._given, images)
        return self.recipe.run(target, images, labels, self.setting, ids=ids, seed=self.seed)

    def __repr__(self) -> str:
        at = self.setting
        return f"TorchAttack({self.attack}, {at.constraint}, budget={at.budget}, steps={at.steps}, seed={self.seed})"


def _target_of(module: nn.Module, images: Tensor) -> ModuleTarget:
    """A target where the module lies, with as many classes as one image is answered by."""
    device = next((value.device for value in module.parameters()), images.device)
    target = ModuleTarget(module, num_classes=2, device=device)
    if len(images):
        with target.session(0), torch.no_grad():
            answer = module(images[:1].detach().to(device, target.dtype, copy=True))
        if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[1] < 2:
            given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise TargetError(f"TorchAttack: the model must answer (m, K) logits with K of at least 2, got {given}")
        target.num_classes = answer.shape[1]
    return target
