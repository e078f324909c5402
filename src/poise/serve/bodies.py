"""Bodies to images and scores to bodies. A body is a stranger's: nothing of it is run, and its size is known first."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from poise.errors import brief
from poise.serve.limits import Refusal
from poise.serve.model import Array

NPY, JSON, PNG = "application/x-npy", "application/json", "image/png"


@dataclass(frozen=True, slots=True)
class Frame:
    """What images must be.

    Args:
        shape: (C, H, W); None where it is not known.
        bounds: lowest and highest pixel value.
        most: most images per request.
        image_bytes: most bytes of an image that is decoded.
    """

    shape: tuple[int, int, int] | None
    bounds: tuple[float, float]
    most: int
    image_bytes: int


def decode(kind: str, body: bytes | bytearray, frame: Frame) -> Tensor:
    """Images (m, C, H, W) float32 of a body, a copy.

    Args:
        kind: `NPY`: a float32 array (m, C, H, W); `JSON`: {"images": nested lists} of the same; `PNG`: one 8-bit image,
            grey or RGB, whose 0 and 255 become the bounds.
        body: as it came.
        frame: what the images must be.

    Raises:
        Refusal: 400 for a body that cannot be read, 413 for too many images, 415 for another kind, 422 for images of
            another shape or type, with NaN, or outside the bounds.

    >>> frame = Frame((1, 1, 2), (0.0, 1.0), most=4, image_bytes=100)
    >>> decode(JSON, b'{"images": [[[[0, 0.5]]]]}', frame)
    tensor([[[[0.0000, 0.5000]]]])
    """
    if kind not in DECODERS:
        raise Refusal(415, f"Content-Type: must be one of {', '.join(DECODERS)}, got '{brief(kind, limit=60)}'")
    images = DECODERS[kind](body, frame)
    if images.ndim != 4:
        raise Refusal(422, f"images: must have shape (m, C, H, W), got {images.shape}")
    if frame.shape is not None and images.shape[1:] != frame.shape:
        raise Refusal(422, f"images: must have shape (m, {', '.join(map(str, frame.shape))}), got {images.shape}")
    if not 1 <= len(images) <= frame.most:
        status = 413 if len(images) else 422
        raise Refusal(status, f"images: must be 1 to {frame.most} per request, got {len(images)}")
    if images.size == 0:
        raise Refusal(422, f"images: must have at least one pixel, got shape {images.shape}")
    low, high = float(images.min()), float(images.max())  # NaN where there is one
    if not (frame.bounds[0] <= low and high <= frame.bounds[1]):
        if not np.isfinite(images).all():
            raise Refusal(
                422, f"images: must be finite, got {int((~np.isfinite(images)).sum())} NaN or infinite values"
            )
        raise Refusal(422, f"images: must lie in {list(frame.bounds)}, got values from {low:.6g} to {high:.6g}")
    return torch.from_numpy(images)


def _from_npy(body: bytes | bytearray, frame: Frame) -> Array:
    """The header alone says how many bytes follow; nothing is allocated before that is checked."""
    stream = io.BytesIO(body)
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # the header is a stranger's Python literal: it raises what it likes
        raise Refusal(400, f"body: must be a .npy file, got a damaged or foreign one ({brief(error, 80)})") from error
    if dtype != np.dtype("<f4"):
        raise Refusal(422, f"images: must be float32 (little-endian), got {brief(dtype, 40)}")
    at, size = stream.tell(), 4
    for side in shape:
        size *= int(side)
    if any(side < 0 for side in shape) or size != len(body) - at:
        raise Refusal(
            400, f"body: must hold the {brief(shape, 60)} float32 values of its header, got {len(body) - at} bytes"
        )
    values = np.frombuffer(body, dtype, offset=at).reshape(shape, order="F" if fortran else "C")
    return np.array(values, np.float32, order="C")


def _from_json(body: bytes | bytearray, frame: Frame) -> Array:
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Refusal(400, f"body: must be JSON, got: {brief(error, 80)}") from error
    if not isinstance(found, dict) or set(found) != {"images"}:
        raise Refusal(422, 'body: must be an object {"images": [...]} and nothing else')
    shape = _sides(found["images"])
    if len(shape) != 4:
        raise Refusal(422, f"images: must be lists nested to (m, C, H, W), got {len(shape)} levels")
    try:
        with np.errstate(over="ignore"):  # 1e99 becomes infinite, and is refused as such
            return np.array(_numbers(found["images"], shape), np.float32).reshape(shape)
    except OverflowError as error:
        raise Refusal(422, "images: must be float32 numbers, got an integer beyond them") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _sides(nested: Any) -> tuple[int, ...]:
    """The lengths of the first lists, at most five of them."""
    sides: list[int] = []
    while isinstance(nested, list) and len(sides) < 5:
        sides.append(len(nested))
        nested = nested[0] if nested else None
    return tuple(sides)


def _numbers(images: Any, shape: tuple[int, ...]) -> list[float]:
    """All numbers in order; refuses lists of different lengths and anything that is not a number."""
    rows = images
    for side in shape[1:]:
        for row in rows:
            if not isinstance(row, list) or len(row) != side:
                raise Refusal(422, "images: must be lists nested to (m, C, H, W), got lists of different lengths")
        rows = [part for row in rows for part in row]
    if not set(map(type, rows)) <= {int, float}:
        raise Refusal(422, "images: must be lists of numbers, got other values among them")
    return list(rows)


_PNG_SIGNATURE, _IHDR = b"\x89PNG\r\n\x1a\n", struct.Struct(">4sIIBB")
_CHANNELS = {0: 1, 2: 3}
"""PNG's colour types without palette and transparency: grey, RGB."""


