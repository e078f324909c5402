"""Where a model comes from: one loader per scheme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from poise.data.uri import Uri, brief, parse
from poise.errors import InputError, one_of
from poise.models.builtin import BUILTIN, Builtin
from poise.models.digits import Note
from poise.models.endpoints import load_endpoint, load_served
from poise.models.libraries import KEYS as LIBRARY_KEYS
from poise.models.libraries import Made, make_timm, make_torchvision
from poise.models.onnx_files import make_onnx
from poise.models.user_code import KEYS as USER_KEYS
from poise.models.user_code import make_user_model, user_code_fingerprint
from poise.models.weights import load_weights
from poise.targets import ModuleTarget, Target

LATER = ("hf",)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where and how a loaded model runs, and who hears what the user should know."""

    device: torch.device
    batch_size: int
    note: Note


def load(uri: str, *, device: str | torch.device = "cpu", batch_size: int = 256, on_note: Note | None = None) -> Target:
    """A target from an address.

    Args:
        uri: `builtin:NAME[?weights=FILE&num_classes=N&mean=…&std=…]`, `torchvision:NAME?weights=FILE&num_classes=N`,
            `timm:NAME?weights=FILE&num_classes=N` (both also `pretrained=true`), `py:FILE:FACTORY?num_classes=N`,
            `onnx:FILE?outputs=logits`, `https://HOST/PATH` (a server of `poise serve`) or `endpoint:FILE.toml`.
        device: where the model runs.
        batch_size: most images per forward pass.
        on_note: receives lines that the user should see: that the embedded model was trained and how good it is,
            which normalisation was assumed.

    Returns:
        A `ModuleTarget` in eval mode that takes images in [0, 1]; for `onnx:` an `OnnxTarget` that does; for
        endpoints an `HttpTarget`; for `py:` whatever target the user's code returns.

    Raises:
        InputError: one line for every address, file or weights that do not fit.
        MissingExtraError: the source needs an extra that is not installed.

    >>> load("builtin:digits").num_classes
    10
    """
    parsed = parse(uri, what="model", schemes=tuple(LOADERS), later=LATER)
    place = _Place(_device(device), batch_size, on_note or (lambda line: None))
    return LOADERS[parsed.scheme](parsed, place)


def code_fingerprint(uri: str) -> str | None:
    """sha256 of the user's file behind a `py:` address, whose code its tensors do not tell; None for other sources."""
    parsed = parse(uri, what="model", schemes=tuple(LOADERS), later=LATER)
    return user_code_fingerprint(parsed) if parsed.scheme == "py" else None


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = brief(str(error).split("\n")[0], limit=120)
        raise InputError(
            f"device: must be one that this machine and this torch have, got '{device}' ({reason})"
        ) from error
    return found


def _builtin(uri: Uri, place: _Place) -> ModuleTarget:
    if uri.rest not in BUILTIN:
        raise one_of("builtin model", uri.rest, list(BUILTIN))
    uri.allow("weights", "num_classes", "mean", "std")
    entry = BUILTIN[uri.rest]
    classes = uri.integer("num_classes", low=2) or entry.num_classes
    mean, std = uri.normalisation()
    if mean is not None and len(mean) != entry.shape[0]:
        raise uri.fail(f"mean and std must have {entry.shape[0]} values, one per channel, got {len(mean)}")
    if mean is None and entry.normalisation is not None:
        mean, std = entry.normalisation
    module = _builtin_module(uri, entry, classes, place.note)
    return ModuleTarget(
        module.eval(), num_classes=classes, mean=mean, std=std, device=place.device, batch_size=place.batch_size
    )


def _builtin_module(uri: Uri, entry: Builtin, classes: int, note: Note) -> nn.Module:
    weights = uri.text("weights")
    if weights is not None:
        file = uri.file(weights, role="weights")
        with torch.random.fork_rng(devices=[]):
            module = entry.build(classes)
        load_weights(module, file, name=str(uri))
        return module
    if entry.trained is None:
        raise uri.fail(f"needs weights=FILE, a .safetensors or .pth file with trained weights of {entry.summary}")
    if classes != entry.num_classes:
        raise uri.fail(f"num_classes must be {entry.num_classes} unless weights=FILE is given, got {classes}")
    return entry.trained(note)


