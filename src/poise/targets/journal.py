"""The journal: every answer is on the disk before it is used, and is never asked for again."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from hashlib import blake2b
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from poise.errors import TargetError
from poise.targets.base import Target
from poise.targets.in_front import InFront
from poise.targets.journal_file import JournalFile, key
from poise.targets.stream import arriving
from poise.types import Outputs


class Journal(InFront):
    """A target whose answers are appended to a file before they are used, and replayed from it.

    An answer is found by the sample's id, the point (bytes, shape, type), and how many times this point was asked of
    this sample before in the life of this object. A run that is repeated asks the same questions in the same order, so
    every recorded answer comes back bit by bit, those of a random target too, and only what is new is asked. Answers
    are written, and fsynced, as they arrive: part by part where the target streams (`poise.targets.stream`), else call
    by call of its batch size. Their places in the file are held in memory, the answers are not. Gradients are hidden:
    they are not recorded.

    Args:
        target: answers what is not recorded; a `Purse` where that costs.
        file: made if missing, its folder too; held by one process at a time. What a process left that was killed while
            it wrote is cut off. Layout: `poise.targets.journal_file`.

    Raises:
        RunError: the file is no journal, that of a target of other classes or kind, damaged before its end, in use, or
            cannot be written; TargetError: from `query`, an answer of the wrong shape.

    >>> import tempfile
    >>> from poise import ModuleTarget
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> silent = torch.nn.Identity()  # answers nothing of use
    >>> x, ids = torch.rand(2, 1, 2, 2), torch.arange(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Journal(ModuleTarget(module, num_classes=3), Path(folder, "answers.log")) as journal:
    ...         first = journal.query(x, ids)
    ...     with Journal(ModuleTarget(silent, num_classes=3), Path(folder, "answers.log")) as journal:
    ...         torch.equal(journal.query(x, ids).scores, first.scores)
    True
    """

    def __init__(self, target: Target, file: Path) -> None:
        super().__init__(target)
        self._asked: Counter[bytes] = Counter()
        self._file = JournalFile(Path(file), self.num_classes, self.kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for points x (m, C, H, W): recorded ones from the file, the others from the target, then recorded.

        Where the target fails, what it answered before stays recorded, and the same question goes on from there.
        """
        keys, asked = self._keys(x, ids)
        missing = torch.tensor(
            [at for at, name in enumerate(keys) if name not in self._file.recorded], dtype=torch.long
        )
        if len(missing) < len(keys):
            x, ids = x[missing.to(x.device)], ids[missing.to(ids.device)]
        for rows, answer in arriving(self.target, x, ids):
            self._check_shape(answer, len(rows))
            names = [keys[at] for at in missing[rows.cpu()].tolist()]
            self._file.append(list(zip(names, answer.scores.detach().cpu(), strict=True)))
        if lost := sum(name not in self._file.recorded for name in keys):
            raise TargetError(f"Journal: the target must answer every point, {lost} of {len(keys)} are missing")
        self._asked.update(asked)
        return Outputs(self._scores([self._file.take(name) for name in keys]), self.kind)

    def _scores(self, rows: list[Tensor]) -> Tensor:
        if not rows:
            return torch.zeros(0, self.num_classes, device=self.device)
        dtype = reduce(torch.promote_types, {row.dtype for row in rows})
        return torch.stack([row.to(dtype) for row in rows]).to(self.device)

    def _keys(self, x: Tensor, ids: Tensor) -> tuple[list[bytes], Counter[bytes]]:
        """The keys of the points, and how often each point is among them."""
        points, asked = x.detach().cpu().contiguous(), Counter[bytes]()
        start, keys = blake2b(f"{tuple(points.shape[1:])} {points.dtype}".encode(), digest_size=16), []
        for sample, row in zip(ids.tolist(), points.flatten(1).view(torch.uint8).numpy(), strict=True):
            digest = start.copy()
            digest.update(row)
            point = key(sample, digest.digest(), 0)
            keys.append(key(sample, digest.digest(), self._asked[point] + asked[point]))
            asked[point] += 1
        return keys, asked

    def _check_shape(self, answer: Outputs, rows: int) -> None:
        if answer.scores.shape != (rows, self.num_classes):
            raise TargetError(
                f"Journal: the target must answer ({rows}, {self.num_classes}) scores, got {tuple(answer.scores.shape)}"
            )
