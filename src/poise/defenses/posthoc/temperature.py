"""Temperature scaling: one number for all classes and samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from poise.defenses.base import PoiseWarning, PostHoc, keep_top, wide
from poise.errors import InputError

_TOLERANCE = 1e-9  # relative Newton step after which the root counts as found; the error left is about its square
_ROUNDING = 1e-15  # relative width of a bracket that has nothing left inside
_NEWTON_STEPS = 50  # then bisection alone, which needs 60 steps at most
_STEPS = 150


class TemperatureScaling(PostHoc):
    """Divides all logits by one temperature T, the exact minimiser of the mean negative log-likelihood.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2: T = argmin mean NLL(softmax(z / T), y).
    Deviation: the mean NLL is convex in s = 1/T with derivative mean(E_p[z] - z_y), so a safeguarded Newton search
    finds its only minimum to float64 precision; there is no start value, learning rate or grid.

    Args:
        min_temperature: lower bound of T, above 0.
        max_temperature: upper bound of T, above the lower one.

    Buffers:
        temperature: () float64, NaN before `fit`.

    Warns:
        PoiseWarning: at `fit`, where the optimum lies at or beyond a bound: every sample is right (T falls to its lower
            bound), the model is no better than chance (T rises to its upper one), or all logits are equal (T = 1).

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]]).repeat(10, 1)
        >>> labels = torch.tensor([0] * 8 + [1] * 2)  # right in 8 of 10, claims 98 %
        >>> defense = TemperatureScaling().fit(logits, labels)
        >>> round(float(defense.temperature), 6), round(float(defense(logits).softmax(1)[0, 0]), 6)
        (2.88539, 0.8)
    """

    keeps_label = True
    keeps_order = True

    temperature: Tensor

    def __init__(self, *, min_temperature: float = 1e-3, max_temperature: float = 1e3) -> None:
        if not 0 < min_temperature < max_temperature < math.inf:
            given = f"{min_temperature} and {max_temperature}"
            raise InputError(f"TemperatureScaling: bounds must satisfy 0 < min < max < inf, got {given}")
        super().__init__()
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self.register_buffer("temperature", torch.tensor(math.nan, dtype=torch.float64))

    def _fit(self, logits: Tensor, labels: Tensor) -> None:
        temperature, remark = optimal_temperature(
            logits, labels, lowest=self.min_temperature, highest=self.max_temperature
        )
        if remark:
            warnings.warn(f"TemperatureScaling: {remark}", PoiseWarning, stacklevel=4)
        self.temperature.fill_(temperature)

    def _map(self, logits: Tensor) -> Tensor:
        return divided(logits, self.temperature)


def divided(logits: Tensor, temperature: Tensor) -> Tensor:
    """Logits (n, K) by a temperature () or (n, 1); the label stays and nothing overflows."""
    top = logits.amax(dim=1, keepdim=True)
    fits = (
        (top / temperature).to(logits.dtype).isfinite()
    )  # a row that would overflow is shifted, which changes no probability
    scaled = ((logits - torch.where(fits, torch.zeros_like(top), top)) / temperature).to(logits.dtype)
    return keep_top(logits, scaled.clamp_min(torch.finfo(logits.dtype).min))


def optimal_temperature(
    logits: Tensor, labels: Tensor, *, lowest: float = 1e-3, highest: float = 1e3
) -> tuple[float, str | None]:
    """The T in [lowest, highest] with the least mean NLL, and a remark where T is not an inner minimum.

    Args:
        logits: (n, K) finite.
        labels: (n,) int64 in [0, K).
        lowest: lower bound of T, above 0.
        highest: upper bound of T, above the lower one.

    Returns:
        T and None, or T and one line that says why T is a bound (or 1, where no T matters).

    Example:
        >>> optimal_temperature(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        (1000.0, 'no better than chance: the NLL falls for ever as T grows, clamped to T = 1000')
    """
    z = wide(logits)
    z = z - z.amax(dim=1, keepdim=True)
    label = z.gather(1, labels[:, None]).mean()
    if not bool(z.any()):
        return 1.0, "all logits of every sample are equal, so no temperature changes anything: T = 1"
    if float(label) == 0:
        return lowest, f"every sample is right: the NLL falls for ever as T shrinks, clamped to T = {lowest:g}"
    work = torch.empty_like(z)

    def slope(s: float) -> tuple[float, float]:
        """First and second derivative of the mean NLL in s."""
        weight = torch.mul(z, s, out=work).exp_()
        total = weight.sum(dim=1)
        first = weight.mul_(z).sum(dim=1) / total
        second = weight.mul_(z).sum(dim=1) / total
        return float(first.mean() - label), float((second - first.square()).mean())

    s = _increasing_root(slope, 1 / highest, 1 / lowest)
    if s <= 1 / highest:
        chance = float(z.mean() - label) >= 0  # the slope at s = 0, where all classes are equally likely
        why = (
            "no better than chance: the NLL falls for ever as T grows"
            if chance
            else "the NLL falls up to the upper bound"
        )
        return highest, f"{why}, clamped to T = {highest:g}"
    if s >= 1 / lowest:
        return lowest, f"the NLL falls down to the lower bound, clamped to T = {lowest:g}"
    return 1 / s, None


def _increasing_root(function: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Where an increasing function is 0, or the end of [low, high] beyond which it would be.

    Newton's steps where they stay inside the bracket; a step through an end not yet looked at goes to that end, every
    other one to the geometric middle.

    Args:
        function: s to (value, derivative).
        low: lower end of the bracket, above 0.
        high: upper end of the bracket.
    """
    untested = {low, high}
    s = min(max(1.0, low), high)
    for step in range(_STEPS):
        value, derivative = function(s)
        untested.discard(s)
        if value < 0:
            low = s
        else:
            high = s
        if value == 0 or low >= high:
            return s
        newton = s - value / derivative if 0 < derivative < math.inf else math.copysign(math.inf, -value)
        if abs(newton - s) <= _TOLERANCE * s or high - low <= _ROUNDING * low:
            return min(max(newton, low), high)
        s = min(max(newton, low), high)
        if (s in (low, high) and s not in untested) or step >= _NEWTON_STEPS:
            s = math.sqrt(low * high)
    return s
