"""Bad input: one line on the error stream, exit code 2, nothing lost, nothing half-written."""

from __future__ import annotations

import io
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import MODEL, data, fast, finished, poise
from safetensors.torch import save_file

from poise import recipes
from poise.cli.listing import KINDS
from poise.models.small import LeNet5


@dataclass(frozen=True)
class Place:
    """What a case of bad input is made from."""

    tmp: Path
    model: str
    data: str

    def toy(self, factory: str, query: str = "?num_classes=4") -> list[str]:
        return ["--model", self.model.split(":linear")[0] + f":{factory}{query}"]

    def npz(self, images: np.ndarray, labels: np.ndarray) -> list[str]:
        np.savez(self.tmp / "given.npz", images=images, labels=labels)
        return ["--data", f"npz:{self.tmp / 'given.npz'}"]

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.tmp / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def weights(self, name: str, content: bytes) -> list[str]:
        return ["--model", f"builtin:lenet5-mnist?weights={self.write(name, content)}"]


class _Code:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def _old_pickle(place: Place) -> list[str]:
    return place.weights("old.pth", pickle.dumps(_Code(place.tmp / "ran")))


def _torch_file_with_code(place: Place) -> list[str]:
    torch.save({"weight": _Code(place.tmp / "ran")}, place.tmp / "new.pth")
    return ["--model", f"builtin:lenet5-mnist?weights={place.tmp / 'new.pth'}"]


