"""The images that moved most: PNG data URIs written with the standard library, and what is told of each."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.report.folder import Gallery
from poise.report.words import percent

LARGEST = 128
"""Of images with a longer side every k-th pixel is shown: an average would hide the attack."""

BYTES = 1_600_000
"""Most bytes that the data URIs of the gallery may take."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One case of the gallery, ready for the page: three data URIs, their size in pixels and the words."""

    clean: str
    attacked: str
    difference: str
    width: int
    height: int
    pixelated: bool
    recipe: str
    defence: str
    label: str
    prediction: str
    right: bool
    confidence: str
    figures: str
    alt: str


@dataclass(frozen=True)
class Shown:
    """The cases of one direction ("down" or "up") and how many more there are than shown."""

    direction: str
    cases: list[Case]
    left_out: int


def png(image: NDArray[np.float32]) -> bytes:
    """A PNG file of an image.

    Args:
        image: (C, H, W) in [0, 1], C = 1 (grey) or 3 (colours).

    Returns:
        the bytes of an 8-bit PNG, without interlacing.

    >>> png(np.zeros((1, 2, 2), dtype=np.float32))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    channels, height, width = image.shape
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0).reshape(height, width * channels)
    left = np.concatenate([np.zeros((height, channels), np.uint8), pixels[:, :-channels]], axis=1)
    above = np.concatenate([np.zeros((1, width * channels), np.uint8), pixels[:-1]], axis=0)
    packed = min((_deflate(kind, row) for kind, row in enumerate((pixels, pixels - left, pixels - above))), key=len)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _deflate(kind: int, rows: Bytes) -> bytes:
    """All rows under PNG filter 0 (none), 1 (minus the left pixel) or 2 (minus the pixel above), compressed."""
    return zlib.compress(np.insert(rows, 0, kind, axis=1).tobytes(), 9)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def data_uri(image: NDArray[np.float32]) -> str:
    """A PNG data URI of an image (C, H, W) in [0, 1]; of other than 1 or 3 channels the mean is shown in grey."""
    shown = image if image.shape[0] in (1, 3) else image.mean(axis=0, keepdims=True)
    return "data:image/png;base64," + base64.b64encode(png(shown)).decode("ascii")


def difference(clean: NDArray[np.float32], adversarial: NDArray[np.float32]) -> NDArray[np.float32]:
    """The change of an image ten times enlarged around mid-grey, clipped to [0, 1].

    >>> difference(np.full((1, 1, 1), 0.5, np.float32), np.full((1, 1, 1), 0.625, np.float32)).item()
    1.0
    """
    change: NDArray[np.float32] = np.clip(0.5 + 10 * (adversarial - clean), 0, 1, dtype=np.float32)
    return change


def cases(gallery: Gallery, class_names: list[str]) -> list[Shown]:
    """The cases by direction, down first, as many in turn as fit the bytes set aside for them."""
    found: dict[str, list[Case]] = {"down": [], "up": []}
    order: dict[str, list[int]] = {"down": [], "up": []}
    for index, row in enumerate(gallery.rows):
        order.setdefault(str(row["direction"]), []).append(index)
        found.setdefault(str(row["direction"]), [])
    spent = 0
    for turn in range(max(len(indices) for indices in order.values())):
        for direction, indices in order.items():
            if turn >= len(indices) or spent > BYTES:
                continue
            case = _case(gallery, indices[turn], class_names)
            spent += len(case.clean) + len(case.attacked) + len(case.difference)
            if spent <= BYTES:
                found[direction].append(case)
    return [Shown(key, found[key], len(order[key]) - len(found[key])) for key in found if order[key]]


def stride(gallery: Gallery) -> int:
    """Every how many-th pixel of the gallery's images is shown."""
    return -(-max(int(side) for side in gallery.clean.shape[2:]) // LARGEST)


def _case(gallery: Gallery, index: int, class_names: list[str]) -> Case:
    row, clean, adversarial = gallery.rows[index], gallery.clean[index], gallery.adversarial[index]
    step = stride(gallery)
    part = np.s_[:, ::step, ::step]
    label, prediction = (_class(int(row[name]), class_names) for name in ("label", "prediction"))
    confidence = f"{percent(row['confidence_before'])} → {percent(row['confidence_after'])}"
    small = max(clean.shape[1:]) < 64
    scale = max(1, 112 // max(clean.shape[1:])) if small else 1
    return Case(
        clean=data_uri(clean[part]),
        attacked=data_uri(adversarial[part]),
        difference=data_uri(difference(clean, adversarial)[part]),
        width=clean[part].shape[2] * scale,
        height=clean[part].shape[1] * scale,
        pixelated=small,
        recipe=str(row["recipe"]),
        defence=str(row["defence"]),
        label=label,
        prediction=prediction,
        right=row["label"] == row["prediction"],
        confidence=confidence,
        figures=f"ΔW {_number(row['delta_w'])} · SSIM {_number(row['ssim'])}",
        alt=f"image {row['id']}, predicted {prediction}, confidence {confidence} under {row['recipe']}",
    )


def _class(index: int, class_names: list[str]) -> str:
    return str(class_names[index]) if 0 <= index < len(class_names) else str(index)


def _number(value: Any) -> str:
    return "–" if value is None else f"{float(value):.3f}"
