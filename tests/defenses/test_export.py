"""Export: what the file answers is what PyTorch answers, and otherwise there is no file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poise
from poise.defenses import (
    CompressionScaling,
    Dent,
    Identity,
    PostHoc,
    Quantize,
    RandomNoise,
    TemperatureScaling,
    defended,
    export,
    stack,
)
from poise.defenses.export import OPSET, Parity, export_onnx, export_torch
from poise.errors import InputError, MissingExtraError, NotFittedError, PoiseError
from toys import Fixed, SmallCNN, generator, untouched_generators

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SHAPE = (1, 8, 8)
X = torch.rand(250, *SHAPE, generator=generator(4))


def tiny() -> nn.Module:
    """A linear model: exports in a fraction of the time."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(4, 64, generator=generator(1)))
        model[1].bias.zero_()
    return model.eval()


def fitted(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> dict[str, PostHoc]:
    """The post-hoc defences fitted on what the model answers."""
    with torch.no_grad():
        logits = model(images)
    if labels is None:
        labels = (logits.argmax(dim=1) + (torch.arange(len(logits)) % 4 == 0)) % logits.shape[1]
    return {"none": Identity(), "ts": TemperatureScaling().fit(logits, labels), "cs": CompressionScaling()}


def served(path: Path, images: Tensor) -> Tensor:
    """What a plain ONNX Runtime session answers, without any code of ours."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def probability_gap(found: Tensor, expected: Tensor) -> float:
    return float((found.double().softmax(dim=1) - expected.double().softmax(dim=1)).abs().max())


# --- real networks, real images ---


@pytest.fixture(scope="module")
def real() -> tuple[nn.Module, Tensor, Tensor]:
    """The shared CIFAR-10 ResNet-20 with its normalisation inside, 300 real test images and their labels."""
    weights, images = DATA / "checkpoints" / "cifar10_resnet20.safetensors", DATA / "cifar10_test_lossless_subset.npz"
    if not (weights.is_file() and images.is_file()):
        pytest.skip("needs ../shared/data (the CIFAR-10 ResNet-20 and the lossless test images)")
    with np.load(images) as file:
        x = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(file["labels"])
    return poise.models.load(f"builtin:resnet20-cifar10?weights={weights}").module, x, labels


@pytest.mark.parametrize("name", ["ts", "cs"])
def test_a_resnet_on_300_real_images(name: str, real: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    model, images, labels = real
    module = stack(model, fitted(model, images, labels)[name])
    with torch.no_grad():
        expected = module(images)
    for write, path in ((export_onnx, tmp_path / "model.onnx"), (export_torch, tmp_path / "model.pt2")):
        parity = write(module, path, (3, 32, 32), images=images)
        assert parity.images == 300
        assert parity.probability <= 1e-5
    found = served(tmp_path / "model.onnx", images)
    assert probability_gap(found, expected) <= 1e-5
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
    with torch.no_grad():
        again = torch.export.load(tmp_path / "model.pt2").module()(images)
    torch.testing.assert_close(again, expected)


# --- what is in the file ---


def test_onnx_file_is_one_file_with_a_free_batch_and_the_stated_opset(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    model = SmallCNN().eval()
    module = defended(model, inference=[Quantize(4)], posthoc=[fitted(model, X)["ts"]])
    parity = export_onnx(module, tmp_path / "small.onnx", SHAPE, images=X)
    assert parity.images == 250
    assert parity.probability <= 1e-5
    assert parity.logit <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    written = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(written)
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [OPSET]
    dims = [dim.dim_param or dim.dim_value for dim in written.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 1, 8, 8]
    for rows in (1, 2, 3, 250):
        torch.testing.assert_close(served(tmp_path / "small.onnx", X[:rows]), module(X[:rows]).detach())


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_the_module_and_the_generators_are_left_as_they_were(write: Callable[..., Parity], tmp_path: Path) -> None:
    model = tiny()
    model[1].train()
    with untouched_generators():
        write(stack(model, CompressionScaling()), tmp_path / "x", SHAPE)
    assert [part.training for part in model.modules()] == [False, False, True]
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


def test_float64_and_another_opset(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    parity = export_onnx(tiny().double(), tmp_path / "x.onnx", SHAPE, opset=20, images=X)
    assert parity.probability <= 1e-12
    assert [entry.version for entry in onnx.load(tmp_path / "x.onnx").opset_import if entry.domain == ""] == [20]


# --- a file that answers differently ---


class Twofold(nn.Module):
    """Answers something else, or is of another shape, while it is being exported."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = tiny(), change

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return self.change(z) if torch.compiler.is_compiling() else z


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a probability": lambda z: z * 1.0005,
    "all alike, which no probability shows": lambda z: z + 0.05,
    "NaN": lambda z: z * float("nan"),
    "another class count": lambda z: z[:, :3],
}


