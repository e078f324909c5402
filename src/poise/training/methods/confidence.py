"""Training against attacks on the confidence: CAAT, and underconfidence adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poise.errors import InputError
from poise.objectives import OCA, UCA, ConfSmooth, KeepLabel, MinConfidence, Objective
from poise.searches import AdaptivePGD, ConfidencePGD, DropoutPGD, Search
from poise.targets import ModuleTarget
from poise.training.base import Batch, Forward, Terms, Views
from poise.training.inner import Inner, inner_ball
from poise.training.losses import smoothed_cross_entropy

Directions = Literal["both", "under", "over"]


@dataclass(frozen=True)
class CAAT:
    """Calibration attack adversarial training: CE at the under- and at the overconfidence attack's point.

    Obadinma et al., Calibration Attacks, section 3.3 and Appendix D.

    Args:
        eps, norm: the ball; .05 in the paper.
        step, steps: of `DropoutPGD`; 5/255 and 10.
        keep_under, keep_over: share of the entries of a step that are kept; the paper drops .95 and .2.
        directions: "both"; "under" alone is what the UAT paper compares with.

    Every attacked image keeps the label that the model of that step gives the clean one. Deviations: both attacks
    start at the clean image, follow the gap and the confidence of the predicted class, and act on pixels; the
    released code starts the second one at the first one's end, follows the true label's cross-entropy (the wrong way
    for misclassified images), normalises twice and takes eps .1.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = CAAT(eps=0.1, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['over', 'under']
    """

    eps: float = 0.05
    step: float = 5 / 255
    steps: int = 10
    norm: str = "linf"
    keep_under: float = 0.05
    keep_over: float = 0.8
    directions: Directions = "both"

    def __post_init__(self) -> None:
        inner_ball("CAAT", self.norm, self.eps, self.steps, self.step)
        _ = self.search
        if self.directions not in ("both", "under", "over"):
            raise InputError(f"CAAT: directions must be 'both', 'under' or 'over', got '{self.directions}'")

    @property
    def search(self) -> DropoutPGD:
        """The attack's steps."""
        return DropoutPGD(self.steps, self.step, self.keep_under, self.keep_over, mask_target="step")

    @property
    def inner(self) -> dict[str, Inner]:
        """The attacks inside, by the name of their term."""
        goals: dict[str, Objective] = {"under": KeepLabel(UCA(tol=0)), "over": KeepLabel(OCA(tol=0))}
        ball = inner_ball("CAAT", self.norm, self.eps, self.steps, self.step)
        wanted = goals if self.directions == "both" else {self.directions: goals[self.directions]}
        return {name: Inner(goal, self.search, ball) for name, goal in wanted.items()}

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        return tuple(attack.points(target, batch, copy) for copy, attack in enumerate(self.inner.values()))

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        pairs = zip(self.inner, views, strict=True)
        return {name: smoothed_cross_entropy(forward(images), batch.labels) for name, images in pairs}


@dataclass(frozen=True)
class UAT:
    """Underconfidence adversarial training: CE, with the true label, at the point of lowest confidence.

    Martinez et al., Underconfidence Adversarial Training, Alg. 1 and 2.

    Args:
        goal: what the attack inside minimises while the model's own prediction stays: "gap" p_k - max p_j (Eq. 1; 10
            steps in the paper), "smooth" the cross-entropy to a label smoothed by .98 (Eq. 7; 5 steps), or
            "standard": the confidence itself along `MinConfidence`'s loss, which walks across the label boundary where
            the others step back (this library's).
        eps, norm: the ball; 8/255.
        step: first step of the adaptive search, 5/255; "standard" takes shares of eps.
        steps: gradient steps.
        smoothing: e of "smooth".

    The prediction that is kept is that of the model as it is in that step, so at first it is often a wrong one.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = UAT(eps=0.1, step=0.05, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['attacked']
    """

    goal: Literal["gap", "smooth", "standard"] = "smooth"
    eps: float = 8 / 255
    step: float = 5 / 255
    steps: int = 5
    norm: str = "linf"
    smoothing: float = 0.98

    def __post_init__(self) -> None:
        inner_ball("UAT", self.norm, self.eps, self.steps, self.step)
        if self.goal not in ("gap", "smooth", "standard"):
            raise InputError(f"UAT: goal must be 'gap', 'smooth' or 'standard', got '{self.goal}'")
        ConfSmooth(self.smoothing)

    @property
    def inner(self) -> Inner:
        """The attack inside."""
        adaptive: Search = AdaptivePGD(self.steps, self.step)
        chosen: dict[str, tuple[Objective, Search]] = {
            "gap": (UCA(tol=0), adaptive),
            "smooth": (ConfSmooth(self.smoothing, tol=0), adaptive),
            "standard": (MinConfidence(tol=0), ConfidencePGD(self.steps)),
        }
        objective, search = chosen[self.goal]
        return Inner(KeepLabel(objective), search, inner_ball("UAT", self.norm, self.eps, self.steps, self.step))

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        return (self.inner.points(target, batch),)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        return {"attacked": smoothed_cross_entropy(forward(views[0]), batch.labels)}
