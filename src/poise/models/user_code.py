"""A model from the user's own Python file; it runs only because the user named it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from poise.data.uri import Uri
from poise.errors import PoiseError, brief, one_of
from poise.targets import Target

KEYS = ("weights", "num_classes", "outputs", "mean", "std")


def make_user_model(uri: Uri) -> nn.Module | Target:
    """py:FILE:FACTORY: what FACTORY() of the user's file returns.

    The file's folder can be imported from while the file and the factory run, as if the file were run by itself.
    FACTORY may also be a finished `nn.Module`.

    Raises:
        InputError: the file or the factory is missing, raises, or returns neither a module nor a target.
    """
    file, colon, name = uri.rest.rpartition(":")
    if not colon or not file or not name:
        raise uri.fail("must be py:FILE:FACTORY")
    path = uri.file(file, role="the part before the last colon").resolve()
    with _as_script(path), torch.random.fork_rng(devices=[]):
        module = _run(uri, path)
        if not hasattr(module, name):
            callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise one_of(f"{uri}: factory", name, callables)
        made = getattr(module, name)
        if not isinstance(made, nn.Module):
            try:
                made = made()
            except PoiseError:
                raise
            except (Exception, SystemExit) as error:
                raise uri.fail(f"{name}() raised {brief(f'{type(error).__name__}: {error}')}") from error
    if not isinstance(made, nn.Module | Target):
        raise uri.fail(f"{name}() must return an nn.Module or a target, got {type(made).__name__}")
    return made


def user_code_fingerprint(uri: Uri) -> str:
    """sha256 of the file of a py:FILE:FACTORY address: "sha256:" and 64 hex digits."""
    path = uri.file(uri.rest.rpartition(":")[0], role="the part before the last colon")
    return f"sha256:{sha256(path.read_bytes()).hexdigest()}"


def _run(uri: Uri, path: Path) -> ModuleType:
    """Executes the file as a module under a name of its own, so that its classes can be pickled and inspected."""
    name = f"poise_user_{sha256(str(path).encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise uri.fail(f"must be a Python file that ends in .py, got '{path.name}'")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise uri.fail(f"the file raised {brief(f'{type(error).__name__}: {error}')}") from error
    return module


@contextmanager
def _as_script(path: Path) -> Iterator[None]:
    """The file's folder first in the search path, and no bytecode written beside the user's file."""
    folder, wrote = str(path.parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        if folder in sys.path:
            sys.path.remove(folder)
