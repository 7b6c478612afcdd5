"""What every reader of a container works on and gives back: bytes at a place, device code found, things not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from rocm_patch.errors import FormatError

__all__ = ["STORES", "Bytes", "Code", "Item", "Source", "Unread", "Window", "within"]

STORES: Final = ("fatbin", "compressed fatbin", "kpack", "tensile", "miopen", "aotriton", "object")
"""Where device code lies, by kind of container."""


def within(offset: int, count: int, size: int) -> None:
    """Raise FormatError where `count` bytes from `offset` on are not all among the `size` that there are."""
    if offset < 0 or count < 0 or offset + count > size:
        raise FormatError(f"cut short: {offset + count} bytes are needed and {size} are there")


class Source(Protocol):
    """Bytes that can be read at any place: a file, a member of an archive, a part of another source."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if the source ends before."""

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Offset of the first occurrence that lies wholly in [start, end); -1 if there is none."""


@dataclass(frozen=True)
class Bytes:
    """A source in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.data)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if there are fewer."""
        within(offset, count, len(self.data))
        return self.data[offset : offset + count]

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """As `bytes.find`."""
        return self.data.find(pattern, start, end)


@dataclass(frozen=True)
class Window:
    """A part of another source, with offsets of its own. Raises FormatError at once if it reaches beyond."""

    under: Source
    start: int
    size: int

    def __post_init__(self) -> None:
        within(self.start, self.size, self.under.size)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError if there are fewer."""
        within(offset, count, self.size)
        return self.under.read(self.start + offset, count)

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Offset within this window; -1 if there is none."""
        found = self.under.find(pattern, self.start + max(start, 0), self.start + min(end, self.size))
        return found - self.start if found >= 0 else -1


@dataclass(frozen=True)
class Code:
    """One piece of device code: usually an ELF code object for one target.

    `target` is the full target ID ('gfx90a:xnack-', 'gfx10-1-generic', 'spirv'); `inside` says where in the file it
    lies ('.hip_fatbin[12]', 'torch/lib/libtorch_hip.so!.hip_fatbin[0]', the kernel's name in a database); `kernels` is a
    count that the container states itself, None where the code object has to be asked (`code_object.kernels`).
    """

    store: str
    inside: str
    target: str
    data: Source
    kernels: int | None = None


@dataclass(frozen=True)
class Unread:
    """Something that holds, or may hold, device code and could not be read, and why, in words."""

    store: str
    inside: str
    why: str


Item = Code | Unread
Reader = Iterator[Item]
