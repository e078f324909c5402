"""Bodies: what comes in is what was sent, and what a stranger sends is one line and no allocation."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from poise.serve.bodies import JSON, NPY, PNG, Frame, decode, encode
from poise.serve.limits import Refusal
from serve_cases import SHAPE, images, npy, png

FRAME = Frame(SHAPE, (0.0, 1.0), most=8, image_bytes=2**16)
ANY = Frame(None, (0.0, 1.0), most=8, image_bytes=2**16)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_npy_and_json_give_the_very_numbers(n: int) -> None:
    sent = images(n)
    for body in (npy(sent), npy(np.asfortranarray(sent)), npy(sent)[:6] + b"\x01\x00" + npy(sent)[8:]):
        got = decode(NPY, body, FRAME)
        assert got.dtype.is_floating_point
        assert np.array_equal(got.numpy(), sent)
    assert np.array_equal(decode(JSON, json.dumps({"images": sent.tolist()}).encode(), FRAME).numpy(), sent)


def test_an_npy_of_version_2_and_one_that_starts_anywhere() -> None:
    sent = images(2)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, sent, version=(2, 0))
    assert np.array_equal(decode(NPY, stream.getvalue(), FRAME).numpy(), sent)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4, 5)}\n"  # 75 bytes in all: not aligned
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + sent.tobytes()
    assert np.array_equal(decode(NPY, bytearray(body), FRAME).numpy(), sent)


def test_what_is_decoded_is_a_copy() -> None:
    body = bytearray(npy(images(1)))
    got = decode(NPY, body, FRAME)
    body[-4:] = b"\0\0\0\0"
    assert np.array_equal(got.numpy(), images(1))


@pytest.mark.parametrize(("mode", "bounds"), [("RGB", (0.0, 1.0)), ("L", (0.0, 1.0)), ("RGB", (-1.0, 3.0))])
def test_png_is_the_image_in_the_bounds(mode: str, bounds: tuple[float, float]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 3) if mode == "RGB" else (4, 5), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    got = decode(PNG, stream.getvalue(), Frame(None, bounds, 1, 2**16)).numpy()
    planes = pixels.transpose(2, 0, 1) if mode == "RGB" else pixels[None]
    assert got.shape == (1, *planes.shape)
    assert np.abs(got[0] - (bounds[0] + planes / 255 * (bounds[1] - bounds[0]))).max() < 1e-6


def _header(shape: str, descr: str = "'<f4'", payload: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


class _Code:
    """A pickle that writes a file where it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def _nested(value: object, shape: tuple[int, ...] = (1, *SHAPE)) -> bytes:
    for side in reversed(shape):
        value = [value] * side
    return json.dumps({"images": value}).encode()


NAN = images(1)
NAN[0, 0, 0, 0] = np.nan

