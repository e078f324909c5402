"""The routes: health, metadata, predict. Every error is a status and one line of JSON."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from torch import Tensor

from poise.errors import InputError, brief
from poise.serve.batching import Batcher
from poise.serve.bodies import DECODERS, NPY, PNG, Frame, decode, encode
from poise.serve.limits import Limits, Refusal, Room
from poise.serve.model import Array, ServedModel
from poise.serve.reading import read_body

SMALL = 2**16
"""Bodies of up to so many bytes are decoded at once; larger ones, one at a time, in a thread."""

Listener = Callable[[str], None]


def create_app(
    model: ServedModel, limits: Limits | None = None, *, token: str | None = None, on_failure: Listener | None = None
) -> FastAPI:
    """An ASGI application that serves a model. Any ASGI server runs it; `run` adds limits on connections.

    `GET /health` and `GET /metadata` say how the server is and what it serves, `POST /predict` answers images with
    scores (see docs/serve.md). The model computes in one thread, never in the event loop.

    Args:
        model: what is served.
        limits: what requests may take; the defaults where None.
        token: what every request must bring as `Authorization: Bearer TOKEN`; none is asked for where None.
        on_failure: hears, one line each, how the model failed; clients are not told.

    Raises:
        InputError: one image does not fit into a body; a token that is empty or not ASCII.

    >>> import torch
    >>> from poise.targets import ModuleTarget
    >>> target = ModuleTarget(torch.nn.Flatten(), num_classes=4)
    >>> sorted(route.path for route in create_app(ServedModel(target, "flat")).routes)
    ['/health', '/metadata', '/predict']
    """
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise InputError("token: must be printable ASCII text, got an empty one or other characters")
    service = _Service(model, limits or Limits(), token, on_failure or (lambda line: None))
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=service.lifespan)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/metadata", service.metadata, methods=["GET"], response_model=None)
    app.add_api_route("/predict", service.predict, methods=["POST"], response_model=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(Exception, _defect)
    return app


class _Service:
    """What the routes share while the application runs."""

    def __init__(self, model: ServedModel, limits: Limits, token: str | None, on_failure: Listener) -> None:
        self.model, self.limits, self.token, self.on_failure = model, limits, token, on_failure
        self.room = Room(limits.held_bytes)
        self.frame = Frame(model.shape, model.target.bounds, limits.most_images(model.shape), limits.body_bytes)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The model's session stays open, with a seed that no client can know."""
        self.began = time.monotonic()
        coder = ThreadPoolExecutor(1, thread_name_prefix="poise-coder")
        with self.model.target.session(secrets.randbits(63)), coder as self.coder:
            async with Batcher(self.model.answer, self.limits) as self.batcher:
                yield

    async def health(self, request: Request) -> Response:
        self._check_token(request)
        return JSONResponse({
            "status": "ok",
            "queries": self.batcher.points,
            "busy_seconds": self.batcher.busy_seconds,
            "up_seconds": time.monotonic() - self.began,
        })  # fmt: skip

    async def metadata(self, request: Request) -> Response:
        self._check_token(request)
        return JSONResponse(self.model.metadata(self.frame.most))

    async def predict(self, request: Request) -> Response:
        kind = _media_type(request.headers.get("content-type", ""))
        with self.room.share() as share:
            body = await read_body(request, share, self.limits, self._unwelcome(request, kind))
            self.batcher.check_room()  # before the work of decoding
            images = await self._off_loop(kind == PNG or len(body) > SMALL, decode, kind, body, self.frame)
            del body
            share.resize(images.nbytes)
            scores = await self._scores(images)
        binary = NPY in map(_media_type, request.headers.get("accept", "").split(","))
        content, media = await self._off_loop(scores.nbytes > SMALL, _encode, scores, self.model.outputs.value, binary)
        return Response(content, media_type=media)

    async def _scores(self, images: Tensor) -> Array:
        """The model's answer; whatever it raises becomes one line that tells nothing of it."""
        try:
            return await self.batcher.submit(images)
        except Refusal:
            raise
        except Exception as error:  # the model's code may raise anything
            shape = tuple(images.shape[1:])
            self.on_failure(f"the model failed on images of shape {shape}: {type(error).__name__}: {brief(error)}")
            if self.model.shape is None:
                raise Refusal(422, f"images: the model does not answer images of shape {shape}") from error
            raise Refusal(500, "server: the model failed on these images") from error

    async def _off_loop(self, large: bool, function: Callable[..., Any], *args: Any) -> Any:
        """Calls the function here, or in a thread where that would keep the event loop too long."""
        if not large:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self.coder, function, *args)

    def _check_token(self, request: Request) -> None:
        if refusal := self._intruder(request):
            raise refusal

    def _intruder(self, request: Request) -> Refusal | None:
        if self.token is None:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        return None if same and scheme.lower() == "bearer" else Refusal(401, "Authorization: must be a valid token")

    def _unwelcome(self, request: Request, kind: str) -> Refusal | None:
        """What the head of a request alone is refused for."""
        if refusal := self._intruder(request):
            return refusal
        if kind not in DECODERS:
            return Refusal(415, f"Content-Type: must be one of {', '.join(DECODERS)}, got '{brief(kind, limit=60)}'")
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            return Refusal(415, f"Content-Encoding: must be identity, got '{brief(encoding, limit=60)}'")
        return None


def _encode(scores: Array, outputs: str, binary: bool) -> tuple[bytes, str]:
    return encode(scores, outputs, binary=binary)


def _media_type(text: str) -> str:
    return text.split(";")[0].strip().lower()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, str(error), error.headers)


async def _not_served(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    line = (
        f"{brief(request.method, limit=20)} {brief(request.url.path, limit=80)}: {HTTPStatus(error.status_code).phrase}"
    )
    return _error(error.status_code, line, dict(error.headers or {}))


async def _defect(request: Request, error: Exception) -> Response:
    """A defect of poise: the server's log gets the traceback, the client a line."""
    return _error(500, "server: failed", {"Connection": "close"})


def _error(status: int, line: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"error": line}, status, {**headers, "X-Content-Type-Options": "nosniff"})
