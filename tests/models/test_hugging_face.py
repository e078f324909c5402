"""hf:FOLDER: the network that transformers makes, its own normalisation, nothing downloaded, run or left to chance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import poise
from poise.errors import InputError, MissingExtraError
from poise.models import bare, blank, load
from poise.models.hugging_face import import_transformers
from toys import generator, untouched_generators

pytest.importorskip("transformers", reason="transformers is missing (extra hf)")

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
X = torch.rand(3, 3, 16, 16, generator=generator(0))


@pytest.fixture(scope="module")
def vit() -> Any:
    """A vision transformer with 3 classes for images of 16 x 16, weights from a fixed seed."""
    library: Any = import_transformers("test")
    config = library.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4,
        id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        network = library.ViTForImageClassification(config).eval()
        for value in network.parameters():
            value.data = 0.3 * torch.randn_like(value)
    return network


@pytest.fixture
def folder(vit: Any, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "net"
    vit.save_pretrained(place)
    processor(place, image_mean=MEAN, image_std=STD, size={"height": 16, "width": 16})
    return place


def processor(folder: Path, **stated: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))


def logits(vit: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vit(x).logits


def normalised(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def answer(address: str) -> Tensor:
    return load(address).query(X, torch.arange(len(X))).scores


def test_the_answers_are_those_of_the_network(vit: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    with untouched_generators():
        target = load(f"hf:{folder}", on_note=notes.append)
    assert notes == [f"hf:{folder} answers the classes cat, dog, owl in this order, for images of 16 x 16"]
    assert (target.num_classes, target.dtype) == (3, torch.float32)
    scores = target.query(X, torch.arange(3)).scores
    torch.testing.assert_close(scores, logits(vit, normalised(X, MEAN, STD)))
    assert not torch.allclose(scores, logits(vit, X)), "the twin: without the normalisation"
    assert not any(part.training for part in target.module.modules())
    assert capfd.readouterr() == ("", "")


def test_gradients_reach_the_pixels_and_an_attack_runs(folder: Path) -> None:
    target = load(f"hf:{folder}")
    labels = target.query(X, torch.arange(3)).labels
    result = poise.run_recipe("pgd-mma", target, X, labels, eps=0.1, steps=5)
    assert (result.table["prediction_after"] == result.table["prediction_before"]).all()
    assert (result.table["confidence_after"] != result.table["confidence_before"]).any()
    assert result.table["zero_gradients"].sum() == 0


@pytest.mark.parametrize(
    ("stated", "seen"),
    [
        ({"image_mean": MEAN, "image_std": STD}, lambda x: normalised(x, MEAN, STD)),
        ({"do_normalize": False}, lambda x: x),
        ({"do_normalize": False, "do_rescale": False}, lambda x: 255 * x),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [64]}, lambda x: (255 * x - 127.5) / 64),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, lambda x: 2 * x - 1),
        ({"image_mean": 0.5, "image_std": 0.5}, lambda x: 2 * x - 1),
    ],
)
def test_what_the_processor_does_to_pixels(stated: dict, seen: Any, vit: Any, folder: Path) -> None:
    processor(folder, **stated)
    torch.testing.assert_close(answer(f"hf:{folder}"), logits(vit, seen(X)), rtol=1e-4, atol=1e-5)


def test_the_address_may_say_it_otherwise(vit: Any, folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    torch.testing.assert_close(answer(f"hf:{folder}?mean=0,0,0&std=1,1,1"), logits(vit, X))
    with pytest.raises(InputError, match=r"needs preprocessor_config.json with .*, or mean= and std=, found neither$"):
        load(f"hf:{folder}")


def test_a_folder_of_timm(tmp_path: Path) -> None:
    """As timm's models lie on the hub: no processor's file, normalisation in config.json."""
    library, timm_vision = import_transformers("test"), pytest.importorskip("timm")
    network = timm_vision.create_model("resnet10t", num_classes=4).eval()
    stated = {"mean": MEAN, "std": STD, "input_size": [3, 16, 16]}
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"architecture": "resnet10t", "num_classes": 4, "pretrained_cfg": stated, "model_type": "timm_wrapper"}
        )
    )
    save_file(network.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert library is not None
    with torch.no_grad():
        wanted = network(normalised(X, MEAN, STD))
    torch.testing.assert_close(answer(f"hf:{tmp_path}"), wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_is_read_in_full(folder: Path) -> None:
    wanted = answer(f"hf:{folder}")
    file = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    assert load(f"hf:{folder}").dtype is torch.float32
    torch.testing.assert_close(answer(f"hf:{folder}"), wanted, rtol=0.05, atol=0.05)


def test_training_goes_on_from_it_and_comes_back(folder: Path, tmp_path: Path) -> None:
    """A new head; what is saved is read back under the same folder's configuration."""
    started = blank(f"hf:{folder}?head=new", num_classes=5, seed=2)
    assert started.num_classes == 5
    original, new = bare(load(f"hf:{folder}")).state_dict(), bare(started).state_dict()
    assert {name for name, value in new.items() if not torch.equal(value, original[name])} == {
        "network.classifier.weight", "network.classifier.bias",
    }  # fmt: skip
    save_file(bare(started).state_dict(), tmp_path / "w.safetensors")
    again = load(f"hf:{folder}?weights={tmp_path / 'w.safetensors'}&num_classes=5")
    assert torch.equal(again.query(X, torch.arange(3)).scores, started.query(X, torch.arange(3)).scores)


