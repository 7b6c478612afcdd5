"""Wheels and other zip files: members as sources, within limits that the directory's claims do not move."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from typing import IO, Final, cast

from rocm_patch.errors import FormatError
from rocm_patch.images import inflate
from rocm_patch.images.files import File
from rocm_patch.images.flow import MEMORY_LIMIT, Owned, write
from rocm_patch.images.source import Bytes, Source, Window

DIRECTORY_LIMIT: Final = 4 << 20
"""Bytes of the table of members: some 40,000 members; torch has 13,000."""
MEMBER_LIMIT: Final = 16 << 30
"""Bytes that one member may become, on disk."""
_PIECE: Final = 1 << 20
_ENCRYPTED: Final = 1
_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    struct.error,
    OverflowError,
)
"""What zipfile lets out on hostile files."""


class _Stream(io.RawIOBase):
    """A file as zipfile wants it. One read of more than the limit is zipfile asking for the whole table of members."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._position = base + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(self._source.size - self._position, 0)
        count = left if count < 0 else min(count, left)
        if count > DIRECTORY_LIMIT:
            raise FormatError(f"{count} bytes of directory")
        data = self._source.read(self._position, count)
        self._position += count
        return data


def opened(source: Source) -> zipfile.ZipFile:
    """The archive. Raises FormatError."""
    try:
        return zipfile.ZipFile(cast("IO[bytes]", _Stream(source)))
    except _ERRORS as error:
        raise FormatError(f"not a readable zip file: {error}") from error


def head(whole: zipfile.ZipFile, row: zipfile.ZipInfo, count: int) -> bytes:
    """The first bytes of a member. Raises FormatError."""
    try:
        with whole.open(row) as stream:
            return stream.read(count)
    except _ERRORS as error:
        raise FormatError(f"cannot be unpacked: {error}") from error


def member(file: Source, whole: zipfile.ZipFile, row: zipfile.ZipInfo) -> Source:
    """A member: in place where it is stored, in memory where it is small, else in a nameless file. Raises FormatError."""
    if row.compress_type == zipfile.ZIP_STORED and not row.flag_bits & _ENCRYPTED:
        local = file.read(row.header_offset, 30)
        return Window(file, row.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])), row.compress_size)
    limit = inflate.allowed(row.compress_size, MEMBER_LIMIT)
    kept = bytearray()
    spilled: File | None = None
    size = 0
    try:
        with whole.open(row) as stream:
            while piece := stream.read(_PIECE):
                size += len(piece)
                if size > limit:
                    raise FormatError(f"{row.compress_size} bytes that become more than {limit}")
                if spilled is None and size > MEMORY_LIMIT:
                    spilled = Owned.empty()
                    write(spilled.descriptor, bytes(kept))
                    kept.clear()
                if spilled is None:
                    kept += piece
                else:
                    write(spilled.descriptor, piece)
    except _ERRORS as error:
        raise FormatError(f"cannot be unpacked: {error}") from error
    return Bytes(bytes(kept)) if spilled is None else Owned(os.dup(spilled.descriptor), size)
