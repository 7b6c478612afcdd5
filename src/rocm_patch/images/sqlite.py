"""Rows of one table of an SQLite file, read in place: https://www.sqlite.org/fileformat2.html.

Why not SQLite itself: it wants a file by name, and ours lie in wheels too; a copy of MIOpen's 340 MB kernel database is
more than a scan may take; and a hostile schema is a program that it runs. Here nothing runs, nothing is written beside
the file, each page is visited once, and values too long for their page are read when somebody asks for them. A
write-ahead log beside the file is not looked at: MIOpen writes one for a user's database, and where its process was killed
the newest kernels are only there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images.source import Bytes, Source, Window

MAGIC: Final = b"SQLite format 3\0"
ROW_LIMIT: Final = 1 << 17
"""An installed database of 340 MB has some 30,000."""
SCHEMA_LIMIT: Final = 1 << 12
"""Tables and indices."""
_HEADER_LIMIT: Final = 1 << 14
_SQL_LIMIT: Final = 1 << 16
_LEAF, _INTERIOR = 13, 5
_INTEGERS: Final = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
_ENCODINGS: Final = {1: "utf-8", 2: "utf-16-le", 3: "utf-16-be"}
_QUOTED: Final = re.compile(r"\s*(?:`([^`]*)`|\"([^\"]*)\"|\[([^\]]*)\]|(\w+))")

Value = int | str | Source | None
"""A blob is a source; a floating-point number is passed over as None."""


@dataclass(frozen=True)
class _File:
    source: Source
    page: int
    usable: int
    encoding: str

    @property
    def pages(self) -> int:
        return self.source.size // self.page

    def read(self, number: int, offset: int, count: int) -> bytes:
        """Bytes of a page, numbered from 1."""
        if not 1 <= number <= self.pages or offset + count > self.page:
            raise FormatError(f"{count} bytes at {offset} of page {number}, of {self.pages} pages")
        return self.source.read((number - 1) * self.page + offset, count)


@dataclass(frozen=True)
class _Payload:
    """A row's bytes: the start in its page, the rest in a chain of pages that is followed when needed."""

    file: _File
    local: bytes
    overflow: int
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if there are fewer. Of pages before `offset` only the link is read."""
        end = offset + count
        if offset < 0 or count < 0 or end > self.size:
            raise FormatError(f"cut short: {offset + count} bytes of a row are needed and {self.size} are there")
        parts, position, number = [self.local[offset:end]], len(self.local), self.overflow
        while position < end:
            behind = position + self.file.usable - 4
            page = self.file.read(number, 0, self.file.usable if behind > offset else 4)
            parts.append(page[4 + max(offset - position, 0) : 4 + end - position])
            number, position = int.from_bytes(page[:4], "big"), behind
        return b"".join(parts)

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """As `bytes.find`."""
        return self.read(0, self.size).find(pattern, start, end)


def rows(source: Source, table: str, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Value, ...]]]:
    """Row id and the named columns of each row. Raises FormatError where the file, the table or a column is not there."""
    file = _open(source)
    root, names = _table(file, table)
    missing = [column for column in columns if column not in names]
    if missing:
        raise FormatError(f"the table {table} has no column {missing[0]}")
    places = [names.index(column) for column in columns]
    for count, (number, payload) in enumerate(_walk(file, root)):
        if count >= ROW_LIMIT:
            raise FormatError(f"more than {ROW_LIMIT} rows")
        yield number, _values(file, payload, places)


def _open(source: Source) -> _File:
    header = source.read(0, 100)
    if not header.startswith(MAGIC):
        raise FormatError("not an SQLite database")
    page = int.from_bytes(header[16:18], "big")
    page = 65536 if page == 1 else page
    usable = page - header[20]
    encoding = _ENCODINGS.get(int.from_bytes(header[56:60], "big") or 1)
    if page < 512 or page & (page - 1) or usable < 480 or encoding is None:
        raise FormatError("an SQLite header that cannot be")
    return _File(source, page, usable, encoding)


def _table(file: _File, name: str) -> tuple[int, list[str]]:
    for count, (_, payload) in enumerate(_walk(file, 1)):
        if count >= SCHEMA_LIMIT:
            break
        kind, found, root, sql = _values(file, payload, (0, 1, 3, 4))
        if kind == "table" and found == name and isinstance(root, int) and isinstance(sql, str):
            return root, _columns(sql)
    raise FormatError(f"no table {name}")


def _columns(sql: str) -> list[str]:
    """The names in a CREATE TABLE; parentheses within a column (a CHECK, a type's length) are passed over."""
    names, depth, start = [], 0, sql.find("(") + 1
    for place in range(start, len(sql)):
        letter = sql[place]
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0 or (letter == "," and depth == 0):
            match = _QUOTED.match(sql, start, place)
            if match:
                names.append(next(group for group in match.groups() if group is not None))
            start = place + 1
        if depth < 0:
            break
    return names


def _walk(file: _File, root: int) -> Iterator[tuple[int, _Payload]]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        number = waiting.pop()
        if number in seen:
            raise FormatError(f"page {number} is in the tree twice")
        seen.add(number)
        page = file.read(number, 0, file.page)
        start = 100 if number == 1 else 0
        kind, cells = page[start], int.from_bytes(page[start + 3 : start + 5], "big")
        head = 12 if kind == _INTERIOR else 8
        if kind not in (_LEAF, _INTERIOR) or start + head + 2 * cells > file.usable:
            raise FormatError(f"page {number} is not part of a table")
        places = [int.from_bytes(page[at : at + 2], "big") for at in range(start + head, start + head + 2 * cells, 2)]
        if kind == _INTERIOR:
            children = [int.from_bytes(page[place : place + 4], "big") for place in places]
            waiting.extend(reversed([*children, int.from_bytes(page[start + 8 : start + 12], "big")]))
        else:
            for place in places:
                yield _cell(file, page, place)


def _cell(file: _File, page: bytes, place: int) -> tuple[int, _Payload]:
    size, place = _varint(page, place)
    row, place = _varint(page, place)
    if size > file.source.size:
        raise FormatError(f"a row of {size} bytes")
    most, least = file.usable - 35, (file.usable - 12) * 32 // 255 - 23
    if size <= most:
        local = size
    else:
        local = least + (size - least) % (file.usable - 4)
        local = local if local <= most else least
    if place + local + (4 if local < size else 0) > file.usable:
        raise FormatError("a row reaches beyond its page")
    overflow = int.from_bytes(page[place + local : place + local + 4], "big") if local < size else 0
    return row, _Payload(file, page[place : place + local], overflow, size)


def _values(file: _File, payload: _Payload, places: Sequence[int]) -> tuple[Value, ...]:
    """The wanted columns of a record; None for those that an older row lacks."""
    length, place = _varint(payload.read(0, min(9, payload.size)), 0)
    if not place <= length <= min(_HEADER_LIMIT, payload.size):
        raise FormatError("a row's header cannot be")
    header = payload.read(0, length)
    found: list[tuple[int, int, int]] = []
    offset = length
    while place < length:
        kind, place = _varint(header, place)
        size = _INTEGERS.get(kind, 8) if kind < 12 else (kind - 12) // 2
        found.append((kind, offset, size))
        offset += size
    if offset > payload.size:
        raise FormatError("a row's values reach beyond it")
    return tuple(_value(file, payload, *found[place]) if place < len(found) else None for place in places)


def _value(file: _File, payload: _Payload, kind: int, offset: int, size: int) -> Value:
    if kind in _INTEGERS:
        return None if kind == 0 else kind - 8 if kind in (8, 9) else int.from_bytes(payload.read(offset, size), "big", signed=True)
    if kind < 12:
        return None
    if kind % 2:
        return payload.read(offset, min(size, _SQL_LIMIT)).decode(file.encoding, "replace")
    if offset + size <= len(payload.local):
        return Bytes(payload.read(offset, size))
    return Window(payload, offset, size)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of one to nine bytes, and the place behind it."""
    if place < len(data) and data[place] < 0x80:
        return data[place], place + 1
    value = 0
    for count in range(9):
        if place >= len(data):
            raise FormatError("a number ends in the middle")
        byte = data[place]
        place += 1
        if count == 8:
            return value << 8 | byte, place
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value, place
