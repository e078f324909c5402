"""A request's body from the network: never larger than allowed, never slower than allowed."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from poise.serve.limits import Limits, Refusal, Share

DRAINED = 2
"""A body that is refused is read to its end and dropped, so that its sender is there to read the answer; but no more
than this many times the largest body."""


async def read_body(request: Request, share: Share, limits: Limits, refusal: Refusal | None) -> bytearray:
    """The whole body; raises `refusal`, where there is one, once the body has been read and dropped.

    Args:
        request: nothing of its body has been read.
        share: grows with what is held.
        limits: `body_bytes` and `body_seconds`.
        refusal: what the head of the request was found to deserve.

    Raises:
        Refusal: 413 for a larger body, 408 for a slower one, 503 where there is no room for it.
    """
    declared = _declared(request)
    if refusal is None and declared > limits.body_bytes:
        refusal = _too_large(limits)
    if refusal is not None and (declared > DRAINED * limits.body_bytes or "expect" in request.headers):
        raise _closing(refusal)
    held, seen = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                seen += len(chunk)
                refusal = refusal or _objection(seen, share, limits)
                if refusal is None:
                    held += chunk
                    continue
                held.clear()
                share.resize(0)
                if seen > DRAINED * limits.body_bytes:
                    raise _closing(refusal)
    except TimeoutError:
        raise Refusal(408, f"body: must arrive within {limits.body_seconds:g} seconds", close=True) from None
    except ClientDisconnect:
        raise Refusal(400, "body: must be sent to its end", close=True) from None
    if refusal is not None:
        raise refusal
    return held


def _declared(request: Request) -> int:
    """What Content-Length says; 0 where a body comes in chunks."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 2**63


def _objection(seen: int, share: Share, limits: Limits) -> Refusal | None:
    """Why no more of this body can be held."""
    if seen > limits.body_bytes:
        return _too_large(limits)
    try:
        share.resize(seen)
    except Refusal as full:
        return full
    return None


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"body: must be at most {limits.body_bytes} bytes")


def _closing(refusal: Refusal) -> Refusal:
    return Refusal(refusal.status, str(refusal), close=True)
