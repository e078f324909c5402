"""Attacks of the Adversarial Robustness Toolbox (ART 1.20) on our targets, in our result table, verified like ours.

ART 1.20.1 has no FAB; its AutoAttack runs APGD-CE, APGD-DLR, DeepFool and Square, which is not the published suite.
Importing ART makes the folder `.art` in the user's home, or where the variable ART_DATA_PATH says.
"""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from poise.attacks import attack as run_attack
from poise.constraints import L2, Constraint, Linf
from poise.errors import AccessError, InputError, PoiseError, one_of
from poise.objectives import Margin
from poise.peers.art_attacks import ART_ATTACKS, ArtAttack, ArtSetting
from poise.peers.art_bridge import Bridge, art_estimator, global_generators, load_art, process_pools
from poise.searches.base import Ask, Problem, Steps
from poise.targets import ModuleTarget, Target
from poise.types import Access, AttackResult

__all__ = ["ART_ATTACKS", "ArtAttack", "ArtSetting", "run_art"]


def run_art(
    attack: ArtAttack | str,
    target: Target,
    constraint: Constraint,
    images: Tensor,
    labels: Tensor,
    ids: Tensor | None = None,
    seed: int = 0,
    steps: int | None = None,
) -> AttackResult:
    """Attacks with ART every image whose label is right, and verifies each result as `poise.attack` does.

    Args:
        attack: one of `ART_ATTACKS`, its name, or an `ArtAttack` of one's own.
        target: a `ModuleTarget`, with gradients unless the attack takes scores alone.
        constraint: `Linf` or `L2`; a result lies inside. Attacks for the nearest wrong label ignore it while they
            search (all of them in l2), and a point they find outside is no result.
        images, labels, ids: as in `poise.attack`; ART sees float32.
        seed: of ART's draws; numpy's, torch's and Python's global generators are put back afterwards.
        steps: iterations instead of the number in `ART_ATTACKS`; of each member of `autoattack`.

    Returns:
        As `poise.attack` with the objective `Margin()`. `queries` and `gradients` hold ART's rows of forward and
        backward passes divided by the images of the batch that it attacked, rounded up (ART does not say whose they
        are; a class's gradient for all images is one backward pass each), plus the clean and the verifying query.
        ART draws for a whole batch, so other than in poise's own searches a result depends on the batch.

    Raises:
        AccessError: no `ModuleTarget`, or too little access; MissingExtraError: ART is not installed;
        InputError: values that make no sense; PoiseError: ART failed, with its own words.

    >>> from torch.nn import Flatten, Linear, Sequential
    >>> target = ModuleTarget(Sequential(Flatten(), Linear(4, 3)), num_classes=3)
    >>> result = run_art("deepfool", target, L2(9.0), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    >>> bool((result.table["l2"] <= 9.0).all())
    True
    """
    chosen = _chosen(attack) if isinstance(attack, str) else attack
    _check(chosen, target, constraint, steps)
    assert isinstance(target, ModuleTarget)
    with global_generators():
        version = str(load_art("art", chosen.name).__version__)
        size = math.prod(images.shape[1:]) if isinstance(images, Tensor) else 0
        norm = math.inf if isinstance(constraint, Linf) else 2
        setting = ArtSetting(constraint.eps, norm, seed, steps, target.batch_size, size)
        work = _Work(chosen, target, setting, labels)
        search = _ArtSearch(chosen.access, chosen.name, chosen.art, version, steps, _fixed(chosen, setting), work)
        result = run_attack(target, Margin(), search, constraint, images, labels, ids, budget=3, seed=seed)
    return dataclasses.replace(result, table=work.charged(result.table))


def _chosen(name: str) -> ArtAttack:
    if name not in ART_ATTACKS:
        raise one_of("ART attack", name, list(ART_ATTACKS))
    return ART_ATTACKS[name]


