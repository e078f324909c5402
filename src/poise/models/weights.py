"""Weights from a file into a module, and the fingerprint of what is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from poise.data.torch_file import load_torch
from poise.errors import InputError, brief
from poise.targets import ModuleTarget, Normalize

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def read_state(path: Path) -> State:
    """The tensors of a weights file, by name; code in a pickle never runs.

    A file may hold {"state_dict": ...} instead of the tensors; the prefix "module." that data-parallel training
    leaves before every name is taken off.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.th` as `torch.save` writes them.

    Raises:
        InputError: the file is missing, damaged, of another type, or holds anything but tensors.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"weight": torch.zeros(3, 2)}, f"{folder}/a.safetensors")
    ...     read_state(Path(folder, "a.safetensors"))["weight"].shape
    torch.Size([3, 2])
    """
    if path.suffix.lower() not in _READERS:
        raise InputError(f"weights: must be a file that ends in {', '.join(_READERS)}, got '{path}'")
    if not path.is_file():
        raise InputError(f"weights: must be an existing file, got '{path}'")
    try:
        found = _READERS[path.suffix.lower()](path)
    except Exception as error:  # damaged files raise one of a dozen types
        raise InputError(f"weights: '{path}' must be {_REASONS[path.suffix.lower()]}: {_reason(error)}") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"weights: '{path}' must hold named tensors, got {_kind(found)}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"weights: '{path}' must hold named tensors, got {brief(repr(name))}: {type(value).__name__}"
            )
    return _without_prefix(dict(found))


_READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": load_file,
    ".pt": load_torch,
    ".pth": load_torch,
    ".th": load_torch,
}
_TORCH_FILE = "tensors saved by torch.save (module.state_dict())"
_REASONS = dict.fromkeys(_READERS, _TORCH_FILE) | {".safetensors": "a safetensors file"}


def _reason(error: Exception) -> str:
    """What went wrong in one short line; torch's answer to a forbidden object is a page long."""
    text = " ".join(str(error).split())
    forbidden = re.search(r"Unsupported (?:global|class|operand|function)\S* (?:GLOBAL )?([\w.]+)", text)
    if forbidden:
        return f"it also holds the Python object {forbidden[1]}, which is never loaded"
    if "Weights only load failed" in text:
        return "it is damaged, or no such file"
    return brief(error)


def _kind(found: object) -> str:
    return "none" if isinstance(found, Mapping) else type(found).__name__


def _without_prefix(state: State) -> State:
    """Takes off what wrappers left before all names, again and again: they nest."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def load_weights(module: nn.Module, path: Path, *, name: str) -> None:
    """Puts the tensors of a file into a module; names and shapes must agree exactly.

    Args:
        module: changed in place.
        path: of the weights.
        name: of the architecture, for messages.

    Raises:
        InputError: one line with the first names or shapes that differ.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> layer = torch.nn.Linear(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({key: value * 0 for key, value in layer.state_dict().items()}, f"{folder}/zero.pth")
    ...     load_weights(layer, Path(folder, "zero.pth"), name="a layer")
    >>> layer.weight.abs().max().item()
    0.0
    """
    put_state(module, read_state(path), name=name, origin=f"'{path}'")


def put_state(module: nn.Module, state: State, *, name: str, origin: str) -> None:
    """`load_weights` for tensors that are already in memory; `origin` says in a message where they come from."""
    _check_shapes(module.state_dict(), state, name=name, origin=origin)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"weights: {origin} do not fit {name}: {_reason(error)}") from error
    if missing or unexpected:
        differences = [
            f"{word} {_first(keys)}" for word, keys in (("missing", missing), ("unexpected", unexpected)) if keys
        ]
        raise InputError(f"weights: {origin} do not fit {name}: {', '.join(differences)}")


def _check_shapes(expected: Mapping[str, Tensor], state: State, *, name: str, origin: str) -> None:
    for key, ours in expected.items():
        theirs = state.get(key, ours)
        if ours.shape != theirs.shape:
            other_head = ours.ndim > 0 and ours.shape[1:] == theirs.shape[1:]
            hint = " (another number of classes? give num_classes=)" if other_head else ""
            raise InputError(
                f"weights: {origin} do not fit {name}: {key} must be {tuple(ours.shape)}, "
                f"got {tuple(theirs.shape)}{hint}"
            )
        if ours.is_floating_point() != theirs.is_floating_point():
            raise InputError(f"weights: {origin} do not fit {name}: {key} must be {ours.dtype}, got {theirs.dtype}")
        if theirs.is_floating_point() and not torch.isfinite(theirs.float()).all():
            raise InputError(f"weights: {origin} must be finite, got NaN or infinite values in {key}")


def _first(keys: list[str]) -> str:
    return f"'{brief(keys[0], limit=80)}'" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def fingerprint(model: ModuleTarget | nn.Module) -> str:
    """sha256 of the state dict: names, shapes, types and bytes of all parameters and buffers.

    The normalisation that a target adds is not part of the state dict, so a target and the module inside it have
    the same fingerprint.

    Args:
        model: a module, or a target made of one.

    Returns:
        "sha256:" and 64 hex digits.

    Raises:
        InputError: the target has no module, so its weights cannot be read.

    >>> fingerprint(nn.Flatten())[:14]
    'sha256:e3b0c44'
    """
    digest = hashlib.sha256()
    for name, value in sorted(_without_normalisation(model, "fingerprint").state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def bare(model: ModuleTarget | nn.Module) -> nn.Module:
    """The network without the normalisation that a target puts in front; its state dict is what is saved.

    A file with this state dict is what the target's address takes as `weights=FILE`. Nothing is copied.

    Args:
        model: a module, or a target made of one.

    Raises:
        InputError: the target has no module.

    >>> network = nn.Flatten()
    >>> bare(ModuleTarget(network, num_classes=2, mean=[0.5], std=[0.5])) is network
    True
    """
    return _without_normalisation(model, "bare")


def _without_normalisation(model: ModuleTarget | nn.Module, what: str) -> nn.Module:
    module = getattr(model, "module", None) if not isinstance(model, nn.Module) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"{what}: must be an nn.Module or a target made of one, got {type(model).__name__}")
    if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[0], Normalize):
        return module[1]
    return module
