"""The PNG files of the gallery, decoded by an independent reader, and which cases are shown."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from poise.report import gallery as subject
from poise.report.folder import Gallery


def decode(data: bytes) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of an 8-bit PNG; checks every chunk's checksum. Written after the PNG specification."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, []
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        (crc,) = struct.unpack(">I", data[place + 8 + size : place + 12 + size])
        assert crc == zlib.crc32(name + body)
        chunks.append((name, body))
        place += 12 + size
    assert [name for name, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height, width * channels), np.uint8)
    for y, row in enumerate(rows):
        for x, byte in enumerate(row[1:]):
            left = int(image[y, x - channels]) if x >= channels else 0
            above = int(image[y - 1, x]) if y else 0
            image[y, x] = (int(byte) + (0, left, above)[row[0]]) % 256
    return image.reshape(height, width, channels)


IMAGES = {
    "grey": np.linspace(0, 1, 35, dtype=np.float32).reshape(1, 5, 7),
    "one pixel": np.ones((1, 1, 1), np.float32),
    "noise": np.random.default_rng(0).random((3, 6, 9), dtype=np.float32),
    "columns": np.tile(np.linspace(0, 1, 16, dtype=np.float32), (3, 16, 1)),
    "rows": np.tile(np.linspace(0, 1, 16, dtype=np.float32)[:, None], (3, 1, 16)),
    "outside": np.array([[[-0.5, 0.0, 1.0, 2.0]]], np.float32),
}


@pytest.mark.parametrize("name", list(IMAGES))
def test_png_round_trip(name: str) -> None:
    image = IMAGES[name]
    wanted = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(decode(subject.png(image)), wanted)


def test_the_decoder_notices_a_broken_file() -> None:
    data = bytearray(subject.png(IMAGES["noise"]))
    data[50] ^= 1
    with pytest.raises(AssertionError):
        decode(bytes(data))


def test_filters_are_used_where_they_help() -> None:
    """A smooth image under noise: the difference to the neighbour is smaller than the value."""
    ramp = np.linspace(0, 0.8, 64, dtype=np.float32)
    image = np.tile(ramp, (3, 64, 1)) + 0.05 * np.random.default_rng(2).random((3, 64, 64), dtype=np.float32)
    rows = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0).reshape(64, 192)
    assert len(subject.png(image)) < 0.95 * len(zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes(), 9))


def test_two_channels_are_shown_as_their_mean() -> None:
    uri = subject.data_uri(np.stack([np.zeros((2, 2)), np.ones((2, 2))]).astype(np.float32))
    assert np.all(decode(base64.b64decode(uri.split(",")[1])) == 128)


def test_difference_is_ten_times_around_mid_grey() -> None:
    clean = np.full((1, 1, 4), 0.5, np.float32)
    shown = subject.difference(clean, clean + np.array([0, 0.01, -0.02, 0.2], np.float32))
    assert shown.ravel().tolist() == pytest.approx([0.5, 0.6, 0.3, 1.0], abs=1e-5)


def make(count: int, side: int, channels: int = 3) -> Gallery:
    rng = np.random.default_rng(1)
    clean = rng.random((count, channels, side, side), dtype=np.float32)
    rows: list[dict[str, Any]] = [
        {
            "recipe": "sa-mma",
            "defence": "none",
            "direction": "down" if k % 2 == 0 else "up",
            "id": k,
            "label": 0,
            "prediction": k % 2,
            "confidence_before": 0.9,
            "confidence_after": 0.2,
            "delta_w": 0.04,
            "ssim": None,
        }
        for k in range(count)
    ]
    return Gallery(rows, clean, np.clip(clean + 0.05, 0, 1))


def test_cases_by_direction_with_their_own_images() -> None:
    given = make(6, 8)
    down, up = subject.cases(given, ["zero", "one"])
    assert (down.direction, len(down.cases), up.direction, len(up.cases)) == ("down", 3, "up", 3)
    for shown, places in ((down, (0, 2, 4)), (up, (1, 3, 5))):
        for case, place in zip(shown.cases, places, strict=True):
            pixels = decode(base64.b64decode(case.clean.split(",")[1]))
            assert np.array_equal(pixels, np.rint(given.clean[place] * 255).astype(np.uint8).transpose(1, 2, 0))
    assert (down.cases[0].right, down.cases[0].prediction) == (True, "zero")
    assert (up.cases[0].right, up.cases[0].prediction, up.cases[0].label) == (False, "one", "zero")
    assert down.cases[0].figures == "ΔW 0.040 · SSIM –"
    assert down.cases[0].pixelated


def test_class_names_may_be_missing() -> None:
    assert subject.cases(make(2, 8), [])[0].cases[0].prediction == "0"


def test_large_images_are_thinned_not_blurred() -> None:
    given = make(2, 300)
    assert subject.stride(given) == 3
    case = subject.cases(given, [])[0].cases[0]
    pixels = decode(base64.b64decode(case.clean.split(",")[1]))
    assert np.array_equal(pixels, np.rint(given.clean[0][:, ::3, ::3] * 255).astype(np.uint8).transpose(1, 2, 0))
    assert not case.pixelated


def test_the_gallery_stays_small_and_says_what_it_left_out() -> None:
    shown = subject.cases(make(40, 128), [])
    size = sum(len(case.clean) + len(case.attacked) + len(case.difference) for part in shown for case in part.cases)
    assert 0.8 * subject.BYTES < size <= subject.BYTES
    assert [len(part.cases) + part.left_out for part in shown] == [20, 20]
    assert abs(len(shown[0].cases) - len(shown[1].cases)) <= 1, "both directions are shown"
    assert all(part.left_out for part in shown)