def _check(chosen: ArtAttack, target: Target, constraint: Constraint, steps: int | None) -> None:
    given = f"'{target.access.name.lower()}'" if isinstance(target, ModuleTarget) else type(target).__name__
    if not isinstance(target, ModuleTarget) or target.access < chosen.access:
        raise AccessError(
            f"ART {chosen.name}: needs a ModuleTarget with access '{chosen.access.name.lower()}', got {given}"
        )
    if not isinstance(constraint, Linf | L2):
        raise InputError(f"ART {chosen.name}: constraint must be Linf or L2, got {type(constraint).__name__}")
    if chosen.bounded and constraint.eps <= 0:
        raise InputError(f"ART {chosen.name}: eps must be above 0, got {constraint.eps}")
    if target.num_classes < chosen.classes:
        raise InputError(f"ART {chosen.name}: needs at least {chosen.classes} classes, got {target.num_classes}")
    if steps is not None and steps < 1:
        raise InputError(f"ART {chosen.name}: steps must be at least 1, got {steps}")


def _fixed(chosen: ArtAttack, setting: ArtSetting) -> dict[str, Any]:
    """The parameters that say what was done: none that only say how, none that depend on the images."""
    return {
        name: value
        for name, value in chosen.parameters(setting).items()
        if name not in ("batch_size", "nb_parallel", "verbose")
    }


@dataclass(frozen=True, slots=True)
class _ArtSearch:
    """Asks for the clean points, then for what ART makes of those that are still right; the fields are the `spec`."""

    access: Access
    name: str
    art: str
    version: str
    steps: int | None
    parameters: dict[str, Any]
    work: _Work = field(repr=False, compare=False)

    def run(self, problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        rows = problem.everyone[reply.active]
        points = self.work.attack(problem, rows)
        found = points.flatten(1).isfinite().all(dim=1)
        if bool(found.any()):
            yield Ask(points[found], rows[found])


class _Work:
    """What one `run_art` carries from batch to batch: whose turn it is, and what ART has asked.

    A plain class, so that `poise.spec` describes it by its name alone: neither labels nor counts enter the `spec`.
    """

    def __init__(self, attack: ArtAttack, target: ModuleTarget, setting: ArtSetting, labels: Tensor) -> None:
        self._attack, self._target, self._setting, self._labels = attack, target, setting, labels
        self._start = 0
        self._charges: list[tuple[Tensor, Tensor]] = []

    def attack(self, problem: Problem, rows: Tensor) -> Tensor:
        """ART's points (m, C, H, W) for the rows (m,) of the next batch; `poise.attack` drives batches in order."""
        clean = problem.clean[rows]
        labels = self._labels[self._start : self._start + len(problem.clean)][rows.to(self._labels.device)]
        self._start += len(problem.clean)
        bridge = Bridge(self._target, self._attack.outputs)
        points = clean
        if len(rows):
            draw = problem.rng.integers("art", 0, rows[:1], 2**32)
            points = self._generate(bridge, clean, labels.cpu().numpy(), int(draw))
        charge = torch.zeros(2, len(problem.clean), dtype=torch.int64)
        per_image = [math.ceil(count / max(len(rows), 1)) for count in (bridge.forwards, bridge.backwards)]
        charge[:, rows.cpu()] = torch.tensor(per_image)[:, None]
        self._charges.append((charge[0], charge[1]))
        return problem.constraint.project(points, clean, problem.box) if self._attack.bounded else points

    def _generate(self, bridge: Bridge, clean: Tensor, labels: np.ndarray[Any, Any], seed: int) -> Tensor:
        setting, pixels = dataclasses.replace(self._setting, seed=seed), clean.detach().float().cpu().numpy()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - ART reads the global generator
        with torch.inference_mode(False), torch.enable_grad(), process_pools():
            try:
                made = self._attack.make(art_estimator(bridge, clean.shape[1:], self._attack.name), setting)
                points = made.generate(x=pixels, y=labels)
            except (ValueError, IndexError, TypeError, AssertionError) as error:
                if isinstance(error, PoiseError):
                    raise
                words = " ".join(str(error).split()) or type(error).__name__
                raise PoiseError(f"ART {self._attack.name}: stopped by an error inside ART: {words}") from error
        low, high = self._target.bounds
        return torch.as_tensor(points).to(clean).clamp(low, high)

    def charged(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The result table with ART's passes added."""
        forwards, backwards = (
            pl.Series(torch.cat([torch.zeros(0, dtype=torch.int64), *counts]).numpy())
            for counts in (([charge[k] for charge in self._charges]) for k in (0, 1))
        )
        return frame.with_columns(
            queries=frame["queries"] + forwards,
            gradients=frame["gradients"] + backwards,
            queries_to_success=frame["queries_to_success"] + forwards,
        )
