"""Compressed offload bundles: taken apart, and put together again at exactly their old length.

The header is that of https://github.com/llvm/llvm-project/blob/main/llvm/lib/Object/OffloadBundle.cpp; its hash is the
first eight bytes of the MD5 of the bundle before compression. Version 1 does not say how long the whole is, and LLVM
gives its decoder all that follows, so a shorter stream must not be followed by zeros there. What is left over is
therefore filled inside the stream: with a skippable frame (https://www.rfc-editor.org/rfc/rfc8878#section-3.1.2), which
every zstd decoder passes over; a zlib decoder stops at the end of its stream by itself. The total stays what it was, but
for gaps of one to seven bytes, which no frame fits: from version 2 on the header then tells of a shorter bundle.
"""

from __future__ import annotations

import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import inflate
from rocm_patch.images.flow import Flow
from rocm_patch.images.source import Source, Window

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Packed", "digest", "length", "pack", "unpack"]

LIMIT: Final = 256 << 20
"""Bytes that a bundle may become here, and twice that is held at most; of rocSPARSE's the largest has 62 MB."""
_MAGIC: Final = b"CCOB"
_HEAD: Final = struct.Struct("<4sHH")
_SIZES: Final = {1: struct.Struct("<IQ"), 2: struct.Struct("<IIQ"), 3: struct.Struct("<QQQ")}
_METHODS: Final = ("zlib", "zstd")
_PIECE: Final = 1 << 20
_ZLIB: Final = 0
_ZLIB_LEVELS: Final = (6, 9)
_ZSTD_LEVELS: Final = (3, 9, 15, 19, 22, -22, -3, -9, -15, -19, -1, -5, -7, -12)
"""Negative: that level with a checksum, four bytes more: only tried where something fits, and leaves one to seven bytes in version 1."""
_DEEP: Final = 19, 128 << 20
"""Levels beyond the first take 700 MiB besides: not for more bytes than the second."""
_SKIPPABLE: Final = struct.Struct("<II")
_SKIPPABLE_MAGIC: Final = 0x184D2A50


@dataclass(frozen=True)
class Packed:
    """A compressed bundle: its length in the file in bytes, how it was made, and what it holds."""

    size: int
    version: int
    method: int
    plain: bytes


def digest(plain: bytes | bytearray) -> int:
    """The hash that the header carries."""
    return int.from_bytes(hashlib.md5(plain, usedforsecurity=False).digest()[:8], "little")


def length(source: Source, start: int) -> int:
    """Bytes of the compressed bundle that begins at `start`; version 1 has to be unpacked for it. Raises FormatError."""
    version, _, part, _, _, _ = _header(source, start)
    return part.size if version > 1 else unpack(source, start).size


def unpack(source: Source, start: int) -> Packed:
    """The compressed bundle that begins at `start`. Raises FormatError: damaged, as its hash says too, or larger than LIMIT."""
    version, method, part, head, claim, mark = _header(source, start)
    if claim > inflate.allowed(part.size):
        raise FormatError(f"a compressed bundle of {part.size} bytes that claims to become {claim}")
    if claim > LIMIT:
        raise FormatError(f"a compressed bundle of {claim} bytes, and no more than {LIMIT >> 20} MiB are unpacked here")
    flow = Flow(part, head, _METHODS[method])
    try:
        whole = io.BytesIO()
        while whole.tell() < claim:
            whole.write(flow.read(min(_PIECE, claim - whole.tell())))
        flow.finish()
    finally:
        flow.close()
    plain = whole.getvalue()  # the same memory, no copy of it
    if digest(plain) != mark or flow.position != claim:
        raise FormatError("a compressed bundle whose content is not what its header says")
    return Packed(part.size if version > 1 else head + flow.used, version, method, plain)


def pack(plain: bytes | bytearray, like: Packed) -> bytes | None:
    """The same kind of bundle, of the same length, holding `plain`; None where it does not fit. What `like` holds is not asked."""
    layout = _SIZES[like.version]
    head = _HEAD.pack(_MAGIC, like.version, like.method)
    room = like.size - len(head) - layout.size
    for stream in _streams(plain, like.method, room):
        gap = room - len(stream)
        if like.method == _ZLIB or gap == 0:
            inside, outside = bytes(gap), b""
        elif gap >= _SKIPPABLE.size:
            inside, outside = _SKIPPABLE.pack(_SKIPPABLE_MAGIC, gap - _SKIPPABLE.size) + bytes(gap - _SKIPPABLE.size), b""
        elif like.version > 1:
            inside, outside = b"", bytes(gap)  # the header says that it is shorter
        else:
            continue
        sizes = (len(plain),) if like.version == 1 else (like.size - len(outside), len(plain))
        return head + layout.pack(*sizes, digest(plain)) + stream + inside + outside
    return None


def _streams(plain: bytes | bytearray, method: int, room: int) -> Iterator[bytes]:
    """The same data in streams that fit: ever smaller and slower, then others where those leave an awkward gap."""
    fits = False
    for level in _ZLIB_LEVELS if method == _ZLIB else _ZSTD_LEVELS:
        if level < 0 and not fits:
            return
        if abs(level) > _DEEP[0] and len(plain) > _DEEP[1]:
            continue
        stream = zlib.compress(plain, level) if method == _ZLIB else _zstd(plain, abs(level), checksum=level < 0)
        if len(stream) <= room:
            fits = True
            yield stream


def _zstd(plain: bytes | bytearray, level: int, checksum: bool) -> bytes:
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        # clang's bundler looks far back as well: code objects of one bundle are alike.
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.checksum_flag: int(checksum),
    }
    return zstd.compress(plain, options=options)


def _header(source: Source, start: int) -> tuple[int, int, Window, int, int, int]:
    """Version, method, the whole (with all that follows in version 1), bytes of header, bytes unpacked, hash."""
    magic, version, method = _HEAD.unpack(source.read(start, _HEAD.size))
    layout = _SIZES.get(version)
    if magic != _MAGIC or layout is None or method >= len(_METHODS):
        raise FormatError(f"a compressed bundle of version {version} and method {method}")
    sizes = layout.unpack(source.read(start + _HEAD.size, layout.size))
    head = _HEAD.size + layout.size
    part = Window(source, start, sizes[0] if version > 1 else source.size - start)
    if part.size < head:
        raise FormatError(f"a compressed bundle of {part.size} bytes")
    return version, method, part, head, sizes[-2], sizes[-1]
