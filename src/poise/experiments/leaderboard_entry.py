"""One entry of the leaderboard: a model with a defence under the `standard` attack, as a file that can be checked."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from poise import metrics
from poise.errors import InputError, brief, one_of
from poise.experiments.costs import Costs
from poise.experiments.leaderboard_address import public_address
from poise.spec import refusal

RECIPE = "standard"
"""The attack by which entries are ranked."""

FEWEST_IMAGES = 100
LEAST_BUDGET = 400
"""Queries per image that an entry's attack must have had; a weaker attack makes a model look better."""

THRESHOLD = 0.9
COSTS = Costs(wrong_accepted=10, deferred=1)
"""What a case costs on the leaderboard: a wrong one that is accepted ten times as much as one that a person sees."""

SLACK = 1e-5
"""How far figures that follow from each other may be apart."""

ROOM = 0.01
"""How far a value may lie outside its interval besides the interval's own width."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Print = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[\w.:+-]+$", max_length=80)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class Figure(BaseModel):
    """A figure with its 95 % interval; low and high are None where it has none, value where it is undefined."""

    model_config = _STRICT

    value: Share | None
    low: Share | None = None
    high: Share | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Figure:
        if (self.low is None) != (self.high is None) or (self.value is None and self.low is not None):
            raise ValueError("must have both low and high beside a value, or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low must be at most high")
        return self


class Known(Figure):
    """A figure that must be there with its interval.

    An ECE may lie outside its interval, where binning lifts every resample (`poise.metrics.Bootstrap`): by the width of
    the interval at most, or it is no interval of this figure.
    """

    value: Share
    low: Share
    high: Share

    @model_validator(mode="after")
    def _belongs(self) -> Known:
        room = self.high - self.low + ROOM
        if not self.low - room <= self.value <= self.high + room:
            raise ValueError(f"value must lie between low and high ({self.low:g} to {self.high:g}), got {self.value:g}")
        return self


class State(BaseModel):
    """What the model was, clean or attacked.

    Args:
        ece: expected calibration error, 15 bins.
        confidence: mean confidence. confidence_right: that of right answers alone.
        accepted_wrong, deferred: shares of the cases at the threshold.
        cost: mean cost of a case at the threshold.
    """

    model_config = _STRICT

    ece: Known
    confidence: Known
    confidence_right: Figure
    accepted_wrong: Share
    deferred: Share
    cost: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _cost_follows(self) -> State:
        cost = expected_cost(self.accepted_wrong, self.deferred)
        if not math.isclose(self.cost, cost, abs_tol=SLACK):
            raise ValueError(f"cost must be what accepted_wrong and deferred come to, {cost:g}")
        if self.accepted_wrong + self.deferred > 1 + SLACK:
            raise ValueError("accepted_wrong and deferred must be shares of the same cases, at most 1 together")
        return self


class Fingerprints(BaseModel):
    """Of the weights, the attacked images, the images defences were fitted on, the user's code, and the spec."""

    model_config = _STRICT

    weights: Print
    data: Print
    fit_data: Print | None = None
    code: Annotated[str, StringConstraints(pattern=r"^(sha256:)?[0-9a-f]{12,64}$")] | None = None
    spec: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]


