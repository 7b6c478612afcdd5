"""Where device code lies in a file, to the byte: what the scan tells, with the places that an edit needs.

The scan is asked as well (`fatbin.read`, `standalone.read`): what it sees and what is edited must be the same code.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from rocm_patch.errors import FormatError, UsageError
from rocm_patch.images import elf, fatbin, standalone
from rocm_patch.images.source import Bytes, Item, Source, Unread, Window
from rocm_patch.sanitize import packed

__all__ = ["Part", "Piece", "missed", "open_piece", "pieces"]

_COUNT: Final = struct.Struct("<Q")
_ROW: Final = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Piece:
    """A bundle or code object in a file: offset and size in bytes. `inside` is what the scan calls it."""

    inside: str
    start: int
    size: int
    compressed: bool = False


@dataclass(frozen=True)
class Part:
    """Device code within a piece: `start` in bytes of the file, or of the unpacked bundle."""

    target: str
    start: int
    data: Source


def pieces(file: Source, path: str) -> Iterator[Piece]:
    """All pieces, in order. Raises UsageError for a file of another kind, FormatError for a broken one."""
    head = file.read(0, min(file.size, 64))
    if standalone.recognise(path, head):
        yield Piece("", 0, file.size)
    elif head.startswith((fatbin.BUNDLE, fatbin.COMPRESSED)):
        yield from _bundles(file, 0, file.size, "")
    elif head.startswith(elf.MAGIC):
        for section in elf.read(file).sections:
            if section.type in (0, elf.NO_BITS) or not section.size:
                continue
            start = file.read(section.offset, min(section.size, len(fatbin.BUNDLE)))
            if section.name == fatbin.SECTION or start.startswith((fatbin.BUNDLE, fatbin.COMPRESSED)):
                yield from _bundles(file, section.offset, section.size, section.name)
    elif head.startswith(b"PK\x03\x04"):
        raise UsageError(f"{path} is an archive", "unpack it (python -m zipfile -e WHEEL DIR) and name the library in it")
    else:
        raise UsageError(f"{path} is no ELF library, offload bundle or code object", "rocm-patch scan tells what a file holds")


def open_piece(file: Source, piece: Piece) -> tuple[bytes | None, list[Part]]:
    """The unpacked bytes of a compressed bundle, else None, and the code in the piece. Raises FormatError."""
    if piece.compressed:
        plain = packed.unpack(file, piece.start).plain
        return plain, _parts(fatbin.bundles(Bytes(plain)))
    window = Window(file, piece.start, piece.size)
    items = fatbin.bundles(window) if window.read(0, min(piece.size, 24)) == fatbin.BUNDLE else standalone.read(window, "")
    return None, _parts(items)


def missed(file: Source, path: str, seen: Counter[tuple[str, int]]) -> list[str]:
    """What the scan could not read, and whether it saw other code than we did: targets with sizes."""
    head = file.read(0, min(file.size, 64))
    reader = standalone if standalone.recognise(path, head) else fatbin
    why, told = [], Counter[tuple[str, int]]()
    for item in reader.read(file, path):
        if isinstance(item, Unread):
            why.append(f"{item.inside}: {item.why}" if item.inside else item.why)
        else:
            told[item.target, item.data.size] += 1
    if told != seen and not why:
        why.append(f"{sum(told.values())} pieces of code are told by the scan, {sum(seen.values())} were found to edit")
    return why


def _parts(items: Iterator[Item]) -> list[Part]:
    parts = []
    for item in items:
        if isinstance(item, Unread):
            raise FormatError(item.why)
        parts.append(Part(item.target, _offset(item.data), item.data))
    ordered = sorted(parts, key=lambda part: part.start)
    for part, after in pairwise(ordered):
        if part.start + part.data.size > after.start:
            raise FormatError(f"the code for {part.target} and for {after.target} overlap: an edit of one would be one of the other")
    return parts


def _offset(source: Source) -> int:
    """Where a window of windows begins in what lies under all of them: the file, or the unpacked bundle."""
    offset = 0
    while isinstance(source, Window):
        offset, source = offset + source.start, source.under
    return offset


def _bundles(file: Source, start: int, size: int, name: str) -> Iterator[Piece]:
    """Every bundle in a stretch. The name counts as the scan does."""
    end = start + size
    Window(file, start, size)
    position, number = start, 0
    following = dict.fromkeys((fatbin.BUNDLE, fatbin.COMPRESSED), -2)  # -2: not sought yet, -1: no more
    while True:
        for magic, known in following.items():
            if known != -1 and known < position:
                following[magic] = file.find(magic, position, end)
        places = [place for place in following.values() if place >= 0]
        if not places:
            return
        position = min(places)
        compressed = position == following[fatbin.COMPRESSED]
        if compressed and (position - start) % 8:
            position += 1  # four letters by chance
            continue
        inside = f"{name}[{number}]" if name else (f"[{number}]" if number else "")
        length = packed.length(file, position) if compressed else _length(file, position)
        if position + length > end:
            raise FormatError(f"a bundle of {length} bytes reaches beyond its section")
        yield Piece(inside, position, length, compressed)
        position += length
        number += 1
        if number > fatbin.BUNDLE_LIMIT:
            raise FormatError(f"more than {fatbin.BUNDLE_LIMIT} bundles")


def _length(file: Source, start: int) -> int:
    """Bytes of a plain bundle, from its magic to the end of its last entry."""
    at = start + len(fatbin.BUNDLE)
    count = _COUNT.unpack(file.read(at, _COUNT.size))[0]
    at += _COUNT.size
    if count > fatbin.ENTRY_LIMIT:
        raise FormatError(f"a bundle that claims {count} entries")
    last = at
    for _ in range(count):
        offset, size, name = _ROW.unpack(file.read(at, _ROW.size))
        at += _ROW.size + name
        last = max(last, at, start + offset + size if size else 0)
    return last - start
