"""A fitted defence on disk: its buffers as safetensors, where they come from as metadata. Nothing in it is code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from poise.defenses.base import PostHoc
from poise.defenses.registry import DEFENSES
from poise.errors import InputError, brief
from poise.files import whole

_FORMAT = "poise-defense-1"


def save(defense: PostHoc, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a fitted defence; an existing file is replaced at once or not at all.

    The metadata: format, name (the class), hyperparameters (JSON), fit_samples, poise_version, provenance (JSON), and a
    sha256 over these and the buffers. A class that is not in `DEFENSES` can be written; `load` then needs to be told
    about it.

    Args:
        defense: fitted, if it needs a fit.
        path: usually ends in .safetensors; its folder exists.
        provenance: where the fit comes from, as JSON can hold it; `provenance` reads it back.

    Raises:
        NotFittedError: the defence has not been fitted.
        InputError: the folder does not exist.
    """
    defense.require_fitted()
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"save: the folder of '{path}' must exist")
    tensors = {name: value.detach().cpu().contiguous() for name, value in defense.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "name": type(defense).__name__,
        "hyperparameters": json.dumps(defense.hyperparameters()),
        "fit_samples": str(int(defense.fit_samples)),
        "poise_version": version("poise"),
        "provenance": json.dumps(dict(provenance or {}), allow_nan=False),
    }
    metadata["sha256"] = _digest(metadata, tensors)
    with whole(path) as temporary:
        save_file(tensors, temporary, metadata)


def load(path: str | Path, *, classes: tuple[type[PostHoc], ...] = ()) -> PostHoc:
    """A defence as `save` wrote it, on the CPU, fitted.

    Args:
        path: the file.
        classes: your own defences that the file may hold, beside those in `DEFENSES`.

    Raises:
        InputError: the file is missing, damaged, not a saved defence, or holds an unknown or contradictory one.

    Example:
        >>> import tempfile, torch
        >>> from poise.defenses import TemperatureScaling
        >>> logits, labels = torch.tensor([[4.0, 0.0]] * 10), torch.tensor([0] * 8 + [1] * 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(TemperatureScaling().fit(logits, labels), f"{folder}/ts.safetensors")
        ...     print(round(float(load(f"{folder}/ts.safetensors").temperature), 6))
        2.88539
    """
    metadata, tensors = _checked(Path(path))
    known = {cls.__name__: cls for cls in (*(type(entry.factory()) for entry in DEFENSES.values()), *classes)}
    name = metadata.get("name", "")
    if name not in known:
        raise InputError(f"load: '{path}' holds a '{brief(name)}', known are {', '.join(sorted(known))}")
    try:
        defense = known[name](**json.loads(metadata.get("hyperparameters", "")))
        defense.load_state_dict(tensors)
    except (ValueError, TypeError, RuntimeError) as error:  # ValueError: InputError and bad JSON
        raise InputError(f"load: '{path}' does not fit this version's {name} ({brief(error)})") from error
    return defense


def provenance(path: str | Path) -> dict[str, Any]:
    """What `save` was told of a saved defence's origin; empty where it was told nothing.

    Raises:
        InputError: the file is missing, damaged, or not a saved defence.

    >>> import tempfile
    >>> from poise.defenses import CompressionScaling, save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(CompressionScaling(), f"{folder}/cs.safetensors", {"by": "A. Person"})
    ...     provenance(f"{folder}/cs.safetensors")
    {'by': 'A. Person'}
    """
    metadata, _ = _checked(Path(path))
    try:
        found = json.loads(metadata.get("provenance", "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"load: '{path}' must hold its provenance as a JSON object, got another value")
    return found


def _checked(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that `save` wrote, compared with its checksum."""
    metadata, tensors = _read(path)
    if metadata.get("format") != _FORMAT:
        given = f"format '{brief(metadata['format'])}'" if "format" in metadata else "another safetensors file"
        raise InputError(f"load: '{path}' must be a defence saved by poise ({_FORMAT}), got {given}")
    if metadata.get("sha256") != _digest(metadata, tensors):
        raise InputError(f"load: '{path}' is damaged: its content does not match its checksum")
    return metadata, tensors


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum over all that a file says."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{key}={metadata[key]};".encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key}:{value.dtype}{tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    if not path.is_file():
        raise InputError(f"load: '{path}' must be a file, got {'a folder' if path.is_dir() else 'nothing there'}")
    try:
        opened: Any = safe_open(path, framework="pt", device="cpu")
        with opened as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"load: '{path}' must be a safetensors file, got a damaged or foreign one ({brief(error)})"
        ) from error
