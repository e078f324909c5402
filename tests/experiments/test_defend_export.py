"""Model and saved defence as one file: the figures it answers with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from audit_cases import held_out, model, write_data

from poise import data, defenses, models
from poise.errors import InputError
from poise.experiments.defend_export import run_export
from poise.experiments.defend_fit import Answers, fit, save
from poise.targets import FunctionTarget


def saved(path: Path, name: str = "ts", classes: int = 4) -> Path:
    source = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(400, classes, generator=source)
    labels = (logits / 3).softmax(1).multinomial(1, generator=source)[:, 0]  # overconfident, better than chance
    rows = Answers(logits, labels, {})
    save(fit(name, rows, rows, bootstrap=5), path)
    return path


@pytest.mark.parametrize("name", ["ts", "aaa-linear", "cs"])
def test_the_file_answers_as_the_defended_model(tmp_path: Path, name: str) -> None:
    target, images = models.load(model()), data.load(held_out())
    file = saved(tmp_path / "defence.safetensors", name)
    parity = run_export(target, file, images, tmp_path / "new" / "model.pt2", samples=30)
    assert parity.images == 30
    assert parity.probability <= 1e-5
    served = torch.export.load(tmp_path / "new" / "model.pt2").module()
    expected = defenses.load(file)(target.module(images.images))
    assert torch.allclose(served(images.images).softmax(1), expected.softmax(1), atol=1e-5)
    assert not torch.allclose(served(images.images).softmax(1), target.module(images.images).softmax(1), atol=1e-3)


def test_a_defence_for_other_classes_is_refused(tmp_path: Path) -> None:
    """One that knows its K says so itself; of one that takes any K, the provenance does."""
    target, images = models.load(model()), data.load(held_out())
    for name in ("vector", "ts"):
        file = saved(tmp_path / f"{name}.safetensors", name, classes=5)
        with pytest.raises(InputError, match="fitted for 5 classes"):
            run_export(target, file, images, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_images_of_another_shape_and_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    target, file = models.load(model()), saved(tmp_path / "ts.safetensors")
    with pytest.raises(InputError, match=r"must end in \.onnx or \.pt2"):
        run_export(target, file, data.load(held_out()), tmp_path / "model.bin")
    with pytest.raises(InputError, match="must be a file"):
        run_export(target, tmp_path / "none.safetensors", data.load(held_out()), tmp_path / "model.pt2")
    images = data.from_arrays(np.zeros((2, 9, 9), dtype=np.uint8), np.array([0, 1]))
    with pytest.raises(InputError, match="must accept images of shape 1×9×9"):
        run_export(target, file, images, tmp_path / "model.pt2")
    fewer = data.load(write_data(tmp_path / "few.npz", 3))
    assert run_export(target, file, fewer, tmp_path / "model.pt2").images == 3


def test_what_only_answers_is_not_exported(tmp_path: Path) -> None:
    target = FunctionTarget(lambda x: np.zeros((len(x), 4)), num_classes=4)
    with pytest.raises(InputError, match=r"^defend export: the model must be a PyTorch module, got a FunctionTarget$"):
        run_export(target, saved(tmp_path / "d.safetensors"), data.load(held_out()), tmp_path / "x.pt2", samples=8)
    assert not (tmp_path / "x.pt2").exists()
