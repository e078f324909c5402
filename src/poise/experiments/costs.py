"""The cost matrix of an audit: what one case costs, from the command line or a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from poise import metrics
from poise.errors import InputError
from poise.spec import read_toml

ClassNumber = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]
"""A class as TOML names it in a table's heading, [classes.3]."""


class ClassCosts(BaseModel):
    """What a case of one true class costs; None takes the cost of the other classes.

    >>> from poise.experiments import Costs
    >>> Costs(wrong_accepted=50, deferred=4, classes={"3": ClassCosts(wrong_accepted=500)}).plain()["classes"]
    {'3': {'wrong_accepted': 500.0, 'deferred': 4.0, 'right_accepted': 0.0}}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wrong_accepted: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    deferred: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    right_accepted: float | None = Field(default=None, allow_inf_nan=False)


class Costs(BaseModel):
    """What one case costs, in any unit: the cost matrix of the page's threshold section.

    Args:
        wrong_accepted: a wrong prediction that was accepted automatically.
        deferred: a case that a person sees.
        right_accepted: a right prediction that was accepted; below 0 for a gain.
        classes: what is different for cases whose true class has this number.

    >>> Costs(wrong_accepted=50, deferred=4).plain()
    {'wrong_accepted': 50.0, 'deferred': 4.0, 'right_accepted': 0.0}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wrong_accepted: float = Field(ge=0, allow_inf_nan=False)
    deferred: float = Field(ge=0, allow_inf_nan=False)
    right_accepted: float = Field(default=0.0, allow_inf_nan=False)
    classes: dict[ClassNumber, ClassCosts] = Field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Plain data in which the costs of each class that is named are complete; no `classes` where none is named."""
        shared = self.model_dump(exclude={"classes"})
        each = {number: shared | part.model_dump(exclude_none=True) for number, part in self.classes.items()}
        return shared | ({"classes": each} if each else {})

    def matrix(self) -> metrics.Costs:
        """The same for the metrics."""
        plain = self.plain()
        each = {int(number): metrics.Costs(**part) for number, part in plain.pop("classes", {}).items()}
        return metrics.Costs(**plain, classes=each)

    def check(self, num_classes: int) -> None:
        """Refuses costs of a class that the model does not have.

        Raises:
            InputError: it has not.
        """
        if unknown := [number for number in self.classes if int(number) >= num_classes]:
            raise InputError(f"costs: classes must be 0 to {num_classes - 1}, got {unknown[0]}")


def read_costs(path: Path) -> dict[str, Any]:
    """What a TOML file says of costs: at its top, or in a table [costs] as in a run folder's audit.toml.

        wrong_accepted = 50      # a wrong case that was accepted
        deferred = 4             # a case that a person sees
        right_accepted = 0       # optional
        [classes.3]              # optional: the true class 3 costs something else
        wrong_accepted = 500

    Raises:
        InputError: the file cannot be read, or holds nothing about costs.
    """
    given = read_toml(path, "costs")
    found = given.get("costs", {} if "model" in given else given)
    if not isinstance(found, dict) or not found:
        raise InputError(f"costs: '{path}' must set wrong_accepted and deferred, got neither")
    return found
