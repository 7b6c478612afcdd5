"""What the kernel's files are packed in: compressed modules, and the archives that an initramfs is a chain of.

The formats: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html. The standard library where it can;
zstd before Python 3.14, lz4 and lzo by the system's own programs. What a file claims about its size decides nothing.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from rocm_patch.errors import FormatError, RocmPatchError
from rocm_patch.run import run

LIMIT: Final = 1 << 30
"""Bytes that one piece may become."""
RATIO: Final = 200
FLOOR: Final = 1 << 24
ZSTD: Final = (("/usr/bin/zstd", "-dcq"), ("/bin/zstd", "-dcq"))
LZ4: Final = (("/usr/bin/lz4", "-dcq"),)
LZO: Final = (("/usr/bin/lzop", "-dcq"),)
TIMEOUT: Final = 120.0
_MAGICS: Final = {
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x5d\x00\x00": "lzma", b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x04\x22\x4d\x18": "lz4", b"\x89LZO": "lzo",
}  # fmt: skip
_NEWC: Final = (b"070701", b"070702")
_HEADER: Final = 110
_TRAILER: Final = b"TRAILER!!!"
_NAME_LIMIT: Final = 4096
_MEMBERS: Final = 100_000
"""Files that an initramfs may hold; large ones hold some ten thousand."""
_PIECES: Final = 64
"""Archives that one may be a chain of."""
_FIELDS: Final = re.compile(rb"[0-9A-Fa-f]{104}")
"""The kernel's own reading takes no sign; a negative size led back to its own header, for ever."""


def scheme_of(data: bytes | memoryview) -> str:
    """How bytes are compressed, by how they begin; empty: not in any way known here."""
    start = bytes(data[:6])
    return next((scheme for magic, scheme in _MAGICS.items() if start.startswith(magic)), "")


def expand(data: bytes) -> bytes:
    """The content of a compressed file; what is not compressed is returned as it is.

    Raises:
        FormatError: damaged, or too large once expanded.
        RocmPatchError: nothing here can read the scheme; names what is missing.
    """
    return _piece(data, _limit(data))[0] if scheme_of(data) else data


def _limit(data: bytes) -> int:
    return min(LIMIT, max(RATIO * len(data), FLOOR))


def _piece(data: bytes, limit: int) -> tuple[bytes, int | None]:
    """What the first compressed stream becomes, and how many bytes it took; None: something follows and it cannot be told where."""
    scheme = scheme_of(data)
    whole, end = True, None
    try:
        if scheme == "gzip":
            stream = zlib.decompressobj(wbits=31)
            expanded, whole, end = stream.decompress(data, limit + 1), stream.eof, len(data) - len(stream.unused_data)
        elif scheme in ("xz", "lzma"):
            decoder = lzma.LZMADecompressor(memlimit=256 << 20)
            expanded, whole, end = decoder.decompress(data, limit + 1), decoder.eof, len(data) - len(decoder.unused_data)
        elif scheme == "bzip2":
            blocks = bz2.BZ2Decompressor()
            expanded, whole, end = blocks.decompress(data, limit + 1), blocks.eof, len(data) - len(blocks.unused_data)
        else:
            expanded, end = _by_program(scheme, data, limit)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        raise FormatError(f"it begins as {scheme} and is damaged: {error}") from error
    if len(expanded) > limit:
        raise FormatError(f"it becomes more than {limit} bytes when it is expanded")
    if not whole:
        raise FormatError(f"it begins as {scheme} and is cut off")
    return expanded, end


def _by_program(scheme: str, data: bytes, limit: int) -> tuple[bytes, int | None]:
    if scheme == "zstd":
        try:
            return _zstd(importlib.import_module("compression.zstd"), data, limit)  # Python 3.14 and later
        except ModuleNotFoundError:
            pass
    missing = ""
    for argv in {"zstd": ZSTD, "lz4": LZ4, "lzo": LZO}[scheme]:
        try:
            ended = run(argv, stdin=data, timeout=TIMEOUT, output_limit=limit + 1)
        except RocmPatchError as error:  # not there, or not one that root would run
            missing = missing or error.what
            continue
        # An archive may be followed by bytes that are none: what came out before them is judged by who asked.
        if ended.timed_out or (ended.code and not ended.out):
            raise FormatError(f"{argv[0]} does not accept it: {ended.text}")
        return ended.out, None if ended.code or ended.err else len(data)
    raise RocmPatchError(f"it is compressed with {scheme}, which needs a program: {missing}", f"install {scheme} and try again")


