"""Every reader of files and answers, with a valid input: what the hostile tests and benchmarks/fuzz.py damage."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fake_run
import numpy as np
import polars as pl
import torch
from harness import Reader
from mutations import (
    Mutation,
    rechunked,
    reheaded_npy,
    reheaded_tensors,
    rejson,
    repickled,
    resized_idx,
    retabled,
    retoml,
    reworded,
    rezipped,
)
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import leaderboard_cases
import onnx_graphs
from poise import data, defenses, models, report
from poise.data import Dataset
from poise.experiments import leaderboard
from poise.experiments.audit_spec import make_spec, read_spec
from poise.experiments.bench.result import load as load_result
from poise.experiments.bench.spec import read_bench_spec
from poise.experiments.bench.store import LocalStore
from poise.experiments.certify_folder import ATTACKS, SAMPLES, CertifyFolder
from poise.experiments.certify_spec import make_certify_spec, read_certify_spec
from poise.experiments.costs import read_costs
from poise.experiments.defend_fit import from_logits
from poise.experiments.detect_spec import make_options, read_options
from poise.experiments.gate import Gate
from poise.experiments.run_folder import RunFolder
from poise.experiments.served import saved
from poise.experiments.train_spec import read_train_spec
from poise.experiments.trust.by_temperature import illusion_check
from poise.models.weights import load_weights, read_state
from poise.report import terminal
from poise.report.leaderboard import render as render_leaderboard
from poise.report.page import write as write_page
from poise.serve.bodies import JSON, NPY, PNG, Frame
from poise.serve.bodies import decode as decode_body
from poise.table import SCHEMA
from poise.targets import FunctionTarget, Journal
from poise.targets.http import make_endpoint, read_endpoint
from poise.targets.http.decode import decode as decode_answer
from poise.targets.journal_file import records
from poise.training.checkpoint import Store as Checkpoints
from poise.training.recipe import training_recipe, training_recipes

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ROOT / "src" / "poise" / "experiments" / "papers"

TEXT: tuple[Mutation, ...] = (reworded, retoml)
FRAME = Frame((1, 4, 5), (0.0, 1.0), most=8, image_bytes=10_000)


def file(name: str, content: str | bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    """Writes one file of this name."""

    def write(folder: Path) -> Path:
        made = content() if callable(content) else content
        path = folder / name
        path.write_bytes(made.encode() if isinstance(made, str) else made)
        return path

    return write


def pixels(n: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 6, 6), dtype=np.uint8)


# texts

AUDIT = make_spec(
    model="builtin:digits",
    budget=50,
    costs={"wrong_accepted": 9.0, "deferred": 1.0, "classes": {"3": {"deferred": 2.0}}},
)
CERTIFY = make_certify_spec()
GATE = 'recipes = ["sa-mma"]\nece_after = 0.3\n\n[min]\naccuracy_after = 0.5\n'
COSTS = "wrong_accepted = 50\ndeferred = 4\nright_accepted = 0\n\n[classes.3]\nwrong_accepted = 500.5\n"
ENDPOINT = (
    'url = "https://api.example.org/v1/predict"\nnum_classes = 3\nclasses = ["cat", "dog", "cow"]\nbody = "json"\n'
    'template = \'{"instances": "$images"}\'\nitem = \'{"image": "$image"}\'\nscores = "predictions[*].scores"\n'
    'outputs = "probabilities"\nbounds = [0.0, 1.0]\nshape = [3, 8, 8]\nimages_per_request = 4\n'
    'timeout_seconds = 10.0\nretries = 3\nconnections = 4\n\n[headers]\nX-Client = "poise"\n\n[query]\nversion = "2"\n'
)
DETECT = 'detectors = ["lid"]\nfit_share = 0.2\nmagnitudes = [0.0, 0.01]\nscale = true\nlayers = ["layer1"]\n'


def audit_toml(path: Path) -> None:
    spec, recorded = read_spec(path)
    spec.to_toml(recorded)


def train_toml() -> bytes:
    from poise.experiments.train_spec import TrainSpec

    spec = TrainSpec(recipe=training_recipe("at"), model="builtin:digits", data="builtin:digits")
    return spec.to_toml({"weights": "sha256:0"}).encode()


def recipe_toml() -> bytes:
    from poise.spec import to_toml

    return to_toml(training_recipes()["uat-smooth"].model_dump(exclude_none=True)).encode()


def costs(path: Path) -> None:
    make_spec(costs=read_costs(path))


TEXTS = [
    Reader("audit.toml", file("audit.toml", AUDIT.to_toml({"weights": "sha256:0"})), audit_toml, TEXT),
    Reader("certify.toml", file("certify.toml", CERTIFY.to_toml({"data": "sha256:0"})), read_certify_spec, TEXT),
    Reader("train.toml", file("train.toml", train_toml), read_train_spec, TEXT),
    Reader("detect.toml", file("detect.toml", DETECT), lambda path: make_options(**read_options(path.parent)), TEXT),
    Reader("bench spec", file("t1.toml", (PAPERS / "aaa" / "t2.toml").read_bytes()), read_bench_spec, TEXT),
    Reader("gate", file("gate.toml", GATE), Gate.read, TEXT),
    Reader("costs", file("costs.toml", COSTS), costs, TEXT),
    Reader("training recipe", file("mine.toml", recipe_toml), lambda path: training_recipe(str(path)), TEXT),
    Reader("endpoint", file("endpoint.toml", ENDPOINT), read_endpoint, TEXT),
]


# images


def dataset(address: str) -> None:
    found = data.load(address)
    assert isinstance(found, Dataset)
    images = found.images
    assert images.shape == (len(found), *found.shape)
    assert bool((images >= 0).all() and (images <= 1).all())
    assert int(found.labels.max()) < found.num_classes
    found.fingerprint()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=pixels(), labels=np.arange(12) % 3, class_names=np.array(["a", "b", "c"]))
    return stream.getvalue()


def logits_npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, logits=np.random.default_rng(0).normal(size=(40, 3)), labels=np.arange(40) % 3)
    return stream.getvalue()


def idx(folder: Path, *, packed: bool) -> Path:
    """An MNIST-like folder; its file of images."""
    squeeze = gzip.compress if packed else bytes
    suffix = ".gz" if packed else ""
    head = b"\0\0\x08\x03" + b"".join(side.to_bytes(4, "big") for side in (12, 6, 6))
    (folder / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(squeeze(b"\0\0\x08\x01\0\0\0\x0c" + bytes(range(3)) * 4))
    path = folder / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(squeeze(head + pixels().tobytes()))
    return path


def gzipped(content: bytes, rng: Any) -> bytes:
    return gzip.compress(resized_idx(gzip.decompress(content), rng))


def picture(folder: Path, *, suffix: str) -> Path:
    """Two classes of two images; one of them is damaged."""
    for name, label in (("a0", "cat"), ("a1", "cat"), ("b0", "dog"), ("b1", "dog")):
        (folder / label).mkdir(exist_ok=True)
        image = Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (9, 8, 3), dtype=np.uint8))
        image.save(folder / label / f"{name}{suffix}")
    return folder / "cat" / f"a1{suffix}"


def tiny(folder: Path) -> Path:
    """Tiny-ImageNet's layout; its list of labels."""
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n2\nn1\n")
    (folder / "words.txt").write_text("n1\tgoldfish\nn2\tfrog\n")
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / "val" / "images" / f"val_{number}.png")
    path = folder / "val" / "val_annotations.txt"
    path.write_text("val_0.png\tn1\t0\t0\t8\t8\nval_1.png\tn2\t0\t0\t8\t8\nval_2.png\tn1\t0\t0\t8\t8\n")
    return path


