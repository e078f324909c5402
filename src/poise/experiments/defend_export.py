"""A model with a saved defence behind it, as one file that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from poise import data
from poise.data import Dataset
from poise.defenses.export import OPSET, Parity, export_onnx, export_torch
from poise.errors import InputError
from poise.experiments.served import ask, behind, saved
from poise.targets import ModuleTarget, Target

SAMPLES = 1000
"""Most real images on which the file is compared with PyTorch."""


def run_export(
    target: Target, defence_file: Path, images: Dataset, out: Path, *, samples: int = SAMPLES, opset: int = OPSET
) -> Parity:
    """Writes model and defence to `out` and says how far its answers lie from PyTorch's on real images.

    Args:
        target: the bare model.
        defence_file: as `poise defend fit` wrote it.
        images: real ones; their shape is that of the file's input.
        out: ends in .onnx or .pt2; its folder is made if missing.
        samples: how many images are compared, at most.
        opset: of ONNX.

    Raises:
        InputError: a name that ends otherwise, a target without a module, a defence for another number of classes.
        MissingExtraError: .onnx without the extra `onnx`. PoiseError: the file answers differently.
    """
    write = writer(out, opset)
    if not isinstance(target, ModuleTarget):
        raise InputError(f"defend export: the model must be a PyTorch module, got a {type(target).__name__}")
    data.check_matches(images, target.num_classes)
    served = behind(target, saved(defence_file, target.num_classes))
    chosen = images.mixed()[:samples]
    ask(target, chosen[:2].images, chosen[:2].ids, images)
    real = chosen.images.to(target.device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with target.session(0):
        return write(served.module, out, images.shape, real)


Writer = Callable[[torch.nn.Module, Path, tuple[int, int, int], Tensor], Parity]


def writer(out: Path, opset: int) -> Writer:
    """What writes a file of this name."""
    if out.suffix == ".onnx":
        return lambda module, path, shape, images: export_onnx(module, path, shape, images=images, opset=opset)
    if out.suffix == ".pt2":
        return lambda module, path, shape, images: export_torch(module, path, shape, images=images)
    raise InputError(f"out: must end in .onnx or .pt2, got '{out}'")
