"""Attack through a temperature: any goal, followed on the answer at z / T, judged on the answer as served."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import Around, Bound, Objective
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _Through(Around):
    temperature: float

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.loss(_at(outputs, self.temperature), ids)

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        return self.inner.aimed(_at(outputs, self.temperature), ids, aim)


@dataclass(frozen=True)
class ThroughTemperature:
    """`objective`, whose loss the search sees at z / T while results are ranked, accepted and finished as served.

    Raina et al., ACL 2024 (arXiv 2402.17509), "adversarial temperature calibration": the attacker stacks z -> z / T on
    the served model to undo a temperature that hides its gradients, then shows what was found to the unmodified model.
    An attack through T on a model served at T_d depends on T * T_d alone: T = 1 / T_d is the attack on z itself. The
    paper is about text; for images this is a transfer.

    Args:
        objective: the goal. `KeepLabel` may be inside or outside.
        temperature: T above 0. Above 1 it softens an over-confident model, below 1 it sharpens an under-confident one.

    Stop rules and margins in probability stay those of the served answer: at T_d = 1e6 `UCA` is done at the clean image
    and no gap reaches the margin of `KeepLabel`. For a target that answers with probabilities, z is their logarithm:
    what underflowed there is lost, and no temperature brings it back.

    Raises:
        InputError: the temperature is not positive and finite.

    >>> from poise.objectives import CrossEntropy
    >>> clean = Outputs(torch.tensor([[2000.0, 0.0]]))  # served at T_d = 1e-3
    >>> row, rng = torch.tensor([0]), Rng(0, torch.tensor([0]))
    >>> bound = ThroughTemperature(CrossEntropy(), 1e3).bind(clean, torch.tensor([0]), row, rng)
    >>> round(bound.loss(clean, row).item(), 4), bound.merit(clean, row).item()  # log sigmoid(2), served margin
    (-0.1269, 2000.0)
    """

    objective: Objective
    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"ThroughTemperature: temperature must be positive, got {self.temperature:g}")
        if math.isinf(self.temperature):
            raise InputError(f"ThroughTemperature: temperature must be finite, got {self.temperature:g}")

    @property
    def access(self) -> Access:
        """What the wrapped goal needs; labels alone have no temperature."""
        return max(self.objective.access, Access.SCORES)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        inner = self.objective.bind(clean, labels, ids, rng)
        return _Through(k=inner.k, over=inner.over, inner=inner, temperature=self.temperature)


def _at(outputs: Outputs, temperature: float) -> Outputs:
    """The answer at z / T; quotients beyond what the type holds end at a quarter of it, so that differences exist."""
    most = torch.finfo(outputs.logits.dtype).max / 4
    return Outputs((outputs.logits / temperature).clamp(-most, most))
