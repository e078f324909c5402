"""Networks that are to be trained: initial weights, classes, transfer learning."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from poise.data.uri import parse
from poise.data.vision import import_torchvision
from poise.errors import InputError
from poise.models import BUILTIN, bare, blank, fingerprint, freeze_backbone, head_name, libraries, load, renew_head
from poise.models.resnet import CifarResNet
from poise.models.small import LeNet5
from poise.targets import ModuleTarget, Normalize

CODE = """
import torch
from torch import nn
from poise.targets import ModuleTarget

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

def target():
    return ModuleTarget(Net(), num_classes=3)
"""


@pytest.fixture
def user(tmp_path) -> str:
    (tmp_path / "net.py").write_text(CODE)
    yield f"py:{tmp_path / 'net.py'}:"
    for name in [name for name in sys.modules if name.startswith("poise_user_")]:
        del sys.modules[name]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize(
    "uri",
    [
        "builtin:digits",
        "builtin:lenet5-mnist",
        "builtin:resnet20-cifar10",
        "builtin:wrn16-4-cifar10",
        "builtin:model-a-mnist",
        "builtin:vit-small-cifar10",
        "torchvision:squeezenet1_1",
        "timm:resnet10t",
    ],
)
def test_weights_are_a_function_of_the_seed(uri: str) -> None:
    before = torch.random.get_rng_state()
    one, again, other = (blank(uri, num_classes=4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.num_classes == 4
    assert not one.module.training
    assert same(one.module, again.module)
    assert not same(one.module, other.module)
    torch.rand(3)
    assert same(one.module, blank(uri, num_classes=4, seed=3).module)


def test_user_code_runs_under_the_seed(user) -> None:
    one, again, other = (blank(f"{user}Net", num_classes=3, seed=seed) for seed in (3, 3, 4))
    assert same(one.module, again.module)
    assert not same(one.module, other.module)
    ensemble = bare(blank(f"{user}Net?variant=trs&num_classes=3", seed=3))
    assert same(ensemble.members[0], one.module)
    assert not same(ensemble.members[0], ensemble.members[1])
    with pytest.raises(InputError, match=r"must return an nn\.Module, which can be trained, got ModuleTarget"):
        blank(f"{user}target", num_classes=3)
    with pytest.raises(InputError, match="needs num_classes=N"):
        blank(f"{user}Net")


def test_user_weights_from_a_file(user, tmp_path) -> None:
    trained = blank(f"{user}Net", num_classes=3, seed=9)
    torch.save(bare(trained).state_dict(), tmp_path / "w.pt")
    loaded = load(f"{user}Net?num_classes=3&weights={tmp_path / 'w.pt'}")
    assert same(loaded.module, trained.module)
    torch.save(LeNet5(3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"do not fit py:.*: missing"):
        load(f"{user}Net?num_classes=3&weights={tmp_path / 'w.pt'}")


def test_digits_are_untrained_here() -> None:
    notes: list[str] = []
    target = blank("builtin:digits", on_note=notes.append)
    assert notes == []
    assert not same(target.module, load("builtin:digits").module)


def test_normalisation_as_in_load() -> None:
    target = blank("builtin:resnet18-cifar10")
    assert target.module[0].mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert bare(target) is target.module[1]
    assert blank("builtin:resnet18-cifar10?mean=0,0,0&std=1,1,1").module[0].mean.sum() == 0
    notes: list[str] = []
    assert isinstance(blank("torchvision:squeezenet1_1", on_note=notes.append).module[0], Normalize)
    assert len(notes) == 1
    assert isinstance(blank("builtin:wrn16-4-cifar10").module, BUILTIN["wrn16-4-cifar10"].build(10).__class__)


def test_bare_is_what_load_takes(tmp_path) -> None:
    target = blank("builtin:resnet20-cifar10?num_classes=6", seed=2, batch_size=9)
    assert target.batch_size == 9
    torch.save(bare(target).state_dict(), tmp_path / "w.pt")
    loaded = load(f"builtin:resnet20-cifar10?num_classes=6&weights={tmp_path / 'w.pt'}")
    assert fingerprint(loaded) == fingerprint(target) == fingerprint(bare(target))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.query(x, torch.arange(2)).scores, target.query(x, torch.arange(2)).scores)
    assert same(blank(f"builtin:resnet20-cifar10?weights={tmp_path / 'w.pt'}", num_classes=6).module, target.module)
    torch.save(target.module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"unexpected '1\.conv1\.weight'"):  # the broken twin: with Normalize in front
        load(f"builtin:resnet20-cifar10?num_classes=6&weights={tmp_path / 'w.pt'}")
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    assert bare(module) is module
    assert bare(ModuleTarget(module, num_classes=2)) is module
    with pytest.raises(InputError, match=r"bare: must be an nn\.Module or a target made of one, got str"):
        bare("model")


def test_refused_in_one_line(tmp_path) -> None:
    torch.save(LeNet5(4).state_dict(), tmp_path / "w.pt")
    lenet = f"builtin:lenet5-mnist?weights={tmp_path / 'w.pt'}"
    for uri, options, message in [
        ("builtin:lenet5-mnist?num_classes=4", {"num_classes": 5}, "num_classes must be 5 as the data have.*, got 4"),
        (lenet, {}, r"linear2.weight must be \(10, 200\), got \(4, 200\) \(another number of classes"),
        (
            lenet.replace("lenet5-mnist", "cnn-a-cifar10"),
            {},
            "do not fit builtin:cnn-a-cifar10: missing '0.weight' and",
        ),
        (f"{lenet}&head=old&num_classes=3", {}, "head must be new, got 'old'"),
        (f"{lenet}&head=new", {}, "head=new needs num_classes=N"),
        (f"{lenet}&frozen=yes", {"num_classes": 4}, "frozen must be one of true, false"),
        (
            "builtin:squeezenet10-imagenet?frozen=true",
            {},
            "must end in a linear layer with 1000 outputs, got SqueezeNet",
        ),
        ("builtin:nothing", {}, "builtin model: "),
        ("builtin:digits", {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ("builtin:digits", {"seed": -1}, "seed must be at least 0 and below"),
        ("builtin:digits", {"device": "cuda:99"}, "device: must be one"),
        ("onnx:net.onnx", {}, "must come from builtin, torchvision, timm, robustbench, hf, py, got onnx"),
        ("https://example.org", {}, "must come from builtin"),
        (
            "torchvision:resnet18?pretrained=true&num_classes=3",
            {},
            "num_classes must not be given with pretrained=true",
        ),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            blank(uri, **options)
        assert "\n" not in str(caught.value)
    for key in ("head=new", "frozen=true"):
        with pytest.raises(InputError, match="is for a network that is to be trained"):
            load(f"{lenet}&num_classes=4&{key}")


def test_the_last_linear_layer_is_found() -> None:
    models = import_torchvision("models", feature="test")
    timm = libraries.import_timm("test")
    with torch.device("meta"):
        for name, head in [
            ("resnet50", "fc"),
            ("efficientnet_b0", "classifier.1"),
            ("vit_b_16", "heads.head"),
            ("swin_t", "head"),
            ("googlenet", "fc"),
            ("inception_v3", "fc"),
        ]:
            plain = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            assert head_name(models.get_model(name, weights=None, num_classes=7, **plain), 7) == head
        for name, head in [("resnet18", "fc"), ("efficientnet_b0", "classifier"), ("vit_tiny_patch16_224", "head")]:
            assert head_name(timm.create_model(name, num_classes=7), 7) == head
        for name, entry in BUILTIN.items():
            if name != "squeezenet10-imagenet":
                module = entry.build(7)
                assert module.get_submodule(head_name(module, 7)).out_features == 7
    early = nn.ModuleDict({"head": nn.Linear(4, 3), "body": nn.Linear(4, 4)})  # registered first
    assert head_name(early, 3) == "head"
    for module in (nn.Flatten(), nn.Linear(2, 3), nn.Sequential(nn.Conv2d(1, 3, 1))):
        with pytest.raises(InputError, match="head: the network must end in a linear layer, got"):
            head_name(module)


def test_a_new_head_on_weights_of_other_classes(tmp_path) -> None:
    source = bare(blank("builtin:resnet20-cifar10?num_classes=10", seed=1))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    uri = f"builtin:resnet20-cifar10?weights={tmp_path / 'w.pt'}&head=new&frozen=true"
    target = blank(uri, num_classes=4, seed=5)
    module = bare(target)
    assert module.linear.weight.shape == (4, 64)
    assert same(module.layer1, source.layer1)
    assert torch.equal(module.linear.weight, bare(blank(uri, num_classes=4, seed=5)).linear.weight)
    assert not torch.equal(module.linear.weight, bare(blank(uri, num_classes=4, seed=6)).linear.weight)
    ten = blank(uri, num_classes=10, seed=5)
    assert not torch.equal(bare(ten).linear.weight, source.linear.weight)  # new even where the old one would fit
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert names == {"linear.weight", "linear.bias"}
    torch.save(module.state_dict(), tmp_path / "t.pt")
    assert same(bare(load(f"builtin:resnet20-cifar10?num_classes=4&weights={tmp_path / 't.pt'}")), module)
    noisy = bare(blank(uri.replace("?", "?variant=pni&"), num_classes=4))
    assert {n for n, p in noisy.named_parameters() if p.requires_grad} == {
        "linear.weight",
        "linear.bias",
        "linear.alpha",
    }


def test_a_new_head_on_downloaded_weights(monkeypatch) -> None:
    """The library's own loading code, with the transfer itself replaced."""
    models, timm = import_torchvision("models", feature="test"), libraries.import_timm("test")
    states = models.resnet18().state_dict(), timm.create_model("resnet18").state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: states[0])
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: states[1])
    for library, state in zip(("torchvision", "timm"), states, strict=True):
        target = blank(f"{library}:resnet18?pretrained=true&head=new&frozen=true", num_classes=4, seed=1)
        assert target.num_classes == 4
        assert target.query(torch.rand(1, 3, 64, 64), torch.arange(1)).scores.shape == (1, 4)
        assert torch.equal(bare(target).conv1.weight, state["conv1.weight"])
        assert not bare(target).conv1.weight.requires_grad
        again = blank(f"{library}:resnet18?pretrained=true&head=new&num_classes=4", seed=1)
        assert torch.equal(bare(target).fc.weight, bare(again).fc.weight)
        with pytest.raises(InputError, match=r"num_classes must be 1000 with these weights \(head=new makes"):
            blank(f"{library}:resnet18?pretrained=true", num_classes=4)
        assert blank(f"{library}:resnet18?pretrained=true", num_classes=1000).num_classes == 1000


