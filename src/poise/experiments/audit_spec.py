"""What an audit is asked to do, resolved to the last default, as a TOML file that repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from poise import defenses
from poise.errors import InputError, RunError, printable
from poise.experiments.costs import Costs
from poise.recipebook import RECIPES, ball, check_eight_bit, check_norm, check_takes_surrogate, recipe
from poise.spec import read_toml, refusal, take_recorded, to_toml
from poise.targets.mixed import PRECISIONS
from poise.targets.purse import check_limits
from poise.types import Access

DIGITS = "builtin:digits"
DEFAULT_RECIPES = (
    *("standard", "standard-light"),  # the headline
    *("sa-mma", "sa-oca", "pgd-mma", "confsmooth"),  # the papers' attacks, to compare
    "max-confidence",  # wrong labels
)
BLACK_BOX_RECIPES = ("standard-light", "sa-mma", "sa-oca", "square")
"""What attacks a model that gives no gradients unless told otherwise."""

WITHOUT_GRADIENTS = ("onnx", "http", "https", "endpoint")
"""Schemes of models that give scores at most."""

LIMITS = ("max_queries", "cost_per_query", "max_cost")
"""Fields that may change while a run goes on: what it may spend is no part of what it measures."""

DEFAULT_DEFENCES = ("none", "ts", "cs")
DEFAULT_EPS = {"linf": 8 / 255, "l2": 0.5}
DIGITS_EPS = {"linf": 0.2, "l2": 1.0}


class AuditSpec(BaseModel):
    """One audit. Two runs of equal specs on equal files give equal tables, whatever interrupted them.

    Args:
        model, data: where they come from (`poise.models`, `poise.data`).
        fit_data: held-out data for defences that learn; None takes images of `data` that are not attacked.
        surrogate: a model of the attacker's own, for the black-box recipes that can use one.
        recipes, defences: names.
        eps, norm: the ball, in pixel units.
        budget: most queries per sample. steps: gradient steps instead of the papers' numbers.
        samples: how many images, from the first; None for all.
        threshold: confidences above it are accepted automatically.
        precision: what a PyTorch model computes in while an attack searches (`poise.targets.mixed.PRECISIONS`);
            results are settled in the model's own. Attacks of other libraries always run in that.
        seed, device, batch_size: of the run. bootstrap: resamples behind the intervals.
        costs: what one case costs, for the report.
        trace: keep margin, confidence and step of every iteration for the first images, for the report.
        explain: what the attacks do inside the model, for the report; keeps traces too. It changes no other table.
        view: what the attacker sees of the answers, as `poise.targets.views.view` takes it; None for all of it.
        eight_bit: attacked images hold 8-bit values.
        journal: ask a PyTorch module for its answers alone, and journal them like an endpoint's.
        max_queries, cost_per_query, max_cost: what the whole run may ask and spend; for models that are journaled.

    >>> spec = AuditSpec(recipes=("sa-mma",), eps=8 / 255, samples=200)
    >>> spec.defences, spec.budget
    (('none', 'ts', 'cs'), 1000)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DIGITS
    data: str = DIGITS
    fit_data: str | None = None
    surrogate: str | None = None
    recipes: tuple[str, ...] = DEFAULT_RECIPES
    defences: tuple[str, ...] = DEFAULT_DEFENCES
    eps: float
    norm: str = "linf"
    budget: int = Field(default=1000, ge=1)
    steps: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    threshold: float = Field(default=0.9, ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "cpu"
    batch_size: int = Field(default=256, ge=1)
    precision: str = "float32"
    bootstrap: int = Field(default=1000, ge=1)
    costs: Costs | None = None
    trace: bool = False
    explain: bool = False
    view: str | None = None
    eight_bit: bool = False
    journal: bool = False
    max_queries: int | None = None
    cost_per_query: float | None = None
    max_cost: float | None = None

    @field_validator("model", "data", "fit_data", "surrogate", "device", "view")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"spec: names must be UTF-8 text, which audit.toml is written in, got {value!r}")
        return value

    @field_validator("recipes")
    @classmethod
    def _known_recipes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            recipe(name)
        return _distinct("recipes", names)

    @field_validator("defences")
    @classmethod
    def _known_defences(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            defenses.make_any(name)
        return _distinct("defences", ("none", *(name for name in names if name != "none")))

    @field_validator("precision")
    @classmethod
    def _known_precision(cls, name: str) -> str:
        if name not in PRECISIONS:
            raise InputError(f"precision: must be one of {', '.join(PRECISIONS)}, got '{printable(name)}'")
        return name

    @field_validator("norm")
    @classmethod
    def _known_norm(cls, name: str) -> str:
        return check_norm(name)

    def model_post_init(self, context: Any) -> None:
        """Refuses what cannot be meant together, before anything is loaded."""
        ball(self.norm, self.eps)
        check_limits(self.max_queries, self.cost_per_query, self.max_cost)
        if self.surrogate is not None:
            check_takes_surrogate(self.recipes)
        if self.eight_bit:
            for name in self.recipes:
                check_eight_bit(name)

    def measured(self) -> dict[str, Any]:
        """All fields that change what is measured: without the limits, and without what is only shown besides."""
        return self.model_dump(exclude={*LIMITS, "explain"})

    def to_toml(self, recorded: dict[str, str]) -> str:
        """The spec as TOML; `recorded` (fingerprints) goes into a table of its own. None is left out."""
        return to_toml(self.model_dump(exclude_none=True) | {"recorded": recorded})


def _distinct(what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise InputError(f"{what}: must be at least one name, each once, got {', '.join(names) or 'none'}")
    return names


def make_spec(**given: Any) -> AuditSpec:
    """A spec from keyword arguments; a missing eps becomes the one that fits the data and norm, missing recipes those
    that the model gives enough access for.

    Raises:
        InputError: one line that names the field, what it must be and what was given.
    """
    if given.get("eps") is None:
        table = DIGITS_EPS if str(given.get("data", DIGITS)).startswith(DIGITS) else DEFAULT_EPS
        given["eps"] = table.get(str(given.get("norm", "linf")), 0.05)
    if given.get("recipes") is None:
        given["recipes"] = _default_recipes(given)
    try:
        return AuditSpec(**given)
    except ValidationError as error:
        raise refusal(error) from None


def _default_recipes(given: dict[str, Any]) -> tuple[str, ...]:
    view, scheme = str(given.get("view") or ""), str(given.get("model", DIGITS)).split(":")[0]
    if "labels" in view.split(","):
        return tuple(name for name, found in RECIPES.items() if found.access == Access.LABELS)
    black_box = view or given.get("journal") or scheme in WITHOUT_GRADIENTS
    return BLACK_BOX_RECIPES if black_box else DEFAULT_RECIPES


def read_spec(path: Path) -> tuple[AuditSpec, dict[str, str]]:
    """Spec and recorded fingerprints of a run folder's audit.toml."""
    given = read_toml(path, "audit.toml", RunError)
    recorded = take_recorded(given, path, RunError)
    return make_spec(**given), recorded


def differences(old: AuditSpec, new: AuditSpec) -> list[str]:
    """The fields in which two runs differ, as `field: old there, new given`; limits and explanations may."""
    before, after = old.measured(), new.measured()
    return [f"{key}: {before[key]} there, {after[key]} given" for key in before if before[key] != after[key]]
