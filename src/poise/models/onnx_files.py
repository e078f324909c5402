"""onnx:FILE, a network in an ONNX file, answered by ONNX Runtime."""

from __future__ import annotations

import torch

from poise.data.uri import Uri
from poise.models.digits import Note
from poise.targets.onnx import SECONDS, OnnxTarget
from poise.targets.onnx_file import needs_onnx

KEYS = ("outputs", "scores", "num_classes", "mean", "std", "bounds", "threads", "seconds")


def make_onnx(uri: Uri, device: torch.device, batch_size: int, note: Note) -> OnnxTarget:
    """The target of an onnx:FILE address; it takes images in [0, 1], like that of every other address.

    Query keys: `outputs` (logits, probabilities or labels), `scores` (the output with the answers, where there are
    several), `num_classes` (where the file does not tell it), `bounds` (lowest and highest pixel value that the file
    takes, 0,1 unless given: images are moved there), `mean` and `std` (in the units of `bounds`, applied after that),
    `threads`, `seconds` (most that a run may take for each of its images, 10 unless given).

    Raises:
        InputError: for keys and files that do not fit; MissingExtraError: the extra `onnx` is not installed.
    """
    uri.allow(*KEYS)
    for module in ("onnx", "onnxruntime"):  # before anything is noted, so that the answer is one line
        needs_onnx(module, "onnx: models")
    file = uri.file(uri.rest, role="the model")
    mean, std = uri.normalisation()
    bounds = uri.floats("bounds")
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise uri.fail(f"bounds must be LOW,HIGH with LOW < HIGH, got '{uri.text('bounds')}'")
    if bounds is None and mean is None:
        note(f"{uri} is given images in [0, 1] as they are; bounds=, mean= and std= change that")
    low, high = bounds or (0.0, 1.0)
    if mean is None or std is None:
        mean, std = ((0.0,), (1.0,)) if bounds else (None, None)
    if mean is not None and std is not None:
        mean = tuple((value - low) / (high - low) for value in mean)
        std = tuple(value / (high - low) for value in std)
    return OnnxTarget(
        file,
        num_classes=uri.integer("num_classes", low=2),
        outputs=uri.choice("outputs", ("logits", "probabilities", "labels"), "logits"),
        scores=uri.text("scores"),
        mean=mean,
        std=std,
        device=device,
        batch_size=batch_size,
        threads=uri.integer("threads", low=1),
        seconds=uri.integer("seconds", low=1) or SECONDS,
    )