@pytest.mark.parametrize("write", [export_onnx, export_torch])
@pytest.mark.parametrize("what", CHANGES)
def test_no_parity_no_file(what: str, write: Callable[..., Parity], tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("the file before")
    with pytest.raises(PoiseError, match=rf"^{write.__name__}: the file must answer .*got .*$") as caught:
        write(Twofold(CHANGES[what]), path, SHAPE, images=X)
    assert "\n" not in str(caught.value)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model", "the file before")]


def test_a_change_below_the_tolerance_passes_and_is_reported(tmp_path: Path) -> None:
    exact = export_torch(Twofold(lambda z: z), tmp_path / "x", SHAPE, images=X)
    assert (exact.probability, exact.logit) == (0, 0)
    near = export_torch(Twofold(lambda z: z * 1.000005), tmp_path / "x", SHAPE, images=X)
    assert 1e-8 < near.probability <= 1e-5
    assert near.logit == pytest.approx(5e-6, rel=0.2)
    loose = export_torch(Twofold(lambda z: z * 1.0005), tmp_path / "x", SHAPE, images=X, tolerance=1e-3)
    assert loose.logit == pytest.approx(5e-4, rel=0.01)


class TwoWays(nn.Module):
    """The logits of a model as they are, or rounded otherwise while it is exported: by 2e-7 of their size."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        return z * (1 + 2e-7 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])) if torch.compiler.is_compiling() else z


def test_a_near_tie_that_a_defence_sharpens_passes_and_a_wrong_tail_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a gap of 1e-3 compression multiplies a rounding by 1000 and more, in logits that carry no probability."""
    images = 8 * torch.rand(50, 1, 1, 5, generator=generator(6))
    images[0] = torch.tensor([7.0, 7.0 + 1e-3, 1.0, 2.0, 0.0])
    sharp = export_torch(stack(TwoWays(), CompressionScaling()), tmp_path / "x", (1, 1, 5), images=images)
    assert sharp.probability <= 1e-5
    assert sharp.logit > 1e-4, "the row is not amplified: the case shows nothing"
    with monkeypatch.context() as without:
        without.setattr(export, "_ROUNDING_SLACK", 0)
        with pytest.raises(PoiseError, match=r"^export_torch: the file must answer as PyTorch does"):
            export_torch(stack(TwoWays(), CompressionScaling()), tmp_path / "x", (1, 1, 5), images=images)
    tail = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.01])
    wrong = Twofold(lambda z: z)
    wrong.model, wrong.change = nn.Flatten(), lambda z: torch.where(z < -20, z * tail, z)
    images[:, :, :, 4] = -30
    with pytest.raises(
        PoiseError, match=r"^export_torch: the file must answer as PyTorch does, .* got .*e-1\d and 0.01 on"
    ):
        export_torch(wrong, tmp_path / "x", (1, 1, 5), images=images)


def test_only_the_first_image_alone_differs(tmp_path: Path) -> None:
    """A file that is right in batches and wrong for one image is not written."""
    lonely = Twofold(lambda z: z + torch.where(torch.tensor(z.shape[0]) == 1, 1.0, 0.0))
    with pytest.raises(PoiseError, match=r"^export_torch: the file must answer as PyTorch does"):
        export_torch(lonely, tmp_path / "x", SHAPE, images=X)


