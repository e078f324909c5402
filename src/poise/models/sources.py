"""Where a model comes from: one loader per scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from poise.data.uri import Uri, parse
from poise.errors import InputError, brief, one_of
from poise.models.assembly import Draft, Fresh, Made, Place, asked_classes, assemble, check_keys
from poise.models.builtin import BUILTIN
from poise.models.digits import Note
from poise.models.endpoints import load_endpoint, load_served
from poise.models.hugging_face import KEYS as HUGGING_FACE_KEYS
from poise.models.hugging_face import make_hugging_face
from poise.models.libraries import KEYS as LIBRARY_KEYS
from poise.models.libraries import make_timm, make_torchvision
from poise.models.onnx_files import make_onnx
from poise.models.robustbench import ROBUSTBENCH, read_robustbench
from poise.models.user_code import KEYS as USER_KEYS
from poise.models.user_code import make_user_model, user_code_fingerprint
from poise.models.variants import VARIANTS
from poise.targets import ModuleTarget, Target


def load(uri: str, *, device: str | torch.device = "cpu", batch_size: int = 256, on_note: Note | None = None) -> Target:
    """A target from an address.

    Args:
        uri: `builtin:NAME[?weights=FILE&num_classes=N&mean=…&std=…]`, `torchvision:NAME?weights=FILE&num_classes=N`,
            `timm:NAME?weights=FILE&num_classes=N` (both also `pretrained=true`), `robustbench:NAME?weights=FILE`,
            `hf:FOLDER`, `py:FILE:FACTORY?num_classes=N[&weights=FILE]` (all six also `variant=NAME`, see `VARIANTS`),
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
    parsed = parse(uri, what="model", schemes=tuple(LOADERS))
    place = Place(_device(device), batch_size, on_note or (lambda line: None))
    return LOADERS[parsed.scheme](parsed, place)


def blank(
    uri: str,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    on_note: Note | None = None,
) -> ModuleTarget:
    """A network that is to be trained, from an address as `load` takes it, with or without weights.

    The initial weights are a function of the address and the seed alone; torch's random state is left as it was.
    Without `weights=FILE` or `pretrained=true` all are new, also those of `builtin:digits`. With them the network
    starts there; a variant may also start from the plain network's weights. For transfer learning, `head=new` replaces
    the last linear layer by a new one with `num_classes` outputs, and `frozen=true` leaves only that layer to be
    trained (`freeze_backbone`). A factory of `py:` is called under the seed.

    Args:
        uri: `builtin:`, `torchvision:`, `timm:`, `robustbench:`, `hf:` or `py:`, as for `load`, and `head=new`,
            `frozen=true`.
        num_classes: K of the data, where the address does not say it.
        seed: at least 0.
        device, batch_size, on_note: as for `load`.

    Returns:
        The target in eval mode; what is trained is `target.module`, what is saved the state dict of `bare(target)`.

    Raises:
        InputError: one line for every address, file or weights that do not fit, and where `num_classes` contradicts the
            address.
        MissingExtraError: the source needs an extra that is not installed.

    >>> from poise.models import bare
    >>> target = blank("builtin:lenet5-mnist", num_classes=4, seed=1)
    >>> target.num_classes, bare(target).linear2.weight.shape
    (4, torch.Size([4, 200]))
    """
    parsed = parse(uri, what="model", schemes=tuple(LOADERS))
    if parsed.scheme not in NETWORKS:
        raise parsed.fail(f"a network that is to be trained must come from {', '.join(NETWORKS)}, got {parsed.scheme}")
    if not 0 <= seed < 2**63:
        raise InputError(f"blank: seed must be at least 0 and below 2**63, got {seed}")
    if num_classes is not None and num_classes < 2:
        raise InputError(f"blank: num_classes must be at least 2, got {num_classes}")
    place = Place(_device(device), batch_size, on_note or (lambda line: None), Fresh(seed, num_classes))
    return assemble(parsed, place, NETWORKS[parsed.scheme](parsed, place))


def code_fingerprint(uri: str) -> str | None:
    """sha256 of the user's file behind a `py:` address, whose code its tensors do not tell; None for other sources.

    >>> code_fingerprint("builtin:digits") is None
    True
    """
    parsed = parse(uri, what="model", schemes=tuple(LOADERS))
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


def _builtin(uri: Uri, place: Place) -> Draft:
    if uri.rest not in BUILTIN:
        raise one_of("builtin model", uri.rest, list(BUILTIN))
    entry = BUILTIN[uri.rest]
    classes = asked_classes(uri, place) or entry.num_classes
    mean, std = entry.normalisation or (None, None)
    own = entry.trained if "weights" not in uri.query and place.fresh is None else None
    if own is not None and classes != entry.num_classes:
        raise uri.fail(f"num_classes must be {entry.num_classes} unless weights=FILE is given, got {classes}")
    return Draft(
        ("weights", "num_classes", "mean", "std"),
        lambda: Made(entry.build(classes) if own is None else own(place.note), classes, mean, std),
        trained=own is not None,
        needs=f"needs weights=FILE, a .safetensors or .pth file with trained weights of {entry.summary}",
        channels=entry.shape[0],
    )


