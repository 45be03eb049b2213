"""Searching everything that a party holds for planted values, also inside compressed and encoded content."""

from __future__ import annotations

import base64
import binascii
import io
import re
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_DEPTH = 4
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")
# A zlib stream begins with 0x78 and a check byte; a gzip member with its magic number.
_COMPRESSED = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")


@dataclass(frozen=True)
class Planted:
    """A patient that exists nowhere else: an identifier, a date, a rare number and a sentence."""

    identifier: str
    date: str
    number: float  # exact in float32
    sentence: str

    def needles(self) -> dict[str, bytes]:
        """What to look for, by what it is. Text in UTF-8 and UTF-16; the number as text and as floats."""
        found = {"number as float64": struct.pack("<d", self.number)}
        found["number as float32"] = struct.pack("<f", self.number)
        for name in ("identifier", "date", "sentence"):
            text = getattr(self, name)
            found[name] = text.encode()
            found[f"{name} in UTF-16"] = text.encode("utf-16-le")
        found["number as text"] = repr(self.number).encode()
        return found


def contents(data: bytes, depth: int = MAX_DEPTH) -> Iterator[bytes]:
    """Yield `data` and everything that can be unpacked from it, some levels deep."""
    yield data
    if depth == 0:
        return
    inner: list[bytes] = []
    if data[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inner += [archive.read(name) for name in archive.namelist()]
        except (zipfile.BadZipFile, RuntimeError):
            pass
    for match in _COMPRESSED.finditer(data):
        inner += _unpacked(data, match.start())
    for match in _BASE64.finditer(data):
        inner += _decoded(match.group())
    for part in inner:
        yield from contents(part, depth - 1)


def _unpacked(data: bytes, start: int) -> list[bytes]:
    """Inflate a stream that begins at `start`, as far as it goes."""
    window = 31 if data[start] == 0x1F else 15
    try:
        found = zlib.decompressobj(window).decompress(data[start:], 1 << 26)
    except zlib.error:
        return []
    return [found] if len(found) > 8 else []


def _decoded(text: bytes) -> list[bytes]:
    """Decode a run of base64 or base64url characters at each of its four possible offsets."""
    plain = text.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    found = []
    for offset in range(4):
        part = plain[offset:]
        part = part[:-1] if len(part) % 4 == 1 else part
        part += b"=" * (-len(part) % 4)
        try:
            found.append(base64.b64decode(part, validate=True))
        except binascii.Error:
            continue
    return found


def cells(database: Path) -> Iterator[bytes]:
    """Yield every cell of an SQLite database: values may be split over its pages."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        connection.text_factory = bytes
        tables = [
            row[0].decode() for row in connection.execute("select name from sqlite_master where type='table'")
        ]
        for table in tables:
            for row in connection.execute(f'select * from "{table}"'):
                for cell in row:
                    if isinstance(cell, bytes):
                        yield cell
                    elif cell is not None:
                        yield repr(cell).encode()


def search(root: Path, needles: dict[str, bytes]) -> list[str]:
    """Return `file: what` for every planted value below `root`; symbolic links are not followed."""
    hits = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        data = path.read_bytes()
        parts = [data, *cells(path)] if data.startswith(b"SQLite format 3\x00") else [data]
        found: set[str] = set()
        for part in parts:
            for content in contents(part):
                found |= {name for name, needle in needles.items() if needle in content}
        hits += [f"{path.relative_to(root)}: {name}" for name in sorted(found)]
        hits += [
            f"{path.relative_to(root)}: {name} in its name" for name, n in needles.items() if n in bytes(path)
        ]
    return hits