HOSTILE: dict[str, tuple[str, bytes, int, str]] = {
    "empty": (NPY, b"", 400, "must be a .npy file"),
    "text": (NPY, b"hello", 400, "must be a .npy file"),
    "archive": (NPY, b"PK\x03\x04" + bytes(50), 400, "must be a .npy file"),
    "unknown version": (NPY, npy(images(1)).replace(b"\x01\x00", b"\x07\x00", 1), 400, "must be a .npy file"),
    "cut header": (NPY, npy(images(1))[:40], 400, "must be a .npy file"),
    "cut": (NPY, npy(images(1))[:-1], 400, "240 float32|must hold"),
    "too long": (NPY, npy(images(1)) + b"\0", 400, "must hold"),
    "a header that claims terabytes": (NPY, _header("(1, 3, 1000000, 1000000)"), 400, "must hold"),
    "a header that overflows": (NPY, _header(f"({2**40}, {2**40}, {2**40}, 4)"), 400, "must hold"),
    "negative sides": (NPY, _header("(-1, -3, 4, 5)", payload=bytes(240)), 400, "must hold"),
    "code in the header": (NPY, _header("__import__('os').abort()"), 400, "must be a .npy file"),
    "a header without end": (NPY, _header("(" * 9000), 400, "must be a .npy file"),
    "pickle": (NPY, npy(np.array([_Code()], dtype=object), allow_pickle=True), 422, "must be float32"),
    "bare pickle": (NPY, pickle.dumps(_Code()), 400, "must be a .npy file"),
    "float64": (NPY, npy(images(1).astype("f8")), 422, "must be float32"),
    "big-endian": (NPY, npy(images(1).astype(">f4")), 422, "must be float32"),
    "uint8": (NPY, npy(np.zeros((1, *SHAPE), "u1")), 422, "must be float32"),
    "fields": (NPY, _header("(1,)", "[('a', '<f4')]", bytes(4)), 422, "must be float32"),
    "one image without m": (NPY, npy(images(1)[0]), 422, r"must have shape \(m, C, H, W\)"),
    "another shape": (NPY, npy(images(1, shape=(3, 5, 4))), 422, r"must have shape \(m, 3, 4, 5\), got \(1, 3, 5, 4\)"),
    "no images": (NPY, npy(images(0)), 422, "must be 1 to 8 per request, got 0"),
    "too many": (NPY, npy(images(9)), 413, "must be 1 to 8 per request, got 9"),
    "NaN": (NPY, npy(NAN), 422, "must be finite, got 1 NaN"),
    "above": (NPY, npy(images(1) + 1), 422, r"must lie in \[0.0, 1.0\]"),
    "below": (NPY, npy(images(1) - 1), 422, r"must lie in \[0.0, 1.0\]"),
    "no JSON": (JSON, b"{", 400, "must be JSON"),
    "no UTF-8": (JSON, b'{"images": "\xff"}', 400, "must be JSON"),
    "deep": (JSON, b"[" * 100_000, 400, "must be JSON"),
    "many digits": (JSON, b'{"images": [[[[' + b"9" * 5000 + b"]]]]}", 400, "must be JSON"),
    "a large integer": (JSON, _nested(10**400), 422, "beyond them"),
    "a large float": (JSON, _nested(1e99), 422, "must be finite"),
    "JSON's NaN": (JSON, _nested(float("nan")), 400, "NaN is not JSON"),
    "JSON's infinity": (JSON, _nested(float("inf")), 400, "Infinity is not JSON"),
    "a list": (JSON, b"[1]", 422, "must be an object"),
    "another key": (JSON, b'{"image": []}', 422, "must be an object"),
    "a key more": (JSON, b'{"images": [], "id": 1}', 422, "must be an object"),
    "a number": (JSON, b'{"images": 1}', 422, "got 0 levels"),
    "three levels": (JSON, _nested(0.5, SHAPE), 422, "got 3 levels"),
    "five levels": (JSON, _nested(0.5, (1, 1, *SHAPE)), 422, "got 5 levels"),
    "empty lists": (JSON, b'{"images": []}', 422, "got 1 levels"),
    "ragged": (JSON, b'{"images": [[[[1, 0], [1]]]]}', 422, "lists of different lengths"),
    "a list among numbers": (JSON, b'{"images": [[[[1, [0]]]]]}', 422, "must be lists of numbers"),
    "strings": (JSON, _nested("0.5"), 422, "must be lists of numbers"),
    "a string as a list": (JSON, b'{"images": [["ab"]]}', 422, "got 2 levels"),
    "booleans": (JSON, _nested(True), 422, "must be lists of numbers"),
    "null": (JSON, _nested(None), 422, "must be lists of numbers"),
    "one long string": (JSON, json.dumps({"images": [[[["x" * 9000, *[1] * 9000]]]]}).encode(), 422, "of numbers"),
    "no PNG": (PNG, b"\xff\xd8\xff\xe0" + bytes(80), 400, "must be a PNG image"),
    "a signature alone": (PNG, png(5, 4)[:20], 400, "must be a PNG image"),
    "no size": (PNG, png(0, 4), 400, "damaged"),
    "a cut PNG": (PNG, png(5, 4)[:-30], 400, "damaged"),
    "a damaged PNG": (PNG, png(5, 4).replace(b"IDAT", b"IDAX"), 400, "damaged"),
    "rows missing": (PNG, png(5, 4, data=bytes(8)), 400, "damaged"),
    "another size": (PNG, png(4, 5), 422, r"must have shape \(3, 4, 5\), got \(3, 5, 4\)"),
    "16 bits": (PNG, png(5, 4, depth=16), 422, "8-bit grey or RGB, got 16 bits"),
    "transparent": (PNG, png(5, 4, colour=6), 422, "8-bit grey or RGB"),
    "palette": (PNG, png(5, 4, colour=3), 422, "8-bit grey or RGB"),
    "another type": ("text/html", b"<p>", 415, "must be one of application/x-npy, application/json, image/png"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_one_short_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kind, body, status, told = HOSTILE[name]
    with pytest.raises(Refusal, match=told) as caught:
        decode(kind, body, FRAME)
    assert caught.value.status == status
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert list(tmp_path.iterdir()) == [], "a pickle ran"


def test_the_same_bodies_whole_are_decoded() -> None:
    for kind, body in ((NPY, npy(images(1))), (JSON, _nested(0.5)), (PNG, png(5, 4))):
        assert decode(kind, body, FRAME).shape == (1, *SHAPE)


BOMBS = {
    "PNG of 900 megapixels": (PNG, png(30_000, 30_000, data=bytes(1000)), ANY),
    "PNG that inflates": (PNG, png(5, 4, data=bytes(10**8)), FRAME),
    "npy header": (NPY, _header("(1, 3, 100000, 100000)"), ANY),
    "long string beside short ones": (
        JSON,
        b'{"images": [[[["' + b"x" * 10**5 + b'"' + b', "y"' * 10**4 + b"]]]]}",
        ANY,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_body_takes_little_memory(name: str) -> None:
    kind, body, frame = BOMBS[name]
    assert len(body) < 2**18
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) if name != "PNG that inflates" else nullcontext():
            decode(kind, body, frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**23, f"{peak} bytes"


def test_the_watch_on_memory_sees_what_a_plain_reader_does() -> None:
    """The broken twin: numpy's own parser of nested lists makes a string array of it."""
    found = json.loads(BOMBS["long string beside short ones"][1].replace(b"x" * 10**5, b"x" * 10**3))
    tracemalloc.start()
    try:
        np.array(found["images"])
        assert tracemalloc.get_traced_memory()[1] > 2**23
    finally:
        tracemalloc.stop()


def test_answers_are_read_back_as_they_were() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 30
    body, media = encode(scores, "logits", binary=False)
    found = json.loads(body)
    assert (media, found["outputs"]) == (JSON, "logits")
    assert np.array_equal(np.array(found["scores"], np.float32), scores)
    body, media = encode(scores, "logits", binary=True)
    read = np.load(io.BytesIO(body), allow_pickle=False)
    assert (media, read.dtype.str) == (NPY, "<f4")
    assert np.array_equal(read, scores)
