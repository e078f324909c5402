"""What an enemy does to a file: bytes that flip, headers that lie, structures that mean something else.

A mutation takes the bytes of a valid file and a source of random numbers, and returns other bytes. The source is
Python's own `random.Random`, or hypothesis's, which shrinks what it drew.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import struct
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Callable
from datetime import date
from functools import cache
from random import Random
from typing import Any

import numpy as np
import polars as pl
from numpy.lib import format as npy

Mutation = Callable[[bytes, Random], bytes]

EDGES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

MARKUP = "</script><img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://evil.example";"x")'
NAMES = (
    "", " ", ".", "..", "../../../etc/passwd", "/etc/passwd", "a" * 300, "a" * 100_000, "x\0y", "line\nline", "\x1b[2J",
    "\u202egnp.exe", "\ud800", "é" * 50, MARKUP, FORMULA, "@SUM(1)", "+1", "-1", "\t=1", "{{ 7*7 }}", "${HOME}", "%s%n",
    "|a|b|",
)  # fmt: skip
"""Texts that are more than a text to somebody who reads them."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), [], {}, [[]], [1, [2, [3]]], {"a": {"b": {}}}, [0] * 1000, *NAMES,
)  # fmt: skip


class Canary:
    """An object whose pickle creates a file where it is loaded."""

    path = "/nonexistent/canary"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def deep(value: Any, rng: Random, most: int = 3) -> Any:
    """Plain data in which a few values, keys or places are not what they were."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        value = _changed(value, rng)
    return value


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] + [place for key, part in inner for place in _places(part, (*at, key))]


def _changed(value: Any, rng: Random) -> Any:
    *way, last = rng.choice(_places(value)) or (None,)
    if last is None:
        return rng.choice(VALUES) if rng.random() < 0.2 else value
    parent = value
    for key in way:
        parent = parent[key]
    what = rng.choice(("value", "value", "value", "remove", "rename", "swap", "nest"))
    if what == "value":
        parent[last] = copy.deepcopy(rng.choice(VALUES))
    elif what == "remove":
        del parent[last]
    elif what == "rename" and isinstance(parent, dict):
        parent[rng.choice(NAMES)] = parent.pop(last)
    elif what == "nest":
        parent[last] = [parent[last]]
    elif isinstance(parent, dict):
        other = rng.choice(list(parent))
        parent[last], parent[other] = parent[other], parent[last]
    else:
        parent.append(parent[last])
    return value


# bytes


def damaged(content: bytes, rng: Random) -> bytes:
    """Flips, cuts, repeats, edges of integer types: what a bad disk does, and a fuzzer."""
    for _ in range(rng.randint(1, 4)):
        content = rng.choice(_DAMAGES)(content, rng)
    return content


def _flip(content: bytes, rng: Random) -> bytes:
    if not content:
        return b"\0"
    changed, at = bytearray(content), rng.randrange(len(content))
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: rng.randint(0, len(content))]


def _drop(content: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + content[at + rng.randint(1, 16) :]


def _repeat(content: bytes, rng: Random) -> bytes:
    at, size = rng.randint(0, len(content)), rng.randint(1, 64)
    return content[:at] + content[at : at + size] * rng.randint(1, 50) + content[at:]


def _edge(content: bytes, rng: Random) -> bytes:
    """Somewhere a whole number from the edge of a type, in either byte order."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    number = rng.choice(EDGES) % 2 ** (8 * size)
    at = rng.randint(0, min(len(content), rng.choice((64, 1024, 2**30))))
    return content[:at] + number.to_bytes(size, order) + content[at + size :]  # type: ignore[arg-type]


