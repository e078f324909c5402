"""Runs an attack of another library on our targets: in our result table, verified like ours, its passes counted."""

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
from poise.errors import AccessError, InputError, PoiseError, brief, one_of
from poise.objectives import Margin, Objective
from poise.peers.art_attacks import ART_ATTACKS
from poise.peers.base import NORMS, PeerAttack, PeerSetting
from poise.peers.bridge import Bridge, global_generators
from poise.peers.foolbox_attacks import FOOLBOX_ATTACKS
from poise.peers.torchattacks_attacks import TORCHATTACKS
from poise.searches.base import Ask, Problem, Steps
from poise.targets import ModuleTarget, Target
from poise.targets.base import private_random
from poise.types import Access, AttackResult

PEER_ATTACKS: dict[str, PeerAttack] = {
    f"{library}-{name}": attack
    for library, attacks in (("art", ART_ATTACKS), ("foolbox", FOOLBOX_ATTACKS), ("torchattacks", TORCHATTACKS))
    for name, attack in attacks.items()
}
"""Every attack of another library, by the name that recipes have: `art-deepfool`, `foolbox-pgd`, `torchattacks-fab`."""


def run_peer(
    attack: PeerAttack | str,
    target: Target,
    constraint: Constraint,
    images: Tensor,
    labels: Tensor,
    ids: Tensor | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    objective: Objective | None = None,
) -> AttackResult:
    """Attacks with another library every image whose label is right, and verifies each result as `poise.attack` does.

    Args:
        attack: a name in `PEER_ATTACKS`, or a `PeerAttack` of one's own.
        target: a `ModuleTarget`, with gradients unless the attack takes scores alone.
        constraint: `Linf` or `L2`; a result lies inside. Attacks for the nearest wrong label ignore it while they
            search, and a point they find outside is no result.
        images, labels, ids: as in `poise.attack`; the library sees float32.
        seed: of the library's draws; numpy's, torch's and Python's global generators are put back afterwards.
        steps: iterations instead of the number in the table; of each member of ART's `autoattack`.
        objective: by which results are judged, whatever the library is after: `KeepLabel(UCA())` takes points that
            keep their label and lower its confidence. None: `Margin()`, a wrong label.

    Returns:
        As `poise.attack`. `queries` and `gradients` hold the library's rows of forward and backward passes divided by
        the images of the batch that it attacked, rounded up (none says whose they are; a class's gradient for all
        images is one backward pass each), plus the clean and the verifying query. No budget is kept. The libraries
        draw for a whole batch, so other than in poise's own searches a result depends on the batch.

    Raises:
        AccessError: no `ModuleTarget`, or too little access; MissingExtraError: the library is not installed;
        InputError: values that make no sense; PoiseError: the library failed, with its own words.

    >>> from torch.nn import Flatten, Linear, Sequential
    >>> target = ModuleTarget(Sequential(Flatten(), Linear(4, 3)), num_classes=3)
    >>> result = run_peer("foolbox-deepfool", target, L2(9.0), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    >>> bool((result.table["l2"] <= 9.0).all())
    True
    """
    chosen = _named(attack) if isinstance(attack, str) else attack
    _check(chosen, target, constraint, steps)
    assert isinstance(target, ModuleTarget)
    with global_generators():
        version = chosen.version()
        size = math.prod(images.shape[1:]) if isinstance(images, Tensor) else 0
        norm = NORMS[_norm(constraint)]
        setting = PeerSetting(constraint.eps, norm, seed, steps, target.batch_size, size, target.num_classes)
        work = _Work(chosen, target, setting, labels)
        search = _PeerSearch(
            chosen.access, str(chosen), chosen.kinds[norm], version, steps, _fixed(chosen, setting), work
        )
        goal = Margin() if objective is None else objective
        result = run_attack(target, goal, search, constraint, images, labels, ids, budget=3, seed=seed)
    return dataclasses.replace(result, table=work.charged(result.table))


def _named(name: str) -> PeerAttack:
    if name not in PEER_ATTACKS:
        raise one_of("attack of another library", name, list(PEER_ATTACKS))
    return PEER_ATTACKS[name]


def _norm(constraint: Constraint) -> str:
    return "linf" if isinstance(constraint, Linf) else "l2"