def _cut_weights(place: Place) -> list[str]:
    save_file(LeNet5(10).state_dict(), place.tmp / "whole.safetensors")
    whole = (place.tmp / "whole.safetensors").read_bytes()
    return place.weights("cut.safetensors", whole[: len(whole) // 2])


def _flipped_bits(place: Place) -> list[str]:
    torch.save(LeNet5(10).state_dict(), place.tmp / "whole.pth")
    whole = bytearray((place.tmp / "whole.pth").read_bytes())
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    whole[largest.header_offset + largest.file_size // 2] ^= 255
    return place.weights("flipped.pth", bytes(whole))


def _pixels(n: int = 30) -> np.ndarray:
    return np.zeros((n, 6, 6), dtype=np.uint8)


Case = Callable[[Place], list[str]]

MODELS: dict[str, tuple[Case, str]] = {
    "probabilities as logits": (lambda p: p.toy("probabilities"), "declared to return logits, .*are probabilities"),
    "logits as probabilities": (
        lambda p: p.toy("linear", "?num_classes=4&outputs=probabilities"), "declared to return probabilities, .*are not"
    ),
    "other number of classes": (lambda p: p.toy("linear", "?num_classes=5"), r"must answer \(2, 5\) scores .*\(2, 4\)"),
    "NaN in a later batch": (lambda p: p.toy("nan"), "scores must be finite, got 4 NaN or infinite values"),
    "infinite": (lambda p: p.toy("infinite"), "scores must be finite"),
    "raises": (lambda p: p.toy("fails"), r"must accept images of shape 1×6×6 as in 'npz:.*KeyError: 'a key\\nthat"),
    "no gradients": (
        lambda p: [*p.toy("through_numpy"), "--recipes", "pgd"], "must give gradients for images of shape 1×6×6"
    ),
    "scores only": (
        lambda p: [*p.toy("scores_only", ""), "--recipes", "sa-uca,pgd"],
        "recipes: pgd needs access 'gradients', the model gives 'scores'",
    ),
    "factory raises": (lambda p: p.toy("factory_fails"), r"factory_fails\(\) raised ZeroDivisionError: no model today"),
    "no such factory": (lambda p: p.toy("lineal"), r"factory: must be .*got 'lineal' \(did you mean linear"),
    "syntax error": (
        lambda p: ["--model", f"py:{p.write('bad.py', 'def (')}:make?num_classes=4"], "SyntaxError"
    ),
    "file raises": (
        lambda p: ["--model", f"py:{p.write('bad.py', 'raise OSError(5)')}:make?num_classes=4"], "OSError"
    ),
    "no such file": (lambda p: ["--model", f"py:{p.tmp / 'none.py'}:make?num_classes=4"], "must be an existing file"),
    "images refused": (lambda p: p.toy("needs_large"), "must accept images of shape 1×6×6"),
    "missing weights": (
        lambda p: ["--model", f"builtin:lenet5-mnist?weights={p.tmp / 'none.pth'}"], "must be an existing file, got"
    ),
    "no weights": (lambda p: ["--model", "builtin:lenet5-mnist"], "needs weights=FILE"),
    "empty weights": (lambda p: p.weights("empty.safetensors", b""), "must be a safetensors file"),
    "cut weights": (_cut_weights, "must be a safetensors file"),
    "flipped bits": (_flipped_bits, "damaged: the checksum"),
    "text as weights": (lambda p: p.weights("text.pth", b"not weights"), "must be tensors saved by torch.save"),
    "old pickle": (_old_pickle, "Python object|must be tensors saved by torch.save"),
    "torch file with code": (_torch_file_with_code, "Python object .*never loaded"),
    "weights of another model": (
        lambda p: ["--model", f"builtin:lenet5-mnist?weights={_saved(p)}"], "do not fit builtin:lenet5-mnist"
    ),
    "unknown builtin": (
        lambda p: ["--model", "builtin:resnet20-cifar"], r"got 'resnet20-cifar' \(did you mean resnet20-cifar10"
    ),
    "unknown scheme": (lambda p: ["--model", "keras:x"], "keras"),
    "no scheme": (lambda p: ["--model", "resnet"], "resnet"),
    "unknown device": (lambda p: ["--device", "gpu"], "device: must be one that this machine .*got 'gpu'"),
    "no such GPU": (lambda p: ["--device", "cuda:99"], "device: must be one that this machine .*got 'cuda:99'"),
}  # fmt: skip


def _saved(place: Place) -> Path:
    save_file({"weight": torch.zeros(3)}, place.tmp / "other.safetensors")
    return place.tmp / "other.safetensors"


DATA: dict[str, tuple[Case, str]] = {
    "normalised images": (
        lambda p: p.npz(np.random.default_rng(0).normal(size=(9, 6, 6)).astype("f4"), np.zeros(9, int)),
        r"images must lie in \[0, 1\], got -.*normalised images outside \[0, 1\] are refused",
    ),
    "floats of 0..255": (lambda p: p.npz(_pixels(9) + 200.0, np.zeros(9, int)), r"must lie in \[0, 1\].*divide by 255"),
    "NaN in images": (lambda p: p.npz(_pixels(9) * np.nan, np.zeros(9, int)), "images must be finite"),
    "labels too high": (
        lambda p: p.npz(_pixels(), np.arange(30) % 5), "labels must be below the model's 4 classes, got 4"
    ),
    "labels too low": (lambda p: p.npz(_pixels(), np.arange(30) % 4 - 1), "labels must be at least 0, got -1"),
    "labels as floats": (lambda p: p.npz(_pixels(), np.arange(30) / 2), "labels must be .* whole numbers"),
    "fewer labels": (lambda p: p.npz(_pixels(), np.zeros(3, int)), "one label per image, got 30 images and 3 labels"),
    "no images": (lambda p: p.npz(_pixels(0), np.zeros(0, int)), "at least one image"),
    "shape": (lambda p: p.npz(np.zeros((5, 9), np.uint8), np.zeros(5, int)), r"images must have shape .*got \(5, 9\)"),
    "no such file": (lambda p: ["--data", f"npz:{p.tmp / 'none.npz'}"], "must be an existing file"),
    "not an archive": (lambda p: ["--data", f"npz:{p.write('x.npz', 'text')}"], r"readable \.npz archive"),
    "empty folder": (lambda p: ["--data", f"folder:{p.tmp}"], "folder:"),
    "unknown scheme": (lambda p: ["--data", "csv:x"], "csv"),
    "more samples than images": (lambda p: ["--samples", "41"], "samples: must be at most the 40 images .*got 41"),
    "too few held out": (
        lambda p: ["--samples", "30", "--defenses", "ts"], "at least 20 images not attacked, .* has 10 beyond the 30"
    ),
    "no held-out file": (lambda p: ["--fit-data", f"npz:{p.tmp / 'x.npz'}", "--defenses", "ts"], "existing file"),
    "held out of one class": (
        lambda p: ["--defenses", "ts", "--fit-data", p.npz(_pixels(), np.zeros(30, int))[1]], "at least two classes"
    ),
}  # fmt: skip

OPTIONS: dict[str, tuple[Case, str]] = {
    "eps of 8": (lambda p: ["--eps", "8"], r"Linf: eps must be .*got 8.* \(did you mean 8/255"),
    "eps of 0": (lambda p: ["--eps", "-1/255"], "eps must be"),
    "eps a word": (lambda p: ["--eps", "tiny"], "eps: must be a number such as 0.05 or 8/255, got 'tiny'"),
    "eps by nothing": (lambda p: ["--eps", "8/0"], "eps: must be a number such as 0.05 or 8/255, got '8/0'"),
    "eps NaN": (lambda p: ["--eps", "nan"], "eps must be"),
    "unknown recipe": (
        lambda p: ["--recipes", "sa-mm"], r"recipe: .*got 'sa-mm' \(did you mean sa-mma, .*known: ace, adaptive, "
    ),
    "more access than there is": (
        lambda p: [*p.toy("labels_only", ""), "--recipes", "max-confidence"],
        "recipes: max-confidence needs access 'gradients', the model gives 'labels'",
    ),
    "another library, less access": (
        lambda p: [*p.toy("scores_only", ""), "--recipes", "art-deepfool"],
        "recipes: art-deepfool needs access 'gradients', the model gives 'scores'",
    ),
    "another library, few classes": (
        lambda p: [*p.toy("two_classes", "?num_classes=2"), *p.npz(_pixels(), np.arange(30) % 2),
                   "--recipes", "art-autoattack"],
        "recipes: art-autoattack needs at least 3 classes, the model has 2",
    ),
    "surrogate that nobody uses": (
        lambda p: ["--surrogate", "builtin:digits", "--recipes", "sa-mma"],
        r"surrogate: needs a recipe that can use one \(learned-squares, .*got sa-mma",
    ),
    "surrogate of other classes": (
        lambda p: ["--surrogate", "builtin:digits", "--recipes", "learned-squares"],
        "surrogate: must know the 4 classes of the model, got 10",
    ),
    "surrogate of other images": (
        lambda p: ["--surrogate", p.toy("needs_large")[1], "--recipes", "learned-squares"],
        "surrogate: must accept images of shape 1×6×6",
    ),
    "precision unknown": (
        lambda p: ["--precision", "fp16"], "precision: must be one of float32, bfloat16, .*got 'fp16'"
    ),
    "precision of what is no module": (
        lambda p: ["--journal", "--recipes", "sa-mma", "--precision", "bfloat16"],
        "precision: needs a PyTorch module, the model is journaled",
    ),
    "precision under a view": (
        lambda p: ["--view", "top:2", "--recipes", "sa-mma", "--precision", "bfloat16"],
        "precision: needs a PyTorch module, the model is seen by a view",
    ),
    "no recipe": (lambda p: ["--recipes", ","], "recipes: must be at least one name"),
    "recipe twice": (lambda p: ["--recipes", "pgd,pgd"], "each once, got pgd, pgd"),
    "unknown defence": (lambda p: ["--defenses", "csx"], r"defense: .*got 'csx' \(did you mean cs\?"),
    "unknown norm": (lambda p: ["--norm", "l1"], "norm must be one of l2, linf, got 'l1'"),
    "budget a word": (lambda p: ["--budget", "x"], "(?i)invalid value for '?--budget.* valid int"),
    "budget 0": (lambda p: ["--budget", "0"], "budget: .*got 0"),
    "samples 0": (lambda p: ["--samples", "0"], "samples: .*got 0"),
    "threshold 90": (lambda p: ["--threshold", "90"], "threshold: input should be less than or equal to 1, got 90"),
    "one cost": (lambda p: ["--cost-wrong", "3"], "--cost-wrong and --cost-deferred must be given together"),
    "both kinds of costs": (
        lambda p: ["--costs", str(p.write("c.toml", "wrong_accepted = 5\ndeferred = 1")), "--cost-wrong", "3"],
        "--costs must be given without --cost-wrong and --cost-deferred, got both",
    ),
    "infinite cost": (lambda p: ["--cost-wrong", "inf", "--cost-deferred", "1"], "finite number, got inf"),
    "unknown option": (lambda p: ["--bugdet", "3"], "No such option: --bugdet"),
    "an argument": (lambda p: ["extra"], "unexpected extra argument"),
    "option without value": (lambda p: ["--budget"], "--budget"),
    "bytes that are no text": (lambda p: ["--data", "npz:\udcff"], r"UTF-8 text.*got 'npz:\\udcff'"),
    "gate missing": (lambda p: ["--gate", str(p.tmp / "none.toml")], "gate: .*none.toml' must be a readable TOML file"),
    "gate no TOML": (lambda p: ["--gate", str(p.write("g.toml", "ece"))], "gate: .* must be a readable TOML file"),
    "gate without limit": (lambda p: ["--gate", str(p.write("g.toml", ""))], "must set at least one limit"),
    "gate on an unknown metric": (
        lambda p: ["--gate", str(p.write("g.toml", "ecee_after = 1"))], r"gate: metric.*did you mean ece_after"
    ),
    "gate on what is not run": (
        lambda p: ["--gate", str(p.write("g.toml", 'recipes = ["pgd"]\nece_after = 1'))],
        "gate: recipes must be among those that are run, got pgd",
    ),
}  # fmt: skip

CASES = {
    f"{kind}: {name}": case
    for kind, cases in (("model", MODELS), ("data", DATA), ("option", OPTIONS))
    for name, case in cases.items()
}


def _assert_one_line(code: int, out: str, err: str, told: str) -> None:
    assert code == 2
    assert out == ""
    assert err.startswith("poise: error: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert re.search(told, err), err


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    make, told = CASES[name]
    place, out = Place(tmp_path, MODEL, data()), tmp_path / "run"
    words = make(place)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = poise("audit", *fast(), "--out", out, *words)
    _assert_one_line(done.code, done.out, done.err, told)
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something was written (or a pickle ran)"


def test_the_same_call_without_the_bad_input_runs(tmp_path: Path) -> None:
    done = poise("audit", *fast(), "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")


def test_a_check_of_one_line_notices_two() -> None:
    for broken in ("Traceback\n  File\n", "poise: error: a\nb\n", "poise: error: a", "warning: x\npoise: error: a\n"):
        with pytest.raises(AssertionError):
            _assert_one_line(2, "", broken, "a")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["audti"], "No such command 'audti'"),
        (["--verbose"], "No such option: --verbose"),
        (["list"], "(?i)missing argument 'kind'"),
        (["list", "recipe"], r"list: must be .*got 'recipe' \(did you mean recipes"),
        (["list", "recipes", "more"], "unexpected extra argument"),
        (["attack"], "(?i)missing argument 'recipe'"),
        (["attack", "sa-mm"], r"got 'sa-mm' \(did you mean sa-mma"),
        (["attack", "pgd", "--eps", "8"], "eps must be"),
        (["attack", "pgd", "--resume"], "resume: needs --out"),
        (["audit", "--resume"], "resume: needs --out"),
        (["attack", "pgd", "--defenses", "cs"], "No such option: --defenses"),
    ],
)
def test_other_commands(words: list[str], told: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = poise(*words)
    _assert_one_line(done.code, done.out, done.err, told)
    assert list(tmp_path.iterdir()) == []


def test_every_bad_recipe_is_known_by_its_neighbours() -> None:
    for name in recipes():
        assert name in poise("attack", name + "x").err.split("known:")[0]


@pytest.mark.parametrize("place", ["file", "file/below", "{long}", "folder"])
def test_an_out_that_cannot_be_a_run_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    done = poise("audit", *fast(), "--out", tmp_path / place.format(long="x" * 300))
    told = r"holds other files \('mine.txt'\)" if place == "folder" else "must be a place that can be written, got: "
    _assert_one_line(done.code, done.out, done.err, told)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "file", "folder", "folder/mine.txt"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "already holds this run; give --resume"),
        (["--budget", "7"], r"it holds another \(budget: 6 there, 7 given\)"),
        (["--budget", "7", "--resume"], r"it holds another \(budget: 6 there, 7 given\)"),
        (["--recipes", "pgd", "--resume"], r"recipes: .*sa-uca.* there, .*pgd.* given"),
    ],
)
def test_an_out_that_holds_a_run(words: list[str], told: str) -> None:
    before = {path: path.read_bytes() for path in finished().rglob("*") if path.is_file()}
    done = poise("audit", *fast(), *words, "--out", finished())
    _assert_one_line(done.code, done.out, done.err, told)
    assert {path: path.read_bytes() for path in finished().rglob("*") if path.is_file()} == before


