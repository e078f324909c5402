"""AAA's equation as published: a fixed number of Adam steps from the model's own logits."""

from __future__ import annotations

import torch
from torch import Tensor

_RATE, _DECAY, _SQUARE_DECAY, _SMALL = 0.1, 0.9, 0.999, 1e-8


def descend(logits: Tensor, target: Tensor, confidence: Tensor, *, beta: float, steps: int) -> Tensor:
    """Logits after `steps` steps of Adam on sum_i |margin_i - target_i| + beta |p_i - confidence_i|.

    Chen et al. 2022, Algorithm 1 (learning rate 0.1, betas 0.9 and 0.999). The gradient of one row is written out:
    sign(margin - target) (e_a - e_b) + beta sign(p_a - confidence) p_a (e_a - p), where b is the current runner-up.
    Deviations: margin and confidence stay those of the class a that was predicted, so that the objective does not
    reward another label; the objective is summed, not averaged, over the batch, so that rows are independent.

    Args:
        logits: (n, K) float32 or float64.
        target: (n, 1) wanted margins.
        confidence: (n, 1) wanted confidences.
        beta: weight of the confidence.
        steps: number of steps.

    Returns:
        (n, K), same type; the label may have moved.
    """
    top = logits.argmax(dim=1, keepdim=True)
    start = (logits - logits.gather(1, top)).clamp_min(-1e30)
    one = torch.zeros_like(start).scatter(1, top, 1.0)
    hide = torch.zeros_like(start).scatter(1, top, -torch.inf)
    moved, mean, square = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        z = start + moved
        runner_up, b = (z + hide).max(dim=1, keepdim=True)
        p = z.softmax(dim=1)
        own = p.gather(1, top)
        pull = (z.gather(1, top) - runner_up - target).sign()
        weight = beta * (own - confidence).sign() * own
        gradient = one * (pull + weight) - weight * p
        gradient = gradient.scatter_add(1, b, -pull)
        mean = _DECAY * mean + (1 - _DECAY) * gradient
        square = _SQUARE_DECAY * square + (1 - _SQUARE_DECAY) * gradient.square()
        scale = (square / (1 - _SQUARE_DECAY**step)).sqrt() + _SMALL
        moved = moved - _RATE / (1 - _DECAY**step) * mean / scale
    return logits + moved
