"""Models of torchvision and timm, with weights from a file or from the library's own download."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

from poise.data.uri import Uri
from poise.data.vision import import_torchvision
from poise.errors import InputError, MissingExtraError, brief
from poise.models.assembly import Made

KEYS = ("weights", "num_classes", "mean", "std", "pretrained")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_torchvision(uri: Uri, num_classes: int | None, *, pretrained: bool) -> Made:
    """torchvision:NAME, a classifier of `torchvision.models`.

    Args:
        uri: its rest is the name.
        num_classes: K; 1000 where None. Not with pretrained weights, which have their own.
        pretrained: download (or take from torch's cache) the library's default weights.

    Raises:
        MissingExtraError: torchvision is not installed.
        InputError: for an unknown name, or where the download fails.
    """
    models: Any = import_torchvision("models", feature="torchvision: models")
    known = models.list_models(module=models)
    if uri.rest not in known:
        raise _unknown("torchvision", uri.rest, known)
    if not pretrained:
        plain = {"init_weights": False} if uri.rest in ("googlenet", "inception_v3") else {}
        module = models.get_model(uri.rest, weights=None, num_classes=num_classes or 1000, **plain)
        return Made(module, num_classes or 1000, *_IMAGENET)
    weights = models.get_model_weights(uri.rest).DEFAULT
    module = _downloaded(uri, lambda: models.get_model(uri.rest, weights=weights))
    transforms = weights.transforms()
    return Made(module, len(weights.meta["categories"]), tuple(transforms.mean), tuple(transforms.std))


def make_timm(uri: Uri, num_classes: int | None, *, pretrained: bool) -> Made:
    """timm:NAME, a model of timm (a tag such as `resnet18.a1_in1k` chooses its pretrained weights).

    Args and errors as for `make_torchvision`.
    """
    timm: Any = import_timm("timm: models")
    known = timm.list_models(pretrained=False)
    if uri.rest.partition(".")[0] not in known:
        raise _unknown("timm", uri.rest, known)
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if pretrained:
        module = _downloaded(uri, lambda: timm.create_model(uri.rest, pretrained=True))
    else:
        try:
            module = timm.create_model(uri.rest, pretrained=False, **classes)
        except RuntimeError as error:  # an unknown tag
            raise uri.fail(f"timm cannot make this model: {brief(error)}") from error
    timm_model: Any = module
    stated = timm_model.pretrained_cfg
    return Made(module, int(timm_model.num_classes), tuple(stated["mean"]), tuple(stated["std"]))


def import_timm(feature: str) -> ModuleType:
    """timm, imported behind `import_torchvision`; `feature` says in a message what needs it.

    Raises:
        MissingExtraError: torchvision or timm is not installed.
    """
    import_torchvision("models", feature=feature)  # timm imports torchvision itself
    if find_spec("timm") is None:
        raise MissingExtraError(feature, "vision")
    import timm

    module: ModuleType = timm
    return module


def _downloaded(uri: Uri, make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` returns; whatever the hub, the network or the disk raise becomes one line."""
    try:
        return make()
    except Exception as error:
        reason = brief(f"{type(error).__name__}: {error}")
        raise uri.fail(
            f"the pretrained weights could not be downloaded, give weights=FILE instead ({reason})"
        ) from error


def _unknown(library: str, name: str, known: list[str]) -> InputError:
    """Names the nearest; the whole list has hundreds of names."""
    near = get_close_matches(name, known, n=5, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return InputError(
        f"{library}: must be the name of one of its {len(known)} models, got '{name}' ({hint}see its list_models())"
    )