@pytest.mark.parametrize("form", ["itself", "copied", "pickled"])
def test_a_frozen_backbone_does_not_move(form: str) -> None:
    module: nn.Module = freeze_backbone(CifarResNet(1, 5))
    module = {"itself": lambda m: m, "copied": copy.deepcopy, "pickled": lambda m: pickle.loads(pickle.dumps(m))}[form](
        module
    )
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    for _ in range(2):
        module.train()
        assert module.training
        assert not module.bn1.training
        nn.functional.cross_entropy(module(x), torch.arange(4)).backward()
        optimizer.step()
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"linear.weight", "linear.bias"}
    assert x.grad is not None
    assert torch.count_nonzero(x.grad)
    live = CifarResNet(1, 5).train()  # the broken twin: gradients off, norms not held
    live.requires_grad_(False)
    live(x)
    assert torch.count_nonzero(live.bn1.running_mean)


def test_freezing_through_a_target_and_in_an_ensemble() -> None:
    target = blank("builtin:resnet20-cifar10?variant=trs&members=2&frozen=true", seed=1)
    target.module.train()
    with target.session():
        assert not target.module.training
    assert target.module.training
    assert not any(part.training for part in target.module.modules() if isinstance(part, nn.BatchNorm2d))
    free = [name for name, parameter in bare(target).named_parameters() if parameter.requires_grad]
    assert free == [f"members.{i}.linear.{part}" for i in (0, 1) for part in ("weight", "bias")]
    with pytest.raises(InputError, match="head: the network must end in a linear layer"):
        freeze_backbone(nn.Sequential(nn.Conv2d(1, 3, 1)))
    bias = renew_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), 6)[1].bias
    assert bias is None


