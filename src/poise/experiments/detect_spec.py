"""What is asked of detectors: the attacks of Table 2, and the options beside an audit's, as a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from poise import detectors
from poise.detectors import Detector, Mahalanobis
from poise.errors import InputError, RunError
from poise.spec import read_toml, refusal

RECIPES = ("square", "sa-uca", "sa-oca", "sa-mma", "pgd", "pgd-uca", "pgd-oca", "pgd-mma")
"""The attacks of Table 2: the originals, then their versions against the confidence; black box, then white box."""

OPTIONS = "detect.toml"


class DetectOptions(BaseModel):
    """What is asked of the detectors, beside the attacks of an `AuditSpec`.

    Args:
        detectors: names; as `poise list detectors` shows them.
        reference: labelled images that class means and neighbours come from; None takes those of the data that are not
            attacked, of the embedded digits the training part.
        noise_std: standard deviation of the noisy negatives, in pixel units; None is each attack's own size (RMS).
        layers: names of the layers that are read; None leaves it to `poise.detectors.default_layers`.
        magnitudes: steps that Mahalanobis chooses from; None is the published seven, which take the longest of all.
        fit_share: of the images that LID and Mahalanobis are fitted on; the published tenth of 500 is 50 images.
        scale: standardise features before the regressions; None leaves it to the detector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    detectors: tuple[str, ...] = tuple(detectors.DETECTORS)
    reference: str | None = None
    noise_std: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    layers: tuple[str, ...] | None = None
    magnitudes: tuple[float, ...] | None = None
    fit_share: float = Field(default=0.1, gt=0, lt=1)
    scale: bool | None = None

    @field_validator("detectors")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            detectors.make(name)
        if not names or len(set(names)) < len(names):
            raise InputError(f"detectors: must be at least one name, each once, got {', '.join(names) or 'none'}")
        return names

    @field_validator("magnitudes")
    @classmethod
    def _possible(cls, magnitudes: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if magnitudes is None else Mahalanobis(magnitudes).candidates

    def make(self, name: str) -> Detector:
        """The detector of that name as these options want it."""
        detector = detectors.make(name)
        if isinstance(detector, Mahalanobis) and self.magnitudes is not None:
            detector = Mahalanobis(self.magnitudes)
        detector.fit_share = self.fit_share
        if self.scale is not None:
            detector.scale = self.scale
        if detector.needs_module:
            detector.layers = self.layers
        return detector


def make_options(**given: Any) -> DetectOptions:
    """Options from keyword arguments.

    Raises:
        InputError: one line that names the field, what it must be and what was given.
    """
    try:
        return DetectOptions(**given)
    except ValidationError as error:
        raise refusal(error) from None


def read_options(folder: Path) -> dict[str, Any]:
    """The options of the run in a folder, as keyword arguments; none where it has not got as far."""
    path = folder / OPTIONS
    if not path.exists():
        return {}
    return read_toml(path, OPTIONS, RunError)
