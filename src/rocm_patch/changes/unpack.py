"""What the kernel's files are packed in: compressed modules, and the archives that an initramfs is a chain of.

The formats: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html. The standard library where it can;
zstd before Python 3.14, lz4 and lzo by the system's own programs. What a file claims about its size decides nothing.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
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
    scheme, limit = scheme_of(data), min(LIMIT, max(RATIO * len(data), FLOOR))
    whole = True
    try:
        if scheme == "gzip":
            stream = zlib.decompressobj(wbits=31)
            expanded, whole = stream.decompress(data, limit + 1), stream.eof
        elif scheme in ("xz", "lzma"):
            decoder = lzma.LZMADecompressor(memlimit=256 << 20)
            expanded, whole = decoder.decompress(data, limit + 1), decoder.eof
        elif scheme == "bzip2":
            blocks = bz2.BZ2Decompressor()
            expanded, whole = blocks.decompress(data, limit + 1), blocks.eof
        elif scheme:
            expanded = _by_program(scheme, data, limit)
        else:
            return data
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        raise FormatError(f"it begins as {scheme} and is damaged: {error}") from error
    if len(expanded) > limit:
        raise FormatError(f"it becomes more than {limit} bytes when it is expanded")
    if not whole:
        raise FormatError(f"it begins as {scheme} and is cut off")
    return expanded


def _by_program(scheme: str, data: bytes, limit: int) -> bytes:
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
        return ended.out
    raise RocmPatchError(f"it is compressed with {scheme}, which needs a program: {missing}", f"install {scheme} and try again")


def _zstd(module: object, data: bytes, limit: int) -> bytes:
    decoder = module.ZstdDecompressor()  # type: ignore[attr-defined]
    try:
        expanded: bytes = decoder.decompress(data, limit + 1)
    except module.ZstdError as error:  # type: ignore[attr-defined]
        raise ValueError(str(error)) from error
    return expanded


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
    names, files = set[str](), dict[str, bytes]()
    at, archives = 0, 0
    while at < len(image):
        if image[at] == 0:
            at += len(image[at : at + 4096]) - len(image[at : at + 4096].lstrip(b"\0"))
            continue
        if image[at : at + 6] in _NEWC:
            at = _archive(image, at, wanted, names, files)
        elif scheme_of(image[at : at + 6]):
            inner = contents_of_plain(expand(image[at:]), wanted)
            names |= inner.names
            files.update(inner.files)
            at = len(image)
        elif archives:
            break  # the kernel stops here too
        else:
            raise FormatError("it is no initramfs: it begins neither as an archive nor as a compressed one")
        archives += 1
    if not names:
        raise FormatError("it holds no files")
    return Contents(frozenset(names), files)


def contents_of_plain(data: bytes, wanted: Collection[str]) -> Contents:
    """Read archives that are not compressed.

    Raises:
        FormatError: they are damaged.
    """
    names, files = set[str](), dict[str, bytes]()
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += len(data[at : at + 4096]) - len(data[at : at + 4096].lstrip(b"\0"))
        elif data[at : at + 6] in _NEWC:
            at = _archive(data, at, wanted, names, files)
        else:
            break
    return Contents(frozenset(names), files)


def _archive(data: bytes, at: int, wanted: Collection[str], names: set[str], files: dict[str, bytes]) -> int:
    """Read one archive up to its trailer; returns where the next thing may begin."""
    links = dict[int, list[str]]()
    for name, inode, start, size, end in _members(data, at):
        if name == _TRAILER.decode():
            return end
        short = name.removeprefix("./").strip("/")
        names.add(short)
        if short in wanted:
            # Of several names of one file only the last carries the bytes.
            for one in {short, *(links.get(inode, []) if size else [])}:
                files[one] = data[start : start + size]
            links.setdefault(inode, []).append(short)
    raise FormatError("an archive in it is cut off")


def _members(data: bytes, at: int) -> Iterator[tuple[str, int, int, int, int]]:
    """(name, inode, where the bytes begin, how many, where the next member begins)."""
    base = at
    while at + _HEADER <= len(data):
        if data[at : at + 6] not in _NEWC:
            raise FormatError(f"an archive in it is damaged at byte {at}")
        try:
            inode, size, length = (int(data[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in (0, 6, 11))
        except ValueError as error:
            raise FormatError(f"an archive in it is damaged at byte {at}") from error
        if not 0 < length <= _NAME_LIMIT:
            raise FormatError(f"an archive in it is damaged at byte {at}")
        start = base + -(-(at - base + _HEADER + length) // 4) * 4
        end = base + -(-(start - base + size) // 4) * 4
        if start + size > len(data):
            raise FormatError("an archive in it is cut off")
        yield data[at + _HEADER : at + _HEADER + length - 1].decode("utf-8", "replace"), inode, start, size, end
        at = end
