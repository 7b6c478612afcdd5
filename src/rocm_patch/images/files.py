"""A file on disk as a source. Read with pread, in small pieces: pages of a mapping would count as our memory."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images.source import within

READ_LIMIT: Final = 1 << 30
"""Bytes in one read; nobody who asks for more means it."""
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class File:
    """An open regular file. Close it, or use it with `with`; reading errors are FormatErrors."""

    descriptor: int
    size: int

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if there are fewer or the disk says no."""
        within(offset, count, self.size)
        if count > READ_LIMIT:
            raise FormatError(f"a piece of {count} bytes")
        try:
            data = os.pread(self.descriptor, count, offset)
            while len(data) < count:
                # One read gives no more than 2 GiB, and a network disk less.
                more = os.pread(self.descriptor, count - len(data), offset + len(data))
                if not more:
                    raise FormatError("the file became shorter while it was read")
                data += more
        except OSError as error:
            raise FormatError(error.strerror or str(error)) from error
        return data

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Offset of the first occurrence that lies wholly in [start, end); -1 if there is none."""
        position, end = max(start, 0), min(end, self.size)
        while position + len(pattern) <= end:
            piece = self.read(position, min(_PIECE, end - position))
            found = piece.find(pattern)
            if found >= 0:
                return position + found
            if position + len(piece) >= end:
                break
            position += len(piece) - len(pattern) + 1
        return -1


def open_file(path: str) -> File:
    """A regular file for reading; FormatError for anything else. Never waits: a FIFO without a writer would for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise FormatError(getattr(error, "strerror", None) or str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file")
        return File(descriptor, status.st_size)
    except BaseException:
        os.close(descriptor)
        raise


def scratch() -> int:
    """The descriptor of an empty file without a name, for what is too large for memory: on disk, since /tmp is memory on many systems."""
    folder = os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else None)  # noqa: S108  nameless, mode 600
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            return os.dup(stream.fileno())
    except OSError as error:
        raise FormatError(f"no room to unpack: {error.strerror or error}") from error
