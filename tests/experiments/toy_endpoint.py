"""A target that is no module, for the audit's tests: it writes down every call it answered, and may be slow.

Named on the command line as py:FILE:FACTORY. The environment says where it writes and how long a call takes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch
from torch import Tensor
from toy_models import CLASSES, Linear

from poise.types import Access, OutputKind, Outputs

LOG, SECONDS, STAMP = "POISE_TOY_LOG", "POISE_TOY_SECONDS", "POISE_TOY_STAMP"


class Endpoint:
    """The linear model behind a wall: answers, and a log of the calls, each a line with (sample, digest) per point."""

    kind, access = OutputKind.LOGITS, Access.SCORES
    bounds, num_classes, batch_size, device = (0.0, 1.0), CLASSES, 16, torch.device("cpu")

    def __init__(self) -> None:
        self._model = Linear()

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        time.sleep(float(os.environ.get(SECONDS, "0")))
        with torch.no_grad():
            scores = self._scores(self._model(x.float()))
        digests = [sha256(row.tobytes()).hexdigest()[:16] for row in x.contiguous().numpy()]
        line = json.dumps({"run": os.getpid(), "points": list(zip(ids.tolist(), digests, strict=True))}) + "\n"
        handle = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line.encode())
        os.close(handle)
        return Outputs(scores, self.kind)

    @contextmanager
    def session(self, seed: int | None = None) -> Iterator[None]:
        yield

    def _scores(self, logits: Tensor) -> Tensor:
        return logits


class Labels(Endpoint):
    """Tells its label alone."""

    kind, access = OutputKind.LABELS, Access.LABELS

    def _scores(self, logits: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(logits.argmax(dim=1), CLASSES).float()


class Stamped(Endpoint):
    """Knows the hash of the file it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = os.environ[STAMP]


def stamped() -> Stamped:
    return Stamped()


def endpoint() -> Endpoint:
    return Endpoint()


def labels() -> Labels:
    return Labels()
