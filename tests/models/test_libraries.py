"""torchvision and timm: importing, weights files, downloads that fail."""

import subprocess
import sys
import textwrap
from urllib.error import URLError

import pytest
import torch

from poise.data.vision import import_torchvision
from poise.errors import InputError, MissingExtraError
from poise.models import libraries, load

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(code: str) -> str:
    """The output of a fresh interpreter: what is imported here must not matter."""
    script = "import warnings; warnings.simplefilter('error')\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_torchvision() -> None:
    """Only when it is needed; after an import that failed; twice; then timm's own import of it works."""
    code = """
    import sys, poise.models, poise.data
    poise.models.names(), poise.data.names(), poise.data.load("builtin:digits")
    early = [name for name in ("torchvision", "timm", "PIL") if name in sys.modules]
    try:
        import torchvision
    except RuntimeError:
        pass
    from poise.data.vision import import_torchvision
    first = import_torchvision("models", feature="x")
    assert import_torchvision("models", feature="x") is first
    import torchvision
    import timm
    print(early, len(first.list_models(module=first)) > 50)
    """
    assert run(code) == "[] True"


def test_a_declared_operator_is_not_implemented() -> None:
    ops = import_torchvision("ops", feature="test")
    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0.5])
    extension = import_torchvision("extension", feature="test")
    if extension._has_ops():
        assert ops.nms(boxes, scores, 0.5).tolist() == [0]
    else:
        with pytest.raises(RuntimeError, match="Couldn't load custom C"):
            ops.nms(boxes, scores, 0.5)
        with pytest.raises(NotImplementedError):
            torch.ops.torchvision.nms(boxes, scores, 0.5)


def test_missing_extras_are_named(monkeypatch, tmp_path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    monkeypatch.setattr("poise.data.vision.find_spec", lambda name: None)
    for scheme in ("torchvision", "timm"):
        with pytest.raises(MissingExtraError, match=r"pip install 'poise\[vision\]'"):
            load(f"{scheme}:resnet18?weights={tmp_path / 'w.pt'}")


def make(library: str, classes: int) -> torch.nn.Module:
    if library == "torchvision":
        return import_torchvision("models", feature="test").resnet18(num_classes=classes)
    return libraries.import_timm("test").create_model("resnet18", num_classes=classes)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_weights_from_a_file(library: str, tmp_path) -> None:
    module = make(library, 3).eval()
    path = tmp_path / "w.pth"
    torch.save({"state_dict": module.state_dict()}, path)
    before, notes = torch.random.get_rng_state(), []
    target = load(f"{library}:resnet18?weights={path}&num_classes=3", on_note=notes.append)
    assert torch.equal(before, torch.random.get_rng_state())
    assert notes == [
        f"{library}:resnet18 is given images normalised by mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225]; "
        "mean= and std= change it"
    ]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = module((X - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        raw = module(X)
    torch.testing.assert_close(target.query(X, torch.arange(2)).scores, wanted)
    assert not torch.allclose(wanted, raw)  # the broken twin: without the normalisation
    plain = load(f"{library}:resnet18?weights={path}&num_classes=3&mean=0,0,0&std=1,1,1", on_note=notes.append)
    torch.testing.assert_close(plain.query(X, torch.arange(2)).scores, raw)
    assert len(notes) == 1
    with pytest.raises(
        InputError, match=r"fc.weight must be \(1000, 512\), got \(3, 512\) \(another number of classes"
    ):
        load(f"{library}:resnet18?weights={path}")
    with pytest.raises(InputError, match=f"do not fit {library}:resnet34: missing 'layer1.2.conv1.weight' and"):
        load(f"{library}:resnet34?weights={path}&num_classes=3")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_refused_in_one_line(library: str, tmp_path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"x")
    for query, message in [
        ("resnet18", "needs weights=FILE"),
        (f"resnet18?weights={weights}&pretrained=true", "needs weights=FILE .*, or pretrained=true"),
        ("resnet18?pretrained=true&num_classes=3", "num_classes must not be given with pretrained=true"),
        (f"resnet18?weights={tmp_path / 'no.pt'}", "weights must be an existing file"),
        (f"resnet18?weights={weights}", "must be tensors saved by torch.save"),
        (f"resnt18?weights={weights}", r"got 'resnt18' \(did you mean resnet18"),
        (f"zzzzzzzz?weights={weights}", r"got 'zzzzzzzz' \(see its list_models"),
        (f"resnet18?weights={weights}&num_classes=1", "num_classes must be a whole number, at least 2, got '1'"),
        (f"resnet18?weigths={weights}", r"did you mean weights"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(f"{library}:{query}")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_an_unknown_tag(tmp_path) -> None:
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"timm:resnet18\.nonsense: timm cannot make this model: .*nonsense"):
        load(f"timm:resnet18.nonsense?weights={tmp_path / 'w.pt'}")


def test_torchvision_download_that_fails(monkeypatch, tmp_path) -> None:
    def offline(*args, **kwargs):
        raise URLError("no route\nto host")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"resnet18: the pretrained weights could not be downloaded, give weights=FILE"
    ):
        load("torchvision:resnet18?pretrained=true")


def test_timm_download_that_fails(monkeypatch, tmp_path) -> None:
    libraries.import_timm("test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"resnet18: the pretrained weights could not be downloaded, give weights=FILE"
    ) as caught:
        load("timm:resnet18?pretrained=true")
    assert "\n" not in str(caught.value)


def test_downloads_that_succeed(monkeypatch) -> None:
    """The library's own loading code, with the transfer itself replaced."""
    states = {library: make(library, 1000).state_dict() for library in ("torchvision", "timm")}
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: states["torchvision"]
    )
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: states["timm"])
    for library, state in states.items():
        target = load(f"{library}:resnet18?pretrained=true")
        assert target.num_classes == 1000
        assert torch.equal(target.module[1].fc.bias, state["fc.bias"])
        assert target.module[0].mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
