"""OnnxTarget: the file's answers whatever its type and batch, one line for every file that does not fit."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")

import poise
from onnx_graphs import SHAPE, WEIGHT, Graph, logits, weights
from poise import ModuleTarget
from poise.checks.targets import check_target
from poise.defenses.export import export_onnx
from poise.errors import InputError, MissingExtraError, TargetError
from poise.targets import DifferentiableTarget
from poise.targets.onnx import OnnxTarget
from poise.targets.onnx_file import onnx_fingerprint
from poise.types import Access, OutputKind
from toys import SmallCNN, generator, untouched_generators

IMAGES = torch.rand(7, *SHAPE, generator=generator(2))
IDS = torch.arange(7)
EXPECTED = torch.from_numpy(logits(IMAGES.numpy()))
SOFTMAX, ARGMAX = ("Softmax", "p", {"axis": 1}), ("ArgMax", "label", {"axis": 1, "keepdims": 0})


def close(found: Tensor, expected: Tensor | np.ndarray, near: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected), rtol=near, atol=near)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., OnnxTarget]:
    """A target of a graph with these fields; what is not a field of the graph is declared to the target."""

    def make(**given: Any) -> OnnxTarget:
        fields = {name: given.pop(name) for name in list(given) if name in Graph.__dataclass_fields__}
        return OnnxTarget(Graph(**fields).write(tmp_path / "model.onnx"), **given)

    return make


# --- answers ---


@pytest.mark.parametrize("batch", ["batch", None, 1, 3, 7, 100])
@pytest.mark.parametrize(("dtype", "near"), [("float16", 2e-2), ("float32", 1e-5), ("float64", 1e-12)])
def test_every_type_and_every_batch(opened: Any, batch: Any, dtype: str, near: float) -> None:
    target = opened(batch=batch, answer=(batch, 3), dtype=dtype, batch_size=4)
    images = IMAGES.double() if dtype == "float64" else IMAGES
    expected = logits(images.numpy())
    answer = target.query(images, IDS)
    assert answer.scores.dtype is getattr(torch, dtype)
    close(answer.scores, expected, near)
    assert (answer.kind, target.access, target.num_classes) == (OutputKind.LOGITS, Access.SCORES, 3)
    assert not isinstance(target, DifferentiableTarget)
    check_target(target, IMAGES, tolerance=max(near, 1e-5))
    assert target.query(images[:0], IDS[:0]).scores.shape == (0, 3)


def test_runs_have_the_given_or_the_fixed_size(opened: Any) -> None:
    for batch, sizes in (("batch", [4, 3]), (3, [3, 3, 3])):
        target = opened(batch=batch, answer=(batch, 3), batch_size=4)
        seen: list[np.ndarray] = []

        def run(names: list[str], feed: dict[str, np.ndarray], *more: Any, seen: Any = seen, to: Any = target) -> Any:
            seen.append(feed["images"])
            return to.runtime.run(names, feed, *more)

        target.runtime, target._session = target._session, SimpleNamespace(run=run)
        target.query(IMAGES, IDS)
        assert [len(images) for images in seen] == sizes
        assert np.array_equal(np.concatenate(seen)[:7], IMAGES.numpy())


def test_normalisation_is_applied_before_the_file(opened: Any) -> None:
    for dtype, near in (("float32", 1e-5), ("float16", 3e-2)):
        target = opened(dtype=dtype, mean=[0.5], std=[0.25])
        close(target.query(IMAGES, IDS).scores, logits((IMAGES.numpy() - 0.5) / 0.25), near)
    mean, std = np.array([0.1, 0.2, 0.3, 0.4], np.float32), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    images = IMAGES.reshape(7, 4, 2, 2)
    by_hand = (images.numpy() - mean[:, None, None]) / std[:, None, None]
    close(opened(shape=(4, 2, 2), mean=mean.tolist(), std=std.tolist()).query(images, IDS).scores, logits(by_hand))


@pytest.mark.parametrize("outputs", ["probabilities", "labels"])
def test_other_kinds(opened: Any, outputs: str) -> None:
    tail, name, answer = {
        "probabilities": (SOFTMAX, "p", ("batch", 3)),
        "labels": (ARGMAX, "label", ("batch",)),
    }[outputs]
    target = opened(tail=[tail], names=[name], answer=answer, outputs=outputs, num_classes=3, bounds=(0.0, 2.0))
    check_target(target, IMAGES)
    found = target.query(IMAGES, IDS)
    assert torch.equal(found.labels, EXPECTED.argmax(dim=1))
    assert found.kind is OutputKind(outputs)
    assert target.access is (Access.LABELS if outputs == "labels" else Access.SCORES)
    assert target.bounds == (0.0, 2.0)
    if outputs == "probabilities":
        close(found.scores, EXPECTED.softmax(dim=1))


def test_one_of_several_outputs(opened: Any) -> None:
    both = {"tail": [SOFTMAX], "names": ["scores", "p"]}
    close(opened(**both, scores="scores").query(IMAGES, IDS).scores, EXPECTED)
    found = opened(**both, scores="p", outputs="probabilities").query(IMAGES, IDS).scores
    close(found, EXPECTED.softmax(dim=1))
    listed = r"scores must name one of the outputs of '.*model.onnx': 'scores' \['batch', 3\], 'p' \['batch', 3\]"
    for name, end in ((None, "$"), ("logits", "; got 'logits'$")):
        with pytest.raises(InputError, match=f"^OnnxTarget: {listed}{end}"):
            opened(**both, scores=name)


def test_the_generators_and_the_points_are_left_alone(opened: Any) -> None:
    target, images = opened(threads=1), IMAGES.clone()
    with untouched_generators(), target.session(3), target.session():
        first = target.query(images, IDS)
    with torch.inference_mode():
        second = target.query(images, IDS)
    assert torch.equal(images, IMAGES)
    assert torch.equal(first.scores, second.scores.clone())
    turned = images.transpose(2, 3)  # strides of its own
    close(target.query(turned, IDS).scores, logits(turned.numpy()))


# --- a network that torch exported ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallCNN, Path]:
    model, path = SmallCNN().eval(), tmp_path_factory.mktemp("onnx") / "cnn.onnx"
    export_onnx(model, path, (1, 8, 8))
    return model, path


def test_an_attack_on_the_file_is_that_on_the_module(exported: tuple[SmallCNN, Path]) -> None:
    """The same columns up to rounding: float32 sums in another order move a confidence by some 1e-7."""
    model, path = exported
    images, labels = torch.rand(24, 1, 8, 8, generator=generator(5)), torch.arange(24) % 4
    module, file = ModuleTarget(model, num_classes=4), OnnxTarget(path, batch_size=10, threads=1)
    tables = [
        poise.run_recipe("sa-mma", target, images, labels, eps=0.1, budget=60).table.sort("id")
        for target in (module, file)
    ]
    for name in ("id", "label", "prediction_before", "prediction_after", "accepted", "queries", "stop"):
        assert tables[0][name].equals(tables[1][name]), name
    for name in ("confidence_before", "confidence_after", "loss_before", "loss_after", "linf", "l2"):
        assert np.abs(tables[0][name].to_numpy() - tables[1][name].to_numpy()).max() < 1e-5, name
    assert (tables[1]["confidence_after"] - tables[1]["confidence_before"]).abs().max() > 1e-3
    twin = OnnxTarget(path, mean=[0.1], std=[1.0])  # another normalisation is seen
    assert (twin.query(images, labels).confidence - file.query(images, labels).confidence).abs().max() > 1e-3
    check_target(file, images[:5])


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_do_not_depend_on_the_batch_beyond_rounding(exported: tuple[SmallCNN, Path], threads: int) -> None:
    images = torch.rand(50, 1, 8, 8, generator=generator(6))
    target = OnnxTarget(exported[1], threads=threads)
    whole = target.query(images, torch.arange(50)).scores
    for size in (1, 3, 16):
        parts = [target.query(part, torch.arange(len(part))).scores for part in torch.split(images, size)]
        assert float((torch.cat(parts) - whole).abs().max()) <= 2e-6 * float(whole.abs().max())


# --- answers that contradict the declaration ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tail": [SOFTMAX], "names": ["p"]}, r"declared to answer logits, but its rows are probabilities"),
        ({"outputs": "probabilities"}, r"declared to answer probabilities, .* declare outputs='logits'"),
        ({"tail": [("Sqrt", "r", {})], "names": ["r"]}, r"scores must be finite, got \d+ NaN or infinite values"),
        (
            {"tail": [("ReduceSum", "sum", {"keepdims": 0})], "names": ["sum"], "answer": None, "num_classes": 3},
            r"answers must be \(7, 3\) scores for 7 images, got \(\)",
        ),
        (
            {"tail": [ARGMAX], "names": ["label"], "answer": ("m",), "outputs": "labels", "num_classes": 2},
            r"labels must be in 0\.\.1, got values in 0\.\.2",
        ),
        ({"shape": (1, "h", "w")}, r"the run failed: \w+: .+"),  # takes any size, but its matrix product does not
    ],
)
def test_answers_that_are_refused(opened: Any, given: dict[str, Any], message: str) -> None:
    images = torch.rand(7, 1, 5, 5, generator=generator(3)) if "shape" in given else IMAGES
    with pytest.raises(TargetError, match=rf"^OnnxTarget: .*{message}") as caught:
        opened(**given).query(images, IDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        (SHAPE, (7, 1, 5, 5), r"images must be \(m, 1, 4, 4\) as the file takes them, got \(7, 1, 5, 5\)$"),
        (SHAPE, (1, 4, 4), r"images must be \(m, 1, 4, 4\) as the file takes them, got \(1, 4, 4\)$"),
        ((1, "h", 4), (7, 3, 5, 4), r"images must be \(m, 1, any, 4\) as the file takes them, got \(7, 3, 5, 4\)$"),
        ((4, 4, 1), (7, 1, 4, 4), r"images must be \(m, 4, 4, 1\) .* \(the file takes channels last: export it with"),
    ],
)
def test_images_that_do_not_fit(opened: Any, shape: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^OnnxTarget: {message}"):
        opened(shape=shape).query(torch.zeros(given), torch.arange(given[0]))


# --- files and arguments that do not fit ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"operator": "Foo"}, r"ONNX Runtime cannot load '.*model.onnx': InvalidGraph: .*No Op registered for Foo"),
        ({"operator": "Foo", "domain": "my.ops"}, r"ONNX Runtime cannot load .*my.ops:Foo.* is not a registered"),
        ({"opset": 99}, r"ONNX Runtime cannot load '.*model.onnx': \w+: ONNX Runtime only .* Opset 99 is under"),
        ({"ir": 99}, r"ONNX Runtime cannot load '.*model.onnx': \w+: Unsupported model IR version: 99, max supported"),
        ({"shape": (1, 16)}, r"must take images \(m, C, H, W\), its input 'images' has shape \['batch', 1, 16\]"),
        ({"dtype": "int64"}, r"must take images in float16, float32 or float64, its input 'images' is tensor\(int64\)"),
        ({"more_inputs": ["size"]}, r"must have one input, the images, it has 'images', 'size'"),
        (
            {"tail": [ARGMAX], "names": ["label"], "answer": ("m",)},
            r"output 'label' of '.*model.onnx' must be \(m, K\) scores, got tensor\(int64\) \['\w+'\]",
        ),
        (
            {"tail": [("Cast", "flag", {"to": 9})], "names": ["flag"]},
            r"output 'flag' of '.*' must be \(m, K\) scores, got tensor\(bool\) \['batch', 3\]",
        ),
        ({"outputs": "labels"}, r"output 'scores' of '.*' must be \(m,\) labels, got tensor\(float\) \['batch', 3\]"),
        (
            {"tail": [ARGMAX], "names": ["label"], "answer": ("m",), "outputs": "labels"},
            r"num_classes must be given, '.*model.onnx' does not tell it",
        ),
        ({"num_classes": 4}, r"num_classes must be 3 as in '.*model.onnx', got 4"),
        ({"outputs": "scores"}, r"outputs must be 'logits', 'probabilities' or 'labels', got 'scores'"),
        ({"mean": [0.5]}, r"mean and std must be given together, got mean=\[0.5\], std=None"),
        ({"mean": [0.5] * 3, "std": [1.0] * 3}, r"mean and std must have 1 values, one per channel, got 3"),
        ({"bounds": (1.0, 1.0)}, r"bounds must be \(low, high\) with low < high, got \(1.0, 1.0\)"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ({"threads": 0}, r"threads must be at least 1, got 0"),
        ({"device": "cuda"}, r"device 'cuda' needs the package onnxruntime-gpu, this build has the CPU only"),
        ({"device": "mps"}, r"device must be 'cpu' or 'cuda', got 'mps'"),
    ],
)
def test_refused_in_one_line(opened: Any, given: dict[str, Any], message: str, capfd: Any) -> None:
    with pytest.raises(InputError, match=rf"^OnnxTarget: .*{message}") as caught:
        opened(**given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")  # ONNX Runtime prints nothing itself


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an ONNX file; it holds no network"),
        (b"not a network at all" * 10, "must be an ONNX file; it is another type or damaged"),
        (Graph().proto().SerializeToString()[:60], "must be an ONNX file; it is another type or damaged"),
        (None, "the file must exist, got '.*model.onnx'$"),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    for call in (OnnxTarget, onnx_fingerprint):
        with pytest.raises(InputError, match=f"^OnnxTarget: .*{message}"):
            call(path)
    with pytest.raises(InputError, match=r"the file must exist, got '.*' \(a folder\)"):
        OnnxTarget(tmp_path)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.onnx").open("wb") as handle:
        handle.truncate(2**31)  # takes no room on the disk
    with pytest.raises(InputError, match=r"must have at most 2 GiB .* got 2.0 GiB"):
        OnnxTarget(tmp_path / "large.onnx")


# --- weights beside the file ---


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder for the network, with secrets beside it."""
    (tmp_path / "house" / "sub").mkdir(parents=True)
    for place in ("w.bin", "house/w.bin", "house/sub/w.bin"):
        weights(tmp_path / place)
    (tmp_path / "house" / "inner.bin").symlink_to(tmp_path / "house" / "sub" / "w.bin")
    (tmp_path / "house" / "outer.bin").symlink_to(tmp_path / "w.bin")
    (tmp_path / "house" / "loop.bin").symlink_to(tmp_path / "house" / "loop.bin")
    return tmp_path / "house"


