"""The embedded model: a small network trained on the digits at first use, then read from the cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from poise.data.digits import SPLIT_SEED, digits
from poise.errors import InputError, brief
from poise.files import whole
from poise.models.small import DigitsCNN
from poise.models.weights import fingerprint, put_state, read_state

Note = Callable[[str], None]
"""Receives one line for the user; the caller decides whether it is shown."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the network is trained; its hash names the file in the cache.

    Args:
        epochs: passes over the 900 training images.
        batch_size: images per step; divides 900.
        learning_rate: the peak of a one-cycle schedule (a quarter of the steps up, the rest down, both cosine).
        weight_decay: of AdamW.
        seed: of the initial weights and of the order of the images.
        split_seed: of the parts of the data.
        version: raised when the training code changes its result.
    """

    epochs: int = 30
    batch_size: int = 60
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0
    split_seed: int = SPLIT_SEED
    version: int = 1

    def key(self) -> str:
        """16 hex digits that change with every field and with the network."""
        text = f"{sorted(asdict(self).items())} {_empty()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/poise where the variable is an absolute path, else ~/.cache/poise."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "poise"


def digits_model(note: Note, recipe: Recipe | None = None) -> nn.Module:
    """The trained network: from the cache, or trained now (seconds) and put there.

    A cache file that is damaged, or whose weights are not those that were written, is trained anew. The result
    does not depend on the number of threads, and the random state of torch is left as it was.

    Args:
        note: told that the network was trained, how long it took and its accuracy on the 497 test images; or that
            the cache cannot be written.
        recipe: how to train; the default is what the name `builtin:digits` stands for.

    Returns:
        The network: images (m, 1, 8, 8) in [0, 1] to logits (m, 10).
    """
    recipe = recipe or Recipe()
    file = _cache_file(recipe)
    module = _empty()
    if file is not None and _read(file, module):
        return module
    start = time.perf_counter()
    train(module, recipe)
    seconds = time.perf_counter() - start
    note(f"builtin:digits trained in {seconds:.1f} s, test accuracy {100 * accuracy(module):.1f} %")
    try:
        if file is None:
            raise OSError("no home folder")
        _write(file, module)
    except OSError as error:
        note(f"builtin:digits cannot be kept for the next time: {brief(error)}")
    return module


def train(module: nn.Module, recipe: Recipe) -> None:
    """Cross-entropy with AdamW on the training part, in place, in one thread and from its own generator."""
    data = digits("train")
    images, labels = data.images, data.labels
    generator = torch.Generator().manual_seed(recipe.seed)
    _initialise(module, generator)
    steps = recipe.epochs * -(-len(images) // recipe.batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.25)
    with _one_thread(), torch.enable_grad():
        for _ in range(recipe.epochs):
            for rows in torch.split(torch.randperm(len(images), generator=generator), recipe.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(module(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    module.eval().requires_grad_(True)
    for parameter in module.parameters():
        parameter.grad = None


def accuracy(module: nn.Module) -> float:
    """Share of the 497 test images that are classified correctly, in [0, 1]."""
    data = digits("test")
    with torch.no_grad():
        right: Tensor = module(data.images).argmax(dim=1) == data.labels
    return right.double().mean().item()


def _empty() -> nn.Module:
    """The network, without a draw from torch's global generator."""
    with torch.device("meta"):
        module = DigitsCNN(10)
    return module.to_empty(device="cpu").eval()


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He's initialisation for layers before a ReLU; biases are zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(part.weight, nonlinearity="relu", generator=generator)
            assert part.bias is not None
            nn.init.zeros_(part.bias)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine; also faster for a network this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cache_file(recipe: Recipe) -> Path | None:
    try:
        return cache_folder() / f"digits-{recipe.key()}.safetensors"
    except RuntimeError:  # pathlib's answer where there is no home folder
        return None


def _read(file: Path, module: nn.Module) -> bool:
    """Fills the module from the cache; False where the file is missing or is not what was written."""
    try:
        put_state(module, read_state(file), name="builtin:digits", origin=f"'{file}'")
        with safe_open(file, framework="pt") as opened:
            written: object = (opened.metadata() or {}).get("fingerprint")
        return fingerprint(module) == written
    except (InputError, OSError):
        return False


def _write(file: Path, module: nn.Module) -> None:
    """Writes weights and fingerprint under a temporary name, then renames the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as temporary:
        save_file(module.state_dict(), temporary, metadata={"fingerprint": fingerprint(module)})
