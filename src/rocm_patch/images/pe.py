"""The section table of a Windows library: https://learn.microsoft.com/windows/win32/debug/pe-format."""

from __future__ import annotations

import struct
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images.source import Source

MAGIC: Final = b"MZ"
_HEADER: Final = struct.Struct("<4sHHIIIHH")
_SECTION: Final = struct.Struct("<8sIIIIIIHHI")
SECTION_LIMIT: Final = 4096


def sections(source: Source) -> list[tuple[str, int, int]]:
    """Name (of at most eight letters), offset and size in the file. Empty for what only begins like one; raises FormatError."""
    if source.size < 64:
        return []
    start = int.from_bytes(source.read(60, 4), "little")
    if start + _HEADER.size > source.size:
        return []
    magic, _, count, _, _, _, optional, _ = _HEADER.unpack(source.read(start, _HEADER.size))
    if magic != b"PE\0\0":
        return []
    if count > SECTION_LIMIT:
        raise FormatError(f"{count} sections")
    table = source.read(start + _HEADER.size + optional, count * _SECTION.size)
    return [(name.rstrip(b"\0").decode("ascii", "replace"), at, size) for name, _, _, size, at, *_ in _SECTION.iter_unpack(table)]
