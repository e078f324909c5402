"""The one place that imports torchvision."""

from __future__ import annotations

import importlib
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from poise.errors import MissingExtraError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision(submodule: str, *, feature: str) -> ModuleType:
    """The named submodule of torchvision ("models", "datasets"), imported so that a CPU build of torch accepts it.

    torchvision registers shape functions for its operators `nms` and `qnms` while it is imported. Where its
    compiled part was built for another build of torch (torch 2.13.0+cpu beside torchvision 0.28.0), the part does
    not load and the import ends in "operator torchvision::nms does not exist". Classifiers need neither operator,
    so their schemas are declared here, first, and only where the compiled part did not bring them. A call of one
    of them still fails, as it must: nothing is implemented.

    Args:
        submodule: name below `torchvision`.
        feature: what needs it, for the message.

    Raises:
        MissingExtraError: torchvision is not installed.

    >>> import_torchvision("models", feature="the example").__name__
    'torchvision.models'
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise MissingExtraError(feature, "vision")
    compiled = FileFinder(str(Path(spec.origin).parent), (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("_C")
    if compiled is not None and compiled.origin is not None:
        with suppress(ImportError, OSError):  # built for another torch: the same test as torchvision's own
            torch.ops.load_library(compiled.origin)  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
    return importlib.import_module(f"torchvision.{submodule}")