@pytest.mark.parametrize("place", ["w.bin", "sub/w.bin", "./w.bin", "inner.bin"])
def test_weights_in_the_files_own_folder(house: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Graph(beside=place).write(house / "model.onnx")
    monkeypatch.chdir(house.parent)
    for name in (path, "house/model.onnx"):
        close(OnnxTarget(name).query(IMAGES, IDS).scores, EXPECTED)
    before = onnx_fingerprint(path)
    (house / place).write_bytes((WEIGHT + 1).astype(np.float32).tobytes())
    assert onnx_fingerprint(path) != before
    assert OnnxTarget(path).fingerprint == onnx_fingerprint(path)


@pytest.mark.parametrize("place", ["../w.bin", "sub/../../w.bin", "/etc/hostname", "outer.bin", "..", "{absolute}"])
def test_weights_elsewhere_are_refused(house: Path, place: str) -> None:
    path = Graph(beside=place.format(absolute=house / "w.bin")).write(house / "model.onnx")
    for call in (OnnxTarget, onnx_fingerprint):
        with pytest.raises(InputError, match=r"^OnnxTarget: '.*model.onnx' must keep its weights in its own folder"):
            call(path)


@pytest.mark.parametrize("place", ["gone.bin", "sub", "loop.bin", "*/_ORT_MEM_ADDR_/*", "x" * 5000, "nul\0.bin"])
def test_weights_that_are_not_there(house: Path, place: str) -> None:
    path = Graph(beside=place).write(house / "model.onnx")
    with pytest.raises(InputError, match=r"needs its weights in '.*' beside it, that file is not there$") as caught:
        OnnxTarget(path)
    assert len(str(caught.value)) < 500


def test_weights_that_are_too_few(house: Path) -> None:
    (house / "w.bin").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"^OnnxTarget: ONNX Runtime cannot load '.*model.onnx': "):
        OnnxTarget(Graph(beside="w.bin").write(house / "model.onnx"))


