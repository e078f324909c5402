"""What a table or figure of a paper is made of: a TOML file with its full setting and a small one, checked."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from poise import defenses
from poise.errors import InputError, RunError, brief, one_of
from poise.objectives import (
    MMA,
    OCA,
    RCA,
    UCA,
    ConfSmooth,
    CrossEntropy,
    Margin,
    Misclassify,
    Objective,
    ProbabilityMargin,
    Targeted,
)
from poise.recipebook import check_norm
from poise.recipebook import recipe as recipe_named
from poise.spec import read_toml, refusal

PROFILES = ("full", "small")

PLAIN: dict[str, Objective] = {
    type(goal).__name__: goal
    for goal in (
        CrossEntropy(), Margin(), ProbabilityMargin(), Misclassify(), Targeted(),
        UCA(), OCA(), MMA(), RCA(), ConfSmooth(),
    )
}  # fmt: skip
"""Objectives that may take the place of a recipe's, by name."""


def _fraction(value: Any) -> Any:
    """8/255 written as text is a number."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            return value
    return value


Number = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
"""A finite number, or a fraction such as "8/255"."""

Positive = Annotated[float, BeforeValidator(_fraction), Field(gt=0, allow_inf_nan=False)]
"""The same above 0."""


class Part(BaseModel):
    """A part of a spec: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise one_of(f"{cls.__name__.lower()} key", str(key), list(cls.model_fields))
        return given


class Victim(Part):
    """A model and the images it is asked about.

    Args:
        dataset, model, defence: what they are called in the table; `defence` is one that the weights carry.
        source: the model's address; `{files}` is the folder of weights and data. Or `trained`: a name in [training].
        data: of the attacked images. fit_data: for defences that learn; None takes images that are not attacked.
        confidence: attack only images whose clean confidence lies in these limits.
        x: a number that a figure draws along.
        published: keys and values of the published rows to compare with, where they differ from the names above.
        samples: images of this victim, where it differs from the profile's.
        eps: radius for this victim, where it differs from the profile's.
        only: names of the defences that are put before this victim; None for all.
    """

    dataset: str
    model: str
    defence: str = "none"
    source: str | None = None
    trained: str | None = None
    data: str
    fit_data: str | None = None
    confidence: tuple[Number, Number] | None = None
    x: Number | None = None
    published: dict[str, str] = Field(default_factory=dict)
    samples: int | None = Field(default=None, ge=1)
    eps: Positive | None = None
    only: tuple[str, ...] | None = None

    def model_post_init(self, context: Any) -> None:
        """A victim comes from one place."""
        if (self.source is None) == (self.trained is None):
            raise InputError(f"victim '{self.dataset}, {self.model}': needs either source or trained, got both or none")


class Attack(Part):
    """A recipe under the name that the paper gives it.

    Args:
        name: in the table. recipe: of `poise list recipes`.
        norm, eps, budget, steps: where they differ from the profile's.
        objective: another objective than the recipe's, by its class name. through: the attacker's own temperature.
        moves: stop as soon as the confidence has moved by this much.
        only: names of the defences, as the table calls them, that it is run against; None for all.
        against: the model that the search sees: with the defence behind it, or bare (what it finds is then shown to
            the defended one).
        published: as of a victim.
    """

    name: str
    recipe: str
    norm: str | None = None
    eps: Positive | None = None
    budget: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    objective: str | None = None
    through: Positive | None = None
    moves: Positive | None = None
    only: tuple[str, ...] | None = None
    against: Literal["defended", "bare"] = "defended"
    published: dict[str, str] = Field(default_factory=dict)

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        recipe_named(name)
        return name

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, name: str | None) -> str | None:
        if name is not None and name not in PLAIN:
            raise one_of("objective", name, list(PLAIN))
        return name

    @field_validator("norm")
    @classmethod
    def _known_norm(cls, name: str | None) -> str | None:
        return None if name is None else check_norm(name)


class Defence(Part):
    """A defence behind or around the model.

    Args:
        name: in the table. use: of `poise list defenses`. options: arguments that differ from its defaults.
        temperature: instead of `use`, logits divided by this number: a model served at that temperature.
        x: a number that a figure draws along. published: as of a victim.
    """

    name: str
    use: str = "none"
    options: dict[str, Any] = Field(default_factory=dict)
    temperature: Positive | None = None
    x: Number | None = None
    published: dict[str, str] = Field(default_factory=dict)

    @field_validator("use")
    @classmethod
    def _known(cls, name: str) -> str:
        defenses.make_any(name)
        return name


class Training(Part):
    """How a victim is trained: `poise train` with these arguments, its seed the cell's.

    Args:
        recipe: of `poise list training`. change: fields of the recipe to change, as `poise train --set` takes them.
        model, data, val: addresses. precision, devices: as `poise train` takes them.
    """

    recipe: str
    model: str
    data: str
    val: str | None = None
    change: dict[str, Any] = Field(default_factory=dict)
    precision: str = "32-true"
    devices: int = Field(default=1, ge=1)


