"""Reads one damaged input and tells how that ended: taken, refused in one line, or otherwise; its time and memory."""

from __future__ import annotations

import os
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mutations
from hypothesis import settings
from mutations import Mutation

from poise.errors import PoiseError

LONGEST_SECONDS, MOST_MIB = 10.0, 1024.0
"""What no input may take."""

LONGEST_LINE = 10_000


@dataclass(frozen=True)
class Reader:
    """Something of poise that reads what a stranger may have written.

    Args:
        name: of the reader, as the table shows it.
        write: writes a valid input into an empty folder and returns the file that is then damaged.
        read: reads it as a user's command does.
        forms: mutations that know the format; bytes are damaged besides.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    forms: Sequence[Mutation] = ()


@dataclass(frozen=True)
class Outcome:
    """How one reading ended.

    Args:
        kind: "accepted", "refused", or the name of an exception that should not have come.
        text: the line, or the traceback.
        seconds: of the processor. mib: the peak of memory beyond what was held before.
    """

    kind: str
    text: str
    seconds: float
    mib: float

    @property
    def fault(self) -> str:
        """What is wrong with this ending; empty where it is as promised."""
        if self.kind not in ("accepted", "refused"):
            return f"{self.kind}: {self.text}"
        if self.kind == "refused" and (
            len(self.text.splitlines()) != 1 or "Traceback" in self.text or len(self.text) > LONGEST_LINE
        ):
            return f"not one short line: {self.text[:500]!r}"
        if self.seconds > LONGEST_SECONDS:
            return f"took {self.seconds:.1f} s"
        return f"took {self.mib:.0f} MiB" if self.mib > MOST_MIB else ""


class Stand:
    """A reader with its valid input in a folder, which is put back before each reading.

    Args:
        reader: what reads.
        folder: empty or missing.
    """

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader, self.folder = reader, folder / "input"
        self.canary = folder / "executed"
        self.folder.mkdir(parents=True)
        self.file = reader.write(self.folder)
        self.valid = self.file.read_bytes()
        self.others = self._others()
        mutations.Canary.path = str(self.canary)
        first = self.attempt(self.valid)
        assert first.kind == "accepted", f"{reader.name}: a valid input must be taken, got {first.kind}: {first.text}"

    def mutated(self, rng: Random) -> bytes:
        """Another input than the valid one, most of the time."""
        mutations.Canary.path = str(self.canary)
        known = rng.choice(self.reader.forms) if self.reader.forms and rng.random() < 0.75 else mutations.damaged
        return known(self.valid, rng)

    def attempt(self, content: bytes) -> Outcome:
        """Reads these bytes in place of the valid ones; nothing else in the folder may change, and nothing may run."""
        if self._others() != self.others:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            self.reader.write(self.folder)
        self.file.write_bytes(content)
        outcome = measured(lambda: self.reader.read(self.file))
        if self.canary.exists():
            self.canary.rmdir()
            return Outcome("executed", "code in the input was run", outcome.seconds, outcome.mib)
        lost = [str(path) for path, there in self.others.items() if self._others().get(path) != there]
        return Outcome("lost", f"changed: {', '.join(lost)}", 0, 0) if lost else outcome

    def _others(self) -> dict[Path, bytes]:
        """What lies in the folder beside the file, and was there before."""
        return {
            path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file() and path != self.file
        }


def measured(read: Callable[[], object]) -> Outcome:
    """The ending of a call, with its time and its peak of memory."""
    held, began = _memory(reset=True), time.process_time()
    kind, text = "accepted", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except PoiseError as error:
        kind, text = "refused", str(error)
    except (Exception, RecursionError) as error:
        kind, text = type(error).__name__, "".join(traceback.format_exception(error)[-3:])
    except BaseException as error:  # polars' PanicException is none of the usual ones
        if isinstance(error, KeyboardInterrupt):
            raise
        kind, text = type(error).__name__, "".join(traceback.format_exception(error)[-3:])
    seconds = time.process_time() - began
    return Outcome(kind, text, seconds, max(0.0, _memory() - held))


def _memory(*, reset: bool = False) -> float:
    """MiB that are resident, or were at most since the last reset; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def fuzz(stand: Stand, rng: Random) -> Outcome:
    """One damaged input."""
    return stand.attempt(stand.mutated(rng))


EXAMPLES = int(os.environ.get("POISE_FUZZ_EXAMPLES", "0"))
"""Inputs per reader; a few where it is not set. `benchmarks/fuzz.py` tries many more."""


def examples(usual: int) -> settings:
    """Settings for so many inputs, unless the environment says otherwise."""
    return settings(max_examples=EXAMPLES or usual)
