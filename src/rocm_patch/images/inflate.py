"""Decompression that a hostile file cannot make endless: one place for the limits, whatever the scheme.

What a file claims about sizes decides nothing here. Every error is a FormatError.
"""

from __future__ import annotations

import bz2
import lzma
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images.source import Source, within

if sys.version_info >= (3, 14):
    from compression import zstd as _zstd
else:
    from backports import zstd as _zstd

LIMIT: Final = 1 << 30
"""Bytes that one compressed piece may become."""
RATIO: Final = 200
"""Times its own size that it may become. Measured on ROCm's libraries: 4 to 15 mostly, 67 in hipBLASLt's and 103 in XLA's densest."""
FLOOR: Final = 1 << 20
"""Bytes that it may become in any case: a short run of zeros compresses a thousandfold."""
_XZ_MEMORY: Final = 100 << 20
"""Bytes that the xz decoder may take; its highest preset needs 65 MiB."""

Scheme = Callable[[bytes, int], bytes]
"""Compressed bytes and the most that may come out, to what comes out."""


def allowed(packed: int, limit: int = LIMIT) -> int:
    """The most bytes that `packed` bytes may become."""
    return min(limit, max(RATIO * packed, FLOOR))


def zstd(packed: bytes, limit: int) -> bytes:
    """The first zstd frame. Raises FormatError."""
    decoder = _zstd.ZstdDecompressor()
    try:
        return _whole("zstd", decoder.decompress(packed, limit + 1), decoder.eof, limit)
    except (_zstd.ZstdError, ValueError, EOFError, MemoryError) as error:
        raise FormatError(f"not a zstd frame: {error}") from error


def bzip2(packed: bytes, limit: int) -> bytes:
    """The first bzip2 stream. Raises FormatError."""
    decoder = bz2.BZ2Decompressor()
    try:
        return _whole("bzip2", decoder.decompress(packed, limit + 1), decoder.eof, limit)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise FormatError(f"not a bzip2 stream: {error}") from error


def xz(packed: bytes, limit: int) -> bytes:
    """The first xz stream. Raises FormatError."""
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        return _whole("xz", decoder.decompress(packed, limit + 1), decoder.eof, limit)
    except (lzma.LZMAError, ValueError, EOFError, MemoryError) as error:
        raise FormatError(f"not an xz stream: {error}") from error


def _whole(name: str, data: bytes, ended: bool, limit: int) -> bytes:
    if len(data) > limit:
        raise FormatError(f"the {name} data becomes more than {limit} bytes")
    if not ended:
        raise FormatError(f"the {name} data ends in the middle")
    return data


@dataclass(frozen=True)
class Inflated:
    """A compressed piece as a source: opened when first asked, and kept as long as this object.

    Reading raises FormatError where the piece is broken, too large, or not of the `expected` size in bytes.
    """

    packed: Source
    scheme: Scheme
    expected: int | None = None

    @cached_property
    def data(self) -> bytes:
        """All of it, decompressed."""
        if self.packed.size > LIMIT:
            raise FormatError(f"{self.packed.size} compressed bytes in one piece")
        data = self.scheme(self.packed.read(0, self.packed.size), self._most)
        if self.expected is not None and len(data) != self.expected:
            raise FormatError(f"{len(data)} bytes where {self.expected} are promised")
        return data

    @property
    def _most(self) -> int:
        limit = allowed(self.packed.size)
        if self.expected is not None and self.expected > limit:
            raise FormatError(f"{self.packed.size} bytes that claim to become {self.expected}")
        return limit if self.expected is None else self.expected

    @property
    def size(self) -> int:
        """Bytes in all, decompressed: a promise that can be true where there is one, so that asking opens nothing; reading checks it."""
        return len(self.data) if self.expected is None else self._most

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if there are fewer."""
        within(offset, count, len(self.data))
        return self.data[offset : offset + count]

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """As `bytes.find`."""
        return self.data.find(pattern, start, end)
