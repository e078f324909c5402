"""Choosing a source of models, and the built-in architectures' query keys."""

import pytest
import torch

from poise.errors import InputError
from poise.models import BUILTIN, VARIANTS, load, names
from poise.models.small import LeNet5


@pytest.fixture
def lenet(tmp_path) -> tuple[str, LeNet5]:
    module = LeNet5(4).eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    return f"builtin:lenet5-mnist?weights={tmp_path / 'w.pt'}&num_classes=4", module


def test_query_keys(lenet) -> None:
    uri, module = lenet
    x = torch.rand(2, 1, 28, 28)
    before = torch.random.get_rng_state()
    target = load(uri, batch_size=3)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        torch.testing.assert_close(target.query(x, torch.arange(2)).scores, module(x))
        normalised = load(f"{uri}&mean=0.5&std=0.25").query(x, torch.arange(2)).scores
        torch.testing.assert_close(normalised, module((x - 0.5) / 0.25))
    assert target.batch_size == 3
    assert target.device == torch.device("cpu")
    with torch.no_grad():
        torch.testing.assert_close(target.module(x), module(x))


def test_refused_in_one_line(lenet, tmp_path) -> None:
    uri, _ = lenet
    for text, message in [
        ("builtin:resnet20-cifar10", "needs weights=FILE, .* with trained weights of ResNet-20 for 32x32 images"),
        ("builtin:resnet2-cifar10?weights=x", r"builtin model: .* \(did you mean resnet"),
        (f"builtin:lenet5-mnist?weights={tmp_path / 'no.pt'}", "weights must be an existing file"),
        (f"builtin:lenet5-mnist?weights={tmp_path}", "weights must be a file, got the folder"),
        (uri.replace("&num_classes=4", ""), r"linear2.weight must be \(10, 200\), got \(4, 200\) \(another number of"),
        (
            uri.replace("lenet5-mnist", "cnn-a-cifar10"),
            "do not fit builtin:cnn-a-cifar10: missing '0.weight' and 7 more",
        ),
        (f"{uri}&mean=0.5,0.5,0.5&std=1,1,1", "mean and std must have 1 values, one per channel, got 3"),
        (f"{uri}&std=1", "must be given together, got only std"),
        (f"{uri}&pretrained=true", "query key"),
        ("onnx:model.onnx", "onnx:model.onnx: the model must be an existing file, got 'model.onnx'"),
        ("https:example.org", "url: must read https://HOST/PATH"),
        ("endpoint:none.toml", "endpoint:none.toml: endpoint must be an existing file, got 'none.toml'"),
        ("hf:folder", "hf:folder: the model must be an existing folder, got 'folder'"),
        ("tim:resnet18", r"model: source: .* \(did you mean timm\?"),
        ("resnet18", "must be SCHEME:NAME"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(InputError, match=f"device: must be one that this machine and this torch have, got '{device}'"):
        load("builtin:digits", device=device)


def test_names() -> None:
    listed = names()
    assert "builtin:digits" in listed
    assert "builtin:resnet56-cifar10?weights=FILE" in listed
    assert len(listed) == len(BUILTIN) + 8 + len(VARIANTS)
    assert all(line and "\n" not in line for line in listed.values())
    assert listed["builtin:resnet20-cifar10?weights=FILE"].endswith("(3, 32, 32), 10 classes")