def gtsrb(folder: Path) -> Path:
    images = folder / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 21)).save(images / f"0000{number}.ppm")
    path = folder / "gtsrb" / "GT-final_test.csv"
    path.write_text("Filename;Width;ClassId\n00000.ppm;20;16\n00001.ppm;20;1\n00002.ppm;20;38\n")
    return path


def imagenet(folder: Path) -> Path:
    for wnid in ("n01", "n02"):
        (folder / "val" / wnid).mkdir(parents=True)
        Image.new("RGB", (20, 21)).save(folder / "val" / wnid / "a.JPEG")
    torch.save(({"n01": ("tench", "Tinca"), "n02": ("goldfish",)}, ["n01"]), folder / "meta.bin")
    return folder / "meta.bin"


def address(scheme: str, parents: int = 0, query: str = "") -> Callable[[Path], None]:
    def read(path: Path) -> None:
        dataset(f"{scheme}:{quote(str(path.parents[parents - 1] if parents else path))}{query}")

    return read


def rooted(name: str, parents: int, query: str) -> Callable[[Path], None]:
    return lambda path: dataset(f"torchvision:{name}?root={quote(str(path.parents[parents - 1]))}&{query}")


def address_text(load: Callable[[str], object]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        load(path.read_bytes().decode("utf-8", "surrogateescape"))

    return read


IMAGES = [
    Reader("npz", file("set.npz", npz), address("npz"), (rezipped,)),
    Reader("logits npz", file("logits.npz", logits_npz), from_logits, (rezipped,)),
    Reader("idx", partial(idx, packed=False), address("idx", 1), (resized_idx,)),
    Reader("idx.gz", partial(idx, packed=True), address("idx", 1), (gzipped,)),
    Reader("folder: PNG", partial(picture, suffix=".png"), address("folder", 2), (rechunked,)),
    *(
        Reader(f"folder: {suffix[1:].upper()}", partial(picture, suffix=suffix), address("folder", 2))
        for suffix in (".jpg", ".bmp", ".ppm", ".tif", ".webp")
    ),
    Reader("Tiny-ImageNet's list", tiny, address("folder", 2, "?split=val"), (reworded,)),
    Reader("GTSRB's list", gtsrb, rooted("GTSRB", 2, "size=8"), (reworded,)),
    Reader("ImageNet's meta.bin", imagenet, rooted("ImageNet", 1, "size=8&split=val"), (repickled, rezipped)),
    Reader(
        "data address",
        file("address", "builtin:digits?split=test&part=train&fractions=80:10:10&seed=3"),
        address_text(data.load), (reworded,),
    ),
    Reader(
        "model address", file("address", "builtin:digits?mean=0.5&std=0.25"), address_text(models.load), (reworded,)
    ),
]  # fmt: skip


# weights and models


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def tensors() -> bytes:
    from safetensors.torch import save

    return save(network().state_dict())


def torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": network().state_dict()}, stream)
    return stream.getvalue()


def checkpoint(folder: Path) -> Path:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    Checkpoints(folder).write_last(
        {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"epoch": 1}}
    )
    (folder / "best.safetensors").write_bytes(tensors())
    return folder / "last.pt"


