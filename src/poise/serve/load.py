"""What `poise serve` serves: a model from its address, with a saved defence behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath
from urllib.parse import urlsplit

import torch

from poise import data, models
from poise.data import Dataset
from poise.errors import InputError, PoiseError, brief
from poise.experiments.served import saved, served
from poise.serve.model import ServedModel
from poise.types import OutputKind

Note = Callable[[str], None]


def load_served(
    address: str,
    *,
    defense: Path | None = None,
    images: str | None = None,
    outputs: OutputKind | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    on_note: Note | None = None,
) -> ServedModel:
    """A model ready to be served; it has answered one image, where the shape of its images is known.

    Args:
        address: of the model.
        defense: a file that `poise defend fit` wrote.
        images: address of data, for the images' shape and the classes' names.
        outputs: what clients get; what the model returns where None.
        device: where the model runs.
        batch_size: most images per forward pass.
        on_note: receives lines that the user should see.

    Raises:
        InputError: model, defence and data do not fit each other, or one of them does not load.

    >>> load_served("builtin:digits").metadata(256)["shape"]
    [1, 8, 8]
    """
    target = models.load(address, device=device, batch_size=batch_size, on_note=on_note)
    if defense is not None:
        target = served(target, saved(defense, target.num_classes))
    dataset = None if images is None else data.load(images)
    if dataset is not None:
        data.check_matches(dataset, target.num_classes)
    if outputs is None:
        outputs = target.kind
    shape = _shape(address, dataset)
    names = dataset.class_names if dataset is not None and dataset.names_given else None
    model = ServedModel(target, display_name(address), outputs, shape, names)
    if shape is not None:
        _probe(model, shape)
    return model


def display_name(address: str) -> str:
    """An address without folders, query and credentials, for strangers.

    >>> display_name("builtin:resnet20-cifar10?weights=a/b.pth"), display_name("py:/srv/me/net.py:make")
    ('builtin:resnet20-cifar10', 'py:make')
    >>> display_name("onnx:/models/net.onnx"), display_name("https://me:secret@host/v1?key=secret")
    ('onnx:net.onnx', 'https:host')
    """
    scheme, _, rest = address.partition("?")[0].partition(":")
    if scheme in ("http", "https"):
        return f"{scheme}:{urlsplit(address).hostname or ''}"
    return f"{scheme}:{PurePath(rest.rpartition(':')[2] or rest).name}"


def _shape(address: str, dataset: Dataset | None) -> tuple[int, int, int] | None:
    """(C, H, W) as the data or the table of built-in models say."""
    if dataset is not None:
        return dataset.shape
    scheme, _, name = address.partition("?")[0].partition(":")
    return models.BUILTIN[name].shape if scheme == "builtin" and name in models.BUILTIN else None


def _probe(model: ServedModel, shape: tuple[int, int, int]) -> None:
    try:
        model.answer(torch.full((1, *shape), sum(model.target.bounds) / 2))
    except PoiseError:
        raise
    except Exception as error:  # the model's code may raise anything
        reason = brief(f"{type(error).__name__}: {error}")
        raise InputError(f"model: must accept images of shape {shape}, got: {reason}") from error
