"""A model with its defence as one file that runs elsewhere, checked against PyTorch before it gets its name."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poise.defenses.base import PostHoc
from poise.errors import InputError, MissingExtraError, PoiseError
from poise.files import whole

OPSET = 18
"""The ONNX operator set that is written unless told otherwise; ONNX Runtime 1.14 and later read it."""

_OPSETS = (18, 23)
_LOGIT_SLACK = 10  # a logit may differ by this many tolerances of its row's largest one,
_ROUNDING_SLACK = 10  # and by this many times what one rounding step of the images does to its row
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported file's answers lie from PyTorch's.

    Attributes:
        images: how many were compared, once in batches and the first of them alone.
        probability: largest absolute difference of a softmax probability.
        logit: largest difference of a logit, in units of its row's largest absolute logit (at least 1).

    >>> Parity(images=200, probability=3e-7, logit=2e-6).probability <= 1e-5  # as `export_onnx` returns it
    True
    """

    images: int
    probability: float
    logit: float


def export_onnx(
    module: nn.Module,
    path: str | Path,
    shape: Sequence[int],
    *,
    images: Tensor | None = None,
    opset: int = OPSET,
    tolerance: float = 1e-5,
) -> Parity:
    """Writes model and defence as one ONNX file; an existing file is replaced at once or not at all.

    The file has one input `images` (batch, C, H, W) and one output `logits` (batch, K), for any batch size. Before it
    gets its name, ONNX Runtime answers `images` with it. Probabilities must lie within `tolerance` of PyTorch's, and
    logits within 10 `tolerance` of their row's largest, beside 10 times what the last bit of the images does to that
    row in PyTorch: float32 alone moves logits of size 40 by 2e-5, and a defence that sharpens near ties
    (CompressionScaling) multiplies that by any factor, without any effect on a probability.

    Args:
        module: images to (n, K) logits, usually `stack(model, defense)` or `defended(...)`; its mode is left as it was.
        path: usually ends in .onnx; its folder exists.
        shape: (C, H, W) of an image.
        images: (n, C, H, W), n >= 1, to compare on; real ones say most. None draws 16 uniform ones in [0, 1].
        opset: operator set, 18 to 23.
        tolerance: see above; positive.

    Raises:
        MissingExtraError: the extra `onnx` is not installed. NotFittedError: a defence inside has not been fitted.
        InputError: an argument is not as above; or the module draws random numbers or adapts while it answers
            (RandomNoise, Dent), so that a file could not be compared.
        PoiseError: torch cannot export the module, or the file answers differently; the message says by how much.

    Example:
        export_onnx(stack(target.module, defense), "model.onnx", (3, 32, 32), images=held_out)

    >>> import tempfile, torch
    >>> from poise.defenses import CompressionScaling, stack
    >>> module = stack(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), CompressionScaling())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_onnx(module, f"{folder}/model.onnx", (1, 2, 2)).probability <= 1e-5
    True
    """
    runtime = _runtime()
    if isinstance(opset, bool) or not isinstance(opset, int) or not _OPSETS[0] <= opset <= _OPSETS[1]:
        raise InputError(f"export_onnx: opset must be an integer in [{_OPSETS[0]}, {_OPSETS[1]}], got {opset}")
    export = _Export("export_onnx", module, Path(path), tuple(shape), images, tolerance)
    with whole(export.path) as temporary:
        with export.attempt("torch cannot export the module"):
            torch.onnx.export(
                module,
                (export.example,),
                temporary,
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
        with export.attempt("ONNX Runtime cannot run the file"):
            found = export.answers(_onnx_answers(runtime, temporary, export.like))
        return export.compare(found)


def export_torch(
    module: nn.Module,
    path: str | Path,
    shape: Sequence[int],
    *,
    images: Tensor | None = None,
    tolerance: float = 1e-5,
) -> Parity:
    """Writes model and defence as a `torch.export` program; an existing file is replaced at once or not at all.

    `torch.export.load(path).module()` maps (batch, C, H, W) to (batch, K), the batch of any size. It is loaded again
    and compared as in `export_onnx`, where the arguments, promises and errors are explained; no extra is needed.

    Args:
        module: images to (n, K) logits.
        path: usually ends in .pt2; its folder exists.
        shape: (C, H, W) of an image.
        images: (n, C, H, W) to compare on, or None.
        tolerance: of a probability, positive.

    Example:
        >>> import tempfile
        >>> from poise.defenses import CompressionScaling, stack
        >>> module = stack(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), CompressionScaling())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_torch(module, f"{folder}/model.pt2", (1, 2, 2)).probability <= 1e-5
        True
    """
    export = _Export("export_torch", module, Path(path), tuple(shape), images, tolerance)
    with whole(export.path) as temporary:
        buffer = io.BytesIO()
        with export.attempt("torch cannot export the module"):
            program = torch.export.export(module, (export.example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, buffer)
            temporary.write_bytes(buffer.getvalue())
            buffer.seek(0)
            found = export.answers(torch.export.load(buffer).module())
        return export.compare(found)


class _Export:
    """The checked arguments of one export, and what PyTorch answers."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        path: Path,
        shape: tuple[int, ...],
        images: Tensor | None,
        tolerance: float,
    ) -> None:
        self.name, self.module, self.path, self.tolerance = name, module, path, tolerance
        if not path.parent.is_dir():
            raise InputError(f"{name}: the folder of '{path}' must exist")
        if path.is_dir():
            raise InputError(f"{name}: '{path}' must be a file's name, got a folder")
        if len(shape) != 3 or not all(isinstance(size, int) and size >= 1 for size in shape):
            raise InputError(f"{name}: shape must be (C, H, W), three integers >= 1, got {shape}")
        if not 0 < tolerance < math.inf:
            raise InputError(f"{name}: tolerance must be positive and finite, got {tolerance}")
        _check_exportable(name, module)
        parameter = next((value for value in module.parameters() if value.is_floating_point()), torch.zeros(()))
        self.like = parameter.detach()
        if self.like.dtype not in (torch.float16, torch.float32, torch.float64):
            raise InputError(f"{name}: parameters must be float16, float32 or float64, got {self.like.dtype}")
        generator = torch.Generator().manual_seed(0)
        if images is None:
            images = torch.rand(16, *shape, generator=generator)
        _check_images(name, images, shape)
        self.images = images.detach().to(self.like)
        self.example = torch.rand(2, *shape, generator=generator).to(self.like)
        with self._private_generators():  # one for both, so that the second call sees other numbers than the first
            self.expected, again = self.answers(module), self.answers(module)
            self.rounding = self._rounding(generator)
        if not torch.equal(self.expected, again):
            raise InputError(
                f"{name}: the module must answer the same images alike to be compared, got two answers that differ"
            )

    def _rounding(self, generator: torch.Generator) -> Tensor:
        """(n + 1, 1) the most that a logit of a row moves when its image moves by a rounding step, in three ways."""
        step, shape = torch.finfo(self.like.dtype).eps, (3, *self.images.shape)
        signs = torch.rand(shape, generator=generator).sub(0.5).sign().to(self.like)
        moved = [self.answers(self.module, self.images * (1 + step * way)) for way in signs]
        return torch.stack([(answer - self.expected).abs() for answer in moved]).amax(dim=(0, 2))[:, None]

    def answers(self, module: Callable[[Tensor], Tensor], images: Tensor | None = None) -> Tensor:
        """(n + 1, K) float64: the images in batches, then the first one alone."""
        images = self.images if images is None else images
        with _eval(self.module), torch.no_grad():
            parts = [module(part) for part in [*torch.split(images, _BATCH), images[:1]]]
        for part in parts:
            if not isinstance(part, Tensor) or part.ndim != 2:
                given = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise InputError(f"{self.name}: the module must return (n, K) logits, got {given}")
        return torch.cat(parts).double().cpu()

    def _private_generators(self) -> AbstractContextManager[None]:
        """torch's global generators are as before at the end."""
        return torch.random.fork_rng(devices=[self.like.device] if self.like.device.type == "cuda" else [])

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Eval mode, torch's own warnings about its own code silenced, and long complaints cut to one line."""
        with _eval(self.module), self._private_generators(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except OSError:
                raise
            except Exception as error:
                why = _first_line(error)
                raise PoiseError(f"{self.name}: {what} ({why})") from error

    def compare(self, found: Tensor) -> Parity:
        """Raises PoiseError unless the exported file found what the module answers."""
        if found.shape != self.expected.shape:
            shapes = f"{tuple(self.expected.shape)}, got {tuple(found.shape)}"
            raise PoiseError(f"{self.name}: the file must answer with logits of PyTorch's shape {shapes}")
        size = self.expected.abs().amax(dim=1, keepdim=True).clamp_min(1)
        apart = (found - self.expected).abs()
        logit = float((apart / size).amax())
        near = bool((apart <= _LOGIT_SLACK * self.tolerance * size + _ROUNDING_SLACK * self.rounding).all())
        probability = float((found.softmax(dim=1) - self.expected.softmax(dim=1)).abs().amax())
        if not (probability <= self.tolerance and near):  # NaN is neither
            raise PoiseError(
                f"{self.name}: the file must answer as PyTorch does, to {self.tolerance:g} in probabilities and "
                f"{_LOGIT_SLACK * self.tolerance:g} of the largest logit, got differences of {probability:.3g} and "
                f"{logit:.3g} on {len(self.images)} images; nothing was written"
            )
        return Parity(len(self.images), probability, logit)


def _first_line(error: BaseException) -> str:
    """What went wrong first, in one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return next((line for line in lines if line), type(error).__name__)[:200]


def _check_exportable(name: str, module: nn.Module) -> None:
    for part in module.modules():
        declared = getattr(part, "dent", part)  # a Dented model declares through its Dent
        if not getattr(declared, "exportable", True):
            raise InputError(
                f"{name}: every part must be exportable, got {type(declared).__name__}, whose answers a file cannot "
                "repeat; export the rest and defend where the file is served"
            )
        if isinstance(part, PostHoc):
            part.require_fitted()
            if part.stochastic:
                raise InputError(f"{name}: every part must be deterministic, got {type(part).__name__}")


def _check_images(name: str, images: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"{name}: images must be a tensor of floating-point numbers, got {given}")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or not len(images):
        raise InputError(
            f"{name}: images must have shape (n, {', '.join(map(str, shape))}) with n >= 1, got {tuple(images.shape)}"
        )


def _runtime() -> Any:
    """The module onnxruntime, once everything that writing a file needs can be imported."""
    try:
        return [import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    except ImportError as error:
        raise MissingExtraError("export_onnx", "onnx") from error


def _onnx_answers(runtime: Any, path: Path, like: Tensor) -> Callable[[Tensor], Tensor]:
    """What ONNX Runtime answers on the CPU, with as many threads as torch uses."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def answers(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.cpu().numpy()})
        return torch.from_numpy(logits).to(like.device)

    return answers


@contextmanager
def _eval(module: nn.Module) -> Iterator[None]:
    """Eval mode; every part's own mode at the end."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training
