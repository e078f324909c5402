"""What a network is worth on held-out images, as sums that grow with nothing and add up over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from poise.types import exact

BINS = 15


def sums(forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """(2 + 3 * BINS,) float64: rows, negative log-likelihood, then per bin rows, confidence and hits.

    Args:
        forward: images (b, C, H, W) to logits (b, K); in eval mode.
        batches: images and labels.
        device: where images go, and where the sums are.
    """
    kind = exact(device)
    found = torch.zeros(2 + 3 * BINS, dtype=kind, device=device)
    edges = torch.arange(1, BINS, dtype=kind, device=device) / BINS
    with torch.no_grad():
        for images, labels in batches:
            logits, labels = forward(images.to(device)).to(kind), labels.to(device)
            confidence, predicted = logits.softmax(dim=1).max(dim=1)
            at = torch.bucketize(confidence, edges)  # right-closed bins, as `poise.metrics.ece`
            per_bin = torch.zeros(3, BINS, dtype=kind, device=device)
            columns = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(kind)])
            per_bin.index_add_(1, at, columns)
            head = torch.stack([columns[0].sum(), F.cross_entropy(logits, labels, reduction="sum")])
            found += torch.cat([head, per_bin.flatten()])
    return found


def figures(found: Tensor) -> dict[str, float]:
    """Accuracy, mean confidence, ECE (15 bins) and NLL in nats from the sums of `sums`; fractions.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> rows = sums(lambda x: logits, [(torch.zeros(2, 1, 1, 1), torch.tensor([0, 0]))], torch.device("cpu"))
    >>> {name: round(value, 4) for name, value in figures(rows).items()}
    {'accuracy': 0.5, 'confidence': 0.8059, 'ece': 0.4251, 'nll': 0.7201}
    """
    rows, nll = found[0].item(), found[1].item()
    _, confidence, hits = found[2:].view(3, BINS)
    return {
        "accuracy": hits.sum().item() / rows,
        "confidence": confidence.sum().item() / rows,
        "ece": (confidence - hits).abs().sum().item() / rows,
        "nll": nll / rows,
    }
