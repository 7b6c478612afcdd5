"""A code object as a file of its own: `.hsaco`, `.co`, and what hipModuleLoad is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import code_object, elf
from rocm_patch.images.source import Code, Item, Source, Unread

NAME: Final = "object"


def recognise(path: str, head: bytes) -> bool:  # noqa: ARG001  bytes decide
    """An ELF file for AMD GPUs."""
    return head.startswith(elf.MAGIC) and int.from_bytes(head[18:20], "little") == elf.MACHINE_AMDGPU


def read(source: Source, path: str) -> Iterator[Item]:  # noqa: ARG001  every reader has this shape
    """The one code object."""
    try:
        yield Code(NAME, "", code_object.target(source), source)
    except FormatError as error:
        yield Unread(NAME, "", error.what)
