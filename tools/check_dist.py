"""Builds sdist and wheel and checks both as a stranger would use them: in an empty environment, core dependencies only.

    python tools/check_dist.py --out dist                # builds, looks inside, installs both, runs the commands
    python tools/check_dist.py --out dist --inside       # builds and looks inside; installs nothing

The tree that git would commit is built in a folder of its own, the wheel from the sdist. Each of the two is installed
into a new virtual environment with the versions of constraints.txt, and every command runs in a folder outside the
project: the audit of the builtin default must work, and what needs an extra must answer with one line that names it.
Exit code 0 where all holds, 1 and a line per miss otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml"}
"""What the sdist holds beside src/ and what setuptools writes into it."""

DIGITS = ("--model", "builtin:digits", "--data", "builtin:digits")
FEW = (*DIGITS, "--samples", "20", "--budget", "20")

WORKS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("audit", *FEW, "--recipes", "standard-light,sa-mma", "--out", "run"): ("run/report.html", "run/summary.json"),
    ("attack", "sa-mma", *FEW, "--out", "attacked"): ("attacked/summary.json",),
    ("defend", "fit", "ts", *DIGITS, "--out", "ts.safetensors"): ("ts.safetensors",),
    ("defend", "export", *DIGITS, "--defense", "ts.safetensors", "--out", "model.pt2"): ("model.pt2",),
    ("bench", "run", "calibration/t1", "--dry-run"): (),
    ("bench", "list"): (),
    **{
        ("list", kind): ()
        for kind in (
            "recipes", "objectives", "searches", "defenses", "detectors", "training", "models", "data", "experiments"
        )
    },
}  # fmt: skip
"""Commands that the core alone must run, and what they leave."""

NEEDS: dict[tuple[str, ...], str] = {
    ("audit", "--model", "torchvision:resnet18?weights=weights.pth"): "vision",
    ("audit", "--model", "timm:resnet18?weights=weights.pth"): "vision",
    ("audit", "--model", "builtin:resnet18-cifar10?weights=weights.pth"): "vision",
    ("audit", "--model", "builtin:vit-small-cifar10?weights=weights.pth"): "vision",
    ("audit", "--data", "torchvision:MNIST?root=images"): "vision",
    ("audit", "--data", "folder:images"): "vision",
    ("audit", "--model", "hf:hub"): "hf",
    ("audit", "--model", "onnx:model.onnx"): "onnx",
    ("defend", "export", "--defense", "ts.safetensors", "--out", "exported.onnx"): "onnx",
    ("audit", *FEW, "--recipes", "art-deepfool"): "peers",
    ("audit", *FEW, "--recipes", "foolbox-pgd"): "peers",
    ("audit", *FEW, "--recipes", "torchattacks-pgd"): "torchattacks",
    ("attack", "art-deepfool", *FEW): "peers",
    ("attack", "foolbox-pgd", *FEW): "peers",
    ("attack", "torchattacks-pgd", *FEW): "torchattacks",
    ("defend", "compare", "--recipes", "art-deepfool"): "peers",
    ("detect", "--recipes", "foolbox-pgd"): "peers",
    ("audit", *FEW, "--explain"): "explain",
    ("train", "standard", *DIGITS, "--epochs", "1"): "train",
    ("train", "robustaugmix", *DIGITS, "--epochs", "1"): "train",
    ("serve",): "serve",
    ("bench", "run", "calibration/t1", "--ray", "local"): "ray",
    ("bench", "run", "aaa/t3", "--quiet"): "train",
}
"""Commands that must answer with one line that names the extra."""

IMPORTS = {"poise.interop.torchmetrics": "metrics"}
"""Modules for Python alone, by the extra that their import must name."""


def tree() -> list[Path]:
    """The files of the project as git would commit them now, relative to its root."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(Path(name) for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name))


def packaged(files: list[Path]) -> set[str]:
    """What a wheel of these files must hold of the package: src/poise, and experiments/ where its link points."""
    inside = {file.relative_to("src").as_posix() for file in files if file.parts[:2] == ("src", "poise")}
    inside.discard("poise/experiments/papers")
    specs = {file for file in files if file.parts[0] == "experiments" and file.suffix == ".toml"}
    return inside | {f"poise/experiments/papers/{file.relative_to('experiments').as_posix()}" for file in specs}


