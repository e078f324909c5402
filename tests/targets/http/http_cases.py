"""The toy behind the tests' endpoints, and targets that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fault_server import Endpoint as Served

from poise.targets.http import Endpoint, HttpTarget, make_endpoint
from toys import Case, linear_case

CASE: Case = linear_case(8, dtype=torch.float32)
SECRET = "sesame-5f0a7c"
NOWHERE = "http://127.0.0.1:9/predict"


def described(url: str, **given: Any) -> Endpoint:
    """An endpoint with three classes of logits, which gives up soon."""
    usual: dict[str, Any] = {
        "num_classes": 3,
        "outputs": "logits",
        "retries": 2,
        "backoff_seconds": 0.01,
        "timeout_seconds": 5.0,
        "connections": 4,
    }
    return make_endpoint(url=url, **usual | given)


def asking(served: Served, **given: Any) -> HttpTarget:
    """A target that asks a test server."""
    return HttpTarget(described(f"{served.url}/predict", **given))


def write(folder: Path, text: str) -> Path:
    file = folder / "endpoint.toml"
    file.write_text(text, encoding="utf-8")
    return file
