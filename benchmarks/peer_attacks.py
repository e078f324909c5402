"""The same attack of poise, torchattacks, ART and Foolbox behind one signature, and the models they are timed on.

Every maker takes a module from images to logits and gives a function of (images, labels, spent, seed) to adversarial
images; `spent` is the number of queries of a search on scores, or of gradient steps. Objects are made once, outside
what is timed. Libraries are imported when they are asked for.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import poise
from poise.constraints import Linf
from poise.models.builtin import BUILTIN
from poise.objectives import CrossEntropy, Margin
from poise.searches import APGD, PGD, SimBA, Square

EPS, STEP, P = 8 / 255, 2 / 255, 0.05
PINNED = 40.0
"""Added to the logit of class 0: on ResNet-50 with 1,000 classes and random weights another one leads by 17.5."""

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

Attack = Callable[[Tensor, Tensor, int, int], Tensor]
"""Images, labels, queries or steps, seed to adversarial images."""


class Counted(nn.Module):
    """A module that notes how many images each call holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        answer: Tensor = self.module(x)
        return answer


class Pinned(nn.Module):
    """Logits with PINNED added to class 0: labelled 0, no image ever finishes, so that all are asked to the end."""

    def __init__(self, module: nn.Module, classes: int) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("offset", torch.eye(1, classes) * PINNED)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.module(x) + self.offset
        return answer


class Cast(nn.Module):
    """A module in another number format or memory layout, from and to what the attacks hold."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.module, self.dtype, self.layout = module.to(dtype=dtype, memory_format=layout), dtype, layout

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.module(x.to(dtype=self.dtype, memory_format=self.layout))
        return answer.float().clone()  # a compiled module with CUDA graphs reuses its buffer


def tiny_cnn(classes: int) -> nn.Module:
    """Two convolutions of stride 2, 16 and 32 channels, and the mean over the image: 0.4 million products."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "tiny": tiny_cnn,
    "resnet20": BUILTIN["resnet20-cifar10"].build,
    "resnet50": BUILTIN["resnet50-cifar10"].build,
}
"""Networks for 32 px; weights are random, they do not change the time."""

VARIANTS = ("fp32", "channels_last", "bf16", "bf16+channels_last", "compile", "bf16+channels_last+compile")


