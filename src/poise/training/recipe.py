"""What a training recipe is: a TOML of a paper's hyper-parameters, checked, and made into the parts it names."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from fractions import Fraction
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from poise.data import AUGMENTATIONS
from poise.errors import InputError, one_of
from poise.spec import read_toml, refusal
from poise.training.base import Method, Update
from poise.training.methods import METHODS
from poise.training.updates import SAM, CommonDescent, Plain

UPDATES: dict[str, type[Update]] = {"plain": Plain, "sam": SAM, "common-descent": CommonDescent}
"""What `update.name` of a recipe may be."""

Part = TypeVar("Part")

_FRACTION = re.compile(r"-?\d+(\.\d+)?/\d+(\.\d+)?")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimizer(_Part):
    """The step rule.

    Args:
        name: "sgd", "adam" or "adamw".
        lr: the highest learning rate.
        momentum, nesterov: of SGD.
        weight_decay: of all trained parameters.

    >>> from poise.training import training_recipe
    >>> training_recipe("at").optimizer.lr, Optimizer(lr=0.01).momentum
    (0.1, 0.9)
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)


class Schedule(_Part):
    """The learning rate over the run, set at every step.

    Args:
        name: "cosine" (to 0, half a period), "steps" (times `factor` at each milestone) or "constant".
        milestones: shares of the run, in (0, 1).
        factor: of "steps".
        warmup: epochs of a linear rise at the beginning.

    >>> from poise.training.schedule import learning_rate
    >>> steps = Schedule(name="steps", milestones=(0.5,))
    >>> [learning_rate(steps, 0.1, step, 4, 1) for step in range(4)]
    [0.1, 0.1, 0.01, 0.01]
    """

    name: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class TrainingRecipe(_Part):
    """One way to train a network.

    Args:
        name: lower case with dashes. summary: one line. paper: where it comes from.
        method: `name` of `METHODS` and its fields. update: `name` of `UPDATES` and its fields.
        optimizer, schedule: the step rule and its learning rate.
        epochs, batch_size: passes over the data; images per step, of all devices together.
        clip_norm: longest gradient, by its Euclidean norm over all parameters; None for any.
        augment: names of `poise.data.AUGMENTATIONS`, in their order.
        variant: of the network (`poise.models`), where the method needs one.
        best: what the kept epoch is chosen by on the validation images: "accuracy" (the last of equals wins) or "nll".

    >>> from poise.training import training_recipe
    >>> recipe = training_recipe("uat-smooth", {"epochs": 5})
    >>> recipe.epochs, recipe.made_method().steps, recipe.best
    (5, 5, 'accuracy')
    """

    name: str
    summary: str
    paper: str
    method: dict[str, Any]
    update: dict[str, Any] = Field(default_factory=lambda: {"name": "plain"})
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=1)
    clip_norm: float | None = Field(default=None, gt=0)
    augment: tuple[str, ...] = ()
    variant: str | None = None
    best: Literal["accuracy", "nll"] = "accuracy"

    def model_post_init(self, context: Any) -> None:
        """Refuses parts that cannot be made."""
        self.made_method()
        self.made_update()
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise one_of("training recipe: augment", name, list(AUGMENTATIONS))

    def made_method(self) -> Method:
        """The method, with this recipe's numbers."""
        return _made("method", self.method, METHODS)

    def made_update(self) -> Update:
        """How gradients come from its loss."""
        return _made("update", self.update, UPDATES)


def _made(what: str, table: dict[str, Any], kinds: dict[str, type[Part]]) -> Part:
    """A part from its name and fields; unknown names and fields are errors that name the valid ones."""
    if "name" not in table:
        raise InputError(f"training recipe: {what} must have a name, one of {', '.join(sorted(kinds))}")
    kind = kinds.get(table["name"]) if isinstance(table["name"], str) else None
    if kind is None:
        raise one_of(f"training recipe: {what}.name", table["name"], list(kinds))
    given = {key: value for key, value in table.items() if key != "name"}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise one_of(f"training recipe: {what} '{table['name']}': field", key, known)
    try:
        made: Part = TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise refusal(error, what, inside=what) from error
    return made


def _numbers(value: Any) -> Any:
    """8/255 written as text is a number, however deep it lies."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str) and _FRACTION.fullmatch(value) and float(Fraction(value.split("/")[1])) != 0:
        return float(Fraction(value.split("/")[0]) / Fraction(value.split("/")[1]))
    return value


def from_table(table: dict[str, Any]) -> TrainingRecipe:
    """A recipe from plain data.

    Raises:
        InputError: one line with the first field that is unknown, missing or of another kind.
    """
    try:
        return TrainingRecipe.model_validate(_numbers(table))
    except ValidationError as error:
        found = error.errors()[0]
        if found["type"] == "extra_forbidden":
            parts: dict[str, type[BaseModel]] = {"optimizer": Optimizer, "schedule": Schedule}
            known = parts.get(str(found["loc"][0]), TrainingRecipe)
            raise one_of("training recipe: field", found["loc"][-1], list(known.model_fields)) from error
        raise refusal(error, "training recipe") from error


def _with(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The table with values at dotted keys changed."""
    changed: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for key, value in changes.items():
        inner, *path = changed, *key.split(".")
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InputError(f"training recipe: '{key}' must name a field, '{part}' is a value")
        inner[path[-1]] = value
    return changed


@cache
def _tables() -> dict[str, dict[str, Any]]:
    found = {}
    for entry in sorted(files("poise.training").joinpath("recipes").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            name = entry.name.removesuffix(".toml")
            found[name] = {"name": name} | tomllib.loads(entry.read_text(encoding="utf-8"))
    return found


def training_recipes() -> dict[str, TrainingRecipe]:
    """Names to the recipes that come with the library.

    >>> training_recipes()["uat-smooth"].made_method().steps
    5
    """
    return {name: from_table(table) for name, table in _tables().items()}


def training_recipe(name: str, changes: dict[str, Any] | None = None) -> TrainingRecipe:
    """The recipe of that name, or in that `.toml` file, with some of its fields changed.

    Args:
        name: one of `training_recipes()`, or the path of a file with the same fields.
        changes: dotted field to value, such as {"method.steps": 3, "optimizer.lr": 0.01}.

    Raises:
        InputError: no such recipe or file, or a field that is unknown or out of range.

    >>> training_recipe("at", {"method.steps": 1}).method["steps"]
    1
    """
    if name.endswith(".toml"):
        table = _from_file(Path(name))
    elif name in _tables():
        table = _tables()[name]
    else:
        raise one_of("training recipe", name, list(_tables()))
    return from_table(_with(table, changes or {}))


def _from_file(path: Path) -> dict[str, Any]:
    return {"name": path.stem, "summary": "", "paper": ""} | read_toml(path, "training recipe")
