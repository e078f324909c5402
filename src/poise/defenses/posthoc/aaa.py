"""AAA, the adversarial attack on attackers: logits whose margin misleads a score-based search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from poise.defenses.base import PostHoc, wide
from poise.defenses.posthoc import aaa_adam, aaa_exact
from poise.errors import InputError, one_of

ALPHAS = {"linear": 1.0, "sine": 0.7}
"""The published strength of each variant; above 1 (linear) or 0.7326 (sine) some targets are negative."""

_BINS = 15
_STEPS = 999  # T runs over 1/1000 ... 999/1000, 1, and their inverses
_COARSE = 20  # stride of the first pass for the solver "adam"
_BLOCK = 2_000_000  # numbers held at once while T is tuned


class AAA(PostHoc):
    """Changes margins so that the loss a query-based attacker sees leads the wrong way, and calibrates as it does so.

    Chen et al. 2022, "Adversarial Attack on Attackers", Eq. 4 to 6 and Algorithm 1. The margin m = z_a - z_b of the
    two highest logits is cut into intervals of length tau with middle A(m) = (floor(m / tau) + 1/2) tau. The output z'
    minimises

        |margin(z') - t(m)| + beta |max softmax(z') - p*|,  p* = max softmax(z / T),

    with t(m) = A - alpha (m - A) for "linear" (inside an interval the margin runs backwards) and
    t(m) = m + alpha tau sin(2 pi m / tau) for "sine", the paper's -sin(pi (1 - 2 (m - A) / tau)) without A.

    The solvers are different defences where m is small. "exact" gives a global minimiser, in a fixed number of
    operations: Eq. 6 depends on z' through its margin and confidence alone, a margin allows a closed interval of
    confidences, and the best pair is known in closed form; the other classes are shifted or stretched together to meet
    it, in their order, and the mean of the row stays. At m -> 0 it is over-confident ("linear": margin about tau).
    It exports, and gradients are those of the map (autograd through the closed form, implicit differentiation for the
    stretch). "adam" is the published procedure, 100 steps from z; it stays near the start where both terms pull apart.
    It is cut off from the logits, as published: attack it through a surrogate gradient, or judge it by "exact".

    Deviations: floor at m = k tau, where the released code rounds half to even; the margin is that of the predicted
    class, not of the current top two; targets are at least 0.001; the objective is summed over the batch; where
    "adam" or rounding still moves the label, the exact output takes the row. For the pair that an "exact" row cannot
    reach, because it asks for other classes without any weight, p falls short by 3e-10 at most.

    Args:
        variant: "linear" or "sine".
        solver: "exact" or "adam".
        alpha: strength, at least 0; None is 1 for "linear" and 0.7 for "sine".
        tau: length of an interval in logits, above 0. 6 in the paper; 4 is the released class's default and what
            Obadinma et al. ran.
        beta: weight of the confidence, at least 0.
        steps: of "adam"; ignored by "exact".
        temperature: T > 0; then no fit is needed. None: `fit` tunes it.

    `fit` takes the T of least 15-bin ECE of the output, over t and 1/t for t = 0.001, 0.002, ..., 1 (the paper's grid
    and 1), the one nearest to 1 among equals. "exact" looks at all 1999 (5000 x 1000 logits: under a minute on a core);
    "adam" looks at every 20th and then at all between the neighbours of the best, so it may miss the least by little.

    Buffers:
        used_temperature: () float64, the T in use; NaN before `fit`.

    Example:
        >>> defense = AAA("linear", temperature=1.0)
        >>> logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]])  # margin 2, in the interval [0, 6] with its middle at 3
        >>> defense.target(logits), defense(logits).topk(2).values.diff()
        (tensor([4.], dtype=torch.float64), tensor([[-4.]]))
    """

    keeps_label = True

    used_temperature: Tensor

    def __init__(
        self,
        variant: Literal["linear", "sine"] = "linear",
        solver: Literal["exact", "adam"] = "exact",
        alpha: float | None = None,
        *,
        tau: float = 6.0,
        beta: float = 5.0,
        steps: int = 100,
        temperature: float | None = None,
    ) -> None:
        if variant not in ALPHAS:
            raise one_of("AAA: variant", variant, list(ALPHAS))
        if solver not in ("exact", "adam"):
            raise one_of("AAA: solver", solver, ["exact", "adam"])
        for name, value, least in (("alpha", alpha, 0.0), ("beta", beta, 0.0), ("steps", steps, 0)):
            if value is not None and not least <= value < math.inf:
                raise InputError(f"AAA: {name} must be at least {least:g} and finite, got {value}")
        for name, value in (("tau", tau), ("temperature", temperature)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"AAA: {name} must be above 0 and finite, got {value}")
        super().__init__()
        self.variant = variant
        self.solver = solver
        self.alpha = alpha
        self.tau = tau
        self.beta = beta
        self.steps = steps
        self.temperature = temperature
        given = math.nan if temperature is None else temperature
        self.register_buffer("used_temperature", torch.tensor(given, dtype=torch.float64))
        if temperature is not None:
            self.needs_fit = False  # type: ignore[misc]  # the one thing that `fit` would learn is given
            self.fitted.fill_(True)
        if solver == "adam":
            self.differentiable = False  # type: ignore[misc]  # a promise of the exact map only

    def target(self, logits: Tensor) -> Tensor:
        """(n,) the margin t(m) asked for in each row of logits (n, K), float64."""
        self._check_logits(logits, for_fit=False)
        return self._target(aaa_exact.read(logits).margin).squeeze(1)

    def objective(self, logits: Tensor, defended: Tensor) -> Tensor:
        """(n,) Eq. 6 of a defended row for the logits (n, K) it was made from; margin and confidence are those of the
        class that the logits predict. float64."""
        self._ready(logits)
        rows, after = aaa_exact.read(logits), wide(defended)
        margin = after.gather(1, rows.top) - after.scatter(1, rows.top, -torch.inf).amax(dim=1, keepdim=True)
        own = after.softmax(dim=1).gather(1, rows.top)
        far = (margin - self._target(rows.margin)).abs() + self.beta * (own - self._confidence(rows)).abs()
        return far.squeeze(1)

    def feasible(self, logits: Tensor) -> Tensor:
        """(n,) bool: rows of logits (n, K) whose objective can be 0 (up to 2e-9): t(m) allows the confidence p*."""
        self._ready(logits)
        rows = aaa_exact.read(logits)
        target, wish = self._target(rows.margin), -aaa_exact.doubt(rows, self._inverse())
        reached = (
            (target > wish) & (target <= wish + math.log(logits.shape[1] - 1)) & (target >= aaa_exact.LEAST_MARGIN)
        )
        return reached.squeeze(1)

    def _ready(self, logits: Tensor) -> None:
        self._check_logits(logits, for_fit=False)
        self.require_fitted()

    def _map(self, logits: Tensor) -> Tensor:
        if self.solver == "exact":
            return self._exact(logits)
        with torch.no_grad():
            rows = aaa_exact.read(logits)
            moved = self._descend(logits, rows, self._confidence(rows)).to(logits.dtype)
            kept = (moved.argmax(dim=1, keepdim=True) == rows.top) & moved.isfinite().all(dim=1, keepdim=True)
            return torch.where(kept, moved, self._exact(logits))

    def _exact(self, logits: Tensor) -> Tensor:
        rows = aaa_exact.read(logits)
        pair = self._pair(rows.margin, aaa_exact.doubt(rows, self._inverse()), logits.shape[1])
        return aaa_exact.rebuild(rows, logits, *pair)

    def _descend(self, logits: Tensor, rows: aaa_exact.Rows, confidence: Tensor) -> Tensor:
        working = logits if logits.dtype == torch.float64 else logits.float()
        target, wanted = (part.to(working.dtype) for part in (self._target(rows.margin), confidence))
        return aaa_adam.descend(working, target, wanted, beta=self.beta, steps=self.steps)

    def _target(self, margin: Tensor) -> Tensor:
        alpha, tau = ALPHAS[self.variant] if self.alpha is None else self.alpha, self.tau
        if self.variant == "sine":
            return margin + alpha * tau * (2 * math.pi / tau * margin).sin()
        attractor = ((margin / tau).floor() + 0.5) * tau
        return attractor - alpha * (margin - attractor)

    def _pair(self, margin: Tensor, doubt: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        return aaa_exact.nearest_pair(self._target(margin), doubt, classes=classes, beta=self.beta)

    def _confidence(self, rows: aaa_exact.Rows) -> Tensor:
        return (-aaa_exact.doubt(rows, self._inverse())).sigmoid()

    def _inverse(self) -> Tensor:
        return self.used_temperature.reciprocal()

    def _fit(self, logits: Tensor, labels: Tensor) -> None:
        rows = aaa_exact.read(logits)
        correct = (rows.top.squeeze(1) == labels).to(rows.margin.dtype)
        errors = _exact_errors if self.solver == "exact" else _adam_errors
        self.used_temperature.fill_(errors(self, logits, rows, correct))


def grid() -> Tensor:
    """(1999,) the temperatures that are tried, rising: t, 1 and 1/t for t = 0.001, ..., 0.999; float64."""
    t = torch.arange(1, _STEPS + 1, dtype=torch.float64) / (_STEPS + 1)
    return torch.cat([t, torch.ones(1, dtype=torch.float64), t.flip(0).reciprocal()])


def calibration_errors(confidence: Tensor, correct: Tensor) -> Tensor:
    """(g,) 15-bin ECE of confidences (g, n), bins closed on the right, for correct (n,) in {0, 1}."""
    index = (confidence * _BINS).ceil().sub(1).clamp(0, _BINS - 1).long()
    gap = torch.zeros(len(confidence), _BINS, dtype=confidence.dtype, device=confidence.device)
    return gap.scatter_add(1, index, confidence - correct).abs().sum(dim=1) / len(correct)


def _best(temperatures: Tensor, errors: Tensor) -> float:
    """The temperature of least error; the one nearest to 1 among equals."""
    least = temperatures[errors == errors.min()]
    return float(least[least.log().abs().argmin()])


def _in_blocks(temperatures: Tensor, size: int, errors: Callable[[Tensor], Tensor]) -> Tensor:
    """(g,) the errors of temperatures (g,), at most _BLOCK numbers at once where each takes `size`."""
    step = max(_BLOCK // size, 1)
    return torch.cat([errors(temperatures[i : i + step]) for i in range(0, len(temperatures), step)])


def _exact_errors(defense: AAA, logits: Tensor, rows: aaa_exact.Rows, correct: Tensor) -> float:
    """The best T of the whole grid. The confidence after the map is known without the map."""
    classes, margin = logits.shape[1], rows.margin.squeeze(1)

    def errors(temperatures: Tensor) -> Tensor:
        inverse = temperatures.reciprocal()[:, None]
        weights = (-inverse[:, :, None].to(rows.gaps.dtype) * rows.gaps).exp_()
        doubt = torch.log1p(wide(weights.sum(dim=2))) - inverse * margin
        after, tail = defense._pair(margin.expand_as(doubt), doubt, classes)
        return calibration_errors((after - tail).sigmoid(), correct)

    temperatures = grid().to(rows.margin)
    return _best(temperatures, _in_blocks(temperatures, rows.gaps.numel(), errors))


def _adam_errors(defense: AAA, logits: Tensor, rows: aaa_exact.Rows, correct: Tensor) -> float:
    """The best T of every 20th of the grid, then of all between its neighbours."""
    top, size = rows.top.squeeze(1), rows.gaps.numel()

    def errors(temperatures: Tensor) -> Tensor:
        found = []
        for inverse in temperatures.reciprocal():
            confidence = (-aaa_exact.doubt(rows, inverse)).sigmoid()
            after = defense._descend(logits, rows, confidence).softmax(dim=1)
            found.append(after.gather(1, top[:, None]).squeeze(1))
        return calibration_errors(wide(torch.stack(found)), correct)

    every = grid().to(rows.margin)
    coarse = every[_STEPS % _COARSE :: _COARSE]
    middle = int((every == _best(coarse, _in_blocks(coarse, size, errors))).nonzero()[0])
    near = every[max(middle - _COARSE + 1, 0) : middle + _COARSE]
    return _best(near, _in_blocks(near, size, errors))
