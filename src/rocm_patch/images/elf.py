"""The few fields of an ELF file that hold device code or describe it: header and section table.

64-bit little-endian files only: that is what the AMDGPU back end writes and what hosts of ROCm are. Field layouts:
https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html. An own reader, since a library is scanned for one or two
sections among some forty, and a code object for one symbol table among tens of thousands of objects: building an object
for each entry, as pyelftools does, takes a hundred times longer than reading the columns.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images.source import Source

MAGIC: Final = b"\x7fELF\x02\x01"
"""Class 64, little-endian."""
MACHINE_AMDGPU: Final = 224
SECTION_LIMIT: Final = 1 << 16
NAMES_LIMIT: Final = 1 << 22
"""Bytes of section names."""
NO_BITS: Final = 8
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_NAME_LIMIT: Final = 256


@dataclass(frozen=True)
class Section:
    """One section; offsets and sizes in bytes, not yet held against the file."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class Elf:
    """A file's header and sections."""

    abi: int
    abi_version: int
    machine: int
    flags: int
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)


def read(source: Source) -> Elf:
    """Header and section table. Raises FormatError for anything that is not a whole 64-bit little-endian ELF file."""
    raw = source.read(0, _HEADER.size)
    if not raw.startswith(MAGIC):
        raise FormatError("not a 64-bit little-endian ELF file")
    identity, _, machine, _, _, _, table, flags, _, _, _, entry, count, names = _HEADER.unpack(raw)
    return Elf(identity[7], identity[8], machine, flags, _sections(source, table, entry, count, names) if table else ())


def _sections(source: Source, table: int, entry: int, count: int, names: int) -> tuple[Section, ...]:
    if entry != _SECTION.size:
        raise FormatError(f"section headers of {entry} bytes")
    if count == 0 or names == 0xFFFF:
        # More than 65,279 sections: the true numbers stand in the first header.
        first = _SECTION.unpack(source.read(table, entry))
        count, names = count or first[5], first[6] if names == 0xFFFF else names
    if count > SECTION_LIMIT:
        raise FormatError(f"{count} sections")
    headers = list(_SECTION.iter_unpack(source.read(table, count * entry)))
    text = b""
    if 0 < names < count:
        offset, size = headers[names][4:6]
        if size > NAMES_LIMIT:
            raise FormatError(f"{size} bytes of section names")
        text = source.read(offset, size)
    return tuple(
        Section(_name(text, name), kind, flags, address, offset, size, link) for name, kind, flags, address, offset, size, link, _, _, _ in headers
    )


def _name(text: bytes, start: int) -> str:
    end = text.find(b"\0", start, start + _NAME_LIMIT)
    return text[start:end].decode("utf-8", "replace") if end >= 0 else ""
