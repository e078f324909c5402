"""ECE and SSIM against torchmetrics, which runs in a process of its own.

torchmetrics imports torchvision where it is installed; next to another build of torch that import fails until two
operator schemas are declared, which must not be done to the process that runs the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from poise.metrics import ece, mce, ssim

SCRIPT = """
import sys
import numpy as np
import torch

try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.image import structural_similarity_index_measure

torch.set_num_threads(1)
data = np.load(sys.argv[1])
results = {}
for key in data.files:
    kind, *rest = key.split("-")
    if kind == "c":
        confidence, correct = torch.tensor(data[key]), torch.tensor(data["h-" + "-".join(rest)])
        for norm in ("l1", "max"):
            value = binary_calibration_error(confidence, correct, n_bins=int(rest[0]), norm=norm)
            results[norm + "-" + "-".join(rest)] = value.numpy()
    if kind == "x":
        images = torch.tensor(data[key]), torch.tensor(data["y-" + "-".join(rest)])
        results["s-" + "-".join(rest)] = structural_similarity_index_measure(
            *images, data_range=1.0, reduction="none"
        ).numpy()
np.savez(sys.argv[2], **results)
"""


def cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for i in range(40):
        n = int(rng.integers(1, 60))
        # 16 bins: edges that both sides represent exactly; 15 bins: no confidence on an edge but 0 and 1
        for bins, confidence in (
            (16, rng.integers(0, 33, n) / 32),
            (15, np.where(rng.random(n) < 0.2, 1.0, rng.random(n))),
        ):
            arrays[f"c-{bins}-{i}"] = confidence
            arrays[f"h-{bins}-{i}"] = rng.integers(0, 2, n)
    for i, shape in enumerate([(3, 1, 28, 28), (2, 3, 16, 24), (2, 1, 8, 8)]):
        arrays[f"x-{i}"] = rng.random(shape)
        arrays[f"y-{i}"] = np.clip(arrays[f"x-{i}"] + rng.uniform(-0.2, 0.2, shape), 0, 1)
    return arrays


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    folder: Path = tmp_path_factory.mktemp("torchmetrics")
    given = cases()
    np.savez(folder / "given.npz", **given)
    command = [sys.executable, "-c", SCRIPT, str(folder / "given.npz"), str(folder / "answers.npz")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as file:
        return given, dict(file)


@pytest.mark.parametrize("bins", [15, 16])
def test_ece_and_mce(answers, bins: int) -> None:
    given, theirs = answers
    differs_from_the_papers = 0
    for i in range(40):
        c, h = given[f"c-{bins}-{i}"], given[f"h-{bins}-{i}"]
        assert ece(c, h, bins, edges="torchmetrics") == pytest.approx(float(theirs[f"l1-{bins}-{i}"]), abs=1e-6)
        assert mce(c, h, bins, edges="torchmetrics") == pytest.approx(float(theirs[f"max-{bins}-{i}"]), abs=1e-6)
        differs_from_the_papers += abs(ece(c, h, bins) - float(theirs[f"l1-{bins}-{i}"])) > 1e-6
    assert differs_from_the_papers > 5  # the bin of its own shows: without the option these would not agree


def test_all_conventions_agree_away_from_the_edges(answers) -> None:
    given, _ = answers
    for i in range(40):
        c, h = given[f"c-15-{i}"], given[f"h-15-{i}"]
        inside = c < 1
        if inside.any():
            values = {round(ece(c[inside], h[inside], edges=edges), 12) for edges in ("right", "left", "torchmetrics")}
            assert len(values) == 1


def test_ssim(answers) -> None:
    given, theirs = answers
    for i in range(3):
        assert ssim(given[f"x-{i}"], given[f"y-{i}"]) == pytest.approx(theirs[f"s-{i}"], abs=1e-6)
