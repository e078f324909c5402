"""What torchattacks 3.5 shows to its users, in small: `Attack`, `PGD`, `FGSM`, `Square`, `MultiAttack`.

Stands in where the library itself is not installed (`make .venv/.bench`), so that the adapter is always tested.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__version__ = "3.5.1"


class Attack:
    """Made of a model, called with images and labels; asks the first parameter where the model lies."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.attack, self.model = name, model
        self.device = next(model.parameters()).device

    def get_logits(self, images: Tensor) -> Tensor:
        return self.model(images)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        training = self.model.training
        self.model.eval()
        found = self.forward(images, labels)
        if training:
            self.model.train()
        return found


class PGD(Attack):
    def __init__(self, model: nn.Module, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True) -> None:
        super().__init__("PGD", model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = images.clone().detach().to(self.device), labels.clone().detach().to(self.device)
        found = images.clone()
        if self.random_start:
            found = (found + torch.empty_like(found).uniform_(-self.eps, self.eps)).clamp(0, 1)
        for _ in range(self.steps):
            found.requires_grad = True
            cost = nn.CrossEntropyLoss()(self.get_logits(found), labels)
            slope = torch.autograd.grad(cost, found)[0]
            change = (found.detach() + self.alpha * slope.sign() - images).clamp(-self.eps, self.eps)
            found = (images + change).clamp(0, 1).detach()
        return found


class FGSM(PGD):
    def __init__(self, model: nn.Module, eps=8 / 255) -> None:
        super().__init__(model, eps, eps, 1, random_start=False)


class Square(Attack):
    """Random signs of the whole image instead of squares."""

    def __init__(self, model: nn.Module, norm="Linf", eps=8 / 255, n_queries=5000, p_init=0.8, seed=0) -> None:
        super().__init__("Square", model)
        self.eps, self.n_queries = eps, n_queries

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        found = images.clone()
        for _ in range(self.n_queries):
            tried = (images + self.eps * torch.randn_like(images).sign()).clamp(0, 1)
            with torch.no_grad():
                wrong = self.get_logits(tried).argmax(dim=1) != labels
            found[wrong] = tried[wrong]
        return found


class MultiAttack(Attack):
    """One attack after the other, each on what is still right."""

    def __init__(self, attacks: list) -> None:
        if len({id(attack.model) for attack in attacks}) != 1:
            raise ValueError("At least one of attacks is referencing a different model.")
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks = attacks

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        found, fails = images.clone(), torch.arange(len(images))
        for attack in self.attacks:
            tried = attack(images[fails], labels[fails])
            wrong = self.get_logits(tried).argmax(dim=1) != labels[fails]
            found[fails[wrong]], fails = tried[wrong], fails[~wrong]
            if len(fails) == 0:
                break
        return found
