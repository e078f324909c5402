"""hf:FOLDER, an image classifier as Hugging Face's `save_pretrained` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from poise.data.uri import Uri
from poise.data.vision import import_torchvision
from poise.errors import MissingExtraError, PoiseError, brief
from poise.models.assembly import Made
from poise.models.digits import Note

KEYS = ("weights", "num_classes", "mean", "std")

_NORMALISATION = "needs preprocessor_config.json with image_mean and image_std, or mean= and std="


class Logits(nn.Module):
    """A network of transformers, from images to its logits alone.

    Args:
        network: takes (m, C, H, W) and answers with an object that has `logits` (m, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


def make_hugging_face(uri: Uri, num_classes: int | None, note: Note) -> Made:
    """hf:FOLDER: the classifier of config.json with the weights of model.safetensors, in float32.

    Nothing is downloaded, no code of the folder runs, and weights in a pickle are not read. Normalisation is that of
    preprocessor_config.json, in units of images in [0, 1]; for timm's models, that of config.json.

    Args:
        uri: its rest is the folder; with `weights`, a file that poise wrote, the network is made without weights.
        num_classes: K where the address gives weights of its own; None is the folder's.
        note: hears which classes the model answers, in order, and for which size of images it was made.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: the folder does not hold an image classifier, or not all of its weights.
    """
    folder = uri.folder(uri.rest, role="the model")
    stated = _processor(uri, folder)
    mean, std = (None, None) if "mean" in uri.query else _normalisation(uri, stated)
    library: Any = import_transformers(f"{uri}")
    with _silent(library):
        config = _told(uri, lambda: library.AutoConfig.from_pretrained(folder, **_LOCAL))
        if "weights" in uri.query:
            config.num_labels = num_classes or config.num_labels
            network = _told(uri, lambda: library.AutoModelForImageClassification.from_config(config))
        else:
            network = _told(uri, lambda: _filled(uri, library, folder))
    note(_about(uri, stated, config))
    return Made(Logits(network.float().eval()), int(config.num_labels), mean, std)


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _filled(uri: Uri, library: Any, folder: Path) -> Any:
    """The network with its weights; transformers fills what a file lacks with random numbers, which is refused."""
    network, found = library.AutoModelForImageClassification.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **_LOCAL
    )
    missing = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise uri.fail(f"model.safetensors must hold all weights, missing or misshapen: '{brief(missing[0])}'{more}")
    return network


def import_transformers(feature: str) -> ModuleType:
    """transformers, imported behind `import_torchvision` where that is installed; `feature` is for the message.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    if find_spec("torchvision") is not None:
        import_torchvision("models", feature=feature)
    if find_spec("transformers") is None:
        raise MissingExtraError(feature, "hf")
    import transformers

    module: ModuleType = transformers
    return module


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """No progress bar and no log line of transformers inside; as it was outside."""
    logging = library.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _told(uri: Uri, make: Any) -> Any:
    """What `make` returns; whatever transformers raises becomes one line."""
    try:
        return make()
    except PoiseError:
        raise
    except Exception as error:
        raise uri.fail(f"transformers cannot load this folder: {brief(error)}") from error


def _json(uri: Uri, path: Path) -> dict[str, Any]:
    """What a JSON file holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise uri.fail(f"{path.name} must be readable JSON, got: {brief(error)}") from error
    if not isinstance(found, dict):
        raise uri.fail(f"{path.name} must hold an object, got {type(found).__name__}")
    return found


def _processor(uri: Uri, folder: Path) -> dict[str, Any]:
    """What is done to images before the network sees them; timm's models say it in config.json."""
    if not (folder / "config.json").is_file():
        raise uri.fail("the folder must hold config.json, as save_pretrained writes it, found none")
    config = _json(uri, folder / "config.json")
    if (folder / "preprocessor_config.json").is_file():
        return _json(uri, folder / "preprocessor_config.json")
    inner = config.get("pretrained_cfg")
    return {"image_mean": inner.get("mean"), "image_std": inner.get("std")} if isinstance(inner, dict) else {}


def _normalisation(uri: Uri, stated: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std in units of images in [0, 1]; None where the images are only scaled to [0, 1].

    A processor multiplies pixels 0..255 by `rescale_factor`, may take 1 off, and normalises what results.
    """
    if not stated:
        raise uri.fail(f"{_NORMALISATION}, found neither")
    scale = 255 * (_number(uri, stated, "rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1.0)
    offset = 1.0 if stated.get("rescale_offset", False) else 0.0
    normalised = stated.get("do_normalize", True)
    if not normalised and scale == 1.0 and not offset:
        return None, None
    mean = _channels(uri, stated, "image_mean") if normalised else (0.0,)
    std = _channels(uri, stated, "image_std") if normalised else (1.0,)
    if len(mean) != len(std) or min(std) <= 0:
        raise uri.fail(f"image_mean and image_std must have one length, std positive, got {list(mean)}, {list(std)}")
    return tuple((value + offset) / scale for value in mean), tuple(value / scale for value in std)


def _number(uri: Uri, stated: Mapping[str, Any], key: str, default: float) -> float:
    value = stated.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise uri.fail(f"preprocessor_config.json: {key} must be a positive number, got {brief(value)}")
    return float(value)


def _channels(uri: Uri, stated: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = stated.get(key)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(part, int | float) and not isinstance(part, bool) for part in values):
        raise uri.fail(_NORMALISATION + f", got {key}={brief(value)}")
    return tuple(map(float, values))


def _about(uri: Uri, stated: Mapping[str, Any], config: Any) -> str:
    """One line: the classes in the model's order, which the data must have, too, and the size of its images."""
    names = [str(config.id2label[key]) for key in sorted(config.id2label or {})]
    first = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    size = stated.get("crop_size") or stated.get("size") or getattr(config, "image_size", None)
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    made_for = f", for images of {sides[0]} x {sides[1]}" if all(isinstance(side, int) for side in sides) else ""
    return f"{uri} answers the classes {first} in this order{made_for}"