def test_a_place_hidden_in_a_branch_or_given_twice_is_found(house: Path) -> None:
    """Not only initializers of the outermost graph name files."""
    from onnx import AttributeProto, GraphProto, TensorProto

    model = Graph(beside="w.bin").proto()
    hidden = TensorProto()
    hidden.CopyFrom(model.graph.initializer[0])
    hidden.name = "hidden"
    hidden.external_data[0].value = "../w.bin"
    model.graph.initializer[0].CopyFrom(Graph().proto().graph.initializer[0])
    attribute = AttributeProto(name="then_branch", type=AttributeProto.GRAPH, g=GraphProto(initializer=[hidden]))
    model.graph.node[0].attribute.append(attribute)
    twice = Graph(beside="w.bin").proto()
    twice.graph.initializer[0].external_data.add(key="location", value="../w.bin")
    nowhere = Graph(beside="w.bin").proto()
    del nowhere.graph.initializer[0].external_data[:]
    for found in (model, twice, nowhere):
        (house / "model.onnx").write_bytes(found.SerializeToString())
        with pytest.raises(InputError, match="must keep its weights in its own folder"):
            OnnxTarget(house / "model.onnx")


def test_the_fingerprint_of_one_file_is_its_sha256(tmp_path: Path) -> None:
    path = Graph().write(tmp_path / "model.onnx")
    assert OnnxTarget(path).fingerprint == onnx_fingerprint(path)
    assert onnx_fingerprint(path) == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


