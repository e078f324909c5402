"""An ONNX file as a target, answered by ONNX Runtime."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.errors import InputError, TargetError
from poise.targets.answers import Answers, check_sizes, one_line
from poise.targets.module import Normalize
from poise.targets.onnx_file import OnnxFile, needs_onnx, read_onnx
from poise.types import Outputs

_DTYPES = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
}
_LARGEST_BATCH = 2**30
"""Bytes of a batch that a file fixes, at most."""

SECONDS = 10.0
"""What a run may take for each of its images, unless more is allowed."""

_NUMBERS = {*_DTYPES, *(f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64))}


class OnnxTarget:
    """A classifier given as an ONNX file. Scores only: ONNX Runtime gives no gradients.

    Args:
        file: path of the file; its one input takes images (m, C, H, W) in float16, float32 or float64.
        num_classes: K, at least 2; needed only where the file does not tell the shape of its answer.
        outputs: "logits", "probabilities" or "labels": what it answers. Declared; refused where values contradict it.
        scores: name of the output that holds the answers (m, K), or labels (m,); needed only where there are several.
        mean, std: per-channel normalisation, applied before the file; images given to the target stay in `bounds`.
        bounds: lowest and highest legal pixel value.
        device: "cpu", or "cuda" where ONNX Runtime is the build for it.
        batch_size: most images per run. A file with a fixed batch gets that many, the last of them repeated to fill up.
        threads: of ONNX Runtime's operators; as many as torch uses where None.
        seconds: how long a run may take for each of its images; a file can hold a loop without an end.

    Attributes:
        fingerprint: sha256 of what was read, see `onnx_fingerprint`.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        InputError: an argument makes no sense, or the file is missing, damaged, no ONNX file, keeps weights outside its
            folder, has operators that ONNX Runtime does not know, or does not map images to scores.
        TargetError: from `query`, where an answer contradicts the declaration (shape, classes, kind, NaN), or a run
            fails or takes too long.

    Nothing is executed but the graph's own operators: no library of custom operators is loaded, no provider beside the
    two above is used. What else is in the batch moves an answer by rounding alone: ONNX Runtime may divide a sum
    otherwise, and float32 logits then differ by some 1e-6 of their size. The random numbers of a graph that draws some
    are ONNX Runtime's own, and no seed reaches them.

    >>> import tempfile, onnx.parser
    >>> network = onnx.parser.parse_model(
    ...     '<ir_version: 9, opset_import: ["": 18]> demo (float[n, 1, 1, 2] x) => (float[n, 2] y) { y = Flatten(x) }')
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(network, f"{folder}/model.onnx")
    ...     target = OnnxTarget(f"{folder}/model.onnx")
    >>> target.query(torch.tensor([[[[0.25, 0.5]]]]), torch.arange(1)).scores.tolist()
    [[0.25, 0.5]]
    """

    def __init__(
        self,
        file: str | Path,
        *,
        num_classes: int | None = None,
        outputs: str = "logits",
        scores: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        device: str | torch.device = "cpu",
        batch_size: int = 256,
        threads: int | None = None,
        seconds: float = SECONDS,
    ) -> None:
        check_sizes("OnnxTarget", bounds, batch_size)
        if (mean is None) != (std is None):
            raise InputError(f"OnnxTarget: mean and std must be given together, got mean={mean}, std={std}")
        if threads is not None and threads < 1:
            raise InputError(f"OnnxTarget: threads must be at least 1, got {threads}")
        if not 0 < seconds < math.inf:
            raise InputError(f"OnnxTarget: seconds must be a positive number, got {seconds}")
        self.device = torch.device(device)
        read = read_onnx(file)
        self._session = _session(read, self.device, threads or torch.get_num_threads())
        self._input = _only_input(read, self._session, None if mean is None else len(mean))
        self._dtype = _DTYPES[self._input.type]
        self._output, classes = _output(read, self._session, scores, num_classes, outputs)
        self._answers = Answers("OnnxTarget", outputs, classes)
        self._normalise = None if mean is None or std is None else Normalize(mean, std).to(self.device)
        self.fingerprint = read.fingerprint
        self.kind, self.access = self._answers.kind, self._answers.access
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.num_classes = classes
        self.batch_size, self._seconds = batch_size, seconds
        self._options = needs_onnx("onnxruntime", "OnnxTarget").RunOptions
        self._fixed = self._input.shape[0] if self._input.shape and isinstance(self._input.shape[0], int) else None
        if self._fixed is not None and self._fixed < 1:
            raise InputError(f"OnnxTarget: '{file}' must take at least one image, its fixed batch is {self._fixed}")

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for x (m, C, H, W); one run per `batch_size` points, or per fixed batch. `ids` is not used."""
        self._check_images(x)
        if not len(x):
            return self._answers.none(x.device)
        size = self.batch_size if self._fixed is None else self._fixed
        with torch.inference_mode(False), torch.no_grad():
            parts = [self._run(part) for part in torch.split(x.detach(), size)]
        return Outputs(torch.cat(parts).to(x.device), self.kind)

    @contextmanager
    def session(self, seed: int | None = None) -> Iterator[None]:
        """Nothing to prepare: a file has no modes, and its random numbers, if it draws any, are its own."""
        yield

    def _run(self, part: Tensor) -> Tensor:
        points = part.to(torch.promote_types(self._dtype, torch.float32))
        if self._normalise is not None:
            points = self._normalise(points)
        if self._fixed is not None and self._fixed * points[0].numel() * points.element_size() > _LARGEST_BATCH:
            raise InputError(
                f"OnnxTarget: the file's fixed batch must take at most {_LARGEST_BATCH >> 20} MiB, "
                f"it has {self._fixed} images of {tuple(points.shape[1:])}"
            )
        if self._fixed is not None and len(points) < self._fixed:
            points = torch.cat([points, points[-1:].expand(self._fixed - len(points), *points.shape[1:])])
        images = points.to(self._dtype).contiguous().cpu().numpy()
        options = self._options()
        options.log_severity_level = 4
        allowed = self._seconds * len(images)
        clock = threading.Timer(allowed, setattr, (options, "terminate", True))
        clock.daemon = True
        clock.start()
        try:
            (found,) = self._session.run([self._output], {self._input.name: images}, options)
        except Exception as error:  # one of ONNX Runtime's own types
            if options.terminate:
                raise TargetError(
                    f"OnnxTarget: a run must end within {allowed:g} s ({self._seconds:g} s for each of {len(images)} "
                    "images); seconds=N allows more"
                ) from error
            raise TargetError(f"OnnxTarget: the run failed: {_reason(error)}") from error
        finally:
            clock.cancel()
        return self._answers.scores(torch.from_numpy(found), len(images))[: len(part)]

    def _check_images(self, x: Tensor) -> None:
        wanted, given = tuple(self._input.shape[1:]), tuple(x.shape[1:])
        fits = all(not isinstance(side, int) or side == ours for side, ours in zip(wanted, given, strict=False))
        if x.ndim == 4 and fits:
            return
        shown = ", ".join(str(side) if isinstance(side, int) else "any" for side in wanted) or "C, H, W"
        turned = x.ndim == 4 and wanted[-1:] == given[:1]
        hint = " (the file takes channels last: export it with channels first)" if turned else ""
        raise InputError(f"OnnxTarget: images must be (m, {shown}) as the file takes them, got {tuple(x.shape)}{hint}")


