"""What was changed in a file, byte for byte: enough to check it, to tell it and to take it back."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Literal

from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.images.source import Source
from rocm_patch.sanitize import packed
from rocm_patch.sanitize.survey import S_NOP, Hint

__all__ = ["Digest", "Edit", "Instruction", "Record", "content", "digest", "edits", "redone", "undone"]

_HEX_LIMIT: Final = 64
"""Bytes up to which an edit is written in hexadecimal; longer ones, whole bundles, in base 85."""
_PIECE: Final = 1 << 26


@dataclass(frozen=True)
class Digest:
    """A file's content: SHA-256 in hexadecimal, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Instruction:
    """One instruction replaced: `place` in bytes of the file, or of the bundle before compression; bytes in hexadecimal."""

    target: str
    kernel: str
    address: int
    place: int
    before: str
    after: str


@dataclass(frozen=True)
class Edit:
    """A run of bytes of the file that was replaced, and the instructions that it is about: one, or all of a compressed bundle."""

    offset: int
    encoding: Literal["hex", "base85"]
    before: str
    after: str
    inside: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Record:
    """A copy: of what, for which chip, with which edits. The copy lies beside the record, under `name`."""

    schema: int
    tool: str
    source: str
    name: str
    chip: str
    code: str
    before: Digest
    after: Digest
    edits: tuple[Edit, ...]


def content(source: Source) -> bytearray:
    """All of a file."""
    whole = bytearray()
    while len(whole) < source.size:
        whole += source.read(len(whole), min(_PIECE, source.size - len(whole)))
    return whole


def digest(data: bytes | bytearray) -> Digest:
    """Name and size of a content."""
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


def edits(file: Source, hints: Iterable[Hint]) -> tuple[Edit, ...]:
    """The edits that replace all hints.

    Raises:
        RefusedError: a compressed bundle does not fit into its place any more.
    """
    made: list[Edit] = []
    for piece, group in groupby(hints, lambda hint: hint.piece):
        members = list(group)
        if not piece.compressed:
            made += [_edit(hint.place, hint.before, S_NOP, piece.inside, [hint]) for hint in members]
            continue
        old = packed.unpack(file, piece.start)
        plain = bytearray(old.plain)
        old = replace(old, plain=b"")  # two copies are enough
        for hint in members:
            plain[hint.place : hint.place + len(S_NOP)] = S_NOP
        after = packed.pack(plain, old)
        if after is None:
            raise RefusedError(
                f"{piece.inside or 'the bundle'}: compressed again, {len(members)} replaced instructions do not fit into its {old.size} bytes",
                "a library built without compressed bundles (clang's --no-offload-compress) has room",
            )
        made.append(_changed(piece.start, file.read(piece.start, old.size), after, piece.inside, members))
    return tuple(made)


def redone(data: bytearray, steps: Iterable[Edit]) -> None:
    """Apply edits to a content in place. Raises RefusedError where it is not what they were made for."""
    for offset, before, after in _spans(steps):
        _swap(data, offset, before, after)


def undone(data: bytearray, steps: Iterable[Edit]) -> None:
    """Take edits back in place. Raises RefusedError where the content is not what they left."""
    for offset, before, after in _spans(steps):
        _swap(data, offset, after, before)


def _swap(data: bytearray, offset: int, old: bytes, new: bytes) -> None:
    if len(old) != len(new) or offset < 0 or data[offset : offset + len(old)] != old:
        raise RefusedError(f"the {len(old)} bytes at {offset} are not those of the record: nothing was written")
    data[offset : offset + len(new)] = new


def _spans(steps: Iterable[Edit]) -> Iterator[tuple[int, bytes, bytes]]:
    for step in steps:
        read: Callable[[str], bytes] = bytes.fromhex if step.encoding == "hex" else base64.b85decode
        try:
            yield step.offset, read(step.before), read(step.after)
        except (ValueError, binascii.Error) as error:
            raise FormatError(f"the record's edit at {step.offset} is damaged: {error}") from error


def _changed(start: int, before: bytes, after: bytes, inside: str, hints: list[Hint]) -> Edit:
    """An edit of the shortest run that holds all differences of two contents of one length."""
    import numpy

    where = numpy.flatnonzero(numpy.frombuffer(before, numpy.uint8) != numpy.frombuffer(after, numpy.uint8))
    first, last = int(where[0]), int(where[-1]) + 1
    return _edit(start + first, before[first:last], after[first:last], inside, hints)


def _edit(offset: int, before: bytes, after: bytes, inside: str, hints: list[Hint]) -> Edit:
    told = tuple(Instruction(hint.target, hint.kernel, hint.address, hint.place, hint.before.hex(), S_NOP.hex()) for hint in hints)
    if len(before) <= _HEX_LIMIT:
        return Edit(offset, "hex", before.hex(), after.hex(), inside, told)
    return Edit(offset, "base85", base64.b85encode(before).decode(), base64.b85encode(after).decode(), inside, told)
