"""Models behind HTTP: `https://…` is a server of `poise serve`, `endpoint:FILE.toml` any other."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from poise.data.uri import Uri
from poise.errors import InputError, TargetError
from poise.models.digits import Note
from poise.targets.http import Endpoint, HttpTarget, make_endpoint, read_endpoint
from poise.targets.http.credentials import Credentials
from poise.targets.http.endpoint import Answer
from poise.targets.http.sending import Job, Sender
from poise.targets.http.urls import shown

SERVED_KEYS = ("token_env", "connections", "timeout_seconds", "requests_per_second", "retries", "allow_plain_http")
"""Query keys of an https:// address; all but the first are the endpoint's own fields."""


_IN_URLS = "/:@[]!$&'()*+,;=~"


class Metadata(BaseModel):
    """What `GET /metadata` of a server tells; fields that are not named here are ignored.

    Args:
        num_classes: K.
        outputs: "logits" or "probabilities".
        bounds: lowest and highest legal pixel value.
        shape: (C, H, W), or None where the server does not know.
        max_batch: most images per request.
        classes: names, or None.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    num_classes: int = Field(ge=2)
    outputs: Answer
    bounds: tuple[float, float]
    shape: tuple[int, int, int] | None = None
    max_batch: int = Field(ge=1)
    classes: tuple[str, ...] | None = None


def load_endpoint(uri: Uri, *, batch_size: int, note: Note) -> HttpTarget:
    """The target of `endpoint:FILE.toml`.

    Raises:
        InputError: the file does not describe an endpoint; an environment variable is missing.
    """
    uri.allow()
    return _noted(read_endpoint(uri.file(uri.rest, role="endpoint")), batch_size, note)


def load_served(uri: Uri, *, batch_size: int, note: Note) -> HttpTarget:
    """The target of `https://HOST/PATH`, whose declaration is asked of the server.

    `token_env=NAME` names the environment variable that holds a bearer token.

    Raises:
        InputError: the address does not read so, or nothing there answers as `poise serve` does.
    """
    base = f"{uri.scheme}:{quote(uri.rest.rstrip('/'), safe=_IN_URLS)}"
    given = _limits(uri, base)
    told = _asked(make_endpoint(url=f"{base}/metadata", num_classes=2, **{"retries": 2} | given))
    endpoint = make_endpoint(
        url=f"{base}/predict",
        body="npy",
        answer="npy",
        outputs=told.outputs,
        num_classes=told.num_classes,
        classes=told.classes,
        bounds=told.bounds,
        shape=told.shape,
        images_per_request=told.max_batch,
        **given,
    )
    return _noted(endpoint, batch_size, note)


def _limits(uri: Uri, base: str) -> dict[str, Any]:
    """The query keys as fields of an endpoint."""
    safe = Uri(uri.what, uri.scheme, shown(base).partition(":")[2], uri.query)  # for messages
    safe.allow(*SERVED_KEYS)
    given: dict[str, Any] = {
        key: value for key, value in uri.query.items() if key not in ("token_env", "allow_plain_http")
    }
    given["allow_plain_http"] = safe.flag("allow_plain_http")
    variable = uri.text("token_env")
    if variable is not None:
        if not (variable.isascii() and variable.isidentifier()):  # it may be the token itself: not shown
            raise safe.fail("token_env must be the name of an environment variable, not its value")
        given["headers"] = {"Authorization": f"Bearer ${{{variable}}}"}
    return given


def _asked(endpoint: Endpoint) -> Metadata:
    """What the server tells of itself."""
    sender = Sender(endpoint, Credentials(endpoint))
    try:
        ((_, told),) = sender.exchange([Job(None, _metadata)])
    except TargetError as error:
        raise InputError(f"{error}; it must be a server of poise serve (any other: endpoint:FILE.toml)") from None
    return told


def _metadata(raw: bytes) -> Metadata:
    try:
        return Metadata.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise TargetError(f"'{name}' of the metadata: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    except (ValueError, RecursionError):
        raise TargetError("the metadata must be JSON") from None


def _noted(endpoint: Endpoint, batch_size: int, note: Note) -> HttpTarget:
    """The target; tells what the user should know of the way to it."""
    target = HttpTarget(endpoint, batch_size=batch_size)
    if not endpoint.is_private:
        note(f"{endpoint.where} is asked without TLS: whoever is on the way can read and change images and answers")
    if endpoint.eight_bit:
        note(f"{endpoint.where} is sent images rounded to 8 bits: use points on that grid (--eight-bit)")
    return target
