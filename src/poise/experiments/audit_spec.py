"""What an audit is asked to do, resolved to the last default, as a TOML file that repeats it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from poise import defenses
from poise.errors import InputError, RunError
from poise.recipebook import NORMS, ball, recipe

DIGITS = "builtin:digits"
DEFAULT_RECIPES = (
    *("standard", "standard-light"),  # the headline
    *("sa-mma", "sa-oca", "pgd-mma", "confsmooth"),  # the papers' attacks, to compare
    "max-confidence",  # wrong labels
)
DEFAULT_DEFENCES = ("none", "ts", "cs")
DEFAULT_EPS = {"linf": 8 / 255, "l2": 0.5}
DIGITS_EPS = {"linf": 0.2, "l2": 1.0}


class Costs(BaseModel):
    """What one case costs, in any unit: the cost matrix of the page's threshold section."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wrong_accepted: float = Field(ge=0, allow_inf_nan=False)
    deferred: float = Field(ge=0, allow_inf_nan=False)
    right_accepted: float = Field(default=0.0, allow_inf_nan=False)


class AuditSpec(BaseModel):
    """One audit. Two runs of equal specs on equal files give equal tables, whatever interrupted them.

    Args:
        model, data: where they come from (`poise.models`, `poise.data`).
        fit_data: held-out data for defences that learn; None takes images of `data` that are not attacked.
        recipes, defences: names.
        eps, norm: the ball, in pixel units.
        budget: most queries per sample. steps: gradient steps instead of the papers' numbers.
        samples: how many images, from the first; None for all.
        threshold: confidences above it are accepted automatically.
        seed, device, batch_size: of the run. bootstrap: resamples behind the intervals.
        costs: what one case costs, for the report.
        trace: keep margin, confidence and step of every iteration for the first images, for the report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DIGITS
    data: str = DIGITS
    fit_data: str | None = None
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
    bootstrap: int = Field(default=1000, ge=1)
    costs: Costs | None = None
    trace: bool = False

    @field_validator("model", "data", "fit_data", "device")
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
            defenses.make(name)
        return _distinct("defences", ("none", *(name for name in names if name != "none")))

    @field_validator("norm")
    @classmethod
    def _known_norm(cls, name: str) -> str:
        if name not in NORMS:
            raise InputError(f"norm must be one of {', '.join(sorted(NORMS))}, got '{name}'")
        return name

    def model_post_init(self, context: Any) -> None:
        """Refuses radii that cannot be meant, before anything is loaded."""
        ball(self.norm, self.eps)

    def to_toml(self, recorded: dict[str, str]) -> str:
        """The spec as TOML; `recorded` (fingerprints) goes into a table of its own. None is left out."""
        given = self.model_dump(exclude_none=True)
        costs = given.pop("costs", None)
        lines = [f"{key} = {_toml(value)}" for key, value in given.items()]
        for name, table in (("costs", costs), ("recorded", recorded)):
            if table:
                lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Numbers, texts and lists as JSON writes them, which is TOML but for one character that only TOML escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _distinct(what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise InputError(f"{what}: must be at least one name, each once, got {', '.join(names) or 'none'}")
    return names


def make_spec(**given: Any) -> AuditSpec:
    """A spec from keyword arguments; a missing eps becomes the one that fits the data and norm.

    Raises:
        InputError: one line that names the field, what it must be and what was given.
    """
    if given.get("eps") is None:
        table = DIGITS_EPS if str(given.get("data", DIGITS)).startswith(DIGITS) else DEFAULT_EPS
        given["eps"] = table.get(str(given.get("norm", "linf")), 0.05)
    try:
        return AuditSpec(**given)
    except ValidationError as error:
        raise _one_line(error) from None


def _one_line(error: ValidationError) -> InputError:
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return inner
    where = ".".join(str(part) for part in first["loc"]) or "spec"
    return InputError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}")


def read_spec(path: Path) -> tuple[AuditSpec, dict[str, str]]:
    """Spec and recorded fingerprints of a run folder's audit.toml."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"audit.toml: '{path}' must be a readable TOML file, got: {error}") from None
    recorded = given.pop("recorded", {})
    return make_spec(**given), {str(key): str(value) for key, value in recorded.items()}


def differences(old: AuditSpec, new: AuditSpec) -> list[str]:
    """The fields in which two specs differ, as `field: old there, new given`."""
    before, after = old.model_dump(), new.model_dump()
    return [f"{key}: {before[key]} there, {after[key]} given" for key in before if before[key] != after[key]]
