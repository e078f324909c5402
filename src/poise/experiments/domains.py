"""Multi-domain temperature in an experiment: features of the model itself, and the domains of its paper."""

from __future__ import annotations

from torch import Tensor

from poise.data import Dataset
from poise.defenses import ByFeatures, MultiDomainTemperature, last_linear, make_domains
from poise.experiments.audit_spec import AuditSpec
from poise.experiments.served import as_logits
from poise.recipebook import run_recipe
from poise.targets import ModuleTarget

IMAGES = 500
"""Held-out images of each domain, as in the calibration-attack paper (appendix D.2)."""

ATTACKS = {"underconfidence": "pgd-uca", "overconfidence": "pgd-oca"}
"""The domains beside the clean one, and the recipes that make them."""


def by_features(
    target: ModuleTarget, defence: MultiDomainTemperature, held_out: Dataset, spec: AuditSpec
) -> ByFeatures | None:
    """The defence fitted on the features that the last linear layer is given, clean and attacked.

    Args:
        target: the bare model.
        defence: is fitted.
        held_out: images that no attack of the experiment sees; the first of them are attacked in the experiment's ball.
        spec: names ball and seed.

    Returns:
        The defence around a model; None, and nothing fitted, where the model has no linear layer.
    """
    model, chosen = as_logits(target), held_out[:IMAGES]
    images = chosen.images.to(target.device)
    with target.session(spec.seed):
        layer = last_linear(model, images[:2].to(target.dtype))
    if layer is None:
        return None

    def attack(name: str, x: Tensor, y: Tensor) -> Tensor:
        return run_recipe(
            name, target, x, y, ids=chosen.ids, eps=spec.eps, norm=spec.norm, seed=spec.seed, eight_bit=spec.eight_bit
        ).images

    attacks = {domain: lambda x, y, name=name: attack(name, x, y) for domain, name in ATTACKS.items()}
    labels, size = chosen.labels, target.batch_size
    domains = make_domains(model, layer, images, labels, attacks, side="input", batch_size=size)
    return ByFeatures(layer, defence.fit_domains(list(domains.values())), side="input")
