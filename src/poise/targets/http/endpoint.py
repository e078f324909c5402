"""An endpoint as a small TOML file describes it: where it is, how images are sent, where scores are in the answer."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from poise.errors import InputError
from poise.targets.http.path import parse_path
from poise.targets.http.urls import is_loopback, shown, split
from poise.types import OutputKind

_SENSITIVE = re.compile("auth|key|token|secret|cookie|passw|credential|signature|session", re.IGNORECASE)
_OURS = ("host", "content-length", "transfer-encoding", "connection", "accept-encoding")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Body(StrEnum):
    """How images are sent."""

    JSON = "json"
    NPY = "npy"
    PNG = "png"
    RAW = "raw"


class Answer(StrEnum):
    """What the scores in an answer are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    TOP_K = "top-k"
    LABELS = "labels"


KINDS = {
    Answer.LOGITS: OutputKind.LOGITS,
    Answer.PROBABILITIES: OutputKind.PROBABILITIES,
    Answer.TOP_K: OutputKind.PROBABILITIES,
    Answer.LABELS: OutputKind.LABELS,
}


class Endpoint(BaseModel):
    """One endpoint; frozen, and an unknown key is an error.

    Args:
        url: where images are sent, https or http, without user name, password or secrets.
        method: POST, PUT or PATCH.
        headers, query: sent with every request; `${NAME}` is replaced by the environment variable NAME.
        body: json, npy, png (one 8-bit image) or raw (the pixels alone, C order).
        template: of a JSON body: text in which "$images" stands for the list of images.
        item: of a JSON body: what stands in that list for one image, where "$image" is the image itself.
        image: of a JSON body: lists (nested, numbers) or png (base64).
        form_field: of a PNG body: the name of the file in a multipart form; None sends the PNG itself.
        layout: order of the axes, chw or hwc.
        pixels: "0-1" sends floats as they are, "0-255" sends whole numbers: the endpoint sees rounded images.
        images_per_request: most images of one request.
        answer: json or npy.
        scores: path to the scores in a JSON answer, such as `predictions[*].scores`; "" is the whole answer.
        outputs: logits, probabilities, top-k (objects of label and probability) or labels.
        label_field, score_field: names in a top-k object.
        sum_tolerance: how far the sum of an image's probabilities may be from 1; they are normalised afterwards.
        num_classes: K; may be left out where `classes` is given.
        classes: names of the classes in order, for answers that name them.
        bounds: lowest and highest legal pixel value of the images that the target is given.
        shape: (C, H, W) that the endpoint takes; None does not check.
        timeout_seconds: of one request, from the first byte to the last.
        connections: most requests at one time.
        requests_per_second: most requests, retries included; None sets no limit.
        retries: how often a request is sent again.
        backoff_seconds: the wait before the first retry; it doubles with each.
        longest_wait_seconds: longest wait before a retry; a `Retry-After` beyond it stops the run.
        max_answer_bytes: longer answers are refused.
        verify: a file with CA certificates; None takes the usual ones. TLS certificates are always verified.
        allow_plain_http: send secrets to a host other than this machine without TLS.

    >>> Endpoint(url="https://example.org/predict", num_classes=3, body="npy").images_per_request
    1
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(repr=False)
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    query: dict[str, str] = Field(default_factory=dict, repr=False)
    body: Body = Body.JSON
    template: str = '{"images": "$images"}'
    item: str = '"$image"'
    image: Literal["lists", "png"] = "lists"
    form_field: str | None = Field(default=None, pattern=r'^[^"\\\x00-\x1f\x7f]+$')
    layout: Literal["chw", "hwc"] = "chw"
    pixels: Literal["0-1", "0-255"] = "0-1"
    images_per_request: int = Field(default=1, ge=1)
    answer: Literal["json", "npy"] = "json"
    scores: str = "scores"
    outputs: Answer = Answer.PROBABILITIES
    label_field: str = "label"
    score_field: str = "score"
    sum_tolerance: float = Field(default=1e-3, ge=0, lt=1)
    num_classes: int = Field(default=0, ge=2, le=10_000_000)
    classes: tuple[str, ...] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    shape: tuple[int, int, int] | None = None
    timeout_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    connections: int = Field(default=16, ge=1, le=1024)
    requests_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    retries: int = Field(default=5, ge=0, le=100)
    backoff_seconds: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    longest_wait_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_answer_bytes: int = Field(default=16 * 2**20, ge=1)
    verify: Path | None = None
    allow_plain_http: bool = False

    @property
    def kind(self) -> OutputKind:
        """What the target answers."""
        return KINDS[self.outputs]

    @property
    def where(self) -> str:
        """The address for messages: without user name, password, query and fragment."""
        return shown(self.url)

    @property
    def eight_bit(self) -> bool:
        """Images are rounded to whole numbers before they are sent."""
        return self.pixels == "0-255" or self.body is Body.PNG or (self.body is Body.JSON and self.image == "png")

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the environment variables that headers and query ask for."""
        values = (*self.headers.values(), *self.query.values())
        return tuple(dict.fromkeys(name for value in values for name in _VARIABLE.findall(value)))

    @model_validator(mode="before")
    @classmethod
    def _count_classes(cls, given: Any) -> Any:
        """`classes` says how many there are."""
        if not isinstance(given, dict):
            return given
        names = given.get("classes")
        counted = len(names) if isinstance(names, list | tuple) else None
        if counted is None and "num_classes" not in given:
            raise InputError("num_classes: must be given, or classes, the list of their names")
        if counted is not None and given.setdefault("num_classes", counted) != counted:
            raise InputError(f"num_classes: must be {counted} as classes has names, got {given['num_classes']!r}")
        return given

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = split(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise InputError("url: must read https://HOST/PATH or http://HOST/PATH")
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "url: must hold no user name or password: they come from the environment ([headers], token_env)"
            )
        if any(_SENSITIVE.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True)):
            raise InputError("url: must hold no secret in its query: write it into [query] as ${NAME}")
        if not url.isascii() or any(ord(sign) <= 32 for sign in url):
            raise InputError("url: must be ASCII without spaces (percent-encode the rest)")
        return url

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or name.lower() in _OURS:
                raise InputError(f"headers: must be names of headers other than {', '.join(_OURS)}, got {name!r}")
            if not (value.isascii() and value.isprintable()):
                raise InputError(f"headers: the value of '{name}' must be printable ASCII")
        return headers

    @field_validator("headers", "query")
    @classmethod
    def _check_secrets(cls, table: dict[str, str]) -> dict[str, str]:
        for name, value in table.items():
            if _SENSITIVE.search(name) and not _VARIABLE.search(value):
                raise InputError(f"'{name}': must take its value from the environment, written as \"${{NAME}}\"")
        return table

    @field_validator("scores")
    @classmethod
    def _check_path(cls, path: str) -> str:
        parse_path(path)
        return path

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise InputError("classes: must be the names of all classes, each once")
        return names

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if not self.bounds[0] < self.bounds[1]:
            raise InputError(f"bounds: must be [low, high] with low < high, got {list(self.bounds)}")
        if self.shape is not None and min(self.shape) < 1:
            raise InputError(f"shape: must be [channels, height, width], got {list(self.shape)}")
        if self.body is Body.JSON:
            self._check_template()
        if self.body is Body.PNG and self.images_per_request > 1:
            raise InputError(f"images_per_request: must be 1 with body = 'png', got {self.images_per_request}")
        if self.form_field is not None and self.body is not Body.PNG:
            raise InputError(f"form_field: goes with body = 'png' alone, got body = '{self.body}'")
        if self.answer == "npy" and self.outputs is Answer.TOP_K:
            raise InputError("outputs: must be logits, probabilities or labels with answer = 'npy', got 'top-k'")
        if self.verify is not None and not self.verify.is_file():
            raise InputError(f"verify: must be a file with CA certificates, got '{self.verify}'")
        if self.variables and not self.allow_plain_http and not self.is_private:
            raise InputError(
                "url: must be https:// where secrets are sent to another machine (allow_plain_http = true overrides)"
            )
        return self

    @property
    def is_private(self) -> bool:
        """What is sent is encrypted, or does not leave this machine."""
        return split(self.url).scheme == "https" or is_loopback(self.url)

    def _check_template(self) -> None:
        single = '"$image"' in self.template
        for name, text, mark in (
            ("template", self.template, '"$image"' if single else '"$images"'),
            ("item", self.item, '"$image"'),
        ):
            try:
                json.loads(text)
            except ValueError:
                raise InputError(f"{name}: must be JSON") from None
            if text.count(mark) != 1:
                raise InputError(f"{name}: must hold {mark} once, with its quotation marks")
        if single and self.images_per_request > 1:
            raise InputError(
                f'images_per_request: must be 1 where the template holds "$image", got {self.images_per_request}'
            )


def fill(text: str, values: dict[str, str]) -> str:
    """The text with each `${NAME}` replaced by its value."""
    return _VARIABLE.sub(lambda found: values[found[1]], text)
