"""Saving, loading and naming defences."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import poise.defenses.io as defense_io
from poise.checks.defenses import draw
from poise.defenses import (
    DEFENSES,
    CompressionScaling,
    Identity,
    PostHoc,
    TemperatureScaling,
    load,
    make,
    provenance,
    save,
)
from poise.errors import InputError, NotFittedError

LOGITS, LABELS = draw(200, 10)


class Shift(PostHoc):
    """A third party's defence with a buffer whose size is learned."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("means", torch.zeros(0))

    def _fit(self, logits, labels):
        self.means = logits.mean(dim=0)

    def _map(self, logits):
        return logits - self.strength * self.means


@pytest.fixture
def fitted():
    return TemperatureScaling(max_temperature=50.0).fit(LOGITS, LABELS)


@pytest.fixture
def file(tmp_path, fitted):
    save(fitted, tmp_path / "ts.safetensors")
    return tmp_path / "ts.safetensors"


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defence_survives_a_round_trip(name, tmp_path):
    defense = make(name).fit(LOGITS, LABELS)
    save(defense, str(tmp_path / "d.safetensors"))
    loaded = load(str(tmp_path / "d.safetensors"))
    assert type(loaded) is type(defense)
    assert loaded.hyperparameters() == defense.hyperparameters()
    assert loaded.state_dict().keys() == defense.state_dict().keys()
    for key, value in defense.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert torch.equal(loaded(LOGITS), defense(LOGITS))
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_hyperparameters_come_back(tmp_path):
    for defense in (CompressionScaling(4, input_range="simplex"), CompressionScaling(mode="released")):
        save(defense, tmp_path / "d.safetensors")
        assert repr(load(tmp_path / "d.safetensors")) == repr(defense)


def test_metadata_say_where_the_numbers_come_from(file):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["name"] == "TemperatureScaling"
    assert json.loads(metadata["hyperparameters"]) == {"min_temperature": 1e-3, "max_temperature": 50.0}
    assert metadata["fit_samples"] == "200"
    assert re.fullmatch(r"\d+\.\d+.*", metadata["poise_version"])


def test_own_classes_are_loaded_when_named(tmp_path):
    defense = Shift(0.5).fit(LOGITS, LABELS)
    save(defense, tmp_path / "d.safetensors")
    assert torch.equal(load(tmp_path / "d.safetensors", classes=(Shift,))(LOGITS), defense(LOGITS))
    with pytest.raises(InputError, match=r"holds a 'Shift', known are AAA, CompressionScaling, .*TemperatureScaling"):
        load(tmp_path / "d.safetensors")


def test_an_unfitted_defence_is_not_written(tmp_path):
    with pytest.raises(NotFittedError):
        save(TemperatureScaling(), tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_saving_into_a_missing_folder(tmp_path, fitted):
    with pytest.raises(InputError, match=r"the folder of .* must exist"):
        save(fitted, tmp_path / "no" / "d.safetensors")


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    before = file.read_bytes()

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(defense_io, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save(Identity(), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def rewrite(file, **changes):
    """The same file with other metadata, and a checksum that fits, as a newer version might write it."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | changes
    tensors = load_file(file)
    metadata["sha256"] = defense_io._digest(metadata, tensors)
    save_file(tensors, file, metadata)


def refused(file, message):
    with pytest.raises(InputError, match=message) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    refused(tmp_path / "no.safetensors", "must be a file, got nothing there")
    refused(tmp_path, "must be a file, got a folder")
    path = tmp_path / "x.safetensors"
    for content in (b"", b"{}", b"\x00" * 64, b"\x80\x04K\x01.", b"\xff" * 1000):
        path.write_bytes(content)
        refused(path, "must be a safetensors file, got a damaged or foreign one")
    save_file({"weight": torch.zeros(3)}, path)
    refused(path, "must be a defence saved by poise .*, got another safetensors file")
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    refused(path, "must be a defence saved by poise .*, got format 'pt'")


def test_damaged_files_are_refused(file):
    whole = file.read_bytes()
    for cut in (5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        refused(file, "damaged")
    for place in range(len(whole) - 18, len(whole)):  # the buffers: any flipped bit is seen
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refused(file, "damaged|safetensors")
    file.write_bytes(whole.replace(b"50.0", b"51.0"))
    refused(file, "does not match its checksum")
    file.write_bytes(whole)
    assert bool(load(file).fitted)


@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparameters": "{"},
        {"hyperparameters": "[1]"},
        {"hyperparameters": '{"maximum": 3}'},
        {"hyperparameters": '{"min_temperature": -1}'},
        {"name": "Identity", "hyperparameters": "{}"},
    ],
)
def test_files_that_contradict_this_version_are_refused(file, changes):
    rewrite(file)
    assert bool(load(file).fitted)
    rewrite(file, **changes)
    refused(file, "does not fit this version's")


def test_names_make_defences_and_unknown_names_get_the_nearest():
    assert {"none", "ts", "cs"} <= set(DEFENSES)
    for name, (factory, summary) in DEFENSES.items():
        assert type(make(name)) is type(factory())
        assert summary
        assert "\n" not in summary
    assert make("ts") is not make("ts")
    with pytest.raises(
        InputError, match=r"defense: .* got 'nonee' \(did you mean none\? known: .*cs, .*none, .*ts, .*\)"
    ):
        make("nonee")


def test_provenance_is_part_of_the_file_and_of_its_checksum(tmp_path, fitted):
    path = tmp_path / "ts.safetensors"
    save(fitted, path)
    assert provenance(path) == {}
    save(fitted, path, {"model": "mine", "n": 3, "figures": {"ece": [0.1, 0.2]}})
    assert provenance(path) == {"model": "mine", "n": 3, "figures": {"ece": [0.1, 0.2]}}
    assert torch.equal(load(path).temperature, fitted.temperature)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(path), path, {**metadata, "provenance": '{"model": "another"}'})
    with pytest.raises(InputError, match="does not match its checksum"):
        provenance(path)
    with pytest.raises(InputError, match="must be a file"):
        provenance(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="JSON"):  # a figure that is not finite must be told as None
        save(fitted, path, {"ece": float("nan")})