BUILD = """
import os, sys, tarfile
from pathlib import Path
from setuptools import build_meta
made = Path(sys.argv[1])
sdist = made / build_meta.build_sdist(str(made))
with tarfile.open(sdist) as archive:
    archive.extractall(made.parent / "unpacked", filter="data")
os.chdir(next((made.parent / "unpacked").iterdir()))
build_meta.build_wheel(str(made))
"""


def build(files: list[Path], out: Path, work: Path, python: str | Path | None = None) -> tuple[Path, Path]:
    """Builds sdist and, from it, the wheel; returns both.

    Args:
        files: what of the project is built.
        out: where both are put.
        work: an empty folder to build in.
        python: an interpreter with setuptools; a new environment with what pyproject.toml asks for where None.
    """
    source, made = work / "tree", work / "made"
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, source / file, follow_symlinks=False)
    made.mkdir()
    if python is None:
        system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
        python = environment(work / "builder", *system["requires"])
    ran = subprocess.run([python, "-c", BUILD, made], cwd=source, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"check_dist: the build failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    out.mkdir(parents=True, exist_ok=True)
    sdist, wheel = (shutil.copy2(next(made.glob(form)), out) for form in ("*.tar.gz", "*.whl"))
    return Path(sdist), Path(wheel)


def wheel_faults(wheel: Path, files: list[Path], project: dict[str, object]) -> list[str]:
    """What is missing in the wheel, or should not be there."""
    faults = [] if wheel.name.endswith("-py3-none-any.whl") else [f"{wheel.name}: must be py3-none-any"]
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        inner = {name.split("/", 1)[1]: name for name in held if ".dist-info/" in name}
        about = archive.read(inner["WHEEL"]).decode()
        metadata = Parser().parsestr(archive.read(inner["METADATA"]).decode())
        scripts = archive.read(inner["entry_points.txt"]).decode()
    if "Root-Is-Purelib: true" not in about:
        faults.append("wheel: must be pure Python")
    package = {name for name in held if ".dist-info/" not in name}
    wanted = packaged(files)
    faults += [f"wheel: must hold {name}" for name in sorted(wanted - package)]
    faults += [f"wheel: must not hold {name}" for name in sorted(package - wanted)]
    core = {line.replace(" ", "") for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    if core != set(project["dependencies"]):  # type: ignore[call-overload]
        faults.append(f"wheel: must require what pyproject.toml says, requires {', '.join(sorted(core))}")
    if "poise = poise.cli:main" not in scripts:
        faults.append("wheel: must have the command poise")
    if "licenses/LICENSE" not in inner:
        faults.append("wheel: must hold its licence")
    return faults


def sdist_faults(sdist: Path, files: list[Path]) -> list[str]:
    """What is missing in the sdist, or should not be there."""
    with tarfile.open(sdist) as archive:
        held = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    written = {"PKG-INFO", "setup.cfg", *(name for name in held if name.startswith("src/poise.egg-info/"))}
    wanted = BESIDE | {f"src/{name}" for name in packaged(files)}
    missing = [f"sdist: must hold {name}" for name in sorted(wanted - held)]
    return missing + [f"sdist: must not hold {name}" for name in sorted(held - wanted - written)]


def environment(folder: Path, *words: str | Path) -> Path:
    """A new virtual environment with what `pip install` is given; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"check_dist: pip install {' '.join(map(str, words))} failed:\n{done.stderr[-2000:]}")
    return python


def extras_present(python: Path, project: dict[str, object]) -> list[str]:
    """Packages of the extras that lie in the environment, though nothing in the core asks for them."""
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    names = {re.split(r"[\[<>=~! ]", line)[0] for lines in extras.values() for line in lines} - {"packaging"}
    shown = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    return sorted(names & {re.split(r"==| @", line)[0].lower() for line in shown.splitlines()})


class Stranger:
    """Runs commands in an empty folder, with an empty cache and nothing of the caller's Python."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder, self.faults = python, folder, list[str]()
        (folder / "images" / "a").mkdir(parents=True)
        (folder / "hub").mkdir()
        for name in ("images/a/1.png", "weights.pth", "model.onnx"):
            (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / "hub" / "config.json").write_text("{}")
        (folder / "hub" / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "POISE", "VIRTUAL"))}
        self.environment = {**kept, "XDG_CACHE_HOME": str(folder / "cache")}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [self.python.parent / "poise", *words] if words[0] != "-c" else [self.python, *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1200
        )

    def works(self, words: tuple[str, ...], files: tuple[str, ...]) -> str:
        """A command that must run; returns what it printed."""
        done = self.run(*words)
        shown = f"poise {' '.join(words)}"
        if done.returncode or "Traceback" in done.stderr or not (done.stdout or files):
            self.faults.append(f"{shown}: must work, got exit code {done.returncode}: {done.stderr[-500:]}")
        self.faults += [f"{shown}: must leave {name}" for name in files if not (self.folder / name).is_file()]
        return done.stdout

    def needs(self, words: tuple[str, ...], extra: str) -> None:
        """A command that must name an extra in one line, and exit with 2."""
        done = self.run(*words)
        lines = (done.stdout + done.stderr).splitlines()
        line = f"needs the extra '{extra}': pip install 'poise[{extra}]'"
        if done.returncode != 2 or len(lines) != 1 or not lines[0].endswith(line):
            got = f"exit code {done.returncode} and {len(lines)} lines: {' / '.join(lines)[-500:]}"
            self.faults.append(f"poise {' '.join(words)}: must answer with one line '… {line}', got {got}")

    def imports(self, module: str, extra: str) -> None:
        """A module whose import must name an extra."""
        done = self.run("-c", f"import {module}")
        if done.returncode == 0 or f"needs the extra '{extra}'" not in done.stderr.splitlines()[-1]:
            self.faults.append(f"import {module}: must name the extra {extra}, got: {done.stderr[-300:]}")


