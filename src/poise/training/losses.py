"""What training minimises: pure functions of logits and labels, each a scalar that autograd can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Convention = Literal["uniform", "others"]


def smoothed_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, convention: Convention = "uniform"
) -> Tensor:
    """Mean cross-entropy to softened labels, in nats.

    Args:
        logits: (b, K). labels: (b,) in 0..K-1.
        smoothing: e in [0, 1]: what is taken from the true class.
        convention: "uniform" leaves 1 - e + e/K there and gives e/K to each other class (Szegedy et al. 2016,
            PyTorch); "others" leaves 1 - e and gives e/(K - 1) (Goodfellow et al., confidence thresholding). The
            two agree where e of "others" is e (K - 1)/K of "uniform".

    >>> z, y = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    >>> round(smoothed_cross_entropy(z, y, 0.98).item(), 6)
    1.387606
    """
    if convention == "others":
        classes = logits.shape[1]
        smoothing = smoothing * classes / (classes - 1)
    log_p = logits.log_softmax(dim=1)
    own = log_p.gather(1, labels[:, None])[:, 0]
    return -((1 - smoothing) * own + smoothing * log_p.mean(dim=1)).mean() if smoothing else -own.mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -sum_k t_k log p_k for target distributions (b, K)."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def kl_divergence(natural: Tensor, other: Tensor) -> Tensor:
    """Mean of KL(softmax(natural) || softmax(other)) in nats, for logits (b, K); gradients flow through both."""
    log_p, log_q = natural.log_softmax(dim=1), other.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def jensen_shannon(logits: Sequence[Tensor]) -> Tensor:
    """Mean of (1/V) sum_v KL(p_v || mean of all p) over V answers (b, K) to versions of the same images; at most ln V.

    Hendrycks et al., AugMix, ICLR 2020, Eq. 2; the mean is kept above 1e-7 as in its released code.

    >>> z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    >>> round(jensen_shannon([z, torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])]).item(), 6)
    0.058064
    """
    log_p = [answer.log_softmax(dim=1) for answer in logits]
    log_mean = torch.stack([each.exp() for each in log_p]).mean(dim=0).clamp(1e-7, 1).log()
    return torch.stack([(each.exp() * (each - log_mean)).sum(dim=1).mean() for each in log_p]).mean()


def calibration_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """DCA: |mean accuracy - mean confidence| of a batch; the gradient goes through the confidence alone.

    Liang et al., Improved Trainable Calibration Method, 2020.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    hits = (predicted == labels).to(confidence.dtype)
    return (hits.mean() - confidence.mean()).abs()


def mmce(logits: Tensor, labels: Tensor, *, weighted: bool = True) -> Tensor:
    """Maximum mean calibration error of a batch (Kumar et al., ICML 2018), with the Laplacian kernel of width 0.4.

    Args:
        logits: (b, K). labels: (b,).
        weighted: the paper's MMCE_w, sqrt(A + B - 2 C), which balances right and wrong answers; without it the square
            root of MMCE_m^2, the mean of (h_i - c_i)(h_j - c_j) k(c_i, c_j).

    Returns:
        A scalar of at least 0. 1e-10 is added inside the root, where its slope would be infinite.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    hits = (predicted == labels).to(confidence.dtype)
    kernel = torch.exp(-(confidence[:, None] - confidence[None]).abs() / 0.4)
    if not weighted:
        off = hits - confidence
        return ((off[:, None] * off[None] * kernel).mean() + 1e-10).sqrt()
    wrong, right = confidence * (1 - hits), (1 - confidence) * hits
    many_wrong, many_right = (1 - hits).sum().clamp_min(1), hits.sum().clamp_min(1)
    off = right / many_right - wrong / many_wrong  # an empty group has a sum of 0 above the 1 it is divided by
    return ((off[:, None] * off[None] * kernel).sum().clamp_min(0) + 1e-10).sqrt()