@pytest.mark.parametrize(
    ("torchvision", "timm", "parameters"),
    [
        ("resnet50", "resnet50", 25_557_032),
        ("wide_resnet50_2", "wide_resnet50_2", 68_883_240),
        ("efficientnet_b0", "efficientnet_b0", 5_288_548),
        ("vit_b_16", "vit_base_patch16_224", 86_567_656),
        ("resnext101_32x8d", "resnext101_32x8d", 88_791_336),
    ],
)
def test_the_networks_of_the_papers_build(torchvision: str, timm: str, parameters: int) -> None:
    for make, address in [
        (libraries.make_torchvision, f"torchvision:{torchvision}"),
        (libraries.make_timm, f"timm:{timm}"),
    ]:
        with torch.device("meta"):
            made = make(parse(address, what="model", schemes=("torchvision", "timm")), None, pretrained=False)
            small = make(parse(address, what="model", schemes=("torchvision", "timm")), 100, pretrained=False)
            assert small.module.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 100)
        assert sum(parameter.numel() for parameter in made.module.parameters()) == parameters
        assert made.num_classes == 1000


def test_one_of_them_for_real(tmp_path: Path) -> None:
    target = blank("torchvision:efficientnet_b0", num_classes=3)
    assert target.query(torch.rand(1, 3, 64, 64), torch.arange(1)).scores.shape == (1, 3)
    torch.save(bare(target).state_dict(), tmp_path / "w.pt")
    assert same(load(f"torchvision:efficientnet_b0?num_classes=3&weights={tmp_path / 'w.pt'}").module, target.module)