def _insert(content: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(content))
    return (
        content[:at] + rng.choice((b"\0", b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3(", b"\x80" * 9)) + content[at:]
    )


def _zero(content: bytes, rng: Random) -> bytes:
    at, size = rng.randint(0, len(content)), rng.randint(1, 512)
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def _append(content: bytes, rng: Random) -> bytes:
    return content + content[: rng.randint(0, len(content))]


_DAMAGES: tuple[Mutation, ...] = (_flip, _flip, _cut, _drop, _repeat, _edge, _edge, _insert, _zero, _append)


# text

TOKENS = (
    "nan", "-inf", "1e999", "-0.0", str(10**30), "9" * 5000, "0x7fffffffffffffff", "1_000", '""', '"\\u0000"',
    '"\\ud800"', "[]", "{}", "[[1, 2], [3]]", "[" * 3000, "[" * 200 + "]" * 200, "{a=" * 200 + "1" + "}" * 200, "true",
    "null", "1979-05-27T07:32:00Z", "07:32:00", '"../../etc/passwd"', '"' + "x" * 100_000 + '"', "'''", '"""',
    "\x1b[31m", "\0", "=", "#", json.dumps(MARKUP), json.dumps(FORMULA),
)  # fmt: skip


def reworded(content: bytes, rng: Random) -> bytes:
    """A text in which a value, a line or a name is another; not always text afterwards."""
    lines = content.decode().split("\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        what = rng.choice(("value", "value", "twice", "remove", "cut", "name", "swap"))
        if what == "value":
            lines[at] = re.sub(r"([=:]\s*).*", lambda found: found[1] + rng.choice(TOKENS), lines[at], count=1)
        elif what == "twice":
            lines.insert(at, lines[at])
        elif what == "remove" and len(lines) > 1:
            del lines[at]
        elif what == "cut":
            lines[at] = lines[at][: rng.randint(0, len(lines[at]))]
        elif what == "name":
            lines[at] = rng.choice(NAMES) + lines[at]
        else:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
    made = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(made, rng) if rng.random() < 0.2 else made


def rejson(content: bytes, rng: Random) -> bytes:
    """JSON of another structure."""
    return json.dumps(deep(json.loads(content), rng)).encode("utf-8", "surrogatepass")


def retoml(content: bytes, rng: Random) -> bytes:
    """TOML of another structure."""
    changed = deep(tomllib.loads(content.decode()), rng)
    table = changed if isinstance(changed, dict) else {"value": changed}
    text = "\n".join(f"{_quoted(str(key))} = {_inline(part)}" for key, part in table.items() if part is not None)
    return text.encode("utf-8", "surrogatepass")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(str(k))} = {_inline(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(part) for part in value if part is not None) + "]"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        return repr(value)
    return value.isoformat() if isinstance(value, date) else json.dumps(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# npy, zip


HEADERS = (
    {"shape": (2**40,)}, {"shape": (2**31, 2**31, 2**31)}, {"shape": (-1,)}, {"shape": ()}, {"shape": (0,)},
    {"shape": (0, 2**62, 8, 8)}, {"shape": (1,) * 200}, {"shape": (10**30,)}, {"shape": (1.5,)}, {"shape": (True,)},
    {"descr": "|O"}, {"descr": "<f8"}, {"descr": ">f2"}, {"descr": "<c16"}, {"descr": "|V0"}, {"descr": "<U0"},
    {"descr": "<U1000000000"}, {"descr": "<M8[ns]"}, {"descr": [("a", "<f4"), ("b", "|O")]},
    {"descr": [("a", "|u1", (4,))]}, {"descr": "|S0"},
    {"descr": ""}, {"descr": "x" * 500}, {"fortran_order": True}, {"fortran_order": 1},
)  # fmt: skip


def reheaded_npy(content: bytes, rng: Random) -> bytes:
    """A .npy whose header says something else than its data."""
    if rng.random() < 0.15:
        return objects()
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    head: dict[str, Any] = {"descr": npy.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    head |= rng.choice(HEADERS)
    text = repr(head)
    if rng.random() < 0.2:
        text = rng.choice(
            ("__import__('os').mkdir('/nonexistent')", "(" * 400, "{'descr': " + "[" * 5000, "1" * 9000, "{}", "[]")
        )
    raw = text.encode("latin1") + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    size = len(raw) if rng.random() < 0.8 else rng.choice(EDGES) % 2**16
    made = npy.magic(*version) + struct.pack("<H", min(size, 2**16 - 1)) + raw + content[stream.tell() :]
    return damaged(made, rng) if rng.random() < 0.2 else made


def objects() -> bytes:
    """A .npy that holds Python objects, one of which is the canary."""
    stream = io.BytesIO()
    np.save(stream, np.array([Canary(), 1], dtype=object), allow_pickle=True)
    return stream.getvalue()


def rezipped(content: bytes, rng: Random) -> bytes:
    """A zip archive with other members: renamed, doubled, damaged inside, packed otherwise, or with lying sizes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, inside = members[at]
    what = rng.choice(("name", "twice", "inside", "inside", "remove", "swap", "pack", "sizes", "sizes"))
    packed = zipfile.ZIP_STORED
    if what == "name":
        members[at] = (
            rng.choice(("../" + name, "/" + name, "../../evil.npy", name.upper(), ".npy", "a" * 5000 + ".npy")),
            inside,
        )
    elif what == "twice":
        members.append((name, damaged(inside, rng)))
    elif what == "inside":
        members[at] = name, (reheaded_npy if name.endswith(".npy") else damaged)(inside, rng)
    elif what == "remove":
        del members[at]
    elif what == "swap":
        other = rng.randrange(len(members))
        members[at], members[other] = (name, members[other][1]), (members[other][0], inside)
    elif what == "pack":
        packed = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    made = _zipped(members, packed)
    return _lying(made, rng) if what == "sizes" else made


def _zipped(members: list[tuple[str, bytes]], packed: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", packed) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, inside in members:
            archive.writestr(name, inside)
    return stream.getvalue()


def _lying(content: bytes, rng: Random) -> bytes:
    """A field of an entry of the central directory is another: flags, method, sums, sizes, offset."""
    at = content.find(b"PK\1\2")
    field, size = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)))
    made = bytearray(content)
    made[at + field : at + field + size] = (rng.choice(EDGES) % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(made)


def repickled(content: bytes, rng: Random) -> bytes:
    """A torch file whose pickle is another program: the canary, in one of the ways pickle has to call something."""
    programs = (
        pickle.dumps(Canary(), protocol=2),
        pickle.dumps({"state_dict": {"weight": Canary()}}, protocol=2),
        b"cos\nmkdir\n(S'%s'\ntR." % Canary.path.encode(),
        b'c__builtin__\neval\n(S\'__import__("os").mkdir("%s")\'\ntR.' % Canary.path.encode(),
        pickle.dumps({"weight": [[]] * 5}, protocol=2),
        b"(" * 10_000 + b".",
        b"\x80\x02" + b"}" * 3 + b"\x8a\xff" + b"\xff" * 255 + b".",
    )
    program = rng.choice(programs)
    if rng.random() < 0.3:
        return program
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    return _zipped([(name, program if name.endswith(".pkl") else inside) for name, inside in members])


# safetensors, PNG, IDX, parquet


def reheaded_tensors(content: bytes, rng: Random) -> bytes:
    """A safetensors file whose header tells of other tensors."""
    size = int.from_bytes(content[:8], "little")
    head = deep(json.loads(content[8 : 8 + size]), rng)
    text = json.dumps(head).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15 and isinstance(head, dict):
        text = text[:-1] + b"," + text[1:]  # every key twice
    told = len(text) if rng.random() < 0.85 else rng.choice(EDGES)
    return told.to_bytes(8, "little") + text + content[8 + size :]


@cache
def zeros(size: int) -> bytes:
    """So many zeros, packed."""
    return zlib.compress(bytes(size), 1)


def rechunked(content: bytes, rng: Random) -> bytes:
    """A PNG with a chunk that lies, is doubled, in another place, or a bomb; its checksums are right."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(chunks))
    name, body = chunks[place]
    what = rng.choice(("size", "size", "kind", "body", "text", "profile", "order", "remove"))
    if what == "size":
        width, height = (rng.choice((*EDGES[:9], 1, 8, 9)) % 2**31 for _ in range(2))
        chunks[0] = b"IHDR", struct.pack(">II", width, height) + chunks[0][1][8:]
    elif what == "kind":
        chunks[0] = b"IHDR", chunks[0][1][:8] + bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
    elif what == "body":
        chunks[place] = name, damaged(body, rng)
    elif what == "text":
        chunks.insert(1, (b"zTXt", b"x\0\0" + zeros(rng.choice((10, 10**6, 10**8)))))
    elif what == "profile":
        chunks.insert(1, (b"iCCP", b"x\0\0" + zeros(rng.choice((10, 10**6, 10**8)))))
    elif what == "order":
        chunks.insert(rng.randint(0, len(chunks)), chunks.pop(place))
    else:
        del chunks[place]
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def resized_idx(content: bytes, rng: Random) -> bytes:
    """An IDX file of another type or size."""
    made = bytearray(content)
    at = rng.choice((0, 1, 2, 3, 4, 8, 12))
    size = 1 if at < 4 else 4
    made[at : at + size] = (rng.choice(EDGES) % 2 ** (8 * size)).to_bytes(size, "big")
    return bytes(made)


def retabled(content: bytes, rng: Random) -> bytes:
    """A parquet table with a column of another name, type or content."""
    frame = pl.read_parquet(io.BytesIO(content))
    for _ in range(rng.randint(1, 2)):
        name, rows = rng.choice(frame.columns), frame.height
        column = rng.choice((
            pl.lit(None), pl.lit(float("nan")), pl.lit(float("inf")), pl.lit(-1), pl.lit(2**63 - 1), pl.lit(1e300),
            pl.lit(MARKUP), pl.lit(FORMULA), pl.lit(b"\xff\xfe"), pl.lit(True), pl.lit(date(1, 1, 1)),
            pl.lit(pl.Series([[1.0]])).first(), pl.lit("x" * 10_000), pl.lit(0.5),
        ))  # fmt: skip
        what = rng.choice(("replace", "replace", "rename", "drop", "some", "empty", "twice", "text"))
        if what == "replace":
            frame = frame.with_columns(column.alias(name))
        elif what == "rename":
            frame = frame.rename(
                {name: rng.choice([each for each in NAMES if "\ud800" not in each and each not in frame.columns])}
            )
        elif what == "drop" and frame.width > 1:
            frame = frame.drop(name)
        elif what == "some" and rows and not frame[name].dtype.is_nested():
            frame = frame.with_columns(
                pl.when(pl.int_range(pl.len()) == rng.randrange(rows)).then(None).otherwise(pl.col(name)).alias(name)
            )
        elif what == "empty":
            frame = frame.clear()
        elif what == "twice":
            frame = pl.concat([frame, frame])
        elif what == "text" and not frame[name].dtype.is_nested():
            frame = frame.with_columns(pl.col(name).cast(pl.String, strict=False))
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()
