"""Offload bundles: in the `.hip_fatbin` section of libraries, and as files of their own; plain and compressed.

Plain: the magic, a count, then offset, size and id of each entry
(https://clang.llvm.org/docs/ClangOffloadBundler.html#bundled-code-object-file-layout). Compressed: 'CCOB', version,
method, from version 2 on the size of the whole (4 bytes, 8 from version 3 on), the size before compression (4, from
version 3 on 8), a hash (8), and a zlib (method 0) or zstd (1) stream of a plain bundle
(https://github.com/llvm/llvm-project/blob/main/llvm/lib/Object/OffloadBundle.cpp). A section holds one bundle a
translation unit, aligned to pages.

Bundles say how long they are, so that what lies within them is never searched for magics. One that is broken is told,
and the search goes on behind its magic. Compressed ones are unpacked as a stream, one code object at a time and only
as far as somebody reads: the data of a `Code` is to be read before the next `Code` is asked for.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from rocm_patch.errors import FormatError
from rocm_patch.images import elf, pe
from rocm_patch.images.flow import Flow
from rocm_patch.images.source import Code, Item, Source, Unread, Window

NAME: Final = "fatbin"
COMPRESSED_NAME: Final = "compressed fatbin"
BUNDLE: Final = b"__CLANG_OFFLOAD_BUNDLE__"
COMPRESSED: Final = b"CCOB"
SECTION: Final = ".hip_fatbin"
PE_SECTION: Final = ".hip_fat"
ENTRY_LIMIT: Final = 4096
NAME_LIMIT: Final = 256
BUNDLE_LIMIT: Final = 1 << 16
"""Bundles in one section; the largest libraries have some thousand."""
UNREAD_LIMIT: Final = 64
"""Broken bundles told one by one; after these the rest of the section is given up."""
_HEADERS: Final = {1: struct.Struct("<IQ"), 2: struct.Struct("<IIQ"), 3: struct.Struct("<QQQ")}
_METHODS: Final = ("zlib", "zstd")
_TARGET: Final = re.compile(r"-(gfx[0-9a-z-]+(?:[:+][a-z]+[+-]?)*)$")


@dataclass(frozen=True)
class Entry:
    """A row of a bundle's table; `start` in bytes from the magic on."""

    id: str
    start: int
    size: int


class _Reads(Protocol):
    def __call__(self, count: int, /) -> bytes: ...


def recognise(path: str, head: bytes) -> bool:  # noqa: ARG001  bytes decide
    """A host's ELF or PE file, or a bundle."""
    if head.startswith(elf.MAGIC):
        return int.from_bytes(head[18:20], "little") != elf.MACHINE_AMDGPU
    return head.startswith((BUNDLE, COMPRESSED, pe.MAGIC))


def read(source: Source, path: str) -> Iterator[Item]:  # noqa: ARG001  every reader has this shape
    """The code of all bundles."""
    head = source.read(0, min(source.size, 64))
    if head.startswith((BUNDLE, COMPRESSED)):
        yield from bundles(source)
        return
    try:
        sections = _sections(source, head)
    except FormatError as error:
        yield Unread(NAME, "", error.what)
        return
    for name, start, size in sections:
        try:
            section = Window(source, start, size)
        except FormatError:
            yield Unread(NAME, name, "the section reaches beyond the file, which was cut off or is still being written")
            continue
        yield from bundles(section, name)


def section_of(source: Source, name: str) -> Source | None:
    """A section of an ELF file, or of a PE file by its short name. Raises FormatError."""
    head = source.read(0, min(source.size, 64))
    found = next(((start, size) for known, start, size in _all_sections(source, head) if known == name), None)
    return Window(source, *found) if found else None


def bundles(source: Source, inside: str = "", store: str = "") -> Iterator[Item]:
    """The code of all bundles in a source; `store` overrides how it is called."""
    position = number = broken = 0
    while (place := _next(source, position)) is not None:
        position, compressed = place
        name = f"{inside}[{number}]" if inside else (f"[{number}]" if number else "")
        number += 1
        if number > BUNDLE_LIMIT or broken >= UNREAD_LIMIT:
            yield Unread(store or NAME, inside, f"{number - 1} bundles, {broken} of them broken, and more: given up")
            return
        kind = store or (COMPRESSED_NAME if compressed else NAME)
        try:
            position = yield from (_compressed if compressed else _plain)(source, position, kind, name)
        except FormatError as error:
            broken += 1
            yield Unread(kind, name, error.what)
            position += len(COMPRESSED) if compressed else len(BUNDLE)


def target_of(entry: str) -> str | None:
    """The target ID in an entry's id; None for the host.

    'hipv4-amdgcn-amd-amdhsa--gfx1010:xnack-' -> 'gfx1010:xnack-', and 'spirv' for SPIR-V. Raises FormatError for others.
    """
    if entry.startswith("host-"):
        return None
    if "spirv" in entry:
        return "spirv"
    match = _TARGET.search(entry)
    if match is None:
        raise FormatError(f"an entry for {entry!r}")
    return match.group(1)


