"""The specs that come with the project, by PAPER/NAME, and a user's own by their file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from poise.errors import InputError, one_of
from poise.experiments.bench.spec import BenchSpec, read_bench_spec

HERE = Path(__file__).resolve().parent.parent
SHIPPED = HERE / "papers"
"""experiments/ of the project, as it lies in an installation."""


def names() -> list[str]:
    """Every spec that comes with the project, as PAPER/NAME."""
    found = sorted(SHIPPED.glob("*/*.toml"))
    return [f"{path.parent.name}/{path.stem}" for path in found if path.parent.name != "training"]


def summaries() -> dict[str, str]:
    """PAPER/NAME to one line."""
    return {name: f"{spec.shows}: {spec.title}" for name in names() for spec in [shipped(name)]}


def find(name: str) -> tuple[str, BenchSpec]:
    """A spec and what its runs are called, from PAPER/NAME or a file.

    Raises:
        InputError: no such spec; RunError: the file cannot be read.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"spec: must be an existing TOML file, got '{name}'")
        return path.stem, read_bench_spec(path)
    if name not in names():
        raise one_of("spec", name, names())
    return name, shipped(name)


@lru_cache(maxsize=128)
def shipped(name: str) -> BenchSpec:
    """The spec PAPER/NAME."""
    return read_bench_spec(SHIPPED / f"{name}.toml")