def _library(make: Callable[..., Made]) -> Callable[[Uri, Place], Draft]:
    """What a library says whose models `make` makes."""

    def draft(uri: Uri, place: Place) -> Draft:
        needs = "needs weights=FILE (and num_classes=N), or pretrained=true for the library's own weights"
        pretrained, classes = uri.flag("pretrained"), asked_classes(uri, place)
        if pretrained and "weights" in uri.query:
            raise uri.fail(needs)
        if pretrained and "num_classes" in uri.query and "head" not in uri.query:
            raise uri.fail("num_classes must not be given with pretrained=true: the last layer would be untrained")
        return Draft(
            LIBRARY_KEYS,
            lambda: make(uri, None if pretrained else classes, pretrained=pretrained),
            trained=pretrained,
            needs=needs,
            assumed=True,
        )

    return draft


def _user(uri: Uri, place: Place, ready: Sequence[nn.Module] = ()) -> Draft:
    """What is said of a user's file; `ready` holds what its factory has returned already."""
    outputs = uri.choice("outputs", ("logits", "probabilities"), "logits")
    classes = asked_classes(uri, place)
    waiting = list(ready)

    def make() -> Made:
        made = waiting.pop() if waiting else make_user_model(uri)
        if not isinstance(made, nn.Module):
            raise uri.fail(f"must return an nn.Module, which can be trained, got {type(made).__name__}")
        if classes is None:
            raise uri.fail("needs num_classes=N, because the factory returns an nn.Module")
        return Made(made, classes, outputs=outputs)

    return Draft(USER_KEYS, make, trained=True)


def _robustbench(uri: Uri, place: Place) -> Draft:
    if uri.rest not in ROBUSTBENCH:
        raise one_of("robustbench model", uri.rest, list(ROBUSTBENCH))
    entry = ROBUSTBENCH[uri.rest]
    classes = asked_classes(uri, place) or 10
    if place.fresh is None and classes not in entry.classes:
        known = " or ".join(map(str, entry.classes))
        raise uri.fail(f"num_classes must be {known}, what RobustBench has files for, got {classes}")
    file = f"models/cifar{classes}/Linf/{uri.rest}.pt"
    return Draft(
        ("weights", "num_classes"),
        lambda: Made(entry.build(classes), classes),
        needs=f"needs weights=FILE, the file that RobustBench calls {file}; poise does not download it",
        read=read_robustbench,
    )


def _hugging_face(uri: Uri, place: Place) -> Draft:
    classes, trained = asked_classes(uri, place), "weights" not in uri.query
    return Draft(HUGGING_FACE_KEYS, lambda: make_hugging_face(uri, classes, place.note), trained=trained)


NETWORKS: dict[str, Callable[[Uri, Place], Draft]] = {
    "builtin": _builtin,
    "torchvision": _library(make_torchvision),
    "timm": _library(make_timm),
    "robustbench": _robustbench,
    "hf": _hugging_face,
    "py": _user,
}
"""Sources of networks whose weights are here: what `blank` accepts."""


def _network(uri: Uri, place: Place) -> Target:
    return assemble(uri, place, NETWORKS[uri.scheme](uri, place))


def _user_target(uri: Uri, place: Place) -> Target:
    """What the user's factory returns: a target as it is, a network in one."""
    check_keys(uri, place, _user(uri, place))
    made = make_user_model(uri)
    if isinstance(made, nn.Module):
        return assemble(uri, place, _user(uri, place, [made]))
    if uri.query:
        raise uri.fail(f"returns a target, which declares its own {', '.join(uri.query)}: leave the query keys out")
    return made


LOADERS: dict[str, Callable[[Uri, Place], Target]] = {
    **dict.fromkeys(NETWORKS, _network),
    "py": _user_target,
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
        "robustbench:NAME?weights=FILE&num_classes=N": "a network of RobustBench's lists for CIFAR-10 and CIFAR-100",
        "hf:FOLDER": "an image classifier as Hugging Face's save_pretrained writes it",
        "py:FILE:FACTORY?num_classes=N": "an nn.Module or a target that your own Python file makes",
        "https://HOST/PATH?token_env=NAME": "a server of poise serve; http:// alike; no gradients",
        "endpoint:FILE.toml": "any other endpoint, described in a TOML file; no gradients",
        "onnx:FILE?outputs=logits": "a network in an ONNX file, answered by ONNX Runtime; no gradients",
        **{f"SOURCE:NAME?variant={name}&weights=FILE": form.summary for name, form in VARIANTS.items()},
    }
