"""Being in a Ray cluster for a while: joined or started here, and afterwards as if it had not been."""

from __future__ import annotations

import faulthandler
import inspect
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from poise.errors import InputError, MissingExtraError, brief

REACH_SECONDS, ANSWER_SECONDS = 5.0, 20.0
"""How long an address may take to accept a connection, and a cluster to answer."""

MODE, TOKEN = "RAY_AUTH_MODE", "AuthenticationError"
"""Ray's variable that says whether clusters are joined by a token, and what it answers where one is missing."""


def library() -> ModuleType:
    """Ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("poise bench --ray", "ray") from error
    module: ModuleType = ray
    return module


@contextmanager
def joined(address: str | None, cpus: int | None) -> Iterator[tuple[ModuleType, str | None]]:
    """Ray in the cluster, out of it again after; and for a Ray started here the folder that is removed with it.

    A process that is in a cluster already stays in that one.

    Args:
        address: "auto" or HOST:PORT; None starts a Ray on this machine, which ends with the block.
        cpus: that a Ray started here counts; None for those of the machine.

    Raises:
        InputError: no cluster answers at the address.
    """
    with _unchanged() as ray:
        if ray.is_initialized():
            yield ray, None
            return
        if address is not None:
            _check(address)
        with tempfile.TemporaryDirectory(prefix="poise-ray-", dir=_short(), ignore_cleanup_errors=True) as scratch:
            own: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": scratch}
            try:
                try:
                    ray.init(
                        address="local" if address is None else address,
                        log_to_driver=False,
                        configure_logging=False,
                        **(own if address is None else {}),
                    )
                except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                    told = "a Ray of its own" if address is None else f"'{address}'"
                    raise InputError(f"ray: {told} must be up, got: {brief(error)}") from error
                yield ray, scratch if address is None else None
            finally:
                waits = "wait_for_processes" in inspect.signature(ray.shutdown).parameters
                ray.shutdown(**({"wait_for_processes": True} if waits else {}))


def _short() -> str | None:
    """A folder with a short name: Ray puts sockets below it, whose paths may have about 100 characters."""
    short = Path("/tmp")  # noqa: S108  # the folder made in it has a name that nobody can guess
    return str(short) if short.is_dir() and os.access(short, os.W_OK) else None


def check_form(address: str) -> None:
    """It is "auto" or HOST:PORT.

    Raises:
        InputError: it is not.
    """
    host, colon, port = address.rpartition(":")
    if address != "auto" and (not colon or not host or "://" in address or not port.isdigit()):
        raise InputError(f"ray: the address must be auto or HOST:PORT of a cluster's head, got '{address}'")


def _check(address: str) -> None:
    """A cluster answers there. Ray itself would try for two minutes, write to the terminal and end the process."""
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"ray: a cluster must answer at '{address}', got: {brief(error)}") from error
    told = _asked(address, {})
    if told is not None and TOKEN in told and address == "auto" and MODE not in os.environ:
        told = _asked(address, {MODE: "token"})  # as Ray does it, for a cluster that it finds by itself
    if told is not None:
        if TOKEN in told:
            raise InputError(f"ray: the cluster at '{address}' must be joined with its token: set {MODE}=token")
        raise InputError(f"ray: a cluster must answer at '{address}', got: {brief(told)}")


def _asked(address: str, more: dict[str, str]) -> str | None:
    """What a cluster answers in a process of its own: nothing where all is well."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        found = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, env={**os.environ, **more}
        )
    except subprocess.TimeoutExpired:
        return f"nothing in {ANSWER_SECONDS:.0f} s"
    lines = [line for line in found.stderr.splitlines() if line.strip()] or ["no answer"]
    return lines[-1] if found.returncode else None


@contextmanager
def _unchanged() -> Iterator[ModuleType]:
    """Undoes what Ray does to a process: handlers of signals and errors, variables, and its lines on the terminal."""
    hook, variables, faults = sys.excepthook, dict(os.environ), faulthandler.is_enabled()
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if here else {}
    ray, logger = library(), logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    worker: Any = ray._private.worker
    prints = getattr(worker, "print_to_stdstream", None)  # on standard output, whatever `log_to_driver` says
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield ray
    finally:
        logger.setLevel(level)
        worker.print_to_stdstream = prints
        for number, handler in handlers.items():
            if handler is not None:  # else it was set outside Python
                signal.signal(number, handler)
        sys.excepthook = hook
        for name in [name for name in os.environ if name not in variables]:
            del os.environ[name]
        os.environ.update(variables)
        if not faults:
            faulthandler.disable()
