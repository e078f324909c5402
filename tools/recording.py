"""Records a terminal session of about a minute as docs/assets/poise.cast, which asciinema plays.

    python tools/recording.py [--out FILE] [--columns 110] [--rows 30]

Every command of SCENES is typed and really run in a pseudo-terminal of this system; what it writes is kept with its
times (asciicast v2: a header, then one [seconds, "o", text] per line). Pauses of more than two seconds are cut to two.

    asciinema play docs/assets/poise.cast
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import struct
import sys
import tempfile
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from poise.files import whole

OUT = Path(__file__).resolve().parents[1] / "docs" / "assets" / "poise.cast"

SCENES = (
    "poise audit --samples 60 --recipes sa-uca,sa-oca --defenses none,cs --out run",
    "poise bench list | head -12",
    "poise attack nosuch",
)
"""What is shown: the main job, a table of the papers, an error in one line."""

TYPING, LONGEST = 0.03, 2.0
"""Seconds per letter, and of the longest pause."""

Events = list[tuple[float, str]]


def recorded(command: str, folder: Path, size: tuple[int, int]) -> Events:
    """What the command writes to a terminal of (rows, columns), and when, in seconds from its start."""
    child, master = pty.fork()
    if child == 0:
        ioctl(0, TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.chdir(folder)
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        os.execvpe("sh", ["sh", "-c", command], os.environ | {"TERM": "xterm-256color", "PATH": path})
    began, events = time.monotonic(), []
    while True:
        select.select([master], [], [])
        try:
            text = os.read(master, 65536)
        except OSError:  # the terminal closes with the command
            break
        if not text:
            break
        events.append((time.monotonic() - began, text.decode("utf-8", "replace")))
    os.waitpid(child, 0)
    return events


def played(scenes: tuple[str, ...], folder: Path, size: tuple[int, int]) -> Events:
    """All scenes behind one another, typed at a prompt, long pauses cut."""
    at, events = 0.5, []
    for command in scenes:
        for letter in f"$ {command}\r\n":
            events.append((at, letter))
            at += TYPING
        last = 0.0
        for when, text in recorded(command, folder, size):
            at, last = at + min(when - last, LONGEST), when
            events.append((at, text))
        at += LONGEST
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--rows", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        events = played(SCENES, Path(folder), (given.rows, given.columns))
    header = {"version": 2, "width": given.columns, "height": given.rows, "title": "poise"}
    lines = [json.dumps(header), *(json.dumps([round(at, 3), "o", text]) for at, text in events)]
    with whole(given.out) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written  {given.out.name}: {events[-1][0]:.0f} s")


if __name__ == "__main__":
    main()
