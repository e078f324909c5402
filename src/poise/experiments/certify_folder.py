"""The folder of a certification: which groups of images are there, and how far the one in progress has come."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from poise.errors import RunError, brief
from poise.experiments import files
from poise.experiments.certify_spec import CertifySpec, differences, read_certify_spec
from poise.table import read_parquet

SAMPLES = {
    "id": pl.Int64, "label": pl.Int64, "prediction": pl.Int64, "confidence": pl.Float64, "abstained": pl.Boolean,
    "radius": pl.Float64, "lower": pl.Float64, "upper": pl.Float64, "naive_lower": pl.Float64,
    "naive_upper": pl.Float64, "certified": pl.Boolean,
}  # fmt: skip
"""One row per image and radius: `confidence` is the empirical mean of the n scores of `prediction`."""

ATTACKS = {"id": pl.Int64, "radius": pl.Float64, "up": pl.Boolean, "l2": pl.Float64, "confidence": pl.Float64}
"""One row per image, radius and direction: the smoothed confidence in the certified class at the image that was found,
judged with fresh draws."""


class CertifyFolder:
    """Paths and tables of one certification.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def spec_file(self) -> Path:
        return self.root / "certify.toml"

    def check(self, spec: CertifySpec, *, resume: bool) -> None:
        """Refuses a folder that holds something else, or this run where `resume` is off.

        Raises:
            RunError: one line that says what lies there.
        """
        files.check_folder(
            self.root,
            self.spec_file,
            what="a certification",
            others=lambda: differences(read_certify_spec(self.spec_file)[0], spec),
            resume=resume,
        )

    def open(self, spec: CertifySpec, recorded: dict[str, str]) -> None:
        """Writes certify.toml, or compares the fingerprints of model and data with those recorded there.

        Raises:
            RunError: the model's weights or the data are no longer those of this run.
        """
        files.sweep(self.root)
        if not self.spec_file.exists():
            files.write_text(self.spec_file, spec.to_toml(recorded))
            return
        _, old = read_certify_spec(self.spec_file)
        for name, value in recorded.items():
            if old.get(name) != value:
                raise RunError(
                    f"out: '{self.root}' was begun with other {name} ({old.get(name, 'none')[:19]}, now {value[:19]}); "
                    "give another --out"
                )

    def samples_file(self, group: int) -> Path:
        return self.root / "samples" / f"{group:05d}.parquet"

    def attack_file(self, place: int, group: int) -> Path:
        """Where what was found at the radius in that place lies, both directions."""
        return self.root / "attacks" / f"{place:03d}.{group:05d}.parquet"

    def state_file(self, group: int) -> Path:
        """Counts so far of a group that is not complete."""
        return self.root / "state" / f"{group:05d}.safetensors"

    def state(self, group: int) -> dict[str, Tensor] | None:
        """What was counted of a group before the run was interrupted; None where nothing was.

        Raises:
            RunError: the file is damaged.
        """
        path = self.state_file(group)
        if not path.exists():
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"state: '{path}' must be readable, got: {brief(error)} (remove it to count anew)") from None

    def samples(self) -> pl.DataFrame:
        """The rows of all images."""
        return _read(self.root / "samples", SAMPLES)

    def attacks(self) -> pl.DataFrame:
        """What attacks found; without rows where there were none."""
        return _read(self.root / "attacks", ATTACKS)


def _read(folder: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    frames = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            frames.append(read_parquet(path).select(pl.col(name).cast(kind) for name, kind in schema.items()))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{folder.name}: '{path}' must be a readable table, got: {brief(error, 100)}") from None
    return pl.concat([pl.DataFrame(schema=schema), *frames])
