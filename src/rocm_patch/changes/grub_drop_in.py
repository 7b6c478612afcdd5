"""Our drop-in for GRUB's generator: one line, which only appends to what stands in GRUB_CMDLINE_LINUX_DEFAULT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rocm_patch.changes import boot_loaders
from rocm_patch.errors import FormatError
from rocm_patch.root import State

PATH: Final = f"{boot_loaders.DROP_INS}/zz-rocm-patch.cfg"
_HEAD: Final = """\
# Kernel words of rocm-patch. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
"""
_LINE: Final = re.compile(r'GRUB_CMDLINE_LINUX_DEFAULT="\$\{GRUB_CMDLINE_LINUX_DEFAULT-\} (?P<words>[A-Za-z0-9_.,:=-]+(?: [A-Za-z0-9_.,:=-]+)*)"\n')


def text_of(words: Sequence[str]) -> bytes:
    """The drop-in's text; `parse` reads it back."""
    return (_HEAD + f'GRUB_CMDLINE_LINUX_DEFAULT="${{GRUB_CMDLINE_LINUX_DEFAULT-}} {" ".join(words)}"\n').encode()


def parse(now: State) -> tuple[str, ...]:
    """The words of a drop-in of ours; none where there is none.

    Raises:
        FormatError: it is not what we write.
    """
    if now.kind == "absent":
        return ()
    found = _LINE.fullmatch(now.data.decode("utf-8", "replace").removeprefix(_HEAD)) if now.kind == "file" else None
    words = tuple(found["words"].split(" ")) if found else ()
    if not words or text_of(words) != now.data:
        raise FormatError(f"{PATH} is not as rocm-patch writes it")
    return words
