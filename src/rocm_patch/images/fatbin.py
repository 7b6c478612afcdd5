"""Device code in `.hip_fatbin` sections: which targets the offload bundles of a library name.

Format: https://clang.llvm.org/docs/ClangOffloadBundler.html. Compressed bundles are told apart and not opened here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Final

from rocm_patch.model import FormatError

BUNDLE: Final = b"__CLANG_OFFLOAD_BUNDLE__"
COMPRESSED: Final = b"CCOB"
SECTION: Final = ".hip_fatbin"
ENTRY_LIMIT: Final = 4096
NAME_LIMIT: Final = 256
_CHUNK: Final = 1 << 20


def section(stream: IO[bytes]) -> tuple[int, int] | None:
    """Offset and size of the section in an ELF file; None if it has none. Raises FormatError for anything else."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        found = ELFFile(stream).get_section_by_name(SECTION)
        return (int(found["sh_offset"]), int(found["sh_size"])) if found is not None else None
    except (ELFError, ValueError, OverflowError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
        # pyelftools lets more than its own error class out on hostile files; here only ours leaves.
        raise FormatError(f"not a readable ELF file: {error}") from error


def targets(stream: IO[bytes], offset: int, size: int) -> tuple[dict[str, int], int]:
    """Bytes of device code by target over all plain bundles of a section, and how many compressed ones there are."""
    found: dict[str, int] = {}
    compressed = 0
    for kind, position in _bundles(stream, offset, size):
        if kind == COMPRESSED:
            compressed += 1
            continue
        for name, length in _entries(stream, position, offset + size):
            if name is not None:
                found[name] = found.get(name, 0) + length
    return found, compressed


def target_of(entry: str) -> str | None:
    """The target in an entry id, features cut: 'hipv4-amdgcn-amd-amdhsa--gfx1010:xnack-' -> 'gfx1010'; None for the host."""
    if "amdgcn" not in entry:
        return None
    target = entry.rpartition("--")[2].partition(":")[0]
    return target if target.startswith("gfx") else None


def _bundles(stream: IO[bytes], offset: int, size: int) -> Iterator[tuple[bytes, int]]:
    """Positions of the magics. Bundles begin on 4 KiB or 8 byte borders; whatever lies between is passed over."""
    position, tail = offset, b""
    while position < offset + size:
        stream.seek(position)
        chunk = stream.read(min(_CHUNK, offset + size - position))
        if not chunk:
            return
        window, base = tail + chunk, position - len(tail)
        for magic in (BUNDLE, COMPRESSED):
            start = window.find(magic)
            while start >= 0:
                # A compressed header is eight-byte aligned; the letters alone are not enough.
                if magic == BUNDLE or (base + start) % 8 == 0:
                    yield magic, base + start
                start = window.find(magic, start + len(magic))
        tail = window[-(len(BUNDLE) - 1) :] if len(chunk) == _CHUNK else b""
        position += len(chunk)


def _entries(stream: IO[bytes], position: int, end: int) -> Iterator[tuple[str | None, int]]:
    stream.seek(position + len(BUNDLE))
    count = int.from_bytes(_exactly(stream, 8), "little")
    if count > ENTRY_LIMIT:
        raise FormatError(f"a bundle that claims {count} entries")
    for _ in range(count):
        start, length, name_length = (int.from_bytes(_exactly(stream, 8), "little") for _ in range(3))
        if name_length > NAME_LIMIT:
            raise FormatError(f"a bundle entry with a name of {name_length} bytes")
        name = _exactly(stream, name_length).decode("ascii", "replace")
        if length and position + start + length > end:
            raise FormatError(f"the entry {name!r} reaches beyond its section")
        yield target_of(name) if length else None, length


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise FormatError("a bundle ends in the middle")
    return data
