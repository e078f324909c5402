"""What a certification is asked to do, resolved to the last default, as a TOML file that repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from poise.certify import MEASURES, Smoothing
from poise.errors import InputError, RunError, one_of
from poise.spec import read_toml, refusal, take_recorded, to_toml

DIGITS = "builtin:digits"
WHERE = ("device", "batch_size")
"""Fields that may change while a run goes on: they move nothing but rounding."""


class CertifySpec(BaseModel):
    """One certification. Two runs of equal specs on equal files give equal tables, whatever interrupted them.

    Args:
        model, data: where they come from (`poise.models`, `poise.data`).
        sigma: standard deviation of the noise in pixel units.
        n, n0: draws per image behind the bounds, and before them to choose the class.
        alpha: probability, per image, that its bounds do not hold.
        radii: l2 radii in pixel units, ascending.
        measure: what is certified, `pred_score` or `margin`.
        samples: how many images, from the first; None for all.
        attack: also attack the smoothed model at every radius above 0.
        attack_steps: gradient steps. attack_draws: noisy copies per step. attack_judged: fresh draws that judge what an
            attack found.
        seed, device, batch_size: of the run. bootstrap: resamples behind the intervals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DIGITS
    data: str = DIGITS
    sigma: float = 0.25
    n: int = 10_000
    n0: int = Field(default=100, ge=1)
    alpha: float = 0.001
    radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    measure: str = "pred_score"
    samples: int | None = Field(default=100, ge=1)
    attack: bool = True
    attack_steps: int = Field(default=20, ge=1)
    attack_draws: int = Field(default=16, ge=1)
    attack_judged: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "cpu"
    batch_size: int = Field(default=256, ge=1)
    bootstrap: int = Field(default=1000, ge=1)

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, name: str) -> str:
        if name not in MEASURES:
            raise one_of("measure", name, list(MEASURES))
        return name

    @field_validator("radii")
    @classmethod
    def _sensible_radii(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        if not radii or not all(0 <= radius < float("inf") for radius in radii) or len(set(radii)) < len(radii):
            given = ",".join(f"{radius:g}" for radius in radii) or "none"
            raise InputError(f"radii: must be numbers of at least 0, each once, got {given}")
        return tuple(sorted(radii))

    def model_post_init(self, context: Any) -> None:
        """Refuses what certifies nothing, before anything is loaded."""
        _ = self.smoothing

    @property
    def smoothing(self) -> Smoothing:
        """How certificates are drawn."""
        return Smoothing(
            sigma=self.sigma, n=self.n, n0=self.n0, alpha=self.alpha, measure=MEASURES[self.measure], seed=self.seed
        )

    def measured(self) -> dict[str, Any]:
        """All fields that change what is measured: without where it runs."""
        return self.model_dump(mode="json", exclude=set(WHERE))

    def to_toml(self, recorded: dict[str, str]) -> str:
        """The spec as TOML; `recorded` (fingerprints) goes into a table of its own. None is left out."""
        return to_toml(self.model_dump(exclude_none=True) | {"recorded": recorded})


def make_certify_spec(**given: Any) -> CertifySpec:
    """A spec from keyword arguments.

    Raises:
        InputError: one line that names the field, what it must be and what was given.
    """
    try:
        return CertifySpec(**given)
    except ValidationError as error:
        raise refusal(error) from None


def read_certify_spec(path: Path) -> tuple[CertifySpec, dict[str, str]]:
    """Spec and recorded fingerprints of a run folder's certify.toml."""
    given = read_toml(path, "certify.toml", RunError)
    recorded = take_recorded(given, path, RunError)
    spec = make_certify_spec(**{"samples": None, **given})
    return spec, recorded


def differences(old: CertifySpec, new: CertifySpec) -> list[str]:
    """The fields in which two runs differ, as `field: old there, new given`; where they run may differ."""
    before, after = old.measured(), new.measured()
    return [f"{key}: {before[key]} there, {after[key]} given" for key in before if before[key] != after[key]]
