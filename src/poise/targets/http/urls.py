"""What of a URL may be shown, and whether it leaves this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from poise.errors import InputError


def split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InputError("url: must be a valid address") from None
    return parts


def shown(url: str) -> str:
    """A URL for messages: scheme, host, port and path.

    >>> shown("https://user:password@example.org:8443/predict?key=secret#x")
    'https://example.org:8443/predict'
    """
    parts = split(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_loopback(url: str) -> bool:
    """The host is this machine, by name or number.

    >>> is_loopback("http://127.0.0.1:8000/x"), is_loopback("http://[::1]"), is_loopback("http://example.org")
    (True, True, False)
    """
    host = split(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