def _session(file: OnnxFile, device: torch.device, threads: int) -> Any:
    runtime = needs_onnx("onnxruntime", "OnnxTarget")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and not printed too
    options.use_deterministic_compute = True
    folder = str(file.path.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # between two runs torch needs the cores
    try:
        # without the fallback, which prints and tries the same again
        return runtime.InferenceSession(file.content, options, providers=_providers(runtime, device), enable_fallback=0)
    except InputError:
        raise
    except Exception as error:  # one of ONNX Runtime's own types
        raise InputError(f"OnnxTarget: ONNX Runtime cannot load '{file.path}': {_reason(error)}") from error


def _providers(runtime: Any, device: torch.device) -> list[Any]:
    """The CPU, or CUDA with what it cannot do left to the CPU."""
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda":
        raise InputError(f"OnnxTarget: device must be 'cpu' or 'cuda', got '{device}'")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise InputError(
            f"OnnxTarget: device '{device}' needs the package onnxruntime-gpu, this build has the CPU only"
        )
    exact = {"device_id": str(device.index or 0), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return [("CUDAExecutionProvider", exact), "CPUExecutionProvider"]


def _only_input(file: OnnxFile, session: Any, means: int | None) -> Any:
    """The input for the images, which may be normalised by one mean or by one for each channel."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(repr(given.name) for given in inputs) or "none"
        raise InputError(f"OnnxTarget: '{file.path}' must have one input, the images, it has {names}")
    (given,) = inputs
    if given.type not in _DTYPES:
        raise InputError(
            f"OnnxTarget: '{file.path}' must take images in float16, float32 or float64, "
            f"its input '{given.name}' is {given.type}"
        )
    if given.shape and len(given.shape) != 4:
        raise InputError(
            f"OnnxTarget: '{file.path}' must take images (m, C, H, W), its input '{given.name}' has shape {given.shape}"
        )
    if given.shape and isinstance(given.shape[1], int) and means not in (None, 1, given.shape[1]):
        raise InputError(f"OnnxTarget: mean and std must have {given.shape[1]} values, one per channel, got {means}")
    return given


def _output(file: OnnxFile, session: Any, wanted: str | None, num_classes: int | None, outputs: str) -> tuple[str, int]:
    """Name of the output with the answers, and K."""
    found = {given.name: given for given in session.get_outputs()}
    names = ", ".join(f"'{name}' {given.shape}" for name, given in found.items())
    if wanted is None and len(found) > 1:
        raise InputError(f"OnnxTarget: scores must name one of the outputs of '{file.path}': {names}")
    if wanted is not None and wanted not in found:
        raise InputError(f"OnnxTarget: scores must name one of the outputs of '{file.path}': {names}; got '{wanted}'")
    output = found[wanted] if wanted is not None else next(iter(found.values()))
    rank = 1 if outputs == "labels" else 2
    shape = list(output.shape or ())  # empty where the file does not tell it
    if output.type not in _NUMBERS or len(shape) not in (0, rank):
        wanted = "(m,) labels" if rank == 1 else "(m, K) scores"
        raise InputError(
            f"OnnxTarget: output '{output.name}' of '{file.path}' must be {wanted}, got {output.type} {output.shape}"
        )
    told = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
    if told is None and num_classes is None:
        raise InputError(f"OnnxTarget: num_classes must be given, '{file.path}' does not tell it")
    if told is not None and num_classes not in (None, told):
        raise InputError(f"OnnxTarget: num_classes must be {told} as in '{file.path}', got {num_classes}")
    return output.name, int(told if told is not None else num_classes or 0)


def _reason(error: BaseException) -> str:
    """ONNX Runtime's complaint in one line, without its codes and the places in its source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error, limit=5000))
    text = re.sub(r"/\S+:\d+ [^()]*\([^()]*\) ", "", text)
    return text if len(text) <= 300 else f"{text[:299]}…"