def change(folder: Path, **config: Any) -> None:
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in (stated | config).items() if value}))


def test_refusals_are_one_line(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    whole = {name: value.clone() for name, value in load_file(file).items()}
    settings, weights = (folder / "config.json").read_bytes(), file.read_bytes()

    def without_head() -> None:
        kept = {name: value for name, value in whole.items() if not name.startswith("classifier")}
        save_file(kept, file, metadata={"format": "pt"})

    def pickled() -> None:
        file.unlink()
        torch.save(whole, folder / "pytorch_model.bin")

    for spoil, message in (
        (without_head, "model.safetensors must hold all weights, missing or misshapen: 'classifier.bias' and 1 more$"),
        (pickled, "transformers cannot load this folder: .*safetensors"),
        (lambda: file.write_bytes(b"x" * 40), "transformers cannot load this folder: "),
        (lambda: change(folder, model_type="nonsense"), "transformers cannot load this folder: .*nonsense"),
        (lambda: change(folder, model_type="bert"), "transformers cannot load this folder: "),
        (lambda: change(folder, hidden_size=32), "transformers cannot load this folder: |misshapen"),
        (lambda: (folder / "config.json").write_text("{"), "config.json must be readable JSON, got: "),
        (lambda: (folder / "config.json").write_text("[]"), "config.json must hold an object, got list$"),
        (lambda: (folder / "config.json").unlink(), "the folder must hold config.json, .*, found none$"),
    ):
        spoil()
        with pytest.raises(InputError, match=rf"^hf:{folder}: .*{message}" if message else "") as caught:
            load(f"hf:{folder}")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        (folder / "config.json").write_bytes(settings)
        file.write_bytes(weights)
    for stated, message in (
        ({"image_mean": MEAN}, "needs preprocessor_config.json with image_mean and image_std, .*, got image_std=None$"),
        ({"image_mean": MEAN, "image_std": [0, 1, 1]}, "std positive, got "),
        ({"image_mean": MEAN, "image_std": [1, 1]}, "must have one length"),
        (
            {"image_mean": MEAN, "image_std": STD, "rescale_factor": 0},
            "rescale_factor must be a positive number, got 0$",
        ),
    ):
        processor(folder, **stated)
        with pytest.raises(InputError, match=message) as caught:
            load(f"hf:{folder}")
        assert "\n" not in str(caught.value)
    for address, message in (
        (f"hf:{tmp_path / 'none'}", "the model must be an existing folder, got "),
        (f"hf:{file}", "the model must be a folder, got the file "),
        (f"hf:{folder}?mean=0&std=1&num_classes=7", "num_classes must be 3 with these weights"),
        (f"hf:{folder}?weigth=x", r"query key: .* \(did you mean weights"),
    ):
        with pytest.raises(InputError, match=message):
            load(address)


def test_code_in_a_folder_never_runs(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('ran')\n")
    change(folder, model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForImageClassification": "mine.M"})
    with pytest.raises(InputError, match="transformers cannot load this folder: ") as caught:
        load(f"hf:{folder}")
    assert "\n" not in str(caught.value)


def test_without_transformers_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.models.hugging_face.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"^hf:.* needs the extra 'hf': pip install 'poise\[hf\]'$"):
        load(f"hf:{folder}")
