"""A remote endpoint as a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from poise.errors import InputError, TargetError
from poise.targets.http.credentials import Credentials
from poise.targets.http.decode import Scores, decode, look_like_probabilities
from poise.targets.http.encode import Content, encode
from poise.targets.http.endpoint import Answer, Endpoint
from poise.targets.http.sending import Job, Sender
from poise.types import Access, OutputKind, Outputs

_FEWEST = 4


class HttpTarget:
    """A classifier behind HTTP, described by an `Endpoint`.

    Points are divided over the endpoint's connections, at most `images_per_request` in each request. Failures that may
    pass (no connection, time-out, 429, 500, 502, 503, 504, an answer cut off) are tried again with growing waits; what
    is left, and every answer that contradicts the description, is a `TargetError` of one line.

    Args:
        endpoint: where and how (`read_endpoint`, `make_endpoint`).
        batch_size: most points per call, over all connections; also how many samples an attack holds at once.
        environment: where the endpoint's `${NAME}` are looked up; None is the process's own environment.

    Attributes:
        endpoint: as given; holds no secret.
        requests_sent, retries: requests so far, and how many of them repeated one that had failed. A request that timed
            out may have been answered and charged: the endpoint's own count can be higher than the points asked.

    Raises:
        InputError: an environment variable is missing.

    An answer is float64. Points are sent as float32, or rounded to 8 bits where the endpoint takes those (`eight_bit`):
    then use a constraint on the 8-bit grid, so that the point that is kept is the point that was answered.
    Proxies, passwords and certificates of the environment (`HTTPS_PROXY`, `.netrc`, `SSL_CERT_FILE`) are not used.

    >>> from poise.targets.http import make_endpoint
    >>> HttpTarget(make_endpoint(url="https://example.org/predict", num_classes=3))
    HttpTarget(https://example.org/predict)
    """

    def __init__(
        self, endpoint: Endpoint, *, batch_size: int = 256, environment: Mapping[str, str] | None = None
    ) -> None:
        if batch_size < 1:
            raise InputError(f"HttpTarget: batch_size must be at least 1, got {batch_size}")
        self.endpoint = endpoint
        self.kind = endpoint.kind
        self.access = Access.LABELS if self.kind is OutputKind.LABELS else Access.SCORES
        self.bounds = endpoint.bounds
        self.num_classes = endpoint.num_classes
        self.batch_size = batch_size
        self.device = torch.device("cpu")
        self._sender = Sender(endpoint, Credentials(endpoint, environment))
        self._checked_kind = False

    @property
    def requests_sent(self) -> int:
        """Requests so far, retries included."""
        return self._sender.requests_sent

    @property
    def retries(self) -> int:
        """Requests that repeated one that had failed."""
        return self._sender.retries

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for x (m, C, H, W) in the order of x. `ids` is not used."""
        scores = torch.zeros(len(x), self.num_classes, dtype=torch.float64)
        for rows, answer in self.stream(x, ids):
            scores[rows] = answer.scores
        return Outputs(scores, self.kind)

    def stream(self, x: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """Answers as they come: (r,) positions in x and the answers of these points; each position occurs once.

        When a request fails for good, the answers of those under way still come before the error is raised.
        """
        self._check_points(x)
        size = self._request_size(len(x))
        parts = [torch.arange(at, min(at + size, len(x))) for at in range(0, len(x), size)]
        jobs = [Job(self._content(x[rows]), partial(self._decoded, count=len(rows))) for rows in parts]
        for number, scores in self._sender.exchange(jobs) if jobs else ():
            yield parts[number], Outputs(torch.from_numpy(scores), self.kind)

    @contextmanager
    def session(self, seed: int | None = None) -> Iterator[None]:
        """Keeps the connections open inside; an inner session does nothing. `seed` is not used."""
        with self._sender.opened():
            yield

    def _request_size(self, points: int) -> int:
        """Images per request: all connections get some, but none less than a few where the endpoint takes more."""
        share = math.ceil(points / self.endpoint.connections)
        return max(1, min(self.endpoint.images_per_request, max(share, _FEWEST)))

    def _content(self, points: Tensor) -> Callable[[], Content]:
        return lambda: encode(points, self.endpoint)

    def _check_points(self, x: Tensor) -> None:
        shape = self.endpoint.shape
        if x.ndim != 4 or (shape is not None and tuple(x.shape[1:]) != shape):
            required = "(m, C, H, W)" if shape is None else f"(m, {', '.join(map(str, shape))})"
            raise InputError(f"{self.endpoint.where}: images must be {required}, got {tuple(x.shape)}")

    def _decoded(self, raw: bytes, count: int) -> Scores:
        scores = decode(raw, count, self.endpoint)
        if not self._checked_kind and self.endpoint.outputs is Answer.LOGITS and look_like_probabilities(scores):
            raise TargetError(
                "the scores are declared to be logits, but are probabilities (non-negative, sum 1): "
                "write outputs = 'probabilities'"
            )
        self._checked_kind = True
        return scores

    def __repr__(self) -> str:
        return f"HttpTarget({self.endpoint.where})"

    def __reduce__(self) -> tuple[object, tuple[Endpoint, int]]:
        """A pickle holds the description alone; whoever loads it takes the secrets from its own environment."""
        return _restored, (self.endpoint, self.batch_size)


def _restored(endpoint: Endpoint, batch_size: int) -> HttpTarget:
    return HttpTarget(endpoint, batch_size=batch_size)