# --- the runtime ---


def test_what_the_runtime_is_told(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    told: list[Any] = []
    make = onnxruntime.InferenceSession

    def spy(content: bytes, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert not enable_fallback
        told.append((options, providers))
        return make(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    opened(threads=3)
    opened(device="cuda:1")
    (cpu, providers), (gpu, with_cuda) = told
    assert (cpu.intra_op_num_threads, gpu.intra_op_num_threads) == (3, torch.get_num_threads())
    assert providers == ["CPUExecutionProvider"]
    assert [name if isinstance(name, str) else name[0] for name in with_cuda] == [
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert with_cuda[0][1]["device_id"] == "1"
    assert with_cuda[0][1]["use_tf32"] == "0"


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_extra(missing: str, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"^OnnxTarget needs the extra 'onnx': pip install 'poise\[onnx\]'$"):
        opened()


# --- a run without an end ---


def endless(folder: Path, rounds: int) -> Path:
    """A file that takes the sine of its images so many times."""
    import onnx
    from onnx import TensorProto, helper

    def value(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["here"], ["there"])], "body",
        [value("round", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("here", 1, ["n", 2])],
        [value("on", TensorProto.BOOL, []), value("there", 1, ["n", 2])],
    )  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Loop", ["most", "go", "flat"], ["y"], body=body),
        ],
        "endless", [value("x", 1, ["n", 1, 1, 2])], [value("y", 1, ["n", 2])],
        [
            helper.make_tensor("most", TensorProto.INT64, [], [rounds]),
            helper.make_tensor("go", TensorProto.BOOL, [], [1]),
        ],
    )  # fmt: skip
    file = folder / "endless.onnx"
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), file)
    return file


def test_a_run_without_an_end_is_ended(tmp_path: Path, capfd: Any) -> None:
    points, ids = torch.rand(3, 1, 1, 2), torch.arange(3)
    target = OnnxTarget(endless(tmp_path, 10**12), seconds=0.1)
    began = time.monotonic()
    with pytest.raises(TargetError, match=r"must end within 0\.3 s \(0\.1 s for each of 3 images\); seconds=N allows"):
        target.query(points, ids)
    assert 0.25 < time.monotonic() - began < 10
    assert capfd.readouterr().err == ""
    short = OnnxTarget(endless(tmp_path, 3), seconds=5)
    close(short.query(points, ids).scores, points.flatten(1).sin().sin().sin().double())
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer) and not one.finished.is_set()]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_seconds_that_make_no_sense(opened: Any, seconds: float) -> None:
    with pytest.raises(InputError, match="seconds must be a positive number"):
        opened(seconds=seconds)
