"""Any Python callable as a target: images in, scores or labels out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.errors import InputError, PoiseError, TargetError
from poise.targets.answers import Answers, check_sizes, one_line
from poise.targets.base import private_random
from poise.types import Access, Outputs


class FunctionTarget:
    """A classifier given as a Python function from images to scores or labels.

    Args:
        function: maps a float32 array (m, C, H, W), 1 <= m <= batch_size, to (m, K) scores or to (m,) integer labels:
            an array, a tensor or nested lists. It gets a copy of its own to write into, and may reuse its answer.
        num_classes: K, at least 2; checked against every answer.
        outputs: "logits", "probabilities" or "labels": what it answers. Declared; refused where values contradict it.
        bounds: lowest and highest legal pixel value, as the function takes them.
        batch_size: most images per call.
        device: where points are expected.
        access: the most an attacker may use: `Access.SCORES`, or `Access.LABELS`.
        tensors: the function takes a torch tensor on `device` instead of a numpy array.

    Raises:
        InputError: for arguments that make no sense.
        TargetError: from `query`, where an answer contradicts the declaration (shape, classes, kind, NaN), or the
            function raises; its own exception is the cause.

    A function that draws random numbers from the global generators of torch, numpy or Python draws them from the seed
    of the session; the generators are as before at the end.

    >>> def brightness(images):
    ...     p = images.mean(axis=(1, 2, 3))
    ...     return np.stack([p, 1 - p], axis=1)
    >>> target = FunctionTarget(brightness, num_classes=2, outputs="probabilities")
    >>> target.query(torch.full((1, 1, 2, 2), 0.75), torch.arange(1)).scores.tolist()
    [[0.75, 0.25]]
    """

    def __init__(
        self,
        function: Callable[[Any], object],
        *,
        num_classes: int,
        outputs: str = "logits",
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_size: int = 256,
        device: str | torch.device = "cpu",
        access: Access = Access.SCORES,
        tensors: bool = False,
    ) -> None:
        if not callable(function):
            raise InputError(f"FunctionTarget: function must be callable, got {type(function).__name__}")
        if access not in (Access.LABELS, Access.SCORES):
            raise InputError(f"FunctionTarget: access must be Access.LABELS or Access.SCORES, got {access!r}")
        check_sizes("FunctionTarget", bounds, batch_size)
        self._answers = Answers("FunctionTarget", outputs, num_classes)
        self.kind = self._answers.kind
        self.access = min(access, self._answers.access)
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._function = function
        self._tensors = tensors
        self._open = False

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for x (m, C, H, W); one call per `batch_size` points. `ids` is not used."""
        if not len(x):
            return self._answers.none(x.device)
        with self.session(), torch.inference_mode(False), torch.no_grad():
            parts = [self._call(part) for part in torch.split(x.detach(), self.batch_size)]
        return Outputs(torch.cat(parts).to(x.device), self.kind)

    @contextmanager
    def session(self, seed: int | None = None) -> Iterator[None]:
        """A private copy of the global random states, restored at the end; an inner session does nothing."""
        if self._open:
            yield
            return
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
        with private_random(self.device, seed):
            self._open = True
            try:
                if seed is not None:
                    random.seed(seed)
                    np.random.seed(seed % 2**32)  # noqa: NPY002
                yield
            finally:
                self._open = False
                random.setstate(python)
                np.random.set_state(legacy)  # noqa: NPY002

    def _call(self, part: Tensor) -> Tensor:
        points = part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        try:
            answer = self._function(points if self._tensors else points.cpu().numpy())
        except PoiseError:
            raise
        except Exception as error:  # other people's code may raise anything
            raise TargetError(f"FunctionTarget: the function raised {one_line(error)}") from error
        return self._answers.scores(_tensor(answer), len(part))


def _tensor(answer: object) -> Tensor:
    """A tensor of its own that holds the answer's numbers."""
    if isinstance(answer, Tensor):
        return answer.detach().clone()
    try:
        array = np.asarray(answer)
    except Exception as error:  # rows of several lengths; arrays of other libraries
        raise TargetError(
            f"FunctionTarget: answers must be an array, a tensor or nested lists of numbers, got {one_line(error)}"
        ) from error
    if array.dtype.kind not in "fiu":
        raise TargetError(
            "FunctionTarget: answers must be an array, a tensor or nested lists of numbers, "
            f"got {type(answer).__name__} of type {array.dtype}"
        )
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype({2: np.float16, 4: np.float32}.get(array.dtype.itemsize, np.float64)))
    return torch.from_numpy(array.astype(np.int64))
