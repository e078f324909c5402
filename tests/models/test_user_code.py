"""py:FILE:FACTORY."""

import sys
from pathlib import Path

import pytest
import torch

from poise.errors import InputError
from poise.models import code_fingerprint, load

CODE = """
import torch
from torch import nn
from helper import CLASSES
from poise.targets import ModuleTarget

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
    def forward(self, x):
        return self.linear(x.flatten(1))

def logits():
    return Net()

def probabilities():
    return nn.Sequential(Net(), nn.Softmax(dim=1))

def target():
    return ModuleTarget(Net(), num_classes=CLASSES)

ready = Net()
shape = (1, 2, 2)

def wrong():
    return 3

def broken():
    raise ValueError("no\\nweights")

def leaves():
    raise SystemExit(0)
"""


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "helper.py").write_text("CLASSES = 3\n")
    (tmp_path / "model.py").write_text(CODE)
    yield tmp_path / "model.py"
    sys.modules.pop("helper", None)


X = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_modules_and_targets(file) -> None:
    path, before = list(sys.path), torch.random.get_rng_state()
    for name in ("logits", "Net", "ready"):
        target = load(f"py:{file}:{name}?num_classes=3", batch_size=7)
        assert target.query(X, torch.arange(2)).scores.shape == (2, 3)
        assert target.batch_size == 7
        assert not target.module.training
    probable = load(f"py:{file}:probabilities?num_classes=3&outputs=probabilities&mean=0.5&std=0.25")
    assert torch.allclose(probable.query(X, torch.arange(2)).scores.sum(dim=1), torch.ones(2))
    assert probable.module[0].mean.item() == 0.5
    assert load(f"py:{file}:target").num_classes == 3
    assert sys.path == path
    assert torch.equal(before, torch.random.get_rng_state())
    assert not (file.parent / "__pycache__").exists()


def test_refused_in_one_line(file, tmp_path) -> None:
    path = list(sys.path)
    for text, message in [
        (f"py:{file}", "must be py:FILE:FACTORY|must be an existing file"),
        ("py:model", "must be py:FILE:FACTORY"),
        (f"py:{file}:", "must be py:FILE:FACTORY"),
        (f"py:{tmp_path / 'no.py'}:make", "must be an existing file"),
        (f"py:{file}:logit?num_classes=3", r"factory: .* got 'logit' \(did you mean logits"),
        (f"py:{file}:shape?num_classes=3", r"shape\(\) raised TypeError"),
        (f"py:{file}:wrong?num_classes=3", r"wrong\(\) must return an nn.Module or a target, got int"),
        (f"py:{file}:broken?num_classes=3", r"broken\(\) raised ValueError: no weights"),
        (f"py:{file}:leaves?num_classes=3", r"leaves\(\) raised SystemExit: 0"),
        (f"py:{file}:logits", "needs num_classes=N"),
        (f"py:{file}:target?num_classes=3", "returns a target, which declares its own num_classes"),
        (f"py:{file}:logits?num_classes=3&outputs=scores", "outputs must be one of logits, probabilities"),
        (f"py:{file}:logits?weights=x", "weights must be an existing file"),
        (f"py:{file}:logits?num_classes=3&pretrained=true", "query key"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)
    assert sys.path == path


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make(:", "the file raised SyntaxError"),
        ("import no_such_module", "the file raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(0)", "the file raised SystemExit"),
    ],
)
def test_files_that_do_not_run(tmp_path, code: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    modules = set(sys.modules)
    with pytest.raises(InputError, match=message):
        load(f"py:{tmp_path / 'bad.py'}:make?num_classes=3")
    assert not [name for name in set(sys.modules) - modules if name.startswith("poise_user")]


def test_a_file_of_another_type(tmp_path) -> None:
    (tmp_path / "model.txt").write_text("x = 1")
    with pytest.raises(InputError, match=r"must be a Python file that ends in \.py, got 'model\.txt'"):
        load(f"py:{tmp_path / 'model.txt'}:x?num_classes=3")


def test_code_runs_only_when_it_is_named(tmp_path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "model.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    with pytest.raises(InputError):
        load(f"builtin:lenet5-mnist?weights={tmp_path / 'model.py'}")
    assert not marker.exists()
    with pytest.raises(InputError, match="factory"):
        load(f"py:{tmp_path / 'model.py'}:make?num_classes=3")
    assert marker.exists()


def test_the_code_counts_where_the_tensors_do_not(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softplus())\n"
    )
    before = code_fingerprint(f"py:{file}:make?num_classes=2")
    assert before is not None
    assert before == code_fingerprint(f"py:{file}:make?num_classes=2")
    file.write_text(file.read_text().replace("Softplus", "Hardswish"))
    assert code_fingerprint(f"py:{file}:make?num_classes=2") != before
    assert code_fingerprint("builtin:digits") is None
