"""What lies in a file or a member of a container that should be device code: bytes decide, names do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import code_object, elf, fatbin
from rocm_patch.images.source import Code, Item, Source, Unread

UNREAD_LIMIT: Final = 64
"""Things of one file told as unread one by one; the rest is counted."""
GIVE_UP: Final = 4096
"""Things of one file that could not be read, after which the rest is not tried."""


def is_code(head: bytes) -> bool:
    """Whether a file that begins so is an AMDGPU ELF file or an offload bundle."""
    return head.startswith((fatbin.BUNDLE, fatbin.COMPRESSED)) or (
        head.startswith(elf.MAGIC) and int.from_bytes(head[18:20], "little") == elf.MACHINE_AMDGPU
    )


def device_code(store: str, inside: str, source: Source) -> Iterator[Item]:
    """The device code in a source that is an ELF code object or an offload bundle."""
    try:
        if source.read(0, min(source.size, len(fatbin.BUNDLE))).startswith((fatbin.BUNDLE, fatbin.COMPRESSED)):
            yield from fatbin.bundles(source, inside, store)
        else:
            yield Code(store, inside, code_object.target(source), source)
    except FormatError as error:
        yield Unread(store, inside, error.what)


def few(store: str, items: Iterable[Item]) -> Iterator[Item]:
    """The same items with a limit on those not read: a broken container may have a million members."""
    unread = 0
    for item in items:
        unread += isinstance(item, Unread)
        if isinstance(item, Code) or unread <= UNREAD_LIMIT:
            yield item
        if unread >= GIVE_UP:
            yield Unread(store, "", f"{unread - UNREAD_LIMIT} more could not be read: given up")
            return
    if unread > UNREAD_LIMIT:
        yield Unread(store, "", f"{unread - UNREAD_LIMIT} more could not be read")
