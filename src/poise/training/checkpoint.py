"""What a training run leaves behind: checkpoints, weights, a row per epoch; every file whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import save_file
from torch import nn

from poise.data.torch_file import load_torch
from poise.errors import RunError, brief
from poise.files import whole

Row = dict[str, Any]

LAST, METRICS = "last.pt", "metrics.parquet"


@dataclass(frozen=True, slots=True)
class Store:
    """The files of one run.

        last.pt              weights, optimiser and place in the run: what `--resume` goes on from
        best.safetensors     weights of the best epoch so far, on the validation images
        model.safetensors    weights at the end
        metrics.parquet      a row per epoch

    Args:
        folder: exists.
        about: texts written into the weights files: what was trained on what.
    """

    folder: Path
    about: Mapping[str, str] = field(default_factory=dict)

    def write_last(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint."""
        with whole(self.folder / LAST) as temporary:
            torch.save(state, temporary)

    def read_last(self) -> dict[str, Any] | None:
        """The checkpoint, None where there is none. No code in it is ever run.

        Raises:
            RunError: the file is damaged.
        """
        path = self.folder / LAST
        if not path.exists():
            return None
        try:
            found = load_torch(path)
            if not (isinstance(found, dict) and {"model", "optimizer", "progress"} <= set(found)):
                raise RunError("it is no checkpoint of a training run")
        except Exception as error:  # damaged files raise one of a dozen types
            reason = brief(error, limit=100)
            raise RunError(f"train: '{path}' is damaged ({reason}); delete it to begin anew") from error
        return found

    def write_weights(self, name: str, module: nn.Module, row: Row) -> None:
        """NAME.safetensors: the network's tensors, with where they come from."""
        about = dict(self.about) | {key: str(value) for key, value in row.items()}
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
        with whole(self.folder / f"{name}.safetensors") as temporary:
            save_file(tensors, temporary, metadata=about)

    def write_rows(self, rows: list[Row]) -> None:
        """The metrics of all epochs; a term that an epoch lacks is empty there."""
        with whole(self.folder / METRICS) as temporary:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)

    def last_good(self) -> str:
        """What is there to go on from, for a message."""
        kept = [name for name in (LAST, "best.safetensors") if (self.folder / name).exists()]
        return f"kept: {', '.join(str(self.folder / name) for name in kept)}" if kept else "nothing was kept yet"
