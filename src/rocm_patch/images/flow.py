"""Decompression as a stream: a piece at a time, forwards only, stopped at a limit that the data's own claims do not move."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Generator, Iterator
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import inflate
from rocm_patch.images.files import File, scratch
from rocm_patch.images.source import Bytes, Source

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEMORY_LIMIT: Final = 16 << 20
"""Bytes kept in memory; larger pieces go to a nameless file."""
_PIECE: Final = 1 << 18


class Flow:
    """Decompressed bytes of a zstd or zlib stream that begins at an offset of a source.

    `position` is how many came out, `used` how many of the source went in once the stream has ended.
    """

    def __init__(self, source: Source, offset: int, scheme: str) -> None:
        self.position = 0
        self._source = source
        self._start = self._next = offset
        self._held = b""
        self._grown = 0
        self._chunks: Generator[bytes, None, None] = self._zstd() if scheme == "zstd" else self._zlib()
        self.used = 0

    def read(self, count: int) -> bytes:
        """Exactly the next `count` bytes; FormatError if the stream ends before, is broken or grows beyond the limit."""
        return b"".join(self._pieces(count))

    def skip(self, count: int) -> None:
        """Pass over the next `count` bytes."""
        for _ in self._pieces(count):
            pass

    def take(self, count: int) -> Source:
        """The next `count` bytes as a source: in memory, or in a nameless file where there are many."""
        if count <= MEMORY_LIMIT:
            return Bytes(self.read(count))
        file = Owned(scratch(), count)
        for piece in self._pieces(count):
            write(file.descriptor, piece)
        return file

    def close(self) -> None:
        """Give the decoder's window back, up to 128 MiB: a generator of a method keeps its object in a cycle."""
        self._chunks.close()
        self._held = b""

    def finish(self) -> None:
        """Read to the end of the stream, so that `used` is known."""
        for piece in self._chunks:
            self._count(piece)
        self._held = b""

    def _pieces(self, count: int) -> Iterator[bytes]:
        while count > 0:
            if not self._held:
                self._held = next(self._chunks, b"")
                if not self._held:
                    raise FormatError("the compressed data ends in the middle")
                self._count(self._held)
            piece, self._held = self._held[:count], self._held[count:]
            count -= len(piece)
            self.position += len(piece)
            yield piece

    def _count(self, piece: bytes) -> None:
        self._grown += len(piece)
        # Of all that is there, not of what went in: the beginning of a bundle may be the densest part.
        if self._grown > inflate.allowed(self._source.size - self._start):
            raise FormatError(f"the compressed data grows beyond {inflate.RATIO} times its size, or 1 GiB")

    def _more(self) -> bytes:
        data = self._source.read(self._next, min(_PIECE, self._source.size - self._next))
        self._next += len(data)
        return data

    def _zstd(self) -> Generator[bytes, None, None]:
        decoder = zstd.ZstdDecompressor()
        try:
            while not decoder.eof:
                data = self._more() if decoder.needs_input else b""
                if decoder.needs_input and not data:
                    raise FormatError("the compressed data ends in the middle")
                if piece := decoder.decompress(data, _PIECE):
                    yield piece
        except (zstd.ZstdError, ValueError, EOFError, MemoryError) as error:
            raise FormatError(f"not zstd data: {error}") from error
        self.used = self._next - self._start - len(decoder.unused_data)

    def _zlib(self) -> Generator[bytes, None, None]:
        decoder = zlib.decompressobj()
        data = b""
        try:
            while not decoder.eof:
                data = decoder.unconsumed_tail or self._more()
                if not data:
                    raise FormatError("the compressed data ends in the middle")
                if piece := decoder.decompress(data, _PIECE):
                    yield piece
        except zlib.error as error:
            raise FormatError(f"not zlib data: {error}") from error
        self.used = self._next - self._start - len(decoder.unused_data)


class Owned(File):
    """A nameless file that is closed when nobody holds it."""

    @staticmethod
    def empty() -> Owned:
        """One without content."""
        return Owned(scratch(), 0)

    def __del__(self) -> None:
        try:
            self.close()
        except OSError:
            return


def write(descriptor: int, data: bytes) -> None:
    """Append all of it. Raises FormatError where the disk is full."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise FormatError(f"no room to unpack: {error.strerror or error}") from error
