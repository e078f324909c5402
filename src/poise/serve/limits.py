"""What a server allows its clients, how it says no, and how much it holds in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from poise.errors import InputError, PoiseError


class Refusal(PoiseError):
    """A request that is answered with an error.

    Args:
        status: of the answer, 400 to 599.
        line: one line for the client: what, required, given.
        close: end the connection after the answer, because the rest of the request was not read.
    """

    def __init__(self, status: int, line: str, *, close: bool = False) -> None:
        super().__init__(line)
        self.status = status
        self.close = close

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says beside its status."""
        found = {"Connection": "close"} if self.close else {}
        if self.status == 503:
            found["Retry-After"] = "1"
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all requests together, may take.

    Args:
        batch_size: most points per model call, and per request.
        wait_seconds: how long the first request of a batch waits for others.
        body_bytes: largest body, and largest image it may decode to.
        body_seconds: how long a body may take to arrive.
        waiting: most requests that wait for the model; more are answered 503.
        held_bytes: most bytes of bodies and images in memory at once; more are answered 503.

    Raises:
        InputError: a limit is not positive (`wait_seconds`: negative), or `held_bytes` is below `body_bytes`.

    >>> Limits(batch_size=64).body_bytes
    16777216
    """

    batch_size: int = 256
    wait_seconds: float = 0.002
    body_bytes: int = 2**24
    body_seconds: float = 10.0
    waiting: int = 512
    held_bytes: int = 2**28

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (0 < value < float("inf") or (field.name == "wait_seconds" and value == 0)):
                raise InputError(f"Limits: {field.name} must be positive, got {value}")
        if self.held_bytes < self.body_bytes:
            raise InputError(
                f"Limits: held_bytes must be at least body_bytes, {self.body_bytes}, got {self.held_bytes}"
            )

    def most_images(self, shape: tuple[int, int, int] | None) -> int:
        """Most images (C, H, W) per request: as many as a batch and a binary body hold.

        >>> Limits(batch_size=256).most_images((3, 224, 224))
        27
        """
        if shape is None:
            return self.batch_size
        header, image = 1024, 4 * shape[0] * shape[1] * shape[2]
        most = min(self.batch_size, (self.body_bytes - header) // image)
        if most < 1:
            raise InputError(
                f"Limits: body_bytes must hold one image of shape {shape}, {image + header} bytes, "
                f"got {self.body_bytes}"
            )
        return most


@dataclass(frozen=True, slots=True)
class Wire:
    """What a connection may take.

    Args:
        connections: most connections at once; more are answered 503 and closed.
        header_seconds: how long the head of a request may take to arrive.
        idle_seconds: how long a connection stays open between requests.
        send_seconds: how long a client may take to read an answer.
        stop_seconds: how long requests in work may take once the server was told to stop.

    >>> Wire(connections=64).idle_seconds
    30
    """

    connections: int = 1024
    header_seconds: float = 5.0
    idle_seconds: int = 30
    send_seconds: float = 30.0
    stop_seconds: int = 10


class Room:
    """The bytes of all requests in work, never more than `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One request's part; given back at the end, whatever happens."""
        share = Share(self)
        try:
            yield share
        finally:
            share.resize(0)


class Share:
    """How many bytes one request holds."""

    def __init__(self, room: Room) -> None:
        self._room, self.held = room, 0

    def resize(self, held: int) -> None:
        """Takes or gives back bytes; raises `Refusal` 503 where there is no room."""
        if self._room.held + held - self.held > self._room.most:
            raise Refusal(503, "server: is full, try again")
        self._room.held += held - self.held
        self.held = held
