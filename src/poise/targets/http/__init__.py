"""Endpoints: their description in TOML, and the target that asks them."""

from poise.targets.http.endpoint import Endpoint
from poise.targets.http.reading import make_endpoint, read_endpoint
from poise.targets.http.target import HttpTarget

__all__ = ["Endpoint", "HttpTarget", "make_endpoint", "read_endpoint"]
