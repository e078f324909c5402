"""What attacks really do to the smoothed model within a certificate's radius, judged with fresh draws."""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor

from poise import attack
from poise.certify import ClassScore, Smoothed, Smoothing, Stream
from poise.constraints import L2
from poise.experiments.certify_folder import ATTACKS
from poise.experiments.certify_spec import CertifySpec
from poise.searches import PGD
from poise.targets import ModuleTarget

STRIDE = 2.5
"""Steps times step length, in radii: enough to cross the ball and to come back."""


def attack_group(
    spec: CertifySpec, target: ModuleTarget, images: Tensor, ids: Tensor, classes: Tensor, radius: float
) -> pl.DataFrame:
    """PGD through the mean of noisy copies (EOT), down and up, within an l2 ball; rows as `ATTACKS`.

    Args:
        spec: steps, copies per step, and how to judge.
        target: the bare model, with gradients.
        images: (g, C, H, W), with ids (g,) and certified classes (g,).
        radius: of the ball, above 0, in pixel units.
    """
    smoothed = ModuleTarget(
        Smoothed(target.module, sigma=spec.sigma, draws=spec.attack_draws, kind=target.kind),
        num_classes=target.num_classes,
        bounds=target.bounds,
        device=target.device,
        batch_size=len(images),  # the noise of one question must not depend on the run's batch size
    )
    search = PGD(steps=spec.attack_steps, step=STRIDE * radius / spec.attack_steps, undo=False)
    frames = []
    for up in (False, True):
        found = attack(
            smoothed, ClassScore(up=up), search, L2(radius), images, classes, ids=ids, budget=spec.attack_steps + 2,
            seed=spec.seed,
        )  # fmt: skip
        judged = judge(spec.smoothing, target, found.images, ids, classes, draws=spec.attack_judged)
        columns = {"id": ids.numpy(), "l2": found.table["l2"], "confidence": judged.numpy()}
        frames.append(pl.DataFrame(columns).with_columns(radius=pl.lit(radius), up=pl.lit(up)))
    return pl.concat(frames).select(pl.col(name).cast(kind) for name, kind in ATTACKS.items())


def judge(
    smoothing: Smoothing, target: ModuleTarget, images: Tensor, ids: Tensor, classes: Tensor, *, draws: int
) -> Tensor:
    """(g,) float64: the mean score of each class at these images, over draws that no attack and no bound has seen."""
    fresh = Smoothing(sigma=smoothing.sigma, n=draws, n0=0, alpha=0.5, measure=smoothing.measure, seed=smoothing.seed)
    with torch.no_grad():
        stream = Stream(target, images, ids, fresh, classes=classes, purpose="judging")
        stream.run()
    return stream.means
