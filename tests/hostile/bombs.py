"""Inputs that are small on disk and claim, or unpack to, more than a machine has; run each in a process of its own.

    python tests/hostile/bombs.py        # a line of JSON for each

What is asserted of each is 1 GiB and 10 s.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import mutations
import numpy as np
import polars as pl
import readers
import torch
from harness import measured
from PIL import Image
from readers import ENDPOINT, FRAME, answer

from poise.experiments.run_folder import RunFolder
from poise.models.weights import read_state
from poise.serve.bodies import JSON, PNG
from poise.serve.bodies import decode as decode_body
from poise.spec import LARGEST_TOML
from poise.targets.http.reading import read_endpoint
from poise.targets.journal_file import records

MIB = 2**20
SIZE = 2 * MIB
"""Of long answers and requests; 16 MiB are allowed, which the benchmark sends."""

Reads = Iterator[Callable[[], object]]
Bomb = Callable[[Path], Reads]
BOMBS: dict[str, Bomb] = {}
LONG = {"png of the most pixels", "jpeg of the most pixels", "webp of the most pixels"}
"""Those that take seconds of their own."""


def bomb(function: Bomb) -> Bomb:
    """Writes something into an empty folder and yields what reads it; what is yielded is called before it goes on."""
    BOMBS[function.__name__.replace("_", " ")] = function
    return function


def zeros(mib: int, wbits: int = -15) -> bytes:
    """So many MiB of zeros, packed."""
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mib)) + packer.flush()


def picture(folder: Path, content: bytes, name: str = "a.png") -> Path:
    (folder / "cat").mkdir()
    (folder / "cat" / name).write_bytes(content)
    return folder


def made(kind: str, size: tuple[int, int], mode: str = "RGB", **more: object) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new(mode, size).save(stream, kind, **more)
    return stream.getvalue()


def png(width: int, height: int, packed: bytes, *more: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), *more, (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@bomb
def npz_that_unpacks(folder: Path) -> Reads:
    with zipfile.ZipFile(folder / "set.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (300, 1024, 1024)})
        with archive.open("images.npy", "w") as stream:
            stream.write(head.getvalue())
            for _ in range(300):
                stream.write(bytes(MIB))
        archive.writestr("labels.npy", readers.npy(np.zeros(300, np.int64)))
    yield lambda: readers.dataset(f"npz:{folder / 'set.npz'}")


@bomb
def logits_that_unpack(folder: Path) -> Reads:
    np.savez_compressed(
        folder / "logits.npz", logits=np.zeros((300 * MIB // 8, 2), np.float32), labels=np.zeros(2, int)
    )
    yield lambda: readers.from_logits(folder / "logits.npz")


@bomb
def npz_with_a_petabyte_in_its_header(folder: Path) -> Reads:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20, 128)})
    with zipfile.ZipFile(folder / "set.npz", "w") as archive:
        archive.writestr("images.npy", head.getvalue() + bytes(100))
        archive.writestr("labels.npy", readers.npy(np.zeros(3, np.int64)))
    yield lambda: readers.dataset(f"npz:{folder / 'set.npz'}")


@bomb
def idx_that_unpacks(folder: Path) -> Reads:
    readers.idx(folder, packed=True)
    head = b"\0\0\x08\x03" + struct.pack(">III", 300, 1024, 1024)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head) + zeros(300, 31))
    yield lambda: readers.dataset(f"idx:{folder}")


@bomb
def png_of_900_megapixels(folder: Path) -> Reads:
    yield lambda: readers.dataset(f"folder:{picture(folder, png(30_000, 30_000, zeros(8, 15)))}?size=32")


@bomb
def png_strip_that_resizes_to_a_terabyte(folder: Path) -> Reads:
    yield lambda: readers.dataset(f"folder:{picture(folder, png(60_000, 1, zlib.compress(bytes(60_001))))}?size=224")


@bomb
def png_of_the_most_pixels(folder: Path) -> Reads:
    yield lambda: readers.dataset(f"folder:{picture(folder, made('PNG', (8192, 8192), compress_level=1))}?size=32")


@bomb
def jpeg_of_the_most_pixels(folder: Path) -> Reads:
    yield lambda: readers.dataset(
        f"folder:{picture(folder, made('JPEG', (8192, 8192), progressive=True), 'a.jpg')}?size=32"
    )


@bomb
def webp_of_the_most_pixels(folder: Path) -> Reads:
    yield lambda: readers.dataset(
        f"folder:{picture(folder, made('WEBP', (8192, 8192), 'RGBA', method=0), 'a.webp')}?size=32"
    )


@bomb
def png_whose_texts_unpack(folder: Path) -> Reads:
    texts = [
        (b"zTXt", b"x\0\0" + zeros(100, 15)),
        (b"iCCP", b"x\0\0" + zeros(100, 15)),
        (b"iTXt", b"x\0\1\0\0\0" + zeros(100, 15)),
    ]
    yield lambda: readers.dataset(f"folder:{picture(folder, png(8, 8, zlib.compress(bytes(72)), *texts))}")


@bomb
def tiff_of_900_megapixels(folder: Path) -> Reads:
    image = bytearray(made("TIFF", (8, 8), "L", compression="tiff_adobe_deflate"))
    for side in (256, 257):  # ImageWidth, ImageLength
        at = image.find(struct.pack("<HH", side, 4))
        at = at if at >= 0 else image.find(struct.pack("<HH", side, 3))
        image[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 30_000)
    yield lambda: readers.dataset(f"folder:{picture(folder, bytes(image), 'a.tif')}?size=8")


@bomb
def postscript_called_png(folder: Path) -> Reads:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n%%EOF\n"
    yield lambda: readers.dataset(f"folder:{picture(folder, script)}")


@bomb
def torch_file_that_unpacks(folder: Path) -> Reads:
    with zipfile.ZipFile(io.BytesIO(readers.torch_file())) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(folder / "w.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(300 * MIB) if name.endswith("/data/0") else content)
    yield lambda: read_state(folder / "w.pth")


@bomb
def torch_file_of_one_part_many_times(folder: Path) -> Reads:
    """Ten thousand names of the same megabyte: to check them all is to read ten gigabytes."""
    with zipfile.ZipFile(folder / "w.pth", "w") as archive:
        archive.writestr("archive/data/0", bytes(MIB))
        first = archive.infolist()[0]
        archive.filelist += [first] * 60_000
    yield lambda: read_state(folder / "w.pth")


def called(function: str, number: int) -> bytes:
    """A pickle that calls one of the functions that torch allows, with a number."""
    module, _, name = function.rpartition(".")
    return b"\x80\x02c%s\n%s\n\x8a\x06%s\x85R." % (module.encode(), name.encode(), number.to_bytes(6, "little"))


@bomb
def pickle_that_asks_for_a_terabyte(folder: Path) -> Reads:
    for function in ("torch.FloatTensor", "__builtin__.bytearray", "torch.FloatStorage", "torch.Tensor"):
        (folder / "w.pth").write_bytes(mutations.repickled(readers.torch_file(), Random(0)))
        with zipfile.ZipFile(io.BytesIO(readers.torch_file())) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(folder / "w.pth", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, called(function, 2**40) if name.endswith(".pkl") else content)
        yield lambda: read_state(folder / "w.pth")


@bomb
def safetensors_header_without_end(folder: Path) -> Reads:
    for size in (2**63, 2**40, 99 * 10**6):
        (folder / "w.safetensors").write_bytes(size.to_bytes(8, "little") + b"{" * 1000)
        yield lambda: read_state(folder / "w.safetensors")
    text = b'{"a":' * 10**6
    (folder / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    yield lambda: read_state(folder / "w.safetensors")


@bomb
def toml_as_deep_as_it_is_long(folder: Path) -> Reads:
    for text in (
        "a" + ".a" * 400_000 + " = 1", "[" + "a." * 400_000 + "a]", "a = " + "[" * 900_000, "a = " + "{a=" * 100_000,
        "a = [" + "{}," * 300_000 + "]", "\n".join(f"a{n} = 1" for n in range(90_000)), "[a]\n" * 200_000,
        "x" * 2 * LARGEST_TOML,
    ):  # fmt: skip
        (folder / "e.toml").write_text(text + "\n" + ENDPOINT)
        yield lambda: read_endpoint(folder / "e.toml")


@bomb
def answers_as_long_as_allowed(folder: Path) -> Reads:
    _, read = answer({"scores": []}, outputs="logits")
    _, top = answer({"scores": []}, outputs="top-k")
    for unit in (b"[],", b'{"a":1},', b"[[0]],"):
        (folder / "answer").write_bytes(b'{"scores": [' + unit * (SIZE // len(unit)) + b"0]}")
        for reader in (read, top):
            yield lambda reader=reader: reader(folder / "answer")
    for text in (
        b"[" * SIZE,
        b'{"a":' * (SIZE // 5),
        b"9" * SIZE,
        b'"' + b"\\u0041" * (SIZE // 6) + b'"',
        b"1e" + b"9" * SIZE,
    ):
        (folder / "answer").write_bytes(text)
        yield lambda: read(folder / "answer")


@bomb
def requests_as_long_as_allowed(folder: Path) -> Reads:
    for unit in (b"[],", b"[[[0]]],", b"0.1,"):
        body = b'{"images": [' + unit * (SIZE // len(unit)) + b"0]}"
        yield lambda body=body: decode_body(JSON, body, FRAME)
    yield lambda: decode_body(PNG, png(4, 5, zeros(70, 15)), FRAME)
    yield lambda: decode_body(PNG, png(60_000, 60_000, zeros(8, 15)), FRAME)


@bomb
def journal_full_of_beginnings(folder: Path) -> Reads:
    """Each four bytes may be where a record of half a megabyte begins."""
    classes = (500 * 1024 - 29) // 4
    length = struct.pack("<I", 29 + 4 * classes)
    (folder / "clean.log").write_bytes(b"poise journal 1, %d classes, logits\n" % classes + length * 2**19)
    yield lambda: list(records(folder / "clean.log"))


@bomb
def parquet_of_200_million_equal_cells(folder: Path) -> Reads:
    path = readers.rows(folder)
    rows = pl.select(pl.repeat(0, 10**7, dtype=pl.Int8).alias("id"))
    rows.with_columns(pl.lit(0, pl.Int8).alias(f"column{number}") for number in range(20)).write_parquet(path)
    yield lambda: RunFolder(folder).rows("sa-mma", "none", "aware")


@bomb
def onnx_that_claims_a_petabyte(folder: Path) -> Reads:
    import onnx

    model = onnx.load_model_from_string(readers.onnx_file(folder).read_bytes())
    model.graph.initializer[0].dims[:] = [2**25, 2**25]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    yield lambda: readers.onnx_target(folder / "model.onnx")
    shape = onnx.numpy_helper.from_array(np.array([2**40], np.int64), "shape")
    model = onnx.load_model_from_string(readers.onnx_file(folder).read_bytes())
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["shape"], ["unused"]))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["unused"], ["used"], keepdims=0))
    model.graph.node[0].input[0] = "images"
    model.graph.output.append(onnx.helper.make_tensor_value_info("used", 1, []))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    yield lambda: readers.models.load(f"onnx:{folder / 'model.onnx'}?scores=scores")


@bomb
def leaderboard_entry_of_50_megabytes(folder: Path) -> Reads:
    path = readers.ranked(folder)
    path.write_text('{"note": "' + "x" * 50 * MIB + '"}')
    yield lambda: readers.rank(path)


def main(names: list[str]) -> None:
    """Runs the bombs and prints how each ended."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in names or list(BOMBS):
        with tempfile.TemporaryDirectory() as folder:
            mutations.Canary.path = f"{folder}/executed"
            ended = [measured(read) for read in BOMBS[name](Path(folder))]
        outcome = max(ended, key=lambda outcome: (bool(outcome.fault), outcome.kind == "accepted", outcome.mib))
        outcome = replace(outcome, seconds=max(each.seconds for each in ended), mib=max(each.mib for each in ended))
        print(json.dumps([name, outcome.kind, outcome.text[-1500:], outcome.seconds, outcome.mib]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