class Profile(Part):
    """The grid: victims × defences × attacks × eps × budgets × seeds.

    Args:
        samples: images per victim, from the first; None for all. shard: of them at a time.
        victims, attacks, defences, eps, norm, budgets, steps, seeds: the axes.
        checkpoints: query counts at which a budgeted attack is looked at besides its end.
        eight_bit: attacked images hold 8-bit values.
        training: networks that victims name by `trained`.
        options: of the task (detectors, sigma, draws, ...).
        bootstrap: resamples behind the 95 % intervals. batch_size: images per pass.
        differs: what this profile does otherwise than the paper, for the reader.
    """

    samples: int | None = Field(default=None, ge=1)
    shard: int = Field(default=100, ge=1)
    victims: tuple[Victim, ...]
    attacks: tuple[Attack, ...] = ()
    defences: tuple[Defence, ...] = (Defence(name="none"),)
    eps: tuple[Positive, ...] = (8 / 255,)
    norm: str = "linf"
    budgets: tuple[int, ...] = (1000,)
    steps: int | None = Field(default=None, ge=1)
    seeds: tuple[int, ...] = (0,)
    checkpoints: tuple[int, ...] = ()
    eight_bit: bool = False
    training: dict[str, Training] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    bootstrap: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=256, ge=1)
    differs: str = ""

    @field_validator("norm")
    @classmethod
    def _known_norm(cls, name: str) -> str:
        return check_norm(name)

    @field_validator("victims", "eps", "budgets", "seeds", "defences")
    @classmethod
    def _some(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise InputError("profile: victims, defences, eps, budgets and seeds must have at least one entry each")
        return values

    def model_post_init(self, context: Any) -> None:
        """Names that victims train under must be there."""
        for victim in self.victims:
            if victim.trained is not None and victim.trained not in self.training:
                raise one_of("trained", victim.trained, list(self.training) or ["a table [training.NAME]"])
            for name in victim.only or ():
                if name not in [defence.name for defence in self.defences]:
                    raise one_of("only", name, [defence.name for defence in self.defences])


class Trend(Part):
    """Something that the paper's numbers show, and how to see it in ours.

    Args:
        text: one sentence. metric: what is compared. more, less: keys of the rows with the larger and smaller value.
        at_least: by how much larger, 0 for at all.
        by: keys whose every combination is compared for itself.
    """

    text: str
    metric: str
    more: dict[str, str | float]
    less: dict[str, str | float]
    at_least: Number = 0.0
    by: tuple[str, ...] = ("dataset", "model")


class Table(Part):
    """How rows become a table: keys that name a row, keys that name a column, and the metrics in their order."""

    rows: tuple[str, ...] = ("dataset", "model", "attack")
    columns: tuple[str, ...] = ()
    metrics: tuple[str, ...]


class Figure(Part):
    """How rows become a figure.

    Args:
        draw: the kind. x, y: keys or metrics. series, panels: keys.
        x_label, y_label: with units. log_x: logarithmic axis.
        samples: which image, for pictures of single ones, by its place.
    """

    draw: Literal[
        "lines", "bars", "reliability", "distributions", "by-class", "success-fail", "margins", "trace", "sorted",
        "perturbations", "cams", "embedding", "bounds",
    ]  # fmt: skip
    x: str = "eps"
    y: tuple[str, ...] = ("ece",)
    series: tuple[str, ...] = ("attack",)
    panels: tuple[str, ...] = ()
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    samples: tuple[int, ...] = (0,)


class BenchSpec(Part):
    """One table or figure of a paper.

    Args:
        paper: its folder. shows: as the paper calls it, "T1" or "Fig. 2". key: its name in the published numbers.
        title: one line. setting: the paper's own, in words.
        task: what a shard does. keep: what it keeps besides the rows.
        table, figure: how it is shown. trends: what the paper's numbers show.
        full, small: the grids.
    """

    paper: str
    shows: str
    key: str | None = None
    title: str
    setting: str
    task: Literal["attack", "detect", "certify", "explain", "margins", "illusion", "noop"] = "attack"
    keep: tuple[Literal["curve", "trace", "images"], ...] = ()
    table: Table | None = None
    figure: Figure | None = None
    trends: tuple[Trend, ...] = ()
    full: Profile
    small: Profile

    @model_validator(mode="before")
    @classmethod
    def _with_grid(cls, given: Any) -> Any:
        """What stands in [grid] holds for both profiles."""
        if not isinstance(given, dict):
            return given
        shared = given.get("grid", {})
        if not isinstance(shared, dict):
            raise InputError(f"grid: must be a table, got {brief(repr(shared))}")
        rest = {key: value for key, value in given.items() if key != "grid"}
        return rest | {name: {**shared, **rest[name]} for name in PROFILES if isinstance(rest.get(name), dict)}

    def model_post_init(self, context: Any) -> None:
        """Something must be shown."""
        if self.table is None and self.figure is None:
            raise InputError(f"spec '{self.title}': needs a table [table], a table [figure] or both, got none")

    def profile(self, name: str) -> Profile:
        """The grid of that name.

        Raises:
            InputError: there is no such profile.
        """
        if name not in PROFILES:
            raise one_of("profile", name, list(PROFILES))
        found: Profile = getattr(self, name)
        return found


def read_bench_spec(path: Path) -> BenchSpec:
    """The spec in a TOML file.

    Raises:
        RunError: the file cannot be read; InputError: one line that names the field, what it must be, what was given.
    """
    given = read_toml(path, "spec", RunError)
    try:
        return BenchSpec(**given)
    except ValidationError as error:
        raise refusal(error, what=path.name) from None
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
