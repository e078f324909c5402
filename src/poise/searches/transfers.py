"""What the logits of a surrogate tell of a victim's: a matrix for every sample, learned from its own queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.errors import InputError
from poise.searches.responses import product, regress
from poise.targets.base import DifferentiableTarget
from poise.types import Access, Outputs

BELIEVED, DOUBT, NOISE = 0.5, 0.05, 0.05
"""Before the first query a victim's logit moves by this much of the surrogate's, give or take (variances, the last as
a share of the mean squared movement of the surrogate's logits)."""

LEARNED = 64
"""Logits of the surrogate whose influence is learned, at most: those that are highest at first."""

Loss = Callable[[Tensor], Tensor]
"""Per-sample loss (m,) of the victim's logits (m, K)."""


def check_surrogate(surrogate: object, classes: int, bounds: tuple[float, float]) -> None:
    """Refuses what cannot stand in for the victim.

    Raises:
        InputError: no gradients, other classes or other bounds than the victim's.
    """
    if not isinstance(surrogate, DifferentiableTarget) or surrogate.access < Access.GRADIENTS:
        raise InputError(f"surrogate: must be a target with gradients, got {type(surrogate).__name__} without")
    if surrogate.num_classes != classes:
        raise InputError(f"surrogate: must know the {classes} classes of the model, got {surrogate.num_classes}")
    if surrogate.bounds != bounds:
        raise InputError(f"surrogate: bounds must be the model's, {bounds}, got {surrogate.bounds}")


def centred(logits: Tensor) -> Tensor:
    """Logits (m, K) with mean 0: what softmax sees of them."""
    return logits - logits.mean(dim=1, keepdim=True)


@dataclass
class Transfer:
    """The victim's logits move by BELIEVED + `shares` times the surrogate's, from the point where both are known.

    Args:
        surrogate: its own gradients are used, and no query of the victim's.
        told: (m, K) its logits at the current points.
        columns: (m, F) whose influence is learned.
        shares: (m, K, F) what was learned on top of BELIEVED.
        doubt: (m, F, F) covariance of a row of shares.
    """

    surrogate: DifferentiableTarget
    told: Tensor
    columns: Tensor
    shares: Tensor
    doubt: Tensor

    def rise(self, logits: Tensor) -> Tensor:
        """(m, K) by how much the victim's logits are expected to move where the surrogate's become these (m, K)."""
        moved = centred(logits.to(self.told.dtype) - self.told)
        return BELIEVED * moved + product(self.shares, moved.gather(1, self.columns))

    def learn(self, x: Tensor, ids: Tensor, rise: Tensor, known: Tensor, moved: Tensor) -> Tensor:
        """The victim's logits moved by rise (m, K) on the way to x: recursive least squares, as in `Responses`.

        Rows where known (m,) is False teach nothing; those marked in moved (m,) are at x from now on.

        Returns:
            (m, K) what is not explained even now; NaN where nothing was learned.
        """
        logits, rise = self.surrogate.query(x, ids).logits.to(self.told.dtype), centred(rise)
        change = centred(logits - self.told)
        seen, noise = change.gather(1, self.columns), NOISE * change.square().mean(dim=1)
        known = regress(self.shares, self.doubt, seen, rise - self.rise(logits), noise, known)
        left = torch.where(known[:, None], rise - self.rise(logits), torch.nan)
        self.told = torch.where(moved[:, None], logits, self.told)
        return left

    def slope(self, x: Tensor, ids: Tensor, logits: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Expected rise (m, K) at x, and the slope (m, C, H, W) of the loss of logits that rise so, by the surrogate.

        To be asked of what `of` gave.
        """

        def expected(outputs: Outputs) -> Tensor:
            return loss(logits + self.rise(outputs.logits))

        outputs, down = self.surrogate.gradient(x, ids, expected)
        return self.rise(outputs.logits), down.to(x.dtype).nan_to_num(0.0, 0.0, 0.0)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.told, self.columns, self.shares, self.doubt

    def of(self, rows: Tensor) -> Transfer:
        """What is known of these samples, or of those marked in a mask."""
        with torch.inference_mode(False):  # what is saved for a backward pass must be no inference tensor
            return Transfer(self.surrogate, *(part[rows] for part in self._parts()))


def transfer(surrogate: DifferentiableTarget, x: Tensor, ids: Tensor) -> Transfer:
    """What is believed at x (m, C, H, W) before the first query."""
    told = surrogate.query(x, ids).logits.to(x.dtype)
    columns = told.topk(min(told.shape[1], LEARNED), dim=1).indices
    learned = columns.shape[1]
    doubt = DOUBT * torch.eye(learned, device=told.device, dtype=told.dtype).expand(len(told), -1, -1)
    return Transfer(surrogate, told, columns, told.new_zeros(*told.shape, learned), doubt.clone())
