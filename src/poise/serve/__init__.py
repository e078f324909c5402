"""A model, with its defence, behind HTTP: the endpoint that an attack is tried on."""

from poise.errors import MissingExtraError

try:
    from poise.serve.app import create_app
    from poise.serve.limits import Limits, Wire
    from poise.serve.model import ServedModel
    from poise.serve.server import bind, is_loopback, run, url
except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "starlette", "uvicorn", "PIL"):
        raise
    raise MissingExtraError("poise serve", "serve") from error

__all__ = ["Limits", "ServedModel", "Wire", "bind", "create_app", "is_loopback", "run", "url"]