# --- what cannot be exported ---


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_answers_that_no_file_repeats(write: Callable[..., Parity], tmp_path: Path) -> None:
    noise, dent = defended(tiny(), inference=[RandomNoise()]), Dent().around(SmallCNN())
    for module, name in ((noise, "RandomNoise"), (dent, "Dent")):
        with pytest.raises(InputError, match=rf"every part must be exportable, got {name}, whose"):
            write(module, tmp_path / "x", SHAPE)
    with pytest.raises(InputError, match=r"must answer the same images alike to be compared"):
        write(Fixed(lambda x: torch.rand_like(x).flatten(1)), tmp_path / "x", SHAPE)
    write(defended(tiny(), inference=[RandomNoise(0)]), tmp_path / "still", SHAPE)
    with pytest.raises(NotFittedError):
        write(stack(tiny(), TemperatureScaling()), tmp_path / "x", SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["still"]


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_torch_cannot_trace_it(write: Callable[..., Parity], tmp_path: Path) -> None:
    branches = nn.Sequential(Fixed(lambda x: x if float(x.sum()) > 0 else -x), tiny())
    with pytest.raises(PoiseError, match=rf"^{write.__name__}: torch cannot export the module \(.+\)$") as caught:
        write(branches, tmp_path / "x", SHAPE)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"^export_onnx needs the extra 'onnx': pip install 'poise\[onnx\]'$"):
        export_onnx(tiny(), tmp_path / "x.onnx", SHAPE)
    export_torch(tiny(), tmp_path / "x.pt2", SHAPE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "nowhere/x.onnx"}, r"the folder of '.*nowhere/x.onnx' must exist"),
        ({"path": ""}, r"'.*' must be a file's name, got a folder"),
        ({"shape": (8, 8)}, r"shape must be \(C, H, W\), three integers >= 1, got \(8, 8\)"),
        ({"shape": (1, 8, 0)}, r"shape must be \(C, H, W\), three integers >= 1, got \(1, 8, 0\)"),
        ({"images": X[:0]}, r"images must have shape \(n, 1, 8, 8\) with n >= 1, got \(0, 1, 8, 8\)"),
        ({"images": X[:, :, 1:]}, r"images must have shape \(n, 1, 8, 8\) with n >= 1, got \(250, 1, 7, 8\)"),
        ({"images": (X * 255).byte()}, r"images must be a tensor of floating-point numbers, got torch.uint8"),
        ({"tolerance": 0.0}, r"tolerance must be positive and finite, got 0.0"),
        ({"tolerance": float("nan")}, r"tolerance must be positive and finite, got nan"),
        ({"module": nn.Conv2d(1, 1, 3)}, r"the module must return \(n, K\) logits, got \(100, 1, 6, 6\)"),
        ({"module": tiny().bfloat16()}, r"parameters must be float16, float32 or float64, got torch.bfloat16"),
    ],
)
def test_bad_input(given: dict[str, object], message: str, tmp_path: Path) -> None:
    arguments = {"module": tiny(), "path": "x", "shape": SHAPE, "images": X} | given
    module, path, shape = arguments.pop("module"), tmp_path / str(arguments.pop("path")), arguments.pop("shape")
    for write in (export_onnx, export_torch):
        with pytest.raises(InputError, match=rf"^{write.__name__}: {message}$"):
            write(module, path, shape, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [17, 24, 18.0, True])
def test_bad_opset(opset: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^export_onnx: opset must be an integer in \[18, 23\], got {opset}$"):
        export_onnx(tiny(), tmp_path / "x", SHAPE, opset=opset)  # type: ignore[arg-type]


def test_importing_export_needs_no_extra() -> None:
    assert not {"onnx", "onnxruntime", "onnxscript"} & set(vars(export))
