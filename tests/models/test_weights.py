"""Weights files: every form that is accepted, every form that is refused, and that no code runs."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from poise.errors import InputError
from poise.models import fingerprint, load, load_weights, read_state
from poise.models.small import CnnA, LeNet5
from poise.targets import ModuleTarget


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th", ".PTH"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_forms(tmp_path, suffix: str, prefix: str) -> None:
    source, path = tiny(), tmp_path / f"w{suffix}"
    state = {prefix + key: value for key, value in source.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    module = tiny()
    assert not equal(source, module)  # the broken twin: not loaded
    load_weights(module, path, name="tiny")
    assert equal(source, module)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints(tmp_path, wrapper: str, zipped: bool) -> None:
    source, path = tiny(), tmp_path / "w.th"
    content = {wrapper: source.state_dict(), "epoch": 3, "best": 0.9}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    module = tiny()
    load_weights(module, path, name="tiny")
    assert equal(source, module)


def test_counters_of_batch_norm_may_be_missing_and_halves_are_widened(tmp_path) -> None:
    source = tiny().half()
    state = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pt")
    module = tiny()
    load_weights(module, tmp_path / "w.pt", name="tiny")
    assert torch.equal(module[0].weight, source[0].weight.float())
    assert module[0].weight.dtype is torch.float32


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_weights(tiny(), path, name="builtin:tiny")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_files_that_are_not_weights(tmp_path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    save_file(tiny().state_dict(), tmp_path / "w.safetensors")
    refused(tmp_path / "no.pt", "weights: must be an existing file, got '.*no.pt'")
    refused(tmp_path, "must be a file that ends in .safetensors, .pt, .pth, .th")
    refused(tmp_path / "w.bin", "must be a file that ends in .safetensors, .pt, .pth, .th")
    for name in ("w.pt", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for i, content in enumerate((b"", b"no weights", whole[: len(whole) // 2], whole[:-1], b"\xff" * 400)):
            path = tmp_path / f"{i}{name}"
            path.write_bytes(content)
            kind = (
                "a safetensors file" if name.endswith("s") else r"tensors saved by torch.save \(module.state_dict\(\)\)"
            )
            refused(path, f"weights: '{re.escape(str(path))}' must be {kind}: ")
    (tmp_path / "w.th").write_bytes((tmp_path / "w.safetensors").read_bytes())
    refused(tmp_path / "w.th", "must be tensors saved by torch.save")


def test_a_flipped_bit_is_seen(tmp_path) -> None:
    source = tiny()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    whole, needle = bytearray((tmp_path / "w.pt").read_bytes()), source[3].weight.detach().numpy().tobytes()
    whole[whole.index(needle) + 1] ^= 1
    (tmp_path / "w.pt").write_bytes(whole)
    refused(tmp_path / "w.pt", r"it is damaged: the checksum of 'w/data/\d+' differs")
    torch.load(tmp_path / "w.pt", weights_only=True)  # the broken twin: torch alone does not mind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "must hold named tensors, got list"),
        (torch.zeros(1), "must hold named tensors, got Tensor"),
        ({}, "must hold named tensors, got none"),
        ({"a": torch.zeros(1), "b": 3}, "must hold named tensors, got 'b': int"),
        ({1: torch.zeros(1)}, "must hold named tensors, got 1: Tensor"),
        (None, "must hold named tensors, got NoneType"),
    ],
)
def test_contents_that_are_not_weights(tmp_path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", message)


class Trap:
    """A pickle that touches a file when it is opened carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["pickle", "legacy", "zip", "inside"])
def test_code_in_a_pickle_never_runs(tmp_path, form: str) -> None:
    marker, path = tmp_path / "touched", tmp_path / "w.pth"
    trap = Trap(marker)
    if form == "pickle":
        path.write_bytes(pickle.dumps(trap))
    else:
        content = {"state_dict": tiny().state_dict(), "extra": trap} if form == "inside" else trap
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    refused(path, "must be tensors saved by torch.save")
    with pytest.raises(InputError, match="weights: "):
        load(f"builtin:lenet5-mnist?weights={path}")
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()  # the broken twin: opened carelessly, the trap does work


def test_a_whole_module_is_refused_and_named(tmp_path) -> None:
    torch.save(LeNet5(10), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"it also holds the Python object poise.models.small.LeNet5, which is never loaded")


def changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = dict(tiny().state_dict())
    for key, value in changes.items():
        if value is None:
            del state[key.replace("_", ".", 1)]
        else:
            state[key.replace("_", ".", 1)] = value
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(**{"3_weight": None}), "do not fit builtin:tiny: missing '3.weight'$"),
        (changed(**{"3_weight": None, "3_bias": None}), "missing '3.weight' and 1 more$"),
        (changed(fc_weight=torch.zeros(1)), "do not fit builtin:tiny: unexpected 'fc.weight'$"),
        (changed(**{"3_bias": None, "fc_bias": torch.zeros(1)}), "missing '3.bias', unexpected 'fc.bias'$"),
        (changed(**{"0_weight": torch.zeros(2, 1, 5, 5)}), r"0.weight must be \(2, 1, 3, 3\), got \(2, 1, 5, 5\)$"),
        (
            changed(**{"3_weight": torch.zeros(4, 8)}),
            r"3.weight must be \(3, 8\), got \(4, 8\) \(another number of cla",
        ),
        (changed(**{"3_bias": torch.zeros(3, dtype=torch.int8)}), "3.bias must be torch.float32, got torch.int8"),
        (changed(**{"3_bias": torch.full((3,), torch.nan)}), "must be finite, got NaN or infinite values in 3.bias"),
        (changed(**{"1_running_var": torch.full((2,), torch.inf)}), "NaN or infinite values in 1.running_var"),
    ],
)
def test_weights_of_another_model(tmp_path, state: dict[str, torch.Tensor], message: str) -> None:
    torch.save(state, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", message)


def test_fingerprint() -> None:
    module = CnnA(10)
    whole = fingerprint(module)
    assert whole == fingerprint(ModuleTarget(module, num_classes=10))
    assert whole == fingerprint(ModuleTarget(module, num_classes=10, mean=[0.5] * 3, std=[0.5] * 3))
    assert re.fullmatch("sha256:[0-9a-f]{64}", whole)
    assert fingerprint(CnnA(10)) != whole
    with torch.no_grad():
        module[0].bias[0] = torch.nextafter(module[0].bias[0], torch.tensor(1.0))  # one bit
    assert fingerprint(module) != whole
    assert fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(2, 3, bias=False))
    double = nn.Linear(1, 2).double()
    assert fingerprint(double) != fingerprint(double.float())
    renamed = nn.ModuleDict({"a": nn.Linear(1, 1)}), nn.ModuleDict({"b": nn.Linear(1, 1)})
    renamed[1]["b"].load_state_dict(renamed[0]["a"].state_dict())
    assert fingerprint(renamed[0]) != fingerprint(renamed[1])
    assert fingerprint(nn.BatchNorm2d(2).bfloat16()).startswith("sha256:")
    with pytest.raises(InputError, match=r"must be an nn\.Module or a target made of one, got str"):
        fingerprint("model")


def test_reading_leaves_the_state_alone(tmp_path) -> None:
    torch.save({"module.a": torch.ones(2)}, tmp_path / "w.pt")
    assert list(read_state(tmp_path / "w.pt")) == ["a"]
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "w.pt")
    assert list(read_state(tmp_path / "w.pt")) == ["module.a", "b"]  # not a prefix of all names: left alone