class Entry(BaseModel):
    """A model with a defence on one set of images under `standard`.

    Args:
        format: of the file.
        name: what the model is called. model: its address without files (`public_address`).
        defence: its name in poise. view: of the attacker who knew the defence and the one who did not, the one who
            reached the higher ECE: all attacked figures are his.
        data: name of the data set. num_classes, n: classes and attacked images.
        recipe, norm, eps, budget, steps, seed: the attack. steps is None: its own number.
        accuracy: of the clean model; the attack keeps the predicted labels.
        clean, attacked: the figures.
        kept: confidence of right answers after the attack as a share of that before. Its interval is the outer one of
            the two intervals: it is wider than 95 %.
        bound_share: attacked ECE as a share of the largest that this accuracy allows.
        warned: names of the evaluation's own checks that warned.
        fingerprints: of what was measured. poise: the version. date: of the run, UTC.
        author, url, note: optional, from whoever submits.
    """

    model_config = _STRICT

    format: Literal[1]
    name: Line
    model: Annotated[str, StringConstraints(max_length=200)]
    defence: Word
    view: Literal["aware", "unaware"]
    data: Word
    num_classes: int = Field(ge=2)
    n: int = Field(ge=FEWEST_IMAGES)
    recipe: Literal["standard"]
    norm: Literal["linf", "l2"]
    eps: float = Field(gt=0, allow_inf_nan=False)
    budget: int = Field(ge=LEAST_BUDGET)
    steps: None = None
    seed: int = Field(ge=0, lt=2**63)
    accuracy: Known
    clean: State
    attacked: State
    kept: Figure
    bound_share: Known
    warned: Annotated[tuple[Line, ...], Field(max_length=40)] = ()
    fingerprints: Fingerprints
    poise: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+[\w.+-]*$", max_length=40)]
    date: date
    author: Line | None = None
    url: Annotated[str, StringConstraints(max_length=200)] | None = None
    note: Annotated[str, StringConstraints(min_length=1, max_length=300, strip_whitespace=True)] | None = None

    @field_validator("name", "author", "note", "warned")
    @classmethod
    def _printable(cls, text: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if not all(part.isprintable() for part in ((text,) if isinstance(text, str) else text or ())):
            raise ValueError("must be one line of printable text")
        return text

    @field_validator("model")
    @classmethod
    def _no_places(cls, address: str) -> str:
        if (public := public_address(address)) != address:
            raise ValueError(f"must name no file or place, such as '{public}'")
        return address

    @field_validator("url")
    @classmethod
    def _web(cls, url: str | None) -> str | None:
        if url is not None and not _is_web(url):
            raise ValueError("must be an http:// or https:// address")
        return url

    @model_validator(mode="after")
    def _plausible(self) -> Entry:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps must be at most 1 in linf, got {self.eps:g} (did you mean {self.eps:g}/255?)")
        if self.defence == "none" and self.view != "aware":
            raise ValueError("view must be 'aware' without a defence")
        bound = metrics.mma_bound(self.accuracy.value, self.num_classes)
        if self.attacked.ece.value > bound + 1e-3:
            raise ValueError(f"attacked.ece must be at most {bound:.4f}, the largest that keeps the labels")
        if not math.isclose(self.bound_share.value * bound, self.attacked.ece.value, abs_tol=1e-4):
            raise ValueError(f"bound_share must be the attacked ECE over the bound {bound:.4f}")
        if self.kept != kept(self.clean.confidence_right, self.attacked.confidence_right):
            raise ValueError("kept must be what the clean and attacked confidence_right come to")
        return self


def parse(text: str | bytes) -> Entry:
    """An entry from the JSON of its file.

    Raises:
        InputError: one line: the field, what it must be, what was given; an unknown field names the valid ones.
    """
    try:
        return Entry.model_validate_json(text)
    except ValidationError as error:
        raise refused(error) from None


def refused(error: ValidationError) -> InputError:
    """The first thing that is wrong with an entry, as one line."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return one_of(".".join(["entry", *place[:-1], "key"]), place[-1], sorted(_fields(place[:-1])))
    where = brief(".".join(place) or "entry")
    if first["type"] == "missing":
        return InputError(f"{where}: must be given, is missing")
    if first["type"] == "value_error":
        given = "" if isinstance(first["input"], dict) else f", got {brief(repr(first['input']))}"
        return InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}{given}")
    return refusal(error, "entry")


def _fields(place: list[str]) -> set[str]:
    """The keys of the table at a place of an entry."""
    tables: dict[str, type[BaseModel]] = {
        "clean": State, "attacked": State, "fingerprints": Fingerprints, "": Entry,
    }  # fmt: skip
    return (
        set(tables.get(place[0] if place else "", Figure).model_fields) if len(place) < 2 else {"value", "low", "high"}
    )


def expected_cost(accepted_wrong: float, deferred: float) -> float:
    """Mean cost of a case under the leaderboard's costs; an accepted right one costs nothing."""
    return COSTS.wrong_accepted * accepted_wrong + COSTS.deferred * deferred


def kept(before: Figure, after: Figure) -> Figure:
    """What is left of the confidence, at most all of it, to six digits.

    >>> one, other = Figure(value=0.8, low=0.8, high=1.0), Figure(value=0.4, low=0.2, high=0.5)
    >>> kept(one, other)
    Figure(value=0.5, low=0.2, high=0.625)
    """

    def share(part: float | None, whole: float | None) -> float | None:
        return None if part is None or not whole else round(min(1.0, part / whole), 6)

    value, low, high = share(after.value, before.value), share(after.low, before.high), share(after.high, before.low)
    return Figure(value=value) if None in (value, low, high) else Figure(value=value, low=low, high=high)


def _is_web(url: str) -> bool:
    if re.search(r"[\s\"'<>\\\x00-\x1f]", url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False
