"""The embedded model: trained once, the same everywhere, cached, repaired."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from poise.data import load as load_data
from poise.errors import InputError
from poise.models import digits, fingerprint, load
from poise.models.digits import Recipe, cache_folder, digits_model

QUICK = Recipe(epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[str]]:
    """A cache folder in which `builtin:digits` was trained once, and what was noted."""
    folder, notes = tmp_path_factory.mktemp("cache"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        before = torch.random.get_rng_state()
        load("builtin:digits", on_note=notes.append)
        assert torch.equal(before, torch.random.get_rng_state())
    return folder, notes


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "poise"


def test_accuracy_is_that_of_the_note(trained, monkeypatch) -> None:
    folder, notes = trained
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    again: list[str] = []
    target = load("builtin:digits", on_note=again.append)
    assert again == []  # from the cache
    data = load_data("builtin:digits")
    right = (target.query(data.images, data.ids).labels == data.labels).double().mean().item()
    assert right >= 0.97
    assert len(notes) == 1
    assert notes[0].startswith("builtin:digits trained in ")
    assert notes[0].endswith(f" s, test accuracy {100 * right:.1f} %")
    assert target.bounds == (0.0, 1.0)
    assert target.num_classes == 10
    assert not target.module.training
    assert load("builtin:digits").query(data.images, data.ids).scores.equal(target.query(data.images, data.ids).scores)


def test_one_file_is_left_in_the_cache(trained) -> None:
    folder, _ = trained
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [f"digits-{Recipe().key()}.safetensors"]


def test_training_does_not_depend_on_threads_or_on_the_random_state(cache) -> None:
    threads = torch.get_num_threads()
    prints = []
    for count, seed in ((1, 1), (2, 2)):
        torch.manual_seed(seed)
        torch.set_num_threads(count)
        before = torch.random.get_rng_state()
        try:
            module = digits_model(lambda line: None, QUICK)
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(before, torch.random.get_rng_state())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())
        prints.append(fingerprint(module))
        next(cache.iterdir()).unlink()
    assert prints[0] == prints[1]
    other = digits_model(lambda line: None, Recipe(epochs=1, seed=1))  # the broken twin: another seed is seen
    assert fingerprint(other) != prints[0]


def test_the_key_follows_the_recipe() -> None:
    recipes = [Recipe(), Recipe(epochs=31), Recipe(seed=1), Recipe(learning_rate=1e-3), Recipe(version=2)]
    assert len({recipe.key() for recipe in recipes}) == len(recipes)
    assert Recipe().key() == Recipe().key()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def rewrite(file: Path) -> None:
    """Sound weights that are not those that were trained, without the fingerprint."""
    save_file({key: value * 2 for key, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-7]),
        lambda file: save_file({"a": torch.zeros(1)}, file),
        flip,
        rewrite,
    ],
)
def test_a_damaged_file_is_trained_anew(cache, damage) -> None:
    notes: list[str] = []
    first = fingerprint(digits_model(notes.append, QUICK))
    (file,) = cache.iterdir()
    assert fingerprint(digits_model(notes.append, QUICK)) == first
    assert len(notes) == 1  # the broken twin: an undamaged file is read
    damage(file)
    assert fingerprint(digits_model(notes.append, QUICK)) == first
    assert len(notes) == 2
    assert list(cache.iterdir()) == [file]
    assert fingerprint(digits_model(notes.append, QUICK)) == first
    assert len(notes) == 2


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "poise").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    notes: list[str] = []
    digits_model(notes.append, QUICK)
    assert notes[1].startswith("builtin:digits cannot be kept for the next time: ")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    notes.clear()
    digits_model(notes.append, QUICK)
    assert notes[1] == "builtin:digits cannot be kept for the next time: no home folder"


def test_a_failed_write_leaves_nothing(cache, monkeypatch) -> None:
    def fail(*args, **kwargs) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(digits, "save_file", fail)
    notes: list[str] = []
    digits_model(notes.append, QUICK)
    assert notes[1] == "builtin:digits cannot be kept for the next time: disk full"
    assert list(cache.iterdir()) == []


def test_cache_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "poise"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: to be ignored
    assert cache_folder() == Path.home() / ".cache" / "poise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "poise"


def test_other_weights_and_classes(trained, tmp_path, monkeypatch) -> None:
    folder, _ = trained
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    (file,) = (folder / "poise").iterdir()
    state = load_file(file)
    save_file(
        {**state, "7.weight": state["7.weight"][:3].clone(), "7.bias": state["7.bias"][:3].clone()},
        tmp_path / "w.safetensors",
    )
    assert load(f"builtin:digits?weights={tmp_path / 'w.safetensors'}&num_classes=3").num_classes == 3
    with pytest.raises(InputError, match="num_classes must be 10 unless weights=FILE is given, got 3"):
        load("builtin:digits?num_classes=3")
