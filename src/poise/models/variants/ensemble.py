"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from poise.errors import InputError

FLOOR = math.log(1e-40)
"""Lowest log-probability: the published code clamps the mean probability at 1e-40."""


class Ensemble(nn.Module):
    """ln of the mean of the members' softmax.

    Yang et al., "TRS: Transferability Reduced Ensemble via Encouraging Gradient Diversity and Model Smoothness",
    NeurIPS 2021, as its code computes the answer: the scores are log-probabilities. Here the sum is taken in the
    logarithm, so that small probabilities survive float32.

    Args:
        members: networks from (m, C, H, W) to logits (m, K); at least 2.

    Attributes:
        apart: answer with every member's own logits, which training needs; off unless somebody switches it on.

    Raises:
        InputError: fewer than 2 members.

    >>> answer = Ensemble([nn.Flatten(), nn.Flatten()])(torch.tensor([[[0.0, 0.0]]]))
    >>> answer.exp().tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError(f"Ensemble: must have at least 2 members, got {len(members)}")
        self.members = nn.ModuleList(members)
        self.apart = False

    def forward(self, x: Tensor) -> Tensor:
        """(m, C, H, W) to log-probabilities (m, K), at least ln 1e-40; where `apart`, to all logits (m, members, K)."""
        if self.apart:
            return torch.stack([member(x) for member in self.members], dim=1)
        each = torch.stack([torch.log_softmax(member(x), dim=1) for member in self.members])
        return (torch.logsumexp(each, dim=0) - math.log(len(self.members))).clamp_min(FLOOR)