def defence(folder: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=rng), torch.arange(60) % 3
    fitted = defenses.Splines().fit(logits, labels)
    defenses.save(fitted, folder / "defence.safetensors", {"num_classes": 3})
    return folder / "defence.safetensors"


def onnx_file(folder: Path) -> Path:
    return onnx_graphs.Graph().write(folder / "model.onnx")


def rebuilt(content: bytes, rng: Any) -> bytes:
    """An ONNX file with another operator, attribute, size, type or place of its weights."""
    import onnx
    from mutations import EDGES, NAMES

    model = onnx.load_model_from_string(content)
    graph, weights = model.graph, model.graph.initializer[0]
    node = rng.choice(graph.node)
    what = rng.choice(("op", "dims", "place", "type", "shape", "name", "loop", "opset", "fill"))
    small = [edge for edge in EDGES if edge < 2**63]
    text = rng.choice([name for name in NAMES if "\ud800" not in name])
    if what == "op":
        node.op_type = rng.choice(
            (text, "Loop", "If", "Expand", "ConstantOfShape", "Reshape", "Gather", "RandomNormal")
        )
    elif what == "dims":
        weights.dims[rng.randrange(len(weights.dims))] = rng.choice(small)
    elif what == "place":
        weights.data_location = onnx.TensorProto.EXTERNAL
        entry = weights.external_data.add()
        entry.key, entry.value = "location", rng.choice((text, "../model.onnx", "/dev/zero", "model.onnx"))
    elif what == "type":
        weights.data_type = rng.choice((0, 1, 2, 8, 10, 11, 16, 99, -1))
    elif what == "shape":
        graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)].dim_value = rng.choice((*small, -1))
    elif what == "name":
        rng.choice((graph.input, graph.output, graph.node, graph.initializer))[0].name = text
    elif what == "loop":
        node.input[0] = node.output[0]
    elif what == "opset":
        model.opset_import[0].version = rng.choice(small)
    else:
        graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", [weights.name], [text]))
    return bytes(model.SerializeToString())