def _zstd(module: object, data: bytes, limit: int) -> tuple[bytes, int]:
    decoder = module.ZstdDecompressor()  # type: ignore[attr-defined]
    try:
        expanded: bytes = decoder.decompress(data, limit + 1)
    except module.ZstdError as error:  # type: ignore[attr-defined]
        raise ValueError(str(error)) from error
    if len(expanded) <= limit and not decoder.eof:
        raise ValueError("it is cut off")
    return expanded, len(data) - len(decoder.unused_data)


# ------------------------------------------------------------------ archives


@dataclass(frozen=True)
class Contents:
    """What an initramfs holds: every name, and the bytes of the files that were asked for."""

    names: frozenset[str]
    files: Mapping[str, bytes]


def contents(image: bytes, wanted: Collection[str] = ()) -> Contents:
    """Read all archives of an initramfs, the plain ones in front (microcode, firmware) and the compressed one behind.

    Raises:
        FormatError: it is no initramfs, or a damaged one.
        RocmPatchError: nothing here can read how it is compressed.
    """
    found = _Found(wanted)
    at, pieces, limit = 0, 0, _limit(image)
    while at < len(image):
        if image[at] == 0:
            at = _behind_zeros(image, at)
            continue
        if pieces == _PIECES:
            raise FormatError(f"it is a chain of more than {_PIECES} archives")
        if image[at : at + 6] in _NEWC:
            at = _archive(image, at, found)
        elif scheme_of(image[at : at + 6]):
            inner, end = _piece(image[at:], limit)
            limit -= len(inner)
            _plain(inner, found)
            if end is None:
                # What is behind it may hold the driver: "holds no amdgpu" would be a guess.
                raise FormatError("something follows its compressed archive, and it was not read to its end")
            at += end
        elif pieces:
            break  # the kernel stops here too
        else:
            raise FormatError("it is no initramfs: it begins neither as an archive nor as a compressed one")
        pieces += 1
    if not found.names:
        raise FormatError("it holds no files")
    return Contents(frozenset(found.names), found.files)


@dataclass
class _Found:
    """What was found so far in one image."""

    wanted: Collection[str]
    names: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    members: int = 0


def _behind_zeros(data: bytes, at: int) -> int:
    block = data[at : at + 4096]
    return at + len(block) - len(block.lstrip(b"\0"))


def _plain(data: bytes, found: _Found) -> None:
    """Read archives that are not compressed."""
    at = 0
    while at < len(data):
        if data[at] == 0:
            at = _behind_zeros(data, at)
        elif data[at : at + 6] in _NEWC:
            at = _archive(data, at, found)
        else:
            break


def _archive(data: bytes, at: int, found: _Found) -> int:
    """Read one archive up to its trailer; returns where the next thing may begin."""
    links = dict[int, list[str]]()
    for name, inode, start, size, end in _members(data, at):
        found.members += 1
        if found.members > _MEMBERS:
            raise FormatError(f"it holds more than {_MEMBERS} files")
        if name == _TRAILER.decode():
            return end
        short = name.removeprefix("./").strip("/")
        found.names.add(short)
        if short in found.wanted:
            # Of several names of one file only the last carries the bytes.
            for one in {short, *(links.get(inode, []) if size else [])}:
                found.files[one] = data[start : start + size]
            links.setdefault(inode, []).append(short)
    raise FormatError("an archive in it is cut off")


def _members(data: bytes, at: int) -> Iterator[tuple[str, int, int, int, int]]:
    """(name, inode, where the bytes begin, how many, where the next member begins)."""
    base = at
    while at + _HEADER <= len(data):
        if data[at : at + 6] not in _NEWC or not _FIELDS.fullmatch(data, at + 6, at + _HEADER):
            raise FormatError(f"an archive in it is damaged at byte {at}")
        inode, size, length = (int(data[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in (0, 6, 11))
        if not 0 < length <= _NAME_LIMIT:
            raise FormatError(f"an archive in it is damaged at byte {at}")
        start = base + -(-(at - base + _HEADER + length) // 4) * 4
        end = base + -(-(start - base + size) // 4) * 4
        if start + size > len(data):
            raise FormatError("an archive in it is cut off")
        yield data[at + _HEADER : at + _HEADER + length - 1].decode("utf-8", "replace"), inode, start, size, end
        at = end
