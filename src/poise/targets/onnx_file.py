"""An ONNX file before it is run: read once, no path that leaves its folder, and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from poise.errors import InputError, MissingExtraError

_LARGEST = 2**31 - 1  # protobuf's own limit; larger networks keep their weights in files beside it


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What was read.

    Args:
        path: of the file.
        content: its bytes.
        fingerprint: "sha256:" and 64 hex digits; see `onnx_fingerprint`.
    """

    path: Path
    content: bytes
    fingerprint: str


def read_onnx(path: str | Path) -> OnnxFile:
    """Reads a file, and checks it and the files beside it that hold its weights; nothing is run.

    Args:
        path: of an ONNX file of at most 2 GiB. Weights outside it must lie in its folder or below, as regular files
            and not through a link that leads elsewhere.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        InputError: the file is missing, cannot be read, is no ONNX file, is damaged, or names a file elsewhere.
    """
    onnx = needs_onnx("onnx", "OnnxTarget")
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"OnnxTarget: the file must exist, got '{path}'{' (a folder)' if path.is_dir() else ''}")
    if path.stat().st_size > _LARGEST:
        raise InputError(
            f"OnnxTarget: '{path}' must have at most 2 GiB (weights beside it have no limit), "
            f"got {path.stat().st_size / 2**30:.1f} GiB"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"OnnxTarget: '{path}' must be readable: {error.strerror}") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own types
        raise InputError(f"OnnxTarget: '{path}' must be an ONNX file; it is another type or damaged") from error
    if not model.HasField("graph") or not model.graph.output:
        raise InputError(f"OnnxTarget: '{path}' must be an ONNX file; it holds no network")
    beside = {place: _beside(path, place) for place in sorted(set(_places(model)))}
    return OnnxFile(path, content, _fingerprint(content, beside))


def onnx_fingerprint(path: str | Path) -> str:
    """sha256 of an ONNX file and of the files beside it that hold its weights.

    Where there are none it is the file's own sha256, as `sha256sum` prints it.

    Args:
        path: of the file.

    Returns:
        "sha256:" and 64 hex digits.

    Raises:
        InputError: as `read_onnx`.

    >>> import tempfile, onnx.parser
    >>> network = onnx.parser.parse_model(
    ...     '<ir_version: 9, opset_import: ["": 18]> demo (float[n, 1, 1, 2] x) => (float[n, 2] y) { y = Flatten(x) }')
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(network, f"{folder}/model.onnx")
    ...     onnx_fingerprint(f"{folder}/model.onnx")[:7]
    'sha256:'
    """
    return read_onnx(path).fingerprint


def needs_onnx(module: str, feature: str) -> Any:
    """A module of the extra `onnx`; MissingExtraError names the feature where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, "onnx") from error


def _fingerprint(content: bytes, beside: dict[str, Path]) -> str:
    digest = hashlib.sha256(content)
    for place, file in beside.items():
        try:
            with file.open("rb") as handle:
                digest.update(f"\n{place} {hashlib.file_digest(handle, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise InputError(f"OnnxTarget: '{file}' must be readable: {error.strerror}") from error
    return f"sha256:{digest.hexdigest()}"


def _beside(path: Path, place: str) -> Path:
    """The file that holds weights of the one at `path`; refused where it is not in the same folder or below."""
    folder = path.parent.resolve()
    try:
        file = (folder / place).resolve()
        outside = not place or Path(place).is_absolute() or not file.is_relative_to(folder)
        missing = not file.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null character, a circle of links
        outside, missing = False, True
    if outside:
        raise InputError(f"OnnxTarget: '{path}' must keep its weights in its own folder, it names {place[:200]!r}")
    if missing:
        raise InputError(f"OnnxTarget: '{path}' needs its weights in {place[:200]!r} beside it, that file is not there")
    return file


def _places(message: Any) -> Iterator[str]:
    """Where the tensors anywhere in a protobuf message say that their values are, but for those that hold them."""
    if message.DESCRIPTOR.name == "TensorProto":
        if message.data_location == message.EXTERNAL:
            yield from [entry.value for entry in message.external_data if entry.key == "location"] or [""]
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if _is_many(value) else (value,):
                yield from _places(part)


def _is_many(value: Any) -> bool:
    """A repeated field, and not a message itself."""
    return not hasattr(value, "DESCRIPTOR")
