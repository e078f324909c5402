"""robustbench: the table, and checkpoints that the test writes for small networks."""

import pytest
import torch

from poise.errors import InputError
from poise.models import ROBUSTBENCH, bare, blank, load
from poise.models.dm_wide_resnet import DMWideResNet
from poise.models.robustbench import CIFAR10, CIFAR100, Published
from poise.models.wide_resnet import WideResNet

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROBUSTBENCH, "Small", Published("a paper", 10, 1))
    monkeypatch.setitem(ROBUSTBENCH, "SmallPSSiLU", Published("a paper", 10, 1, (10,), pssilu=True))


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("Gowal2020Uncovering", 100, 266_888_756),  # 266.8 M for CIFAR-10
        ("Gowal2020Uncovering_extra", 10, 266_796_506),
        ("Rebuffi2021Fixing_28_10_cutmix_ddpm", 10, 36_479_194),  # WRN-28-10: 36.5 M
        ("Rebuffi2021Fixing_28_10_cutmix_ddpm", 100, 36_536_884),
        ("Rebuffi2021Fixing_70_16_cutmix_ddpm", 10, 266_796_506),
        ("Pang2022Robustness_WRN28_10", 10, 36_479_194),
        ("Pang2022Robustness_WRN70_16", 10, 266_796_506),
        ("Dai2021Parameterizing", 10, 36_479_196),  # alpha and beta
        ("Rade2021Helper_extra", 10, 46_160_474),  # WRN-34-10: 46.2 M
    ],
)
def test_sizes(name: str, classes: int, parameters: int) -> None:
    entry = ROBUSTBENCH[name]
    with torch.device("meta"):
        module = entry.build(classes)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert entry.paper


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [(None, ""), ("state_dict", "module."), ("model_state_dict", "module."), (None, "module.model."), (None, "model.")],
)
def test_checkpoints(tmp_path, wrapper: str | None, prefix: str) -> None:
    module = DMWideResNet(10, 1, 10, *CIFAR10).eval()
    state = {prefix + name: value for name, value in module.state_dict().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "Small.pt")
    before = torch.random.get_rng_state()
    target = load(f"robustbench:Small?weights={tmp_path / 'Small.pt'}")
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        torch.testing.assert_close(target.query(X, IDS).scores, module(X))
    assert bare(target) is target.module  # the normalisation is the network's own


def test_normalisation_of_the_file_or_of_the_data_set(tmp_path) -> None:
    module = DMWideResNet(10, 1, 100, *CIFAR100).eval()
    state = module.state_dict()
    path = tmp_path / "w.pt"
    torch.save({name: value for name, value in state.items() if name not in ("mean", "std")}, path)
    target = load(f"robustbench:Small?weights={path}&num_classes=100")
    with torch.no_grad():
        torch.testing.assert_close(target.query(X, IDS).scores, module(X))
    torch.save(state | {"mean": torch.full((3, 1, 1), 0.5)}, path)
    assert bare(load(f"robustbench:Small?weights={path}&num_classes=100")).mean.flatten().tolist() == [0.5] * 3


def test_dai(tmp_path) -> None:
    module = blank("robustbench:SmallPSSiLU", seed=3).module
    assert isinstance(module, WideResNet)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in module.state_dict().items()}}, tmp_path / "w.pt"
    )
    loaded = load(f"robustbench:SmallPSSiLU?weights={tmp_path / 'w.pt'}").module
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), module(X))  # raw pixels
    assert loaded.block1.layer[0].activation is loaded.activation


def test_refused_in_one_line(tmp_path) -> None:
    path = tmp_path / "w.pt"
    torch.save(WideResNet(10, 1, 10).state_dict(), path)
    torch.save(DMWideResNet(10, 1, 100, *CIFAR100).state_dict(), tmp_path / "hundred.pt")
    for text, message in [
        (
            "Small",
            r"needs weights=FILE, the file that RobustBench calls models/cifar10/Linf/Small\.pt; poise does not dow",
        ),
        ("Small?num_classes=100", r"models/cifar100/Linf/Small\.pt"),
        (f"Smal?weights={path}", r"robustbench model: .* \(did you mean Small"),
        (f"Small?weights={path}", "do not fit robustbench:Small: missing 'init_conv.weight' and"),
        (f"Small?weights={path}&num_classes=7", "num_classes must be 10 or 100, what RobustBench has files for, got 7"),
        (f"SmallPSSiLU?weights={path}&num_classes=100", "num_classes must be 10, what"),
        (
            f"Small?weights={tmp_path / 'hundred.pt'}",
            r"logits.weight must be \(10, 64\), got \(100, 64\) \(another numb",
        ),
        (f"Small?weights={path}&mean=0,0,0&std=1,1,1", "query key"),
        (f"Small?weights={tmp_path / 'no.pt'}", "weights must be an existing file"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(f"robustbench:{text}")
        assert "\n" not in str(caught.value)
    assert blank("robustbench:Small", num_classes=7).num_classes == 7  # to be trained: any number