def module(name: str, classes: int, variant: str = "fp32", device: str = "cpu") -> nn.Module:
    """The network with fixed random weights; "compile" uses CUDA graphs where there is a GPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = MODELS[name](classes).eval()
    ways = variant.split("+")
    if ways != ["fp32"]:
        layout = torch.channels_last if "channels_last" in ways else torch.contiguous_format
        inner: Any = built.to(device)
        cast = Cast(inner, torch.bfloat16 if "bf16" in ways else torch.float32, layout)
        if "compile" in ways:
            cast.module = torch.compile(cast.module, mode="reduce-overhead" if device != "cpu" else "default")  # type: ignore[assignment]
        built = cast
    return Pinned(built, classes).to(device).eval()


def _ours(objective: object, search: Callable[[int], object], asked: Callable[[int], int]) -> Callable[..., Attack]:
    def make(net: nn.Module, classes: int, batch: int) -> Attack:
        target = poise.ModuleTarget(net, num_classes=classes, batch_size=batch, device=_device(net))

        def run(images: Tensor, labels: Tensor, spent: int, seed: int) -> Tensor:
            return poise.attack(
                target, objective, search(spent), Linf(EPS), images, labels, budget=asked(spent), seed=seed  # type: ignore[arg-type]
            ).images  # fmt: skip

        return run

    return make


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _torchattacks(build: Callable[[Any, nn.Module, int, int], Any]) -> Callable[..., Attack]:
    def make(net: nn.Module, classes: int, batch: int) -> Attack:
        library = importlib.import_module("torchattacks")

        def run(images: Tensor, labels: Tensor, spent: int, seed: int) -> Tensor:
            torch.manual_seed(seed)
            found: Tensor = build(library, net, spent, seed)(images, labels)
            return found

        return run

    return make


def _art(build: Callable[[Any, Any, int, int], Any], *, softmax: bool = False) -> Callable[..., Attack]:
    def make(net: nn.Module, classes: int, batch: int) -> Attack:
        net = nn.Sequential(net, nn.Softmax(dim=1)) if softmax else net
        evasion = importlib.import_module("art.attacks.evasion")
        estimators = importlib.import_module("art.estimators.classification")
        gpu = "gpu" if _device(net).type == "cuda" else "cpu"
        estimator = estimators.PyTorchClassifier(
            net, nn.CrossEntropyLoss(), (3, 32, 32), classes, clip_values=(0.0, 1.0), device_type=gpu
        )

        def run(images: Tensor, labels: Tensor, spent: int, seed: int) -> Tensor:
            np.random.seed(seed)  # noqa: NPY002  # ART draws from the global generator
            attack = build(evasion, estimator, spent, batch)
            return torch.from_numpy(attack.generate(images.cpu().numpy(), np.eye(classes)[labels.cpu().numpy()]))

        return run

    return make


def _art_square(evasion: Any, estimator: Any, spent: int, batch: int) -> Any:
    return evasion.SquareAttack(
        estimator, eps=EPS, max_iter=spent - 2, p_init=P, batch_size=batch, verbose=False
    )  # fmt: skip


def _art_auto(evasion: Any, estimator: Any, spent: int, batch: int) -> Any:
    inside = [_art_square(evasion, estimator, spent, batch)]
    return evasion.AutoAttack(estimator, eps=EPS, eps_step=STEP, attacks=inside, batch_size=batch)


def _foolbox_pgd(net: nn.Module, classes: int, batch: int) -> Attack:
    foolbox = importlib.import_module("foolbox")
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device=_device(net))

    def run(images: Tensor, labels: Tensor, spent: int, seed: int) -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=spent, random_start=False)
        found: Tensor = attack(model, images, labels, epsilons=EPS)[1]
        return found

    return run


ATTACKS: dict[str, dict[str, Callable[..., Attack]]] = {
    "square": {
        "poise": _ours(Margin(), lambda spent: Square(p=P, start="stripes"), lambda spent: spent),
        "torchattacks": _torchattacks(
            lambda library, net, spent, seed: library.Square(net, eps=EPS, n_queries=spent - 2, p_init=P, seed=seed)
        ),
        "art": _art(_art_square),
        "art-autoattack": _art(_art_auto),
    },
    "pgd": {
        "poise": _ours(CrossEntropy(), lambda spent: PGD(steps=spent, step=STEP, undo=False), lambda spent: spent + 1),
        "torchattacks": _torchattacks(
            lambda library, net, spent, seed: library.PGD(net, eps=EPS, alpha=STEP, steps=spent, random_start=False)
        ),
        "art": _art(
            lambda evasion, estimator, spent, batch: evasion.ProjectedGradientDescent(
                estimator, eps=EPS, eps_step=STEP, max_iter=spent, num_random_init=0, batch_size=batch, verbose=False
            )
        ),
        "foolbox": _foolbox_pgd,
    },
    "apgd": {
        "poise": _ours(CrossEntropy(), lambda spent: APGD(steps=spent), lambda spent: spent + 1),
        "torchattacks": _torchattacks(
            lambda library, net, spent, seed: library.APGD(net, eps=EPS, steps=spent, n_restarts=1, seed=seed)
        ),
        "art": _art(
            lambda evasion, estimator, spent, batch: evasion.AutoProjectedGradientDescent(
                estimator, eps=EPS, eps_step=STEP, max_iter=spent, nb_random_init=1, batch_size=batch,
                loss_type="cross_entropy", verbose=False,
            )
        ),
    },
    "simba": {
        "poise": _ours(Margin(), lambda spent: SimBA(), lambda spent: spent),
        "art": _art(
            lambda evasion, estimator, spent, batch: evasion.SimBA(
                estimator, attack="dct", max_iter=max(spent // 2, 1), epsilon=0.2, freq_dim=32, verbose=False
            ),
            softmax=True,
        ),
    },
}  # fmt: skip
"""Attack to library to maker. Foolbox has neither Square nor SimBA nor APGD, torchattacks no SimBA."""

GRADIENT = ("pgd", "apgd")
"""Attacks whose passes go forward and backward."""

PACKAGES = {
    "torchattacks": ("torchattacks",),
    "art": ("art",),
    "art-autoattack": ("art", "multiprocess"),
    "foolbox": ("foolbox",),
}
"""What each library imports; ART's AutoAttack needs one that ART does not install."""


def missing(library: str) -> bool:
    """The library, or what it imports, is not installed."""
    return any(find_spec(package) is None for package in PACKAGES.get(library, ()))


def quiet() -> None:
    """Hides what the other libraries warn of: names that numpy and scipy have deprecated."""
    warnings.simplefilter("ignore")


def bare_passes(net: nn.Module, images: Tensor, count: int, *, backward: bool) -> None:
    """The limit: so many passes of all images; with `backward` also to the input, and one last pass forward."""
    if backward:
        for _ in range(count):
            points = images.clone().requires_grad_(True)
            torch.autograd.grad(net(points).sum(), points)
    with torch.no_grad():
        for _ in range(1 if backward else count):
            net(images)