def onnx_target(path: Path) -> None:
    target = models.load(f"onnx:{quote(str(path))}")
    target.query(torch.zeros(2, 1, 4, 4), torch.arange(2))


WEIGHTS = [
    Reader(
        "weights: safetensors", file("w.safetensors", tensors),
        lambda path: load_weights(network(), path, name="it"), (reheaded_tensors,),
    ),
    Reader("weights: torch", file("w.pth", torch_file), read_state, (repickled, rezipped)),
    Reader("training checkpoint", checkpoint, lambda path: Checkpoints(path.parent).read_last(), (repickled, rezipped)),
    Reader("defence", defence, lambda path: saved(path, 3), (reheaded_tensors,)),
    Reader("ONNX", onnx_file, onnx_target, (rebuilt, rebuilt)),
]  # fmt: skip


# network


def answer(sent: object, **given: Any) -> tuple[Callable[[Path], Path], Callable[[Path], None]]:
    """The body of an answer to two images, and its reader."""
    endpoint = make_endpoint(url="https://example.org", **({"num_classes": 3} | given))
    write = file("answer", sent if isinstance(sent, bytes) else json.dumps(sent))

    def read(path: Path) -> None:
        found = decode_answer(path.read_bytes(), 2, endpoint)
        assert found.shape == (2, 3)
        assert np.isfinite(found).all()

    return write, read


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def metadata(path: Path) -> None:
    from poise.models.endpoints import _metadata

    _metadata(path.read_bytes())


def body(kind: str) -> Callable[[Path], None]:
    return lambda path: decode_body(kind, path.read_bytes(), FRAME)


def body_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


CLASSES = ("cat", "dog", "cow")
NAMED = [[{"label": "cat", "score": 0.6}, {"label": "dog", "score": 0.3}], [{"label": "cow", "score": 0.9}]]
TOLD = {
    "num_classes": 3, "outputs": "logits", "bounds": [0, 1], "shape": [1, 4, 4], "max_batch": 8,
    "classes": list(CLASSES),
}  # fmt: skip
IMAGES_SENT = np.zeros((2, 1, 4, 5), np.float32)
SENT = {"a": [{"p": row} for row in [[0.25, 0.25, 0.5], [0.1, 0.1, 0.8]]]}
WORDED = (rejson, reworded)
SCORES = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], np.float32)
NETWORK = [
    Reader("answer: logits", *answer({"scores": SCORES.tolist()}, outputs="logits"), (rejson, reworded)),
    Reader("answer: probabilities", *answer(SENT, scores="a[*].p"), WORDED),
    Reader("answer: top-k", *answer({"scores": NAMED}, outputs="top-k", classes=CLASSES), WORDED),
    Reader("answer: labels", *answer({"scores": ["cat", "cow"]}, outputs="labels", classes=CLASSES), WORDED),
    Reader("answer: npy", *answer(npy(SCORES), answer="npy", outputs="logits"), (reheaded_npy,)),
    Reader("server's metadata", file("metadata", json.dumps(TOLD)), metadata, (rejson, reworded)),
    Reader("request: npy", file("body", npy(IMAGES_SENT)), body(NPY), (reheaded_npy,)),
    Reader("request: JSON", file("body", json.dumps({"images": IMAGES_SENT.tolist()})), body(JSON), WORDED),
    Reader("request: PNG", file("body", body_png), body(PNG), (rechunked,)),
]  # fmt: skip


