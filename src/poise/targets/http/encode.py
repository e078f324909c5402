"""From points to the body of a request."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from poise.errors import InputError
from poise.targets.http.endpoint import Body, Endpoint

Pixels = NDArray[Any]

BOUNDARY = "poise-8d1f6f0c52b34f6b9d0a7c1e"
"""Ends the parts of a multipart form; a PNG that holds this line by chance does not occur."""


@dataclass(frozen=True, slots=True)
class Content:
    """A body and its media type."""

    body: bytes
    media_type: str


def encode(points: Tensor, endpoint: Endpoint) -> Content:
    """The body that asks the endpoint about points (m, C, H, W) in its bounds.

    Raises:
        InputError: a PNG is wanted of images that have neither 1 nor 3 channels.

    >>> import torch
    >>> from poise.targets.http import make_endpoint
    >>> pixels = make_endpoint(url="https://example.org", num_classes=2, pixels="0-255")
    >>> encode(torch.tensor([[[[0.0, 0.5, 1.0]]]]), pixels).body
    b'{"images": [[[[0, 128, 255]]]]}'
    """
    return ENCODERS[endpoint.body](pixels_of(points, endpoint), endpoint)


def pixels_of(points: Tensor, endpoint: Endpoint) -> Pixels:
    """Points as the endpoint wants them: float32, or uint8 rounded to nearest; axes in its order."""
    pixels = points.detach().cpu().numpy()
    if endpoint.eight_bit:
        low, high = endpoint.bounds
        pixels = np.rint((pixels.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    else:
        pixels = pixels.astype(np.float32)
    if endpoint.layout == "hwc" or endpoint.body is Body.PNG:
        pixels = pixels.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels)


def _json(pixels: Pixels, endpoint: Endpoint) -> Content:
    if endpoint.image == "png":
        images = pixels if endpoint.layout == "hwc" else pixels.transpose(0, 2, 3, 1)
        texts = [f'"{base64.b64encode(png(image)).decode("ascii")}"' for image in images]
    else:
        texts = [json.dumps(image) for image in pixels.tolist()]
    if '"$image"' in endpoint.template:
        text = endpoint.template.replace('"$image"', texts[0])
    else:
        listed = ", ".join(endpoint.item.replace('"$image"', text) for text in texts)
        text = endpoint.template.replace('"$images"', f"[{listed}]")
    return Content(text.encode(), "application/json")


def _npy(pixels: Pixels, endpoint: Endpoint) -> Content:
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return Content(buffer.getvalue(), "application/x-npy")


def _raw(pixels: Pixels, endpoint: Endpoint) -> Content:
    return Content(pixels.tobytes(), "application/octet-stream")


def _png(pixels: Pixels, endpoint: Endpoint) -> Content:
    image = png(pixels[0])
    if endpoint.form_field is None:
        return Content(image, "image/png")
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{endpoint.form_field}"; filename="image.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Content(body, f"multipart/form-data; boundary={BOUNDARY}")


ENCODERS: dict[Body, Callable[[Pixels, Endpoint], Content]] = {
    Body.JSON: _json,
    Body.NPY: _npy,
    Body.PNG: _png,
    Body.RAW: _raw,
}


def png(image: NDArray[np.uint8]) -> bytes:
    """An 8-bit PNG of an image (H, W, C) with 1 or 3 channels.

    Raises:
        InputError: another number of channels.
    """
    height, width, channels = image.shape
    if channels not in (1, 3):
        raise InputError(f"endpoint: images sent as PNG must have 1 or 3 channels, got {channels}")
    rows = np.insert(image.reshape(height, width * channels), 0, 0, axis=1)  # filter 0: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