def _sections(source: Source, head: bytes) -> list[tuple[str, int, int]]:
    """Those that hold bundles by their name or, as LLVM's tools have it, by their first bytes."""
    return [
        (name, start, size)
        for name, start, size in _all_sections(source, head)
        if size and (name in (SECTION, PE_SECTION) or _begins(source, start, size))
    ]


def _all_sections(source: Source, head: bytes) -> list[tuple[str, int, int]]:
    if head.startswith(pe.MAGIC):
        return pe.sections(source)
    return [(section.name, section.offset, section.size) for section in elf.read(source).sections if section.type not in (0, elf.NO_BITS)]


def _begins(source: Source, start: int, size: int) -> bool:
    if size < len(BUNDLE) or start + len(BUNDLE) > source.size:
        return False
    return source.read(start, len(BUNDLE)).startswith((BUNDLE, COMPRESSED))


def _next(source: Source, position: int) -> tuple[int, bool] | None:
    """Where the next bundle begins, and whether it is compressed."""
    while True:
        # Most lie at the next page or here; a look is cheaper than two searches to the end of the section.
        for guess in (position, position + -position % 4096):
            if guess + len(BUNDLE) <= source.size:
                head = source.read(guess, len(BUNDLE))
                if head == BUNDLE or head.startswith(COMPRESSED):
                    return guess, head != BUNDLE
        plain = source.find(BUNDLE, position, source.size)
        compressed = source.find(COMPRESSED, position, source.size if plain < 0 else plain)
        if compressed < 0:
            return (plain, False) if plain >= 0 else None
        if compressed % 8 == 0:
            return compressed, True
        # Four letters are not enough; a header is aligned.
        position = compressed + 1


def _plain(source: Source, position: int, store: str, name: str) -> Generator[Item, None, int]:
    at = position

    def following(count: int) -> bytes:
        nonlocal at
        at += count
        return source.read(at - count, count)

    end = position
    for entry in _entries(following):
        yield from _code(store, name, entry, lambda entry=entry: Window(source, position + entry.start, entry.size))
        end = max(end, min(position + entry.start + entry.size, source.size))
    return max(end, at)


def _compressed(source: Source, position: int, store: str, name: str) -> Generator[Item, None, int]:
    version, method = struct.unpack("<HH", source.read(position + 4, 4))
    header = _HEADERS.get(version)
    if header is None or method >= len(_METHODS):
        raise FormatError(f"a compressed bundle of version {version} and method {method}")
    sizes = header.unpack(source.read(position + 8, header.size))
    start = position + 8 + header.size
    part: Source = source
    if version > 1:
        if sizes[0] < 8 + header.size or position + sizes[0] > source.size:
            raise FormatError(f"a compressed bundle that claims {sizes[0]} bytes")
        part = Window(source, 0, position + sizes[0])
    flow = Flow(part, start, _METHODS[method])
    try:
        for entry in sorted(_entries(flow.read), key=lambda entry: entry.start):
            yield from _code(store, name, entry, lambda entry=entry: _Pending(flow, entry.start, entry.size))
        if version == 1:
            # This one does not say how long it is.
            flow.finish()
            return start + flow.used
    except FormatError as error:
        if version == 1:
            raise
        yield Unread(store, name, error.what)
    finally:
        flow.close()
    return position + int(sizes[0])


class _Pending:
    """A compressed code object: unpacked when first asked, as long as the stream has not gone past it."""

    def __init__(self, flow: Flow, start: int, size: int) -> None:
        self.size = size
        self._flow, self._start = flow, start
        self._data: Source | None = None

    def _opened(self) -> Source:
        if self._data is None:
            if self._start < self._flow.position:
                raise FormatError("it overlaps another, or was asked for too late")
            self._flow.skip(self._start - self._flow.position)
            self._data = self._flow.take(self.size)
        return self._data

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if there are fewer."""
        return self._opened().read(offset, count)

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Offset of the first occurrence; -1 if there is none."""
        return self._opened().find(pattern, start, end)


def _entries(following: _Reads) -> list[Entry]:
    if following(len(BUNDLE)) != BUNDLE:
        raise FormatError("what was compressed is not a bundle")
    count = int.from_bytes(following(8), "little")
    if count > ENTRY_LIMIT:
        raise FormatError(f"a bundle that claims {count} entries")
    entries = []
    for _ in range(count):
        start, size, length = struct.unpack("<QQQ", following(24))
        if length > NAME_LIMIT:
            raise FormatError(f"a bundle entry with a name of {length} bytes")
        entries.append(Entry(following(length).decode("ascii", "replace"), start, size))
    return entries


class _Opens(Protocol):
    def __call__(self) -> Source: ...


def _code(store: str, name: str, entry: Entry, opened: _Opens) -> Iterator[Item]:
    # An entry of no bytes is a placeholder: the host's, always.
    if not entry.size:
        return
    try:
        target = target_of(entry.id)
    except FormatError as error:
        yield Unread(store, name, error.what)
        return
    if target is None:
        return
    try:
        code = opened()
    except FormatError:
        raise FormatError(f"the entry {entry.id!r} of {entry.size} bytes reaches beyond the bundle") from None
    yield Code(store, name, target, code)
