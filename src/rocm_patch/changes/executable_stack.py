"""Libraries that ask for an executable stack: glibc refuses them from 2.41 on. Read from outside, nothing is loaded."""

from __future__ import annotations

import glob
import os
import re
import struct
from typing import Final

REFUSED_FROM: Final = "2.41"
_STACK: Final = 0x6474E551
"""PT_GNU_STACK, the program header that says what the stack has to be."""
_EXECUTE: Final = 1
_HEADERS: Final = 64
"""More program headers than any library has; a file that claims more is not read on."""


def c_library() -> str:
    """The version of this system's glibc; empty where it is another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ""
    return version if name == "glibc" else ""


def older(version: str, than: str) -> bool:
    """Whether a version of numbers and points comes before another."""
    one, other = ([int(part) for part in re.findall(r"\d+", text)] for text in (version, than))
    return one < other


def asking(folder: str) -> list[str]:
    """Shared libraries below a virtual environment's packages that ask for an executable stack, as paths."""
    paths = glob.glob(f"{glob.escape(folder)}/lib/python*/site-packages/**/*.so*", recursive=True)
    return [path for path in sorted(paths) if not os.path.islink(path) and asks(path)]


def asks(path: str) -> bool:
    """Whether one file is a 64-bit ELF file that asks for it; anything that cannot be read as one is not."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
                return False
            (offset,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            if size != 56 or count > _HEADERS:
                return False
            file.seek(offset)
            table = file.read(size * count)
    except OSError:
        return False
    for start in range(0, len(table) - size + 1, size):
        kind, flags = struct.unpack_from("<II", table, start)
        if kind == _STACK:
            return bool(flags & _EXECUTE)
    return bool(len(table) == size * count)  # without a word about it the loader takes it for executable