# run folders


def silent() -> FunctionTarget:
    return FunctionTarget(lambda x: np.zeros((len(x), 3)), num_classes=3)


def journal(folder: Path) -> Path:
    path = folder / "clean.log"
    with Journal(FunctionTarget(lambda x: np.asarray(x).reshape(len(x), -1)[:, :3], num_classes=3), path) as target:
        target.query(torch.arange(48.0).reshape(8, 1, 2, 3) / 48, torch.arange(8))
    return path


def replay(path: Path) -> None:
    sum(1 for _ in records(path))
    with Journal(silent(), path) as target:
        target.query(torch.arange(48.0).reshape(8, 1, 2, 3) / 48, torch.arange(8))


def relabelled(content: bytes, rng: Any) -> bytes:
    """A journal whose first line tells of other classes, or with records moved about."""
    line, _, rest = content.partition(b"\n")
    if rng.random() < 0.5:
        number = rng.choice((0, 1, 3, 10**9, 10**30, 10**60))
        return b"poise journal 1, %d classes, logits\n" % number + rest
    cuts = sorted(rng.randint(0, len(rest)) for _ in range(3))
    parts = [rest[a:b] for a, b in zip((0, *cuts), (*cuts, len(rest)), strict=True)]
    rng.shuffle(parts)
    return line + b"\n" + b"".join(parts)


SMALL = fake_run.Spec(n=21, recipes=("sa-mma", "sa-oca"), models=fake_run.MODELS[:2], channels=1, side=8, traces=True)


def run(name: str, spec: fake_run.Spec = SMALL) -> Callable[[Path], Path]:
    """A finished audit; its file of this name."""

    def write(folder: Path) -> Path:
        fake_run.build(folder / "run", spec)
        return folder / "run" / name

    return write


def page(path: Path) -> None:
    """Everything that is made of a run folder."""
    home = next(parent for parent in path.parents if parent.name == "run")
    try:
        write_page(home)
        summary = report.read_summary(home)
        report.markdown(summary), report.csv(summary), report.verdict(summary)
        terminal.text(summary)
    finally:
        (home / "report.html").unlink(missing_ok=True)


def ranked(folder: Path) -> Path:
    leaderboard.write_entries(
        folder / "entries", leaderboard.entries_from(leaderboard_cases.summary(), name="A network")
    )
    return min((folder / "entries").glob("*.json"))


def rank(path: Path) -> None:
    groups = [group.plain() for group in leaderboard.rank(leaderboard.read_entries(path.parent))]
    render_leaderboard(groups, costs=leaderboard.COSTS.model_dump(), threshold=leaderboard.THRESHOLD)
    report.leaderboard.markdown(groups)


def submitted(path: Path) -> None:
    summary = report.read_summary(path.parent)
    leaderboard.entries_from(summary, name="A network")


KEY = "ab" * 32


def shard(folder: Path) -> Path:
    store = LocalStore(str(folder))
    store.write(KEY, {"rows.parquet": table(), "notes.json": b"{}"}, {"seconds": 1.0})
    store.write("cd" * 32, {"rows.parquet": table()}, {"seconds": 1.0})
    return folder / "shards" / KEY[:2] / KEY / "done.json"


