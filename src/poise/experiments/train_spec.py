"""What a training run is asked to do, resolved to the last default, as a TOML file that repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from poise.errors import InputError, RunError
from poise.spec import read_toml, refusal, take_recorded, to_toml
from poise.training import TrainingRecipe
from poise.training.recipe import from_table

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true")
WHERE = ("device", "devices", "workers", "save_minutes")
"""Fields that may change while a run goes on: where it runs is no part of what it learns."""


class TrainSpec(BaseModel):
    """One training run. On one machine's CPU two runs of equal specs end with equal weights, however often interrupted.

    Args:
        recipe: how, with every number.
        model: the address of the network that is trained (`poise.models.blank`).
        data: images to learn from; of sources with parts the training part.
        val: images that choose the epoch that is kept; None takes `val_share` of `data`.
        val_share: share of the training images, in (0, 1), drawn by class from the seed.
        seed: of the initial weights, the validation part, the order, and every draw.
        device: cpu, cuda, cuda:1, mps. devices: how many of them.
        precision: as Lightning Fabric calls it: 32-true, bf16-mixed, 16-mixed, 64-true.
        workers: threads that read images. save_minutes: between checkpoints inside an epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: TrainingRecipe
    model: str
    data: str
    val: str | None = None
    val_share: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**62)
    device: str = "cpu"
    devices: int = Field(default=1, ge=1)
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "64-true"] = "32-true"
    workers: int = Field(default=2, ge=0)
    save_minutes: float = Field(default=10.0, ge=0)

    def model_post_init(self, context: Any) -> None:
        """Refuses what cannot be meant together, before anything is loaded."""
        if self.precision == "16-mixed" and self.recipe.update["name"] == "common-descent":
            raise InputError(
                f"precision: must be other than 16-mixed with the update 'common-descent' of '{self.recipe.name}', "
                "which measures lengths of gradients; bf16-mixed will do"
            )

    @property
    def address(self) -> str:
        """The network's address with the variant that the recipe needs.

        Raises:
            InputError: the address names another variant.
        """
        wanted = self.recipe.variant
        if wanted is None:
            return self.model
        rest = self.model.partition("?")[2]
        given = [part.partition("=")[2] for part in rest.split("&") if part.startswith("variant=")]
        if given and given != [wanted]:
            raise InputError(f"model: recipe '{self.recipe.name}' needs variant={wanted}, got variant={given[0]}")
        return self.model if given else f"{self.model}{'&' if rest else '?'}variant={wanted}"

    def learnt(self) -> dict[str, Any]:
        """All fields that change the weights: without where the run happens."""
        return self.model_dump(exclude=set(WHERE))

    def to_toml(self, recorded: dict[str, str]) -> str:
        """The spec as TOML; `recorded` (fingerprints) goes into a table of its own."""
        given = self.model_dump(exclude_none=True)
        recipe = given.pop("recipe")
        return to_toml(given | {"recipe": recipe, "recorded": recorded})


def make_train_spec(**given: Any) -> TrainSpec:
    """A spec from keyword arguments.

    Raises:
        InputError: one line that names the field, what it must be and what was given.
    """
    try:
        return TrainSpec(**given)
    except ValidationError as error:
        raise refusal(error) from None


def read_train_spec(path: Path) -> tuple[TrainSpec, dict[str, str]]:
    """Spec and recorded fingerprints of a run folder's train.toml.

    Raises:
        RunError: the file cannot be read; InputError: it holds something else.
    """
    given = read_toml(path, "train.toml", RunError)
    recorded = take_recorded(given, path, RunError)
    recipe = given.pop("recipe", None)
    if not isinstance(recipe, dict):
        raise RunError(f"train.toml: '{path}' must hold a table [recipe], found none")
    spec = make_train_spec(**given, recipe=from_table(recipe))
    return spec, recorded


def differences(old: TrainSpec, new: TrainSpec) -> list[str]:
    """The fields in which two runs differ, as `field: old there, new given`; where they run may differ."""
    return list(_differences(old.learnt(), new.learnt(), ""))


def _differences(before: dict[str, Any], after: dict[str, Any], path: str) -> list[str]:
    found = []
    for key in before | after:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key}: {old} there, {new} given")
    return found
