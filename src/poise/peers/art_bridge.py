"""ART's classifier around a bridge, and what its AutoAttack imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from poise.peers.bridge import Bridge, load_library

__all__ = ["Bridge", "art_estimator", "process_pools"]


def art_estimator(bridge: Bridge, shape: torch.Size, name: str) -> Any:
    """ART's classifier around the bridge; `name` says in a message what needs ART."""
    target = bridge.target
    estimator = load_library("art.estimators.classification", f"ART {name}", "peers").PyTorchClassifier(
        model=bridge,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(shape),
        nb_classes=target.num_classes,
        clip_values=target.bounds,
        device_type="gpu" if target.device.type == "cuda" else "cpu",
    )
    estimator.predict = bridge.predict
    return estimator


@contextmanager
def process_pools() -> Iterator[None]:
    """Lends ART's AutoAttack the standard library's pools where `multiprocess` is missing.

    It imports that package before anything else and uses it for `parallel_pool_size` above 0, which is never set here.
    """
    try:
        import_module("multiprocess")
    except ImportError:
        sys.modules["multiprocess"] = import_module("multiprocessing")
        try:
            yield
        finally:
            del sys.modules["multiprocess"]
    else:
        yield
