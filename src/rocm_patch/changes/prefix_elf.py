"""The words in a shared library that decide which files a program loads: its own name, the names that it needs, its run paths.

Read from outside, nothing is loaded, and nothing but these words is read: a torch library has gigabytes. 64-bit little-endian
only. Field layouts: https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import Final

_HEADERS: Final = 64
"""More program headers than any library has; a file that claims more is not read on."""
_DYNAMIC_LIMIT: Final = 1 << 16
_WORD_LIMIT: Final = 4096
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29


@dataclass(frozen=True)
class Dynamic:
    """`soname` is empty where the file gives itself no name. With a `runpath` the loader does not look at `rpath`."""

    soname: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read(path: str) -> Dynamic | None:
    """What one file says; None for anything that is not a readable shared library."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a device can be to use it
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return _read(descriptor) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)
    except (OSError, struct.error, OverflowError):
        return None


def _read(file: int) -> Dynamic | None:
    head = os.pread(file, 64, 0)
    if not head.startswith(b"\x7fELF\x02\x01"):
        return None
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size != 56 or count > _HEADERS:
        return None
    rows = [struct.unpack_from("<IIQQQQQQ", os.pread(file, 56, offset + number * 56)) for number in range(count)]
    loads = [(address, at, length) for kind, _, at, address, _, length, _, _ in rows if kind == _LOAD]
    tables = [(at, length) for kind, _, at, _, _, length, _, _ in rows if kind == _DYNAMIC]
    if not tables:
        return None
    table = os.pread(file, min(tables[0][1], _DYNAMIC_LIMIT), tables[0][0])
    pairs = list[tuple[int, int]]()
    for tag, value in struct.iter_unpack("<QQ", table[: len(table) // 16 * 16]):
        if tag == 0:
            break
        pairs.append((tag, value))
    found = dict(pairs)
    strings = next((at + found[_STRINGS] - address for address, at, length in loads if address <= found.get(_STRINGS, -1) < address + length), None)
    if strings is None:
        return None

    def word(value: int) -> str:
        return os.pread(file, _WORD_LIMIT, strings + value).partition(b"\0")[0].decode("utf-8", "replace")

    def words(tag: int) -> tuple[str, ...]:
        return tuple(part for part in word(found[tag]).split(":") if part) if tag in found else ()

    return Dynamic(
        word(found[_SONAME]) if _SONAME in found else "",
        tuple(word(value) for tag, value in pairs if tag == _NEEDED),
        () if _RUNPATH in found else words(_RPATH),
        words(_RUNPATH),
    )
