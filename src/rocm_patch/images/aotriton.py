"""AOTriton's compiled attention kernels, in `torch/lib/aotriton.images/amd-gfx90a/flash/...` of ROCm wheels.

`.aks2`: 'AKS2', then as 32-bit little-endian numbers: bytes unpacked, kernels, bytes of directory; then one xz stream of
directory and code objects. A directory entry is five numbers (LDS bytes, threads, offset behind the directory, size,
length of the name with its zero) and the name. From 0.12 the .aks2 files of a kernel are stored in one plain .zip. Before
0.8 each code object was a `.hsaco.zst`. Source of the layout:
https://github.com/ROCm/aotriton/blob/main/v3src/packed_kernel_common.cc.

The target is read from the code object: a folder amd-gfx11xx serves several chips.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import inflate
from rocm_patch.images.source import Bytes, Item, Source, Unread, Window
from rocm_patch.images.unwrap import device_code, few, is_code

NAME: Final = "aotriton"
MAGIC: Final = b"AKS2"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
AKS2_LIMIT: Final = 64 << 20
"""Bytes that one .aks2 may become, all in memory; a file serves one kernel and holds some hundred variants of 25 KB."""
KERNEL_LIMIT: Final = 1 << 16
NAME_LIMIT: Final = 4096
_HEADER: Final = struct.Struct("<4sIII")
_ENTRY: Final = struct.Struct("<IIIII")


def recognise(path: str, head: bytes) -> bool:
    """An .aks2 by its magic or name; code objects, compressed or not, in a folder of AOTriton."""
    if head.startswith(MAGIC) or path.endswith(".aks2"):
        return True
    # 'aotriton.images/', or what a build installs: 'lib/aotriton/kernels/'.
    folders = path.lower().split("/")[:-1]
    ours = any(folder in ("aotriton", "aotriton.images") for folder in folders)
    return ours and (is_code(head) or (head.startswith(ZSTD) and path.endswith(".hsaco.zst")))


def read(source: Source, path: str) -> Iterator[Item]:
    """One Code for each code object; variants that did not compile have none and are passed over."""
    if path.endswith(".hsaco.zst"):
        yield from device_code(NAME, "", inflate.Inflated(source, inflate.zstd))
        return
    try:
        head = source.read(0, min(source.size, 64))
        if is_code(head):
            yield from device_code(NAME, "", source)
            return
        kernels, directory, unpacked = _unpack(source)
    except FormatError as error:
        yield Unread(NAME, "", error.what)
        return
    yield from few(NAME, _members(Bytes(unpacked), kernels, directory))


def _unpack(source: Source) -> tuple[int, int, bytes]:
    """Number of kernels, bytes of directory, and everything behind the header."""
    magic, size, kernels, directory = _HEADER.unpack(source.read(0, _HEADER.size))
    if magic != MAGIC:
        raise FormatError("not an AKS2 file")
    packed = Window(source, _HEADER.size, source.size - _HEADER.size)
    limit = inflate.allowed(packed.size, AKS2_LIMIT)
    if size > limit or packed.size > AKS2_LIMIT:
        raise FormatError(f"{packed.size} bytes that claim to become {size}")
    if kernels > KERNEL_LIMIT:
        raise FormatError(f"{kernels} kernels")
    unpacked = inflate.xz(packed.read(0, packed.size), size)
    if len(unpacked) != size or directory > size:
        raise FormatError(f"{len(unpacked)} bytes where {size} are promised, {directory} of them directory")
    return kernels, directory, unpacked


def _members(unpacked: Source, kernels: int, directory: int) -> Iterator[Item]:
    try:
        entries = list(_entries(unpacked, kernels, directory))
    except FormatError as error:
        yield Unread(NAME, "", error.what)
        return
    for name, start, size in entries:
        if not size:
            continue
        try:
            image = Window(unpacked, directory + start, size)
        except FormatError as error:
            yield Unread(NAME, name, error.what)
            continue
        yield from device_code(NAME, name, image)


def _entries(unpacked: Source, kernels: int, directory: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each code object. Raises FormatError where the directory is not as long as promised."""
    offset = 0
    for _ in range(kernels):
        _, _, start, size, length = _ENTRY.unpack(unpacked.read(offset, _ENTRY.size))
        offset += _ENTRY.size
        if length > NAME_LIMIT:
            raise FormatError(f"a name of {length} bytes")
        yield unpacked.read(offset, length).rstrip(b"\0").decode("utf-8", "replace"), start, size
        offset += length
    if offset != directory:
        raise FormatError(f"a directory of {offset} bytes where {directory} are promised")