def stored(path: Path) -> None:
    store = LocalStore(str(path.parents[3]))
    assert "cd" * 32 in store.finished()
    assert store.intact("cd" * 32)
    if store.intact(KEY):
        store.files(KEY)
    store.about(KEY)["about"]
    for name in store.files(KEY):
        assert store.read(KEY, name) is not None


def table() -> bytes:
    stream = io.BytesIO()
    row = {name: [0] if kind != pl.String else ["x"] for name, kind in SCHEMA.items()}
    pl.DataFrame(row, schema=SCHEMA, strict=False).write_parquet(stream)
    return stream.getvalue()


def rows(folder: Path) -> Path:
    home = RunFolder(folder)
    home.samples_file("sa-mma", "none", "aware", 0).parent.mkdir()
    for chunk in range(2):
        home.samples_file("sa-mma", "none", "aware", chunk).write_bytes(table())
    return home.samples_file("sa-mma", "none", "aware", 1)


def attacked(folder: Path) -> Path:
    path = folder / "adversarial" / "sa-mma.none.00000.safetensors"
    path.parent.mkdir()
    save_file({"ids": torch.arange(3), "images": torch.zeros(3, 1, 4, 4)}, path)
    return path


def certified(folder: Path) -> Path:
    for place, schema in (("samples", SAMPLES), ("attacks", ATTACKS)):
        (folder / place).mkdir()
        row = {name: [1] if kind != pl.List(pl.Float64) else [[1.0]] for name, kind in schema.items()}
        pl.DataFrame(row, schema=schema, strict=False).write_parquet(folder / place / "00000.parquet")
    return folder / "samples" / "00000.parquet"


def certificates(path: Path) -> None:
    home = CertifyFolder(path.parents[1])
    home.samples(), home.attacks()


SPEC = PAPERS / "aaa" / "t2.toml"


def result(folder: Path) -> Path:
    for suffix in (".csv", ".json"):
        (folder / f"t2{suffix}").write_bytes((ROOT / "results" / "papers" / "aaa" / f"t2{suffix}").read_bytes())
    return folder / "t2.csv"


def bench_result(path: Path) -> None:
    load_result("t2", read_bench_spec(SPEC), path.parent)


def untested(path: Path) -> None:
    illusion_check(RunFolder(path.parent))


OUTCOME = json.dumps({"found": False, "sentence": "Gradients are as they seem."})
RUNS = [
    Reader("journal", journal, replay, (relabelled,)),
    Reader("report: summary.json", run("summary.json"), page, (rejson,)),
    Reader("report: samples", run("samples/sa-oca.none.aware.00001.parquet"), page, (retabled,)),
    Reader("report: curves", run("curves/all.parquet"), page, (retabled,)),
    Reader("report: traces", run("traces/sa-oca.none.aware.00000.parquet"), page, (retabled,)),
    Reader("report: gallery", run("gallery.parquet"), page, (retabled,)),
    Reader("report: gallery's images", run("gallery.safetensors"), page, (reheaded_tensors,)),
    Reader("report: audit.toml", run("audit.toml"), page, (reworded,)),
    Reader("run's rows", rows, lambda path: RunFolder(path.parents[1]).rows("sa-mma", "none", "aware"), (retabled,)),
    Reader(
        "run's images", attacked, lambda path: RunFolder(path.parents[1]).images("sa-mma", "none", 0),
        (reheaded_tensors,),
    ),
    Reader("certificates", certified, certificates, (retabled,)),
    Reader("illusion.json", file("illusion.json", OUTCOME), untested, (rejson,)),
    Reader("bench: done.json", shard, stored, (rejson,)),
    Reader("bench: saved result", result, bench_result, (reworded,)),
    Reader("leaderboard entry", ranked, rank, (rejson,)),
    Reader("leaderboard: audit", file("summary.json", json.dumps(leaderboard_cases.summary())), submitted, (rejson,)),
]  # fmt: skip

READERS = {reader.name: reader for reader in (*TEXTS, *IMAGES, *WEIGHTS, *NETWORK, *RUNS)}
