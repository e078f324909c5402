"""Walks README.md and docs/tutorial.md as somebody new: empty folder, every command as printed, in order, and its time.

    python tools/walkthrough.py FOLDER --put ADDRESS==/path/to/poise --leave "make test"
    python tools/walkthrough.py FOLDER --only tutorial --put "torchvision:CIFAR10?root=cifar10==npz:cifar10.npz"

FOLDER is new. All commands of a page run in one shell, whose folder and variables stay. A TOML block is saved as the
file that the sentence before it names; Python blocks are run as one file, as far as the page has come. `--put OLD==NEW`
replaces a text of the commands, for a machine without internet, and `--leave TEXT` leaves out the commands that hold
it; the record names both. Some commands of README are about the reader's own files, which `--beside DIR` puts where
they are looked for. What the commands print is FOLDER/PAGE.log. Exit code 0 where every command ended with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"readme": "README.md", "tutorial": "docs/tutorial.md"}
PART = re.compile(
    r"^## (?P<title>.+)$|^```(?P<language>toml|python)\n(?P<body>(?:.*\n)*?)```$|(?P<lines>(?:^    .+\n)+)",
    re.MULTILINE,
)
FIGURE = re.compile(r"<!-- figure: .*?<!-- /figure -->", re.DOTALL)
COMMAND = re.compile(r"(?:cd|git|make|pip|poise|python3?|\.|\.venv/bin/\w+) ")
MARK = "@walk@"


@dataclass(frozen=True)
class Action:
    """One thing that a page says to do: a command, or a text to save as a file.

    Args:
        step: the heading that it stands below.
        text: the command as printed, or what the file holds.
        file: the name of the file; None for a command.
    """

    step: str
    text: str
    file: str | None = None


def actions(page: str) -> list[Action]:
    """What a page says to do, in its order; indented lines that are no command (addresses, figures) are none."""
    found, step, before, python = list[Action](), "", 0, ""
    page = FIGURE.sub("", page)
    for part in PART.finditer(page):
        if part["title"]:
            step = part["title"]
        elif part["language"] == "toml":
            named = re.findall(r"`([\w-]+\.toml)`", page[before : part.start()])
            found.append(Action(step, part["body"], named[-1]))
        elif part["language"] == "python":
            python += part["body"]
            found += [Action(step, python, "walk.py"), Action(step, "python walk.py")]
        else:
            lines = re.sub(r"\s*\\\n\s*", " ", part["lines"]).splitlines()
            texts = [re.sub(r"\s{2,}#.*", "", line).strip() for line in lines]
            found += [Action(step, text) for text in texts if COMMAND.match(text)]
        before = part.end()
    return found


def walk(
    todo: list[Action], folder: Path, put: dict[str, str], leave: list[str], beside: Path | None = None
) -> list[dict[str, Any]]:
    """Does everything in one shell; returns a row per command: step, command, seconds, processors' seconds, exit code.

    Args:
        todo: what the page says to do.
        folder: where the shell begins; its log and script lie beside it.
        put: texts of the commands, and what is typed instead.
        leave: commands that hold one of these texts are left out.
        beside: a folder of files that the reader has; copied into the first folder that the page goes into.
    """
    script = []
    for number, action in enumerate(todo):
        text = action.text
        for old, new in put.items():
            text = text.replace(old, new)
        if action.file is not None:
            script.append(f"cat > {action.file} <<'{MARK}'\n{text}{MARK}")
        elif not any(word in action.text for word in leave):
            script.append(f"TIMEFORMAT='{MARK} {number} %R %U %S'\ntime {{\n{text}\n}}\necho {MARK} {number} $?")
        if beside is not None and action.text.startswith("cd "):
            script.append(f"cp -r {shlex.quote(str(beside.resolve()))}/. .")
    mine = ("PYTHON", "POISE", "VIRTUAL", "MAKE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    environment["XDG_CACHE_HOME"] = str(folder / ".cache")
    log, shell = folder.with_suffix(".log"), folder.with_suffix(".sh")
    shell.write_text("\n".join(script) + "\n", encoding="utf-8")
    with log.open("w", encoding="utf-8") as to:
        subprocess.run(["bash", shell], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=to, stderr=to)
    printed = log.read_text(encoding="utf-8")
    codes = dict(re.findall(rf"^{MARK} (\d+) (\d+)$", printed, re.MULTILINE))
    return [
        {
            "step": todo[int(number)].step,
            "command": todo[int(number)].text,
            "seconds": float(seconds),
            "processors": round(float(user) + float(system), 3),
            "code": int(codes[number]),
        }
        for number, seconds, user, system in re.findall(rf"^{MARK} (\d+) (\S+) (\S+) (\S+)$", printed, re.MULTILINE)
        if number in codes
    ]


def main(
    folder: Path, out: Path, only: str | None, put: dict[str, str], leave: list[str], beside: Path | None = None
) -> int:
    """Walks and writes; returns the exit code."""
    records: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if only and out.is_file() else {}
    wrong = 0
    for name in PAGES if only is None else (only,):
        here = folder.resolve() / name
        here.mkdir(parents=True)
        todo = actions((ROOT / PAGES[name]).read_text(encoding="utf-8"))
        rows = walk(todo, here, put, leave, beside)
        commands = [action.text for action in todo if action.file is None]
        records[name] = {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "replaced": [old for old in put if any(old in text for text in commands)],
            "left out": [text for text in commands if any(word in text for word in leave)],
            "rows": rows,
        }
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        for row in rows:
            times = f"{row['seconds']:8.1f} s ({row['processors']:.1f} s of processors)"
            print(f"{times}  exit code {row['code']}  {row['command']}")
        wrong += sum(row["code"] != 0 for row in rows) + (len(rows) + len(records[name]["left out"]) < len(commands))
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--json", type=Path, default=Path("walkthrough.json"), dest="out", help="the record")
    parser.add_argument("--only", choices=tuple(PAGES))
    parser.add_argument("--put", action="append", default=[], metavar="OLD==NEW")
    parser.add_argument("--leave", action="append", default=[], metavar="TEXT")
    parser.add_argument("--beside", type=Path, metavar="DIR")
    given = parser.parse_args()
    replacements = dict(pair.split("==", 1) for pair in given.put)
    sys.exit(main(given.folder, given.out, given.only, replacements, given.leave, given.beside))
