"""onnx:FILE addresses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")

from onnx_graphs import SHAPE, Graph, logits
from poise.errors import InputError
from poise.models import load
from poise.targets.onnx import OnnxTarget
from poise.types import OutputKind
from toys import generator

X = torch.rand(5, *SHAPE, generator=generator(1))
SOFTMAX = ("Softmax", "p", {"axis": 1})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Graph().write(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("", lambda x: x),
        ("?mean=0.5&std=0.25", lambda x: (x - 0.5) / 0.25),
        ("?bounds=0,255", lambda x: 255 * x),
        ("?bounds=-1,1", lambda x: 2 * x - 1),
        ("?bounds=0,255&mean=123&std=58", lambda x: (255 * x - 123) / 58),
        ("?num_classes=3&threads=1&scores=scores&outputs=logits", lambda x: x),
    ],
)
def test_the_target_takes_images_in_0_1_whatever_the_file_takes(file: Path, query: str, given) -> None:
    notes: list[str] = []
    target = load(f"onnx:{file}{query}", batch_size=2, on_note=notes.append)
    assert isinstance(target, OnnxTarget)
    assert (target.bounds, target.batch_size) == ((0.0, 1.0), 2)
    expected = logits(given(X.double().numpy()))
    found = target.query(X, torch.arange(5)).scores.double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    silent = "bounds" in query or "mean" in query
    assert notes == [] if silent else len(notes) == 1
    assert silent or "is given images in [0, 1] as they are; bounds=, mean= and std= change that" in notes[0]


def test_probabilities_and_several_outputs(tmp_path: Path) -> None:
    path = Graph(tail=[SOFTMAX], names=["scores", "p"]).write(tmp_path / "two outputs.onnx")
    target = load(f"onnx:{tmp_path}/two%20outputs.onnx?outputs=probabilities&scores=p")
    assert target.kind is OutputKind.PROBABILITIES
    with pytest.raises(InputError, match="scores must name one of the outputs"):
        load(f"onnx:{path}")


def test_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no network")
    for text, message in [
        (f"onnx:{tmp_path / 'no.onnx'}", "the model must be an existing file"),
        (f"onnx:{tmp_path}", "the model must be a file, got the folder"),
        (f"onnx:{tmp_path / 'bad.onnx'}", "must be an ONNX file; it is another type or damaged"),
        (f"onnx:{file}?outputs=scores", "outputs must be one of logits, probabilities, labels, got 'scores'"),
        (f"onnx:{file}?num_classes=4", "num_classes must be 3 as in"),
        (f"onnx:{file}?mean=0.5", "mean and std must be given together"),
        (f"onnx:{file}?mean=0,0,0&std=1,1,1", "mean and std must have 1 values, one per channel, got 3"),
        (f"onnx:{file}?bounds=255", "bounds must be LOW,HIGH with LOW < HIGH, got '255'"),
        (f"onnx:{file}?bounds=1,0", "bounds must be LOW,HIGH with LOW < HIGH, got '1,0'"),
        (f"onnx:{file}?threads=0", "threads must be a whole number, at least 1, got '0'"),
        (f"onnx:{file}?weights=x", r"query key: .* got 'weights'"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)