def _library(make: Callable[..., Made]) -> Callable[[Uri, _Place], ModuleTarget]:
    """The loader for a library whose models `make` makes."""

    def loader(uri: Uri, place: _Place) -> ModuleTarget:
        uri.allow(*LIBRARY_KEYS)
        weights, pretrained = uri.text("weights"), uri.flag("pretrained")
        classes = uri.integer("num_classes", low=2)
        if (weights is None) == (not pretrained):
            raise uri.fail("needs weights=FILE (and num_classes=N), or pretrained=true for the library's own weights")
        if pretrained and classes is not None:
            raise uri.fail("num_classes must not be given with pretrained=true: the last layer would be untrained")
        file = None if weights is None else uri.file(weights, role="weights")
        mean, std = uri.normalisation()
        with torch.random.fork_rng(devices=[]):
            made = make(uri, classes, pretrained=pretrained)
        if file is not None:
            load_weights(made.module, file, name=str(uri))
        if mean is None:
            mean, std = made.mean, made.std
            place.note(
                f"{uri} is given images normalised by mean {list(mean)} and std {list(std)}; mean= and std= change it"
            )
        return ModuleTarget(
            made.module.eval(),
            num_classes=made.num_classes,
            mean=mean,
            std=std,
            device=place.device,
            batch_size=place.batch_size,
        )

    return loader


def _user(uri: Uri, place: _Place) -> ModuleTarget | Target:
    uri.allow(*USER_KEYS)
    outputs = uri.choice("outputs", ("logits", "probabilities"), "logits")
    mean, std = uri.normalisation()
    classes = uri.integer("num_classes", low=2)
    made = make_user_model(uri)
    if not isinstance(made, nn.Module):
        if uri.query:
            raise uri.fail(f"returns a target, which declares its own {', '.join(uri.query)}: leave the query keys out")
        return made
    if classes is None:
        raise uri.fail("needs num_classes=N, because the factory returns an nn.Module")
    return ModuleTarget(
        made.eval(),
        num_classes=classes,
        mean=mean,
        std=std,
        device=place.device,
        batch_size=place.batch_size,
        outputs=outputs,
    )


LOADERS: dict[str, Callable[[Uri, _Place], ModuleTarget | Target]] = {
    "builtin": _builtin,
    "torchvision": _library(make_torchvision),
    "timm": _library(make_timm),
    "py": _user,
    "endpoint": lambda uri, place: load_endpoint(uri, batch_size=place.batch_size, note=place.note),
    "https": lambda uri, place: load_served(uri, batch_size=place.batch_size, note=place.note),
    "http": lambda uri, place: load_served(uri, batch_size=place.batch_size, note=place.note),
    "onnx": lambda uri, place: make_onnx(uri, place.device, place.batch_size, place.note),
}


def names() -> dict[str, str]:
    """Address → one line, for every source of models.

    >>> names()["builtin:cnn-a-cifar10?weights=FILE"]
    'CNN-A, two convolutions, 32x32 images; (3, 32, 32), 10 classes'
    """
    listed = {}
    for name, entry in BUILTIN.items():
        address = f"builtin:{name}" + ("" if entry.trained else "?weights=FILE")
        listed[address] = f"{entry.summary}; {entry.shape}, {entry.num_classes} classes"
    return listed | {
        "torchvision:NAME?weights=FILE&num_classes=N": "a classifier of torchvision.models; pretrained=true downloads",
        "timm:NAME?weights=FILE&num_classes=N": "a model of timm; pretrained=true downloads",
        "py:FILE:FACTORY?num_classes=N": "an nn.Module or a target that your own Python file makes",
        "https://HOST/PATH?token_env=NAME": "a server of poise serve; http:// alike; no gradients",
        "endpoint:FILE.toml": "any other endpoint, described in a TOML file; no gradients",
        "onnx:FILE?outputs=logits": "a network in an ONNX file, answered by ONNX Runtime; no gradients",
    }
