"""From addresses and files to a model that can be served, or to one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import MODEL, TOYS
from safetensors.torch import save_file

from poise import defenses
from poise.errors import PoiseError
from poise.models import load
from poise.serve.load import display_name, load_served
from poise.types import OutputKind, Outputs


def data(folder: Path, classes: int = 4, side: int = 6, **more: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % classes
    np.savez(folder / "d.npz", images=rng.integers(0, 256, (30, side, side), dtype=np.uint8), labels=labels, **more)
    return f"npz:{folder / 'd.npz'}"


def temperature(file: Path, classes: int = 4, provenance: dict[str, int] | None = None) -> Path:
    defenses.save(defenses.TemperatureScaling().fit(*answers(classes)), file, provenance)
    return file


def answers(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too sure, and labels."""
    labels = torch.arange(200) % classes
    noise = torch.randn(200, classes, generator=torch.Generator().manual_seed(0))
    return 4 * (noise + torch.nn.functional.one_hot(labels, classes)), labels


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_a_model_alone() -> None:
    served = load_served(MODEL)
    assert (served.name, served.shape, served.classes, served.outputs) == ("py:linear", None, None, OutputKind.LOGITS)
    wanted = load(MODEL).query(images(), torch.arange(5)).scores.detach().numpy()
    assert np.array_equal(served.answer(images()), wanted)


def test_a_defence_is_behind_it(tmp_path: Path) -> None:
    file = temperature(tmp_path / "ts.safetensors", provenance={"num_classes": 4})
    served = load_served(MODEL, defense=file, outputs=OutputKind.PROBABILITIES)
    bare = load(MODEL).query(images(), torch.arange(5))
    wanted = Outputs(defenses.load(file)(bare.scores)).probabilities.detach().numpy()
    assert np.abs(served.answer(images()) - wanted).max() < 1e-6
    assert np.abs(served.answer(images()) - bare.probabilities.detach().numpy()).max() > 0.01
    assert served.metadata(1)["model"] == "py:linear", "a client is not told of the defence"


def test_data_tell_the_shape_and_the_names(tmp_path: Path) -> None:
    served = load_served(MODEL, images=data(tmp_path))
    assert (served.shape, served.classes) == ((1, 6, 6), None)
    names = np.array(["a", "b", "c", "d"])
    assert load_served(MODEL, images=data(tmp_path, class_names=names)).classes == ("a", "b", "c", "d")


@pytest.mark.parametrize("outputs", [None, OutputKind.LOGITS, OutputKind.PROBABILITIES])
def test_the_embedded_model_knows_its_shape(outputs: OutputKind | None) -> None:
    served = load_served("builtin:digits", outputs=outputs)
    assert (served.shape, served.outputs) == ((1, 8, 8), outputs or OutputKind.LOGITS)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("data of another shape", r"model: must accept images of shape \(1, 7, 7\), got: RuntimeError"),
        ("more labels", "labels must be below the model's 4 classes, got 4"),
        ("other names", "must have the model's 4 classes, got 5 class names"),
        ("a defence for others, by its provenance", "was fitted for 7 classes, the model has 4"),
        ("a defence for others, by its buffers", "VectorScaling: .*5 classes.*4"),
        ("no defence", "must be a file, got nothing there"),
        ("another file as defence", "must be a defence saved by poise"),
        ("a model that fails", r"must accept images of shape \(1, 6, 6\), got: KeyError: 'a key.n"),
        ("a model that answers NaN", "must be finite"),
        ("labels only", "must give scores, got one that gives labels only"),
    ],
)
def test_what_does_not_fit_is_one_line(case: str, told: str, tmp_path: Path) -> None:
    file, address = tmp_path / "defence.safetensors", MODEL
    defence: Path | None = None
    images: str | None = data(tmp_path)
    match case:
        case "data of another shape":
            images = data(tmp_path, side=7)
        case "more labels":
            images = data(tmp_path, classes=5)
        case "other names":
            images = data(tmp_path, class_names=np.array(list("abcde")))
        case "a defence for others, by its provenance":
            defence = temperature(file, provenance={"num_classes": 7})
        case "a defence for others, by its buffers":
            defenses.save(defenses.make("vector").fit(*answers(5)), file)
            defence = file
        case "no defence":
            defence = tmp_path / "none.safetensors"
        case "another file as defence":
            save_file({"weight": torch.zeros(3)}, file)
            defence = file
        case "a model that fails":
            address = f"py:{TOYS}:fails?num_classes=4"
        case "a model that answers NaN":
            address = f"py:{TOYS}:infinite?num_classes=4"
        case "labels only":
            address = f"py:{TOYS}:labels_only"
    with pytest.raises(PoiseError, match=told) as caught:
        load_served(address, defense=defence, images=images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("builtin:digits", "builtin:digits"),
        ("builtin:resnet20-cifar10?weights=/srv/me/r.pth", "builtin:resnet20-cifar10"),
        ("torchvision:resnet18?weights=/srv/me/r.pth&num_classes=7", "torchvision:resnet18"),
        ("py:/srv/me/net.py:make?num_classes=3", "py:make"),
        ("onnx:/srv/me/net.onnx", "onnx:net.onnx"),
        ("hf:/srv/me/model/", "hf:model"),
        ("https://user:secret@example.org:8443/v1/model?key=secret", "https:example.org"),
    ],
)
def test_what_strangers_read_names_no_folder_and_no_secret(address: str, shown: str) -> None:
    assert display_name(address) == shown
