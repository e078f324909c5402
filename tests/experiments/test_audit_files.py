"""Files whole or not at all, and refusals of the operating system as one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from audit_cases import audit, model, spec, write_data
from safetensors.torch import load_file

from poise.errors import AccessError, InputError, RunError, TargetError
from poise.experiments import files
from poise.files import is_leftover


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "deep" / "er" / "a.txt", "old ü")
    assert path.read_text(encoding="utf-8") == "old ü"

    def fails(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        files.write(path, fails)
    assert path.read_text(encoding="utf-8") == "old ü"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_the_temporary_name_is_never_that_of_a_table(tmp_path: Path) -> None:
    """Readers glob *.parquet: what is being written must not match."""
    seen: list[str] = []

    def fill(temporary: Path) -> None:
        temporary.touch()
        seen.extend(path.name for path in tmp_path.glob("*.parquet"))
        assert is_leftover(temporary)

    files.write(tmp_path / "a.parquet", fill)
    assert seen == []
    assert not is_leftover(tmp_path / "a.parquet")


def test_tensors_and_tables_come_back(tmp_path: Path) -> None:
    tensors = {"images": torch.rand(2, 3)[:, ::2], "ids": torch.tensor([3, 4])}
    files.write_tensors(tmp_path / "t.safetensors", tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(tmp_path / "t.safetensors").items())
    files.write_parquet(tmp_path / "t.parquet", pl.DataFrame({"a": [1, None]}))
    assert pl.read_parquet(tmp_path / "t.parquet")["a"].to_list() == [1, None]


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: files.write_text(path, "x"),
    "tensors": lambda path: files.write_tensors(path, {"a": torch.zeros(1)}),
    "parquet": lambda path: files.write_parquet(path, pl.DataFrame({"a": [1]})),
    "lock": lambda path: files.locked(path).__enter__(),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="must be a place that can be written, got: ") as caught:
        WRITERS[kind](tmp_path / "file" / "x")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="got: No space left on device"):
        files.write(tmp_path / "x", full)


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    with files.locked(tmp_path), pytest.raises(RunError, match="must not be in use"), files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass


def test_what_is_wrong_inside_the_lock_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.locked(tmp_path):
        (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"model": model("scores_only", "")}, AccessError, "pgd needs access 'gradients', the model gives 'scores'"),
        ({"model": model("through_numpy")}, InputError, r"must give gradients for images of shape 1×6×6 .*numpy\(\)"),
        ({"model": model("fails")}, InputError, "must accept images of shape 1×6×6 .*KeyError: 'a key"),
        ({"model": model("needs_large")}, InputError, "must accept images of shape 1×6×6"),
        ({"model": model("nan")}, TargetError, "must be finite"),
        ({"model": model("linear", "?num_classes=5")}, TargetError, r"must answer \(2, 5\) scores"),
        ({"samples": 41}, InputError, "samples: must be at most the 40 images of .*, got 41"),
        ({"samples": 30, "defences": ("ts",)}, InputError, "at least 20 images not attacked, .* has 10 beyond the 30"),
    ],
)
def test_misfits_are_told_before_the_first_query_of_an_attack(tmp_path: Path, changed, error, told) -> None:
    with pytest.raises(error, match=told) as caught:
        audit(spec(**{"recipes": ("sa-uca", "pgd"), **changed}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing may be left behind"


def test_a_target_that_gives_scores_is_attacked_by_black_boxes(tmp_path: Path) -> None:
    summary = audit(spec(model=model("scores_only", ""), samples=8), tmp_path / "run")
    assert summary["target"]["access"] == "scores"


def test_data_of_other_classes(tmp_path: Path) -> None:
    pixels = np.zeros((30, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "high.npz", images=pixels, labels=np.arange(30) % 6)
    with pytest.raises(InputError, match="labels must be below the model's 4 classes, got 5"):
        audit(spec(f"npz:{tmp_path / 'high.npz'}"), tmp_path / "run")
    with pytest.raises(InputError, match="labels must be below the model's 4 classes, got 5"):
        audit(spec(fit_data=f"npz:{tmp_path / 'high.npz'}", defences=("ts",)), tmp_path / "run")
    fit = write_data(tmp_path / "fit.npz", 30)
    assert audit(spec(fit_data=fit, defences=("ts",), samples=3), tmp_path / "run")["data"]["fit_samples"] == 30
