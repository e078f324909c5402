"""Compression scaling: a temperature per sample that moves every confidence into the top bins."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from poise.defenses.base import PostHoc, wide
from poise.errors import InputError, one_of

_LARGEST_SCALE = 1e12  # the largest s = 1/T; a gap that needs more is a tie
_FLOOR = -1e24  # a class this far below the top has no weight at any s, and s times this is finite
_CONVERGED = 1e-5  # relative size of the last Newton step; the error that is left is about its square
_RELEASED_STEP, _RELEASED_COUNT, _RELEASED_ERROR = 0.00125, 800, 0.01


class CompressionScaling(PostHoc):
    """Sharpens each row by its own temperature so that its confidence falls into the top `bins` of `total` bins.

    Obadinma et al., "Calibration Attacks", section 3.3 and appendix D.2. The b-th of `bins` equal bins of the
    confidence range is mapped affinely onto the b-th of the top `bins` of `total` equal bins of [0, 1]. Both sides are
    equal, contiguous and in the same order, so the whole map is one line, 1 - p_new = (bins / total) (1 - p), and the
    temperature T = 1/s of a row is the unique root of

        logsumexp_j(s (z_j - z_a)) = -ln p_new,  a = argmax_j z_j,  s >= 1,

    found to float64 precision by a fixed number of Newton steps for all rows at once (in ln(1/p - 1) the equation is
    convex and decreasing in s, so that the steps rise to the root without overshoot). No step waits for a value, so it
    exports, and the last two steps are seen by autograd: first and second derivatives are those of the exact map, by
    the implicit function theorem, so that a white-box attacker is not misled.

    Nothing is learned; `fit` accepts data and ignores it. Confidence never falls. It is a bet that accuracy is high: a
    model that is wrong on every sample becomes worse calibrated.

    Deviations from the paper: its p_new has T inside the sum and argmax for max; the output is s (z - max z), which has
    the probabilities of s z and stays finite.

    Args:
        bins: number of bins used, 1 <= bins <= total ("3 or 4, mostly" in the paper).
        total: number of equal bins of [0, 1].
        input_range: "unit" compresses [0, 1], as released; "simplex" compresses the reachable [1/K, 1].
        mode: "exact" as above. "released" reproduces the authors' search (only bins 3 of 15 on "unit"): T = 1,
            0.99875, ..., 0.00125, the first with |c - target| <= 0.01, and the row unchanged where there is none. Its
            target divides by 4/15 where 1/3 is meant, so that it is not monotone, and it fails at near ties and above
            0.9333, the very points an attack aims at. A confidence of exactly 1 crashes the released code; here the
            row stays unchanged. The derivative is that of z / T with T held, which is the true one between jumps.

    Unchanged rows: confidence 1 in float64 (the target is reached); top classes tied exactly, or so nearly that s would
    pass 1e12 (no temperature lifts r tied classes above 1/r; `unreachable` tells which).

    Example:
        >>> defense = CompressionScaling(bins=3)
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
        >>> defense(logits).softmax(1).amax(1)  # .8 + .2 * .6652, and a tie
        tensor([0.9330, 0.4223])
        >>> defense.unreachable(logits)
        tensor([False,  True])
    """

    keeps_label = True
    keeps_order = True
    monotone = True
    needs_fit = False

    def __init__(
        self,
        bins: int = 3,
        *,
        total: int = 15,
        input_range: Literal["unit", "simplex"] = "unit",
        mode: Literal["exact", "released"] = "exact",
    ) -> None:
        if not 1 <= bins <= total:
            raise InputError(f"CompressionScaling: must have 1 <= bins <= total, got bins {bins} and total {total}")
        if input_range not in ("unit", "simplex"):
            raise one_of("CompressionScaling: input_range", input_range, ["unit", "simplex"])
        if mode not in ("exact", "released"):
            raise one_of("CompressionScaling: mode", mode, ["exact", "released"])
        if mode == "released" and (bins, total, input_range) != (3, 15, "unit"):
            given = f"bins {bins}, total {total}, input_range '{input_range}'"
            raise InputError(
                f"CompressionScaling: mode 'released' has bins 3, total 15, input_range 'unit', got {given}"
            )
        super().__init__()
        self.bins = bins
        self.total = total
        self.input_range = input_range
        self.mode = mode
        if mode == "released":
            self.monotone = False  # type: ignore[misc]  # a promise of the exact map only

    def _map(self, logits: Tensor) -> Tensor:
        rows = self._solve(logits)
        moved = (rows.scale * rows.below).clamp_min(torch.finfo(logits.dtype).min).to(logits.dtype)
        return torch.where(rows.changed, moved, logits)

    def scale(self, logits: Tensor) -> Tensor:
        """(n,) s = 1/T of each row of logits (n, K), float64; 1 where the row stays unchanged."""
        self._check_logits(logits, for_fit=False)
        rows = self._solve(logits)
        return torch.where(rows.changed, rows.scale, torch.ones_like(rows.scale)).squeeze(1)

    def unreachable(self, logits: Tensor) -> Tensor:
        """(n,) bool: rows of logits (n, K) left unchanged although their confidence is not at its target."""
        self._check_logits(logits, for_fit=False)
        return self._solve(logits).missed.squeeze(1)

    def target(self, logits: Tensor) -> Tensor:
        """(n,) the confidence asked for in each row of logits (n, K), float64."""
        self._check_logits(logits, for_fit=False)
        confidence = wide(logits).softmax(dim=1).amax(dim=1)
        if self.mode == "released":
            return _released_target(confidence)
        return 1 - self._ratio(logits.shape[1]) * (1 - confidence)

    def _ratio(self, classes: int) -> float:
        """(1 - p_new) / (1 - p) for K classes."""
        if self.input_range == "unit":
            return self.bins / self.total
        ratio = self.bins / self.total * classes / (classes - 1)
        if ratio > 1:
            given = f"{self.bins} of {self.total} bins for {classes} classes"
            raise InputError(f"CompressionScaling: 'simplex' needs 1 - bins/total >= 1/K, got {given}")
        return ratio

    def _solve(self, logits: Tensor) -> _Rows:
        z = wide(logits)
        if self.mode == "released":
            return _released(z)
        return _exact(z, self._ratio(logits.shape[1]))


class _Rows(NamedTuple):
    """What is done with n rows of K logits."""

    scale: Tensor  # (n, 1) s = 1/T, at least 1
    below: Tensor  # (n, K) z - max z, at most 0
    changed: Tensor  # (n, 1) bool: the row becomes scale * below
    missed: Tensor  # (n, 1) bool: the target is not met


def _exact(z: Tensor, ratio: float) -> _Rows:
    """The exact map 1 - p_new = ratio (1 - p).

    With R = sum_{j != a} exp(z_j - z_a) = 1/p - 1, the target is R_new = ratio R / (1 + (1 - ratio) R), and s solves
    h(s) = ln sum_{j != a} exp(s (z_j - z_a)) - ln R_new = 0; h(1) >= 0. Logarithms hold where 1 - p has no digits left.
    """
    top = z.argmax(dim=1, keepdim=True)
    is_top = torch.arange(z.shape[1], device=z.device) == top
    below = (z - z.gather(1, top)).clamp_min(_FLOOR)
    second = below.detach().masked_fill(is_top, -math.inf).amax(dim=1, keepdim=True)
    unique = second < 0  # False for NaN, too
    # A row without a unique top is solved for a stand-in: the result is not used, and its gradient stays finite.
    stand_in = torch.where(is_top, 0.0, -1.0).to(z.dtype)
    second = torch.where(unique, second, -torch.ones_like(second))
    beyond = (torch.where(unique, below, stand_in) - second).masked_fill(is_top, 2 * _FLOOR)
    log_rest = second + beyond.exp().sum(dim=1, keepdim=True).log()  # ln R
    goal = math.log(ratio) + log_rest - torch.log1p((1 - ratio) * log_rest.exp())

    # Where at most a third of the range is used, the start is within a factor 1 + ln(K - 1) / ln 2 of the root and 6
    # steps end at rounding for any K; with more bins, gaps of many different sizes were seen to take up to 20.
    steps = 7 if ratio <= 1 / 3 else 48
    s = (goal / second).detach().clamp(1, _LARGEST_SCALE)  # the runner-up alone needs this much
    for _ in range(steps - 2):
        s = _newton(s, second, beyond.detach(), goal.detach())
    s = _newton(s, second, beyond, goal)
    last = s
    s = _newton(s, second, beyond, goal)

    certain = log_rest < math.log(torch.finfo(z.dtype).eps / 2)  # p rounds to 1
    found = unique & (s < _LARGEST_SCALE) & ((s - last).abs() <= _CONVERGED * s)
    return _Rows(s, below, found & ~certain, ~found & ~certain)


def _newton(s: Tensor, second: Tensor, beyond: Tensor, goal: Tensor) -> Tensor:
    """One Newton step for h(s) = s second + ln sum exp(s beyond) - goal, (n, 1) to (n, 1)."""
    weight = (s * beyond).exp()
    total = weight.sum(dim=1, keepdim=True)
    h = s * second + total.log() - goal
    slope = second + (weight * beyond).sum(dim=1, keepdim=True) / total
    return (s - h / slope).clamp(1, _LARGEST_SCALE)


def _released_target(confidence: Tensor) -> Tensor:
    """The released map of confidences: bins [0, 1/3), [1/3, 2/3), [2/3, 1), slope 1/4 inside each."""
    index = (confidence >= 1 / 3).to(confidence.dtype) + (confidence >= 2 / 3)
    return 0.8 + index / 15 + (confidence - index / 3) / 4


def _released(z: Tensor) -> _Rows:
    """The released search. Confidence rises along it and starts more than 0.01 below its target, so the first T that is
    near enough is the first that is not too low, and bisection over the 800 finds it in 10 looks."""

    def scale(index: Tensor) -> Tensor:
        return 1 / (1 - _RELEASED_STEP * index.to(z.dtype))

    below = (z - z.amax(dim=1, keepdim=True)).clamp_min(_FLOOR)
    fixed = below.detach()
    confidence = fixed.softmax(dim=1).amax(dim=1, keepdim=True)
    target = _released_target(confidence)
    low = torch.zeros_like(confidence, dtype=torch.int64)
    high = torch.full_like(low, _RELEASED_COUNT - 1)
    for _ in range(_RELEASED_COUNT.bit_length()):
        middle = (low + high) // 2
        enough = (scale(middle) * fixed).softmax(dim=1).amax(dim=1, keepdim=True) - target >= -_RELEASED_ERROR
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
        low = torch.minimum(low, high)
    reached = (scale(high) * fixed).softmax(dim=1).amax(dim=1, keepdim=True)
    certain = confidence == 1
    near = ((reached - target).abs() <= _RELEASED_ERROR) & ~certain
    return _Rows(scale(high), below, near, ~near & ~certain)