def use(file: Path, work: Path, version: str, project: dict[str, object]) -> list[str]:
    """Installs a distribution into an empty environment and runs everything there; returns what is wrong."""
    kind, began = ("wheel" if file.suffix == ".whl" else "sdist"), time.perf_counter()
    python = environment(work / kind, file, "--constraint", ROOT / "constraints.txt")
    (work / f"{kind}-folder").mkdir()
    stranger = Stranger(python, work / f"{kind}-folder")
    if found := extras_present(python, project):
        stranger.faults.append(f"core dependencies must bring no extra, brought {', '.join(found)}")
    if (shown := stranger.works(("--version",), ()).strip()) != version:
        stranger.faults.append(f"poise --version: must be {version}, got '{shown}'")
    helps = re.findall(r"^  (\w+) ", stranger.works(("--help",), ()).partition("Commands:")[2], re.MULTILINE)
    for name in helps:
        stranger.works((name, "--help"), ())
    for words, files in WORKS.items():
        stranger.works(words, files)
    for words, extra in NEEDS.items():
        stranger.needs(words, extra)
    for module, extra in IMPORTS.items():
        stranger.imports(module, extra)
    print(
        f"{kind:<8} installed and run in {time.perf_counter() - began:.0f} s: {1 + len(helps) + len(WORKS)} commands "
        f"work, {len(NEEDS) + len(IMPORTS)} name their extra, {len(stranger.faults)} faults"
    )
    return [f"{kind}: {fault}" for fault in stranger.faults]


def main(out: Path, inside: bool) -> int:
    """Builds and checks; returns the exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/poise/__init__.py").read_text(encoding="utf-8"))[1]  # type: ignore[index]
    files = tree()
    with tempfile.TemporaryDirectory(prefix="poise-dist-") as name:
        work = Path(name)
        sdist, wheel = build(files, out, work)
        faults = [*wheel_faults(wheel, files, project), *sdist_faults(sdist, files)]
        for file in (sdist, wheel):
            print(f"{file.name}  {file.stat().st_size / 1024:,.0f} KiB")
        if not inside:
            faults += [fault for file in (wheel, sdist) for fault in use(file.resolve(), work, version, project)]
    for fault in faults:
        print(f"check_dist: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of sdist and wheel")
    parser.add_argument("--inside", action="store_true", help="build and look inside, install nothing")
    given = parser.parse_args()
    sys.exit(main(given.out, given.inside))