def _from_png(body: bytes | bytearray, frame: Frame) -> Array:
    """The size is read from the first chunk, before anything is inflated."""
    if bytes(body[:8]) != _PNG_SIGNATURE or len(body) < 12 + _IHDR.size:
        raise Refusal(400, "body: must be a PNG image, got other bytes")
    name, width, height, depth, colour = _IHDR.unpack_from(body, 12)
    if name != b"IHDR" or not width or not height:
        raise Refusal(400, "body: must be a PNG image, got a damaged one")
    if depth != 8 or colour not in _CHANNELS:
        raise Refusal(422, f"image: must be 8-bit grey or RGB, got {depth} bits of PNG's colour type {colour}")
    shape = (_CHANNELS[colour], height, width)
    if frame.shape is not None and shape != frame.shape:
        raise Refusal(422, f"image: must have shape {frame.shape}, got {shape}")
    if 4 * shape[0] * height * width > frame.image_bytes:
        raise Refusal(413, f"image: must take at most {frame.image_bytes} bytes as float32, got shape {shape}")
    try:
        with Image.open(io.BytesIO(body), formats=["PNG"]) as opened:
            pixels = np.array(opened, np.float32)
    except Exception as error:  # whatever a decoder raises on damaged bytes
        raise Refusal(400, f"body: must be a PNG image, got a damaged one ({brief(error, 80)})") from error
    images = pixels.reshape(height, width, shape[0]).transpose(2, 0, 1)[None] / np.float32(255)
    low, high = map(np.float32, frame.bounds)
    return np.ascontiguousarray(low + images * (high - low), np.float32)


DECODERS: dict[str, Callable[[bytes | bytearray, Frame], Array]] = {NPY: _from_npy, JSON: _from_json, PNG: _from_png}
"""Content-Type → how its body becomes an array; `decode` checks what comes out."""


def encode(scores: Array, outputs: str, *, binary: bool) -> tuple[bytes, str]:
    """The body of an answer and its type: JSON {"scores", "outputs"}, or a float32 .npy (m, K).

    >>> encode(np.array([[0.5, 2]], np.float32), "logits", binary=False)
    (b'{"scores": [[0.5, 2.0]], "outputs": "logits"}', 'application/json')
    """
    if not binary:
        return json.dumps({"scores": scores.tolist(), "outputs": outputs}, allow_nan=False).encode(), JSON
    stream = io.BytesIO()
    np.save(stream, scores.astype(np.float32, copy=False), allow_pickle=False)
    return stream.getvalue(), NPY
