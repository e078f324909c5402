"""Multi-domain temperature scaling: a temperature for each sample, read off the model's own features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from poise.defenses.base import PoiseWarning, PostHoc, wide
from poise.defenses.posthoc.temperature import divided, optimal_temperature
from poise.errors import InputError


class Domain(NamedTuple):
    """One kind of data as the model sees it, for example clean images or attacked ones.

    >>> import torch
    >>> from poise.defenses import MultiDomainTemperature
    >>> logits, labels = torch.tensor([[4.0, 0.0]] * 10), torch.tensor([0] * 8 + [1] * 2)  # right in 80 %
    >>> clean = Domain(features=torch.zeros(10, 1), logits=logits, labels=labels)
    >>> MultiDomainTemperature().fit_domains([clean])(clean.logits[:1], clean.features[:1]).softmax(1)
    tensor([[0.8000, 0.2000]])
    """

    features: Tensor  # (n, F) of the tapped layer
    logits: Tensor  # (n, K)
    labels: Tensor  # (n,) integers in [0, K)


class MultiDomainTemperature(PostHoc):
    """Divides the logits of each sample by its own temperature T(x) = w . features(x) + b.

    Yu et al. 2022, "Robust Calibration with Multi-domain Temperature Scaling"; the domains clean, under-confidence and
    over-confidence attacked are those of Obadinma et al., appendix D.2. In each domain k one temperature T_k is fitted
    by least NLL; (w, b) is the least-squares fit of T_k by the features of all samples of all domains. Deviations: the
    features are standardised first, which matters only with a ridge or with fewer samples than features (then the
    solution of least norm is taken); T(x) is clamped. The released code of Obadinma et al. fits one temperature three
    times and keeps the last; here each domain has its own.

    `fit(logits, labels)` is one domain without features: temperature scaling within the same bounds. `fit_domains`
    learns from features, and `forward` then needs them: `FeatureDefended` reads them from the model.

    Args:
        ridge: weight of |w|^2 beside the mean squared error, features standardised; 0 for none.
        fourier: use the magnitudes of the features' discrete Fourier transform instead.
        lowest: lower bound of T_k and T(x), above 0.
        highest: upper bound of both.

    Buffers:
        temperatures: (D,) float64, T_k; slope: (F,) float64, w, (0,) without features; intercept: () float64, b.

    Raises:
        InputError: a negative ridge, or bounds not in order.

    Warns:
        PoiseWarning: at a fit, where the best temperature of a domain lies at or beyond a bound.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]]).repeat(10, 1)
        >>> mostly, half = torch.tensor([0] * 8 + [1] * 2), torch.tensor([0] * 6 + [1] * 4)  # right in 80 %, in 60 %
        >>> quiet, loud = torch.zeros(10, 1), torch.ones(10, 1)
        >>> defense = MultiDomainTemperature().fit_domains([(quiet, logits, mostly), (loud, logits, half)])
        >>> defense(logits[:2], torch.tensor([[0.0], [1.0]])).softmax(1)[:, 0]
        tensor([0.8000, 0.6000])
    """

    keeps_label = True
    keeps_order = True

    temperatures: Tensor
    slope: Tensor
    intercept: Tensor

    def __init__(
        self, *, ridge: float = 0.0, fourier: bool = False, lowest: float = 0.05, highest: float = 20.0
    ) -> None:
        if not 0 <= ridge < math.inf:
            raise InputError(f"MultiDomainTemperature: ridge must be at least 0 and finite, got {ridge}")
        if not 0 < lowest < highest < math.inf:
            given = f"{lowest} and {highest}"
            raise InputError(f"MultiDomainTemperature: bounds must satisfy 0 < lowest < highest < inf, got {given}")
        super().__init__()
        self.ridge = ridge
        self.fourier = fourier
        self.lowest = lowest
        self.highest = highest
        self.register_buffer("temperatures", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("slope", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("intercept", torch.tensor(math.nan, dtype=torch.float64))

    @torch.no_grad()
    def fit_domains(self, domains: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Self:
        """Learns from one or more domains and forgets every earlier fit.

        Args:
            domains: (features (n, F), logits (n, K), labels (n,)) of each, see `Domain`; n may differ, F may not.

        Raises:
            InputError: no domain, or one whose parts are not as above; the state is then as before.
        """
        if not domains:
            raise InputError("MultiDomainTemperature: fit_domains needs at least one domain, got 0")
        checked = [self._check_domain(number, *domain) for number, domain in enumerate(domains)]
        widths = sorted({domain.features.shape[1] for domain in checked})
        if len(widths) > 1:
            raise InputError(f"MultiDomainTemperature: all domains must have features of one width, got {widths}")
        self.fitted.fill_(False)
        found = [self._temperature(domain.logits, domain.labels, f" of domain {k}") for k, domain in enumerate(checked)]
        kind = wide(checked[0].logits)
        self.temperatures = kind.new_tensor(found)
        wanted = torch.cat([kind.new_full((len(domain.labels),), t) for t, domain in zip(found, checked, strict=True)])
        features = torch.cat([self._transformed(domain.features) for domain in checked])
        self.slope, intercept = _least_squares(features, wanted, self.ridge)
        self.intercept.copy_(intercept)
        self.fitted.fill_(True)
        self.fit_samples.fill_(len(wanted))
        return self

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Defended logits.

        Args:
            logits: (n, K) of any floating type.
            features: (n, F) of the same samples; needed after `fit_domains`, ignored after `fit`.

        Returns:
            (n, K), same type and device, differentiable in both.

        Raises:
            InputError: another shape or type, or features that are missing.
            NotFittedError: neither fit has happened.
        """
        if len(self.slope) == 0:
            return super().forward(logits)
        self._check_logits(logits, for_fit=False)
        if features is None:
            raise InputError(
                "MultiDomainTemperature: was fitted with features, so forward needs them (FeatureDefended passes them)"
            )
        self._check_features(features, logits.shape[0])
        return divided(logits, self.temperature(features)[:, None])

    def temperature(self, features: Tensor) -> Tensor:
        """(n,) T of each sample from its features (n, F), within the bounds, float64."""
        return (self._transformed(features) @ self.slope + self.intercept).clamp(self.lowest, self.highest)

    def _map(self, logits: Tensor) -> Tensor:
        return divided(logits, self.intercept)

    def _fit(self, logits: Tensor, labels: Tensor) -> None:
        temperature = self._temperature(logits, labels, "")
        self.intercept.fill_(temperature)
        self.temperatures = self.intercept.reshape(1).clone()
        self.slope = self.temperatures.new_zeros(0)

    def _temperature(self, logits: Tensor, labels: Tensor, of: str) -> float:
        temperature, remark = optimal_temperature(logits, labels, lowest=self.lowest, highest=self.highest)
        if remark:
            warnings.warn(f"MultiDomainTemperature{of}: {remark}", PoiseWarning, stacklevel=5)
        return temperature

    def _transformed(self, features: Tensor) -> Tensor:
        values = wide(features)
        return torch.fft.rfft(values, dim=1).abs() if self.fourier else values

    def _width(self, features: Tensor) -> int:
        return features.shape[1] // 2 + 1 if self.fourier else features.shape[1]

    def _check_domain(self, number: int, features: Tensor, logits: Tensor, labels: Tensor) -> Domain:
        try:
            self._check_logits(logits, for_fit=True)
            labels = self._check_labels(labels, logits)
            self._check_features(features, len(logits), for_fit=True)
        except InputError as error:
            raise InputError(f"{error} (domain {number})") from error
        return Domain(features.to(logits.device), logits, labels)

    def _check_features(self, features: Tensor, n: int, *, for_fit: bool = False) -> None:
        if not isinstance(features, Tensor) or not features.is_floating_point():
            given = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                f"MultiDomainTemperature: features must be a tensor of floating-point numbers, got {given}"
            )
        if features.ndim != 2 or features.shape[0] != n or features.shape[1] == 0:
            raise InputError(
                f"MultiDomainTemperature: features must be ({n}, F) with F >= 1, got {tuple(features.shape)}"
            )
        if for_fit and not bool(features.isfinite().all()):
            raise InputError("MultiDomainTemperature: features must be finite, got NaN or inf")
        if not for_fit and self._width(features) != len(self.slope):
            raise InputError(
                f"MultiDomainTemperature: fitted on {len(self.slope)} feature numbers, got {self._width(features)}"
            )


def _least_squares(features: Tensor, wanted: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Slope (F,) and intercept () of the least-squares fit, of least norm where there are many, features standardised.

    Args:
        features: (n, F) float64.
        wanted: (n,) float64.
        ridge: weight of |slope|^2 beside the mean squared error.
    """
    mean, first = features.mean(dim=0), wanted[0]
    above = wanted - first  # exactly 0 where all are equal
    spread = (features - mean).square().mean(dim=0).sqrt()
    noise = 1e-12 * features.abs().amax(dim=0)  # the spread that rounding gives a constant
    spread = torch.where(spread > noise, spread, torch.full_like(spread, math.inf))
    left, sizes, right = torch.linalg.svd((features - mean) / spread, full_matrices=False)
    cut = torch.finfo(sizes.dtype).eps * max(features.shape) * sizes.amax()
    gain = torch.where(sizes > cut, sizes / (sizes.square() + ridge * len(wanted)), torch.zeros_like(sizes))
    slope = (right.T @ (gain * (left.T @ (above - above.mean())))) / spread
    return slope, first + above.mean() - mean @ slope
