"""A grid as cells, and cells as shards of samples with an address that says all that their results depend on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from poise.experiments.bench.keys import CODE, fingerprint_files, missing
from poise.experiments.bench.spec import Attack, BenchSpec, Defence, Profile, Training, Victim
from poise.recipebook import Setting, ball
from poise.recipebook import recipe as recipe_named
from poise.spec import describe
from poise.types import Access

Plain = dict[str, Any]

UNATTACKED: Plain = {"attack": "none", "norm": None, "eps": None, "queries": None}
"""What the rows of clean images are called besides victim and defence."""


@dataclass(frozen=True)
class Place:
    """Where a plan runs.

    Args:
        files: the folder that `{files}` stands for in addresses.
        device: of every model.
    """

    files: str
    device: str = "cpu"

    def address(self, template: str) -> str:
        """The address with the folder put in."""
        return template.replace("{files}", self.files)


@dataclass(frozen=True)
class Shard:
    """The smallest piece of work: one task with its settings on some samples of one cell.

    Args:
        task: the kind of work. settings: all that it is told, as plain data, addresses with `{files}` in them.
        start, stop: the samples; stop None is the end.
        needs: shards whose result this one takes, by name (`train`).
        asked: digest of task and settings, which the shards of one cell share.
    """

    task: str
    settings: Plain
    start: int = 0
    stop: int | None = None
    needs: dict[str, Shard] = field(default_factory=dict)
    asked: str = ""

    def __post_init__(self) -> None:
        """The digest of what is asked is made here where nobody has it yet."""
        if not self.asked:
            object.__setattr__(self, "asked", digest_of(self.task, self.settings))

    def addresses(self) -> list[str]:
        """The addresses of models and data in the settings."""
        names = ("source", "data", "fit_data", "model", "val")
        return [at for name in names if (at := self.settings.get(name)) is not None]

    def key(self, place: Place) -> str:
        """64 hexadecimal digits that change with every setting, file, and version of the code."""
        cache: dict[str, str] = self.__dict__.setdefault("_keys", {})
        if place.files not in cache:
            files = [name for at in self.addresses() for name in fingerprint_files(place.address(at))]
            needed = {name: shard.key(place) for name, shard in self.needs.items()}
            cache[place.files] = _digest([self.asked, files, needed, self.start, self.stop])
        return cache[place.files]

    def missing(self, place: Place) -> list[str]:
        """Files that this shard needs and that are not there."""
        own = [str(path) for at in self.addresses() for path in missing(place.address(at))]
        return [*own, *(name for shard in self.needs.values() for name in shard.missing(place))]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of(task: str, settings: Plain) -> str:
    """What is asked of a cell, and the version of the code that answers."""
    return _digest([CODE, task, settings])


@dataclass(frozen=True)
class Cell:
    """One point of the grid: one victim behind one defence under one attack.

    Args:
        victim, defence, attack: of the spec; attack is None for tasks that take all attacks at once.
        eps, norm, budget, steps, seed: of the attack.
        shards: its pieces.
    """

    victim: Victim
    defence: Defence
    attack: Attack | None
    eps: float
    norm: str
    budget: int
    steps: int | None
    seed: int
    shards: tuple[Shard, ...]

    @property
    def keys(self) -> Plain:
        """What the rows of this cell are called in tables."""
        return {
            "dataset": self.victim.dataset,
            "model": self.victim.model,
            "defence": _defence_name(self.victim, self.defence),
            "attack": "none" if self.attack is None else self.attack.name,
            "norm": self.norm,
            "eps": self.eps,
            "queries": self.budget if self.budgeted else None,
            "seed": self.seed,
            "x": self.victim.x if self.victim.x is not None else self.defence.x,
        }

    @property
    def budgeted(self) -> bool:
        """The attack is limited by queries, not by gradient steps."""
        return self.attack is not None and not by_gradients(self.attack.recipe)


def _defence_name(victim: Victim, defence: Defence) -> str:
    """What the weights carry and what stands behind them, as one name."""
    if victim.defence == "none":
        return defence.name
    return victim.defence if defence.name == "none" else f"{victim.defence}-{defence.name}"


def by_gradients(name: str) -> bool:
    """The recipe of that name is limited by gradient steps, not by queries."""
    return recipe_named(name).access == Access.GRADIENTS


@dataclass(frozen=True)
class Plan:
    """All cells of one profile of a spec.

    Args:
        spec: the spec. profile_name: which of its grids. place: where it runs.
        cells: in the order of the grid.
    """

    spec: BenchSpec
    profile_name: str
    place: Place
    cells: tuple[Cell, ...]

    @property
    def profile(self) -> Profile:
        """The grid."""
        return self.spec.profile(self.profile_name)

    @property
    def label(self) -> str:
        """What its notes are called in a store that many runs share: paper, table and profile."""
        words = f"{self.spec.paper}-{self.spec.shows}-{self.profile_name}".lower()
        return re.sub(r"[^a-z0-9]+", "-", words).strip("-")

    def shards(self) -> list[Shard]:
        """Every shard once, those that others need first."""
        own = [shard for cell in self.cells for shard in cell.shards]
        needed = [one for shard in own for one in shard.needs.values()]
        return list({shard.key(self.place): shard for shard in (*needed, *own)}.values())

    @property
    def fingerprint(self) -> str:
        """Twelve digits of all that was asked, without the files: settings, samples and the version of the code."""
        parts = [
            [shard.asked, shard.start, shard.stop, {name: needed.asked for name, needed in shard.needs.items()}]
            for cell in self.cells
            for shard in cell.shards
        ]
        return _digest(parts)[:12]


def make_plan(spec: BenchSpec, profile_name: str, place: Place, samples: dict[str, int] | None = None) -> Plan:
    """Expands a grid.

    Args:
        spec: the spec. profile_name: which of its grids. place: where it runs.
        samples: number of images by address of data, for profiles that take all of them.
    """
    profile = spec.profile(profile_name)
    cells: list[Cell] = []
    for victim in profile.victims:
        for seed in profile.seeds:
            trained = _training(profile, victim, seed)
            for defence in profile.defences:
                if victim.only is not None and defence.name not in victim.only:
                    continue
                cells += _cells(spec, profile, (victim, defence, seed), trained, samples or {})
    return Plan(spec, profile_name, place, tuple(cells))


def _cells(
    spec: BenchSpec,
    profile: Profile,
    at: tuple[Victim, Defence, int],
    trained: dict[str, Shard],
    samples: dict[str, int],
) -> Iterator[Cell]:
    victim, defence, seed = at
    whole = spec.task in ("detect", "explain")
    attacks: tuple[Attack | None, ...] = (None,) if whole or not profile.attacks else profile.attacks
    for attack in attacks:
        if attack is not None and attack.only is not None and _defence_name(victim, defence) not in attack.only:
            continue
        for eps in _radii(profile, victim, attack):
            for budget in _budgets(profile, attack):
                norm = (attack.norm if attack is not None else None) or profile.norm
                steps = (attack.steps if attack is not None else None) or profile.steps
                settings = _settings(spec, profile, at, attack, (norm, eps, budget, steps))
                count = victim.samples or profile.samples or samples.get(victim.data)
                shards = tuple(_sliced(spec.task, settings, count, profile.shard, trained, whole=whole))
                yield Cell(victim, defence, attack, eps, norm, budget, steps, seed, shards)


def _radii(profile: Profile, victim: Victim, attack: Attack | None) -> tuple[float, ...]:
    if attack is not None and attack.eps is not None:
        return (attack.eps,)
    return profile.eps if victim.eps is None else (victim.eps,)


def _budgets(profile: Profile, attack: Attack | None) -> tuple[int, ...]:
    if attack is None:
        return profile.budgets[:1]
    if attack.budget is not None:
        return (attack.budget,)
    return profile.budgets[-1:] if by_gradients(attack.recipe) else profile.budgets


def _settings(
    spec: BenchSpec,
    profile: Profile,
    at: tuple[Victim, Defence, int],
    attack: Attack | None,
    threat: tuple[str, float, int, int | None],
) -> Plain:
    (victim, defence, seed), (norm, eps, budget, steps) = at, threat
    found: Plain = {
        "source": victim.source,
        "trained": victim.trained,
        "data": victim.data,
        "fit_data": victim.fit_data,
        "confidence": victim.confidence,
        "defence": {"use": defence.use, "options": defence.options, "temperature": defence.temperature},
        "norm": norm,
        "eps": eps,
        "budget": budget,
        "steps": steps,
        "seed": seed,
        "samples": victim.samples or profile.samples,
        "eight_bit": profile.eight_bit,
        "checkpoints": sorted({*profile.checkpoints}),
        "keep": list(spec.keep),
        "options": profile.options,
        "batch_size": profile.batch_size,
    }
    if attack is not None:
        found["attack"] = attack.model_dump(exclude={"name", "published", "norm", "eps", "budget", "steps", "only"})
        found["recipe"] = _described(attack, norm, eps, budget, steps)
    elif profile.attacks:
        found["attacks"] = [
            one.model_dump(exclude={"published", "only"})
            | {"described": _described(one, one.norm or norm, one.eps or eps, one.budget or budget, one.steps or steps)}
            for one in profile.attacks
        ]
    plain: Plain = json.loads(json.dumps(found))
    return plain


def _described(attack: Attack, norm: str, eps: float, budget: int, steps: int | None) -> Plain:
    """The recipe down to its last number, so that a changed default is another shard."""
    found = recipe_named(attack.recipe)
    search = found.search(Setting(ball(norm, eps), budget, steps))
    return {"objective": describe(found.objective), "search": describe(search)}


def _sliced(
    task: str, settings: Plain, count: int | None, size: int, needs: dict[str, Shard], *, whole: bool
) -> Iterator[Shard]:
    asked = digest_of(task, settings)
    if whole or count is None:
        yield Shard(task, settings, 0, count, needs, asked)
        return
    for number in range(math.ceil(count / size)):
        yield Shard(task, settings, number * size, min((number + 1) * size, count), needs, asked)


def _training(profile: Profile, victim: Victim, seed: int) -> dict[str, Shard]:
    """What has to be trained before this victim can be attacked."""
    if victim.trained is None:
        return {}
    found: Training = profile.training[victim.trained]
    return {"train": Shard("train", {**found.model_dump(mode="json"), "seed": seed})}
