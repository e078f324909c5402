"""Bodies of requests, read back by the libraries that a server would use."""

from __future__ import annotations

import base64
import io
import json
from email import message_from_bytes

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from poise.errors import InputError
from poise.targets.http import Endpoint, make_endpoint
from poise.targets.http.encode import Content, encode
from toys import generator

COLOUR = torch.rand(2, 3, 4, 5, generator=generator(0))
GREY = torch.rand(1, 1, 4, 5, generator=generator(1))


def endpoint(**given) -> Endpoint:
    return make_endpoint(url="https://example.org", num_classes=2, **given)


def hwc(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def rounded(images: Tensor) -> np.ndarray:
    return (images.double() * 255).round().numpy().astype(np.uint8)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_lists_of_floats_are_exact(layout: str) -> None:
    content = encode(COLOUR, endpoint(layout=layout))
    found = np.array(json.loads(content.body)["images"], dtype=np.float32)
    np.testing.assert_array_equal(found, COLOUR.numpy() if layout == "chw" else hwc(COLOUR))
    assert content.media_type == "application/json"


def test_whole_numbers() -> None:
    found = json.loads(encode(COLOUR, endpoint(pixels="0-255")).body)["images"]
    assert found == rounded(COLOUR).tolist()
    assert {type(value) for value in np.array(found, dtype=object).ravel()} == {int}


def test_whole_numbers_of_other_bounds() -> None:
    content = encode(2 * GREY - 1, endpoint(pixels="0-255", bounds=(-1.0, 1.0), body="raw"))
    assert np.abs(np.frombuffer(content.body, np.uint8).astype(int) - rounded(GREY).ravel().astype(int)).max() == 0


def test_templates() -> None:
    content = encode(GREY, endpoint(template='{"rows": "$images", "k": 3}', item='{"pixels": "$image"}'))
    assert json.loads(content.body) == {"rows": [{"pixels": GREY[0].tolist()}], "k": 3}
    content = encode(GREY, endpoint(template='{"pixels": "$image"}'))
    assert json.loads(content.body) == {"pixels": GREY[0].tolist()}


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_base64_pngs_in_json(layout: str) -> None:
    content = encode(COLOUR, endpoint(image="png", layout=layout, item='{"b64": "$image"}'))
    for image, sent in zip(rounded(COLOUR), json.loads(content.body)["images"], strict=True):
        np.testing.assert_array_equal(picture(base64.b64decode(sent["b64"])), image.transpose(1, 2, 0))


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_npy_and_raw(layout: str) -> None:
    expected = COLOUR.numpy() if layout == "chw" else hwc(COLOUR)
    found = np.load(io.BytesIO(encode(COLOUR.double(), endpoint(body="npy", layout=layout)).body))
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(found, expected)
    assert encode(COLOUR, endpoint(body="raw", layout=layout)).body == expected.tobytes()


@pytest.mark.parametrize("images", [COLOUR[:1], GREY])
def test_png(images: Tensor) -> None:
    content = encode(images, endpoint(body="png"))
    assert content.media_type == "image/png"
    np.testing.assert_array_equal(picture(content.body), rounded(images)[0].transpose(1, 2, 0))


def test_png_in_a_form() -> None:
    content = encode(GREY, endpoint(body="png", form_field="file"))
    (part,) = form(content).get_payload()
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_filename() == "image.png"
    np.testing.assert_array_equal(picture(part.get_payload(decode=True)), rounded(GREY)[0].transpose(1, 2, 0))


def test_png_of_two_channels() -> None:
    with pytest.raises(InputError, match="images sent as PNG must have 1 or 3 channels, got 2"):
        encode(COLOUR[:1, :2], endpoint(body="png"))


def form(content: Content):
    """The parts, as Python's own parser of MIME messages reads them."""
    return message_from_bytes(f"Content-Type: {content.media_type}\r\n\r\n".encode() + content.body)


def picture(png: bytes) -> np.ndarray:
    found = np.asarray(Image.open(io.BytesIO(png)))
    return found if found.ndim == 3 else found[:, :, None]
