"""Illusion of robustness: does a model resist an attack only because its temperature hides the gradients?

Raina et al., ACL 2024 (arXiv 2402.17509): a model served as softmax(z / T_d) with an extreme T_d keeps every label, yet
the gradient of its cross-entropy is exactly zero, or misleads, and an attack that follows it fails. An attacker who
looks through a temperature of his own undoes that. The paper is about text; for images this is our transfer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from torch import Tensor

from poise.attacks import attack
from poise.constraints import Constraint
from poise.defenses.posthoc.temperature import optimal_temperature as least_nll
from poise.errors import AccessError, InputError
from poise.objectives import CrossEntropy
from poise.objectives.base import logit_margin
from poise.objectives.through_temperature import ThroughTemperature
from poise.recipebook import Setting, recipe
from poise.targets.base import DifferentiableTarget, Target
from poise.types import Access, AttackResult, OutputKind, Outputs

DECADES = 8
"""Temperatures are looked for in [10^-8, 10^8]."""

REFINEMENTS = 6
"""Attacks that refine the best temperature of the grid; 2 * DECADES + 1 + 1 + REFINEMENTS = 24 in all."""

LEAST_DROP = 0.05
"""An illusion is found only where a temperature lowers the accuracy after the attack by more than this..."""

LEVEL = 0.01
"""... and where the sign test over the images whose outcome changed gives a p-value below this."""

VALIDATED = 32
"""Images on which `opt` is chosen where no validation images are given."""


@dataclass(frozen=True, slots=True)
class Adversary:
    """PGD through one temperature, judged on the served model.

    Args:
        temperature: T_a; 1 is the plain attack.
        accuracy: share of all images still classified correctly after the attack, in [0, 1].
        confidence: mean confidence of the served model in its predictions on the attacked images, in [1/K, 1].
        recovered: share of the accuracy surviving the plain attack that this one takes away: at most 1, negative where
            it is the weaker one, None where nothing survives the plain attack.
        p_value: one-sided exact sign test of the images that only this attack flips against those only the plain one
            does.

    >>> import poise
    >>> from poise.illusion import illusion_of_robustness
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> found = illusion_of_robustness(target, data.images, data.labels, poise.constraints.Linf(0.1), steps=3)
    >>> isinstance(found.plain, Adversary), found.plain.temperature
    (True, 1.0)
    """

    temperature: float
    accuracy: float
    confidence: float
    recovered: float | None
    p_value: float


@dataclass(frozen=True, slots=True)
class Illusion:
    """Accuracy after an attack that follows the answers as served, and after the same attack through a temperature.

    Args:
        samples: number n of attacked images.
        clean_accuracy: before any attack, in [0, 1].
        clean_confidence: mean confidence before any attack, in [1/K, 1].
        plain: the attack as it stands (T_a = 1).
        cal: through the temperature that calibrates the model on clean images.
        opt: through the temperature that makes the attack strongest on the validation images.

    >>> import poise
    >>> from poise.illusion import illusion_of_robustness
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> found = illusion_of_robustness(target, data.images, data.labels, poise.constraints.Linf(0.1), steps=3)
    >>> found.found, found.samples
    (False, 8)
    """

    samples: int
    clean_accuracy: float
    clean_confidence: float
    plain: Adversary
    cal: Adversary
    opt: Adversary

    @property
    def strongest(self) -> Adversary:
        """`cal` or `opt`, whichever leaves the lower accuracy (`cal` on a tie)."""
        return min(self.cal, self.opt, key=lambda adversary: adversary.accuracy)

    @property
    def found(self) -> bool:
        """A temperature lowers the accuracy by more than `LEAST_DROP`, and by more than chance explains (`LEVEL`)."""
        return any(
            self.plain.accuracy - adversary.accuracy > LEAST_DROP and adversary.p_value < LEVEL
            for adversary in (self.cal, self.opt)
        )

    @property
    def sentence(self) -> str:
        """One line for a person, with the two accuracies."""
        verdict = "Robustness is an illusion of temperature" if self.found else "No illusion of robustness found"
        return (
            f"{verdict}: PGD leaves {self.plain.accuracy:.1%} of {self.samples} images right when it follows the "
            f"answers as served, {self.strongest.accuracy:.1%} when it follows them through "
            f"T = {self.strongest.temperature:.3g}."
        )


def calibrated_temperature(target: Target, images: Tensor, labels: Tensor) -> float:
    """`cal`: the T with the least mean NLL of softmax(z / T) on clean labelled images (Raina et al., section 4).

    The paper runs gradient descent on T, which fails for under-confident models; the NLL is convex in 1 / T, and its
    minimum is found exactly. Where every image is right there is no minimum: the least certain image is then counted
    once more, as an error.

    Args:
        target: gives scores.
        images: (n, C, H, W), n at least 1, in the target's bounds.
        labels: (n,) true classes.

    Returns:
        T in [1e-8, 1e8]; costs one query per image.

    Raises:
        InputError: images or labels do not fit; AccessError: the target gives labels alone.

    >>> import poise
    >>> class Served(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.cat([1000 * x, 0 * x], dim=1).flatten(1)  # certain, but wrong in 2 of 10
    >>> target = poise.ModuleTarget(Served(), num_classes=2)
    >>> labels = torch.tensor([0] * 8 + [1] * 2)
    >>> round(calibrated_temperature(target, torch.ones(10, 1, 1, 1), labels), 3)  # 1000 / log(8 / 2)
    721.348
    """
    _check_images("calibrated_temperature", target, images, labels)
    return _calibrated(_clean(target, images), labels)


def optimal_temperature(
    target: Target, images: Tensor, labels: Tensor, constraint: Constraint, *, steps: int = 5, seed: int = 0
) -> float:
    """`opt`: the T_a that leaves the least accuracy after a short PGD on the cross-entropy through T_a.

    Raina et al., section 4: T_a = argmin Q(T), by Brent's method. Q is a step function, so the same images and random
    starts serve every T, T = 1, `cal` and every power of ten from 1e-8 to 1e8 come first, and bounded Brent steps on
    log10 T follow around the best. Ties go to the lower mean share of its served margin z_y - max z_j that a surviving
    image keeps, then to T = 1, then to `cal`.

    Args:
        target: gives gradients.
        images: (n, C, H, W), n at least 1, in the target's bounds.
        labels: (n,) true classes.
        constraint: the ball.
        steps: gradient steps of each short attack.
        seed: of the random starts.

    Returns:
        T in [1e-8, 1e8]. Costs at most 24 attacks of `steps` + 2 queries on the images that are classified correctly;
        an image takes part in each until it flips.

    Raises:
        InputError: images or labels do not fit; AccessError: the target gives no gradients.

    >>> import poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> target = poise.ModuleTarget(model, num_classes=2)
    >>> images = torch.rand(3, 1, 2, 2)
    >>> optimal_temperature(target, images, target.query(images, torch.arange(3)).labels, poise.constraints.Linf(0.9))
    1.0
    """
    _check_images("optimal_temperature", target, images, labels)
    _check_gradients("optimal_temperature", target)
    clean = _clean(target, images)
    right = clean.labels == labels.to(clean.labels.device)
    if not bool(right.any()):
        return 1.0  # nothing to take away
    kept_images, kept_labels = images[right.to(images.device)], labels[right.to(labels.device)]
    return _searched(_Attacks(target, kept_images, kept_labels, constraint, steps, seed), _calibrated(clean, labels))


def illusion_of_robustness(
    target: Target,
    images: Tensor,
    labels: Tensor,
    constraint: Constraint,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    steps: int = 20,
    seed: int = 0,
) -> Illusion:
    """Attacks the served model three times with PGD on the cross-entropy: plain, through `cal` and through `opt`.

    All three are the recipe "pgd" with the same random starts, and every image is judged on the unmodified model.

    Args:
        target: gives gradients.
        images: (n, C, H, W), n at least 1, in the target's bounds.
        labels: (n,) true classes.
        constraint: the ball.
        validation: images and labels on which both temperatures are chosen. None: the attacked images, which an
            attacker has as well, all of them for `cal` and the first 32 for `opt`.
        steps: gradient steps of the three attacks.
        seed: of the random starts.

    Returns:
        The accuracies, the temperatures and the verdict. Costs 3 * (`steps` + 2) queries per image, and what
        `optimal_temperature` costs on the validation images.

    Raises:
        InputError: images or labels do not fit; AccessError: the target gives no gradients.

    A model that returns probabilities and underflows inside is beyond this test: no temperature recovers its logits.
    Found also where another temperature merely makes a better loss; what matters is that the plain figure is too high.

    >>> import poise
    >>> target = poise.models.load("builtin:digits")
    >>> images, labels, _ = next(iter(poise.data.load("builtin:digits").batches(24)))
    >>> illusion_of_robustness(target, images, labels, poise.constraints.Linf(0.2), steps=5).found
    False
    """
    name = "illusion_of_robustness"
    _check_images(name, target, images, labels)
    _check_gradients(name, target)
    held_images, held_labels = (images, labels) if validation is None else validation
    cal = calibrated_temperature(target, held_images, held_labels)
    few = slice(VALIDATED if validation is None else None)
    opt = optimal_temperature(target, held_images[few], held_labels[few], constraint, seed=seed)
    attacks = _Attacks(target, images, labels, constraint, steps, seed)
    results = {temperature: attacks.through(temperature, stop=False) for temperature in dict.fromkeys((1.0, cal, opt))}
    plain = results[1.0]
    return Illusion(
        samples=len(images),
        clean_accuracy=float((plain.table["prediction_before"] == plain.table["label"]).to_numpy().mean()),
        clean_confidence=float(plain.table["confidence_before"].to_numpy().mean()),
        plain=_adversary(1.0, plain, plain),
        cal=_adversary(cal, results[cal], plain),
        opt=_adversary(opt, results[opt], plain),
    )


@dataclass(frozen=True, slots=True)
class _Attacks:
    """The recipe "pgd" on the same images with the same random starts, through any temperature."""

    target: Target
    images: Tensor
    labels: Tensor
    constraint: Constraint
    steps: int
    seed: int

    def through(self, temperature: float, *, stop: bool) -> AttackResult:
        """The attack through one temperature; `stop` ends an image at its first flip."""
        budget = self.steps + 2
        search = recipe("pgd").search(Setting(self.constraint, budget, self.steps))
        goal = ThroughTemperature(CrossEntropy(stop=stop), temperature)
        return attack(
            self.target, goal, search, self.constraint, self.images, self.labels, budget=budget, seed=self.seed
        )

    def cost(self, log_temperature: float) -> float:
        """Number of survivors, plus half the mean share of its margin that an image keeps (less than one survivor)."""
        result = self.through(10.0**log_temperature, stop=True)
        labels = self.labels.to(result.scores.device)
        after, before = Outputs(result.scores, self.target.kind), Outputs(result.scores_before, self.target.kind)
        survives = after.labels == labels
        kept = (logit_margin(after, labels) / logit_margin(before, labels)).nan_to_num(1.0).clamp(0, 1)
        return float(survives.sum()) + 0.5 * float((kept * survives).mean())


def _searched(short: _Attacks, cal: float) -> float:
    """The cheapest of T = 1, `cal`, the powers of ten, and Brent's steps between the neighbours of the best."""
    log_cal, powers = math.log10(cal), [float(power) for power in range(-DECADES, DECADES + 1)]
    costs = {at: short.cost(at) for at in dict.fromkeys((0.0, log_cal, *powers))}

    def refined(at: float) -> float:
        costs[at] = short.cost(at)
        return costs[at]

    best = min(costs, key=costs.__getitem__)
    if costs[best] > 0:
        ends = max(best - 1, -DECADES), min(best + 1, DECADES)
        minimize_scalar(refined, bounds=ends, method="bounded", options={"maxiter": REFINEMENTS})
        best = min(costs, key=costs.__getitem__)
    return cal if best == log_cal else float(10.0**best)


def _adversary(temperature: float, result: AttackResult, plain: AttackResult) -> Adversary:
    right, right_plain = (
        (found.table["prediction_after"] == found.table["label"]).to_numpy() for found in (result, plain)
    )
    accuracy, accuracy_plain = float(right.mean()), float(right_plain.mean())
    only_here, only_plain = int((~right & right_plain).sum()), int((right & ~right_plain).sum())
    changed = only_here + only_plain
    return Adversary(
        temperature=temperature,
        accuracy=accuracy,
        confidence=float(result.table["confidence_after"].to_numpy().mean()),
        recovered=None if accuracy_plain == 0 else 1 - accuracy / accuracy_plain,
        p_value=float(binomtest(only_here, changed, alternative="greater").pvalue) if changed else 1.0,
    )


def _clean(target: Target, images: Tensor) -> Outputs:
    """Answers at the clean images, in batches the target takes."""
    rows, size = torch.arange(len(images), device=target.device), target.batch_size
    with target.session(0):
        parts = [
            target.query(images[first : first + size].to(target.device), rows[first : first + size]).scores
            for first in range(0, len(images), size)
        ]
    return Outputs(torch.cat(parts), target.kind)


def _calibrated(clean: Outputs, labels: Tensor) -> float:
    logits, labels = clean.logits, labels.to(clean.scores.device).long()
    margins = logit_margin(clean, labels)
    if bool((margins >= 0).all()):
        row = int(margins.argmin())
        second = logits[row].scatter(0, labels[row], -torch.inf).argmax()
        logits, labels = torch.cat([logits, logits[row : row + 1]]), torch.cat([labels, second[None]])
    temperature, _ = least_nll(logits, labels, lowest=10.0**-DECADES, highest=10.0**DECADES)
    return temperature


def _check_images(name: str, target: Target, images: Tensor, labels: Tensor) -> None:
    if target.kind is OutputKind.LABELS or target.access < Access.SCORES:
        raise AccessError(f"{name}: needs access 'scores', the target gives 'labels'")
    if images.ndim != 4 or len(images) == 0:
        raise InputError(f"{name}: images must be (n, C, H, W) with n >= 1, got shape {tuple(images.shape)}")
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"{name}: labels must be ({len(images)},) integers, got {tuple(labels.shape)} {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= target.num_classes:
        raise InputError(f"{name}: labels must be in 0..{target.num_classes - 1}, got values in {low}..{high}")


def _check_gradients(name: str, target: Target) -> None:
    if target.access < Access.GRADIENTS or not isinstance(target, DifferentiableTarget):
        given = min(target.access, Access.SCORES).name.lower()
        raise AccessError(f"{name}: needs access 'gradients', the target gives '{given}'")
