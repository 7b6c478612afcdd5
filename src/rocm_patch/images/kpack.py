"""ROCm's .kpack archives: the device code of split packages, by host binary and target.

Layout: 'KPAK', version and table offset (little-endian, 16 bytes); the code objects; a MessagePack table. The table's
`toc` maps a binary and the number of the translation unit ('lib/librocblas.so#0') to targets and to ordinals of blobs.
Scheme 'none' lists offset and size of each blob, in file offsets; 'zstd-per-kernel' has one run of 32-bit sizes and zstd
frames behind a count. Published with its reference writer and reader:
https://github.com/ROCm/rocm-systems/blob/develop/shared/kpack/docs/multi_arch_packaging_with_kpack.md.

A target is the archive's word for it, which is what the loader matches. The code is opened when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rocm_patch.errors import FormatError
from rocm_patch.images import inflate
from rocm_patch.images.message import unpack
from rocm_patch.images.source import Code, Item, Source, Unread, Window
from rocm_patch.images.unwrap import few

NAME: Final = "kpack"
MAGIC: Final = b"KPAK"
VERSION: Final = 1
HEADER: Final = 16
TABLE_LIMIT: Final = 4 << 20
"""Bytes of the table. An entry takes some 100; a whole ROCm has thousands."""
BLOB_LIMIT: Final = 1 << 18
_TARGET_LIMIT: Final = 64


def recognise(path: str, head: bytes) -> bool:
    """By the magic, or by the name so that a broken archive is told."""
    return head.startswith(MAGIC) or path.endswith(".kpack")


def read(source: Source, path: str) -> Iterator[Item]:  # noqa: ARG001  every reader has this shape
    """One Code for each binary and target."""
    try:
        table = _table(source)
        blobs = _blobs(source, table)
        toc = _mapping(table.get("toc"), "no table of contents")
    except FormatError as error:
        yield Unread(NAME, "", error.what)
        return
    yield from few(NAME, _items(toc, blobs, table.get("compression_scheme")))


def _table(source: Source) -> dict[str, Any]:
    header = source.read(0, HEADER)
    version, offset = int.from_bytes(header[4:8], "little"), int.from_bytes(header[8:], "little")
    if not header.startswith(MAGIC):
        raise FormatError("not a kpack archive")
    if version != VERSION:
        raise FormatError(f"a kpack archive of version {version}; known is {VERSION}")
    if not HEADER <= offset < source.size:
        raise FormatError("the table of contents lies outside of the archive")
    if source.size - offset > TABLE_LIMIT:
        raise FormatError(f"{source.size - offset} bytes of table of contents")
    return _mapping(unpack(source.read(offset, source.size - offset)), "the table is no map")


def _blobs(source: Source, table: dict[str, Any]) -> list[Source | str]:
    """By ordinal: the stored bytes, or why there are none."""
    scheme = table.get("compression_scheme", "none")
    if scheme == "none":
        return [_blob(source, row) for row in _sequence(table.get("blobs"))]
    if scheme == "zstd-per-kernel":
        return _frames(source, _number(table, "zstd_offset"), _number(table, "zstd_size"))
    raise FormatError(f"the compression {str(scheme)[:_TARGET_LIMIT]!r} is not known")


def _blob(source: Source, row: Any) -> Source | str:
    try:
        row = _mapping(row, "no place in the list of blobs")
        return Window(source, _number(row, "offset"), _number(row, "size"))
    except FormatError as error:
        return error.what


def _frames(source: Source, start: int, size: int) -> list[Source | str]:
    run = Window(source, start, size)
    count = int.from_bytes(run.read(0, 4), "little")
    if count > BLOB_LIMIT:
        raise FormatError(f"{count} blobs")
    frames: list[Source | str] = []
    offset = 4
    for _ in range(count):
        try:
            length = int.from_bytes(run.read(offset, 4), "little")
            frames.append(Window(run, offset + 4, length))
        except FormatError:
            # Whoever asks for a later ordinal is told so; those before are good.
            break
        offset += 4 + length
    return frames


def _items(toc: dict[str, Any], blobs: list[Source | str], scheme: Any) -> Iterator[Item]:
    for binary, targets in toc.items():
        inside = str(binary)
        try:
            places = _mapping(targets, "no targets in the table")
        except FormatError as error:
            yield Unread(NAME, inside, error.what)
            continue
        for target, entry in places.items():
            try:
                yield _code(inside, target, entry, blobs, scheme)
            except FormatError as error:
                yield Unread(NAME, inside, f"{str(target)[:_TARGET_LIMIT]}: {error.what}")


def _code(binary: str, target: Any, entry: Any, blobs: list[Source | str], scheme: Any) -> Code:
    row = _mapping(entry, "no entry in the table")
    if not isinstance(target, str) or not 0 < len(target) <= _TARGET_LIMIT:
        raise FormatError("not the name of a target")
    if row.get("type", "hsaco") != "hsaco":
        raise FormatError(f"code of the unknown kind {str(row['type'])[:_TARGET_LIMIT]!r}")
    ordinal = _number(row, "ordinal")
    if ordinal >= len(blobs):
        raise FormatError(f"blob {ordinal} of {len(blobs)}")
    blob = blobs[ordinal]
    if isinstance(blob, str):
        raise FormatError(blob)
    if scheme == "zstd-per-kernel":
        blob = inflate.Inflated(blob, inflate.zstd, _number(row, "original_size") if "original_size" in row else None)
    return Code(NAME, binary, target, blob)


def _mapping(value: Any, otherwise: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(otherwise)
    return value


def _sequence(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError("no list of blobs")
    return value


def _number(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or value < 0:
        raise FormatError(f"no {key} in the table")
    return value