def test_resume_where_nothing_lies(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        done = poise("audit", "--out", folder, "--resume")
        _assert_one_line(done.code, done.out, done.err, "must hold a run to go on with, found none")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    copy = shutil.copytree(finished(), tmp_path / "copy")
    table = next((copy / "samples").iterdir())
    table.write_bytes(b"PAR1")
    done = poise("audit", *fast(), "--out", copy, "--resume")
    _assert_one_line(done.code, done.out, done.err, rf"{table.name}' is damaged .*delete it and give --resume")


def test_a_damaged_spec_is_named(tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text("model = \n")
    done = poise("audit", "--out", tmp_path, "--resume")
    _assert_one_line(done.code, done.out, done.err, "audit.toml: .* must be a readable TOML file")


def test_an_error_of_the_operating_system_is_one_line(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("typer.echo", full)
    done = poise("list", "recipes")
    _assert_one_line(done.code, done.out, done.err, "No space left on device")


def test_a_defect_of_poise_is_not_hidden(monkeypatch) -> None:
    """Only what a user can mend becomes one line."""

    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(KINDS, "recipes", broken)
    with pytest.raises(ZeroDivisionError):
        poise("list", "recipes")


def test_warnings_are_one_line_and_the_handler_is_put_back(monkeypatch) -> None:
    def warns() -> dict[str, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("two\nlines", UserWarning, stacklevel=1)
        return {"a": "b"}

    monkeypatch.setitem(KINDS, "recipes", warns)
    handler = warnings.showwarning
    done = poise("list", "recipes")
    assert (done.code, done.out, done.err) == (0, "a  b\n", "warning: two lines\n")
    assert warnings.showwarning is handler


@pytest.mark.parametrize("command", [["audit", "--recipes", "sa-uca,art-zoo"], ["attack", "art-zoo"]])
def test_an_attack_of_a_library_that_is_not_installed(tmp_path: Path, monkeypatch, command: list[str]) -> None:
    """Before anything is loaded: the model named here does not exist."""
    monkeypatch.setattr("poise.experiments.prepare.find_spec", lambda name: None)
    done = poise(*command, "--model", "builtin:nothing", "--out", tmp_path / "run", "--quiet")
    told = r"^poise: error: recipes: art-zoo needs the extra 'peers': pip install 'poise\[peers\]'$"
    _assert_one_line(done.code, done.out, done.err, told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adaptive", "--trace", "trace.csv"], "trace: must be the name of a .parquet file, got 'trace.csv'"),
        (["art-zoo", "--trace", "t.parquet"], "trace: must be asked of an attack of poise, got 'art-zoo'"),
    ],
)
def test_a_trace_that_cannot_be(tmp_path: Path, words: list[str], told: str) -> None:
    done = poise("attack", *words, "--out", tmp_path / "run", "--quiet")
    _assert_one_line(done.code, done.out, done.err, told)
    assert not (tmp_path / "run").exists()