def _check(chosen: PeerAttack, target: Target, constraint: Constraint, steps: int | None) -> None:
    given = f"'{target.access.name.lower()}'" if isinstance(target, ModuleTarget) else type(target).__name__
    if not isinstance(target, ModuleTarget) or target.access < chosen.access:
        raise AccessError(f"{chosen}: needs a ModuleTarget with access '{chosen.access.name.lower()}', got {given}")
    if not isinstance(constraint, Linf | L2):
        raise InputError(f"{chosen}: constraint must be Linf or L2, got {type(constraint).__name__}")
    chosen.check_norm(_norm(constraint))
    if chosen.bounded and constraint.eps <= 0:
        raise InputError(f"{chosen}: eps must be above 0, got {constraint.eps}")
    if target.num_classes < chosen.classes:
        raise InputError(f"{chosen}: needs at least {chosen.classes} classes, got {target.num_classes}")
    if chosen.unit_box and target.bounds != (0.0, 1.0):
        raise InputError(f"{chosen}: needs a target with bounds (0, 1), got {target.bounds}")
    if steps is not None and steps < 1:
        raise InputError(f"{chosen}: steps must be at least 1, got {steps}")


def _fixed(chosen: PeerAttack, setting: PeerSetting) -> dict[str, Any]:
    """The parameters that say what was done: none that only say how, none that depend on the images."""
    return {
        name: value
        for name, value in chosen.parameters(setting).items()
        if name not in ("batch_size", "nb_parallel", "verbose", "seed")
    }


@dataclass(frozen=True, slots=True)
class _PeerSearch:
    """Asks for the clean points, then for what the library makes of those still active; the fields are the `spec`."""

    access: Access
    name: str
    kind: str
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
    """What one `run_peer` carries from batch to batch: whose turn it is, and what the library has asked.

    A plain class, so that `poise.spec` describes it by its name alone: neither labels nor counts enter the `spec`.
    """

    def __init__(self, attack: PeerAttack, target: ModuleTarget, setting: PeerSetting, labels: Tensor) -> None:
        self._attack, self._target, self._setting, self._labels = attack, target, setting, labels
        self._start = 0
        self._charges: list[tuple[Tensor, Tensor]] = []

    def attack(self, problem: Problem, rows: Tensor) -> Tensor:
        """The points (m, C, H, W) for the rows (m,) of the next batch; `poise.attack` drives batches in order."""
        clean = problem.clean[rows]
        labels = self._labels[self._start : self._start + len(problem.clean)].to(clean.device)[rows].long()
        self._start += len(problem.clean)
        bridge = Bridge(self._target, self._attack.outputs)
        points = clean
        if len(rows):
            draw = problem.rng.integers("art", 0, rows[:1], 2**32)
            points = self._made(bridge, clean, labels, int(draw))
        charge = torch.zeros(2, len(problem.clean), dtype=torch.int64)
        per_image = [math.ceil(count / max(len(rows), 1)) for count in (bridge.forwards, bridge.backwards)]
        charge[:, rows.cpu()] = torch.tensor(per_image)[:, None]
        self._charges.append((charge[0], charge[1]))
        return problem.constraint.project(points, clean, problem.box) if self._attack.bounded else points

    def _made(self, bridge: Bridge, clean: Tensor, labels: Tensor, seed: int) -> Tensor:
        """What the library returns, as points in the pixel range; the libraries read the global generators."""
        setting = dataclasses.replace(self._setting, seed=seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        with torch.inference_mode(False), torch.enable_grad(), private_random(clean.device, seed):
            try:
                points = self._attack.points(bridge, clean.detach().float(), labels, setting)
            except PoiseError:
                raise
            except Exception as error:
                library = self._attack.library
                raise PoiseError(f"{self._attack}: stopped by an error inside {library}: {brief(error)}") from error
        if points.shape != clean.shape:
            raise PoiseError(f"{self._attack}: must return points {tuple(clean.shape)}, got {tuple(points.shape)}")
        return points.detach().to(clean).clamp(*self._target.bounds)

    def charged(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The result table with the library's passes added."""
        forwards, backwards = (
            pl.Series(torch.cat([torch.zeros(0, dtype=torch.int64), *counts]).numpy())
            for counts in (([charge[k] for charge in self._charges]) for k in (0, 1))
        )
        return frame.with_columns(
            queries=frame["queries"] + forwards,
            gradients=frame["gradients"] + backwards,
            queries_to_success=frame["queries_to_success"] + forwards,
        )
