"""Our own entries in custom.cfg, the file beside grub.cfg that GRUB reads at every start and that no generator writes.

The file is ours as a whole or not at all: one that somebody else has begun is never touched.
"""

from __future__ import annotations

import re
from typing import Final

from rocm_patch.errors import FormatError

_HEAD: Final = """\
# Entries of rocm-patch for GRUB's menu. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
"""
_BLOCK: Final = re.compile(r"# rocm-patch: (?P<id>[A-Za-z0-9.-]+)\n(?P<text>.*?\n)# rocm-patch: end\n", re.DOTALL)


def parse(data: bytes) -> dict[str, str]:
    """The entries in a custom.cfg of ours, by id.

    Raises:
        FormatError: it has something that we did not write.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("custom.cfg is not UTF-8") from error
    entries = {found["id"]: found["text"] for found in _BLOCK.finditer(text)}
    if render(entries) != data or any("# rocm-patch:" in body for body in entries.values()):
        raise FormatError("custom.cfg has lines that rocm-patch did not write")
    return entries


def render(entries: dict[str, str]) -> bytes:
    """The file with these entries; `parse` reads it back."""
    return (_HEAD + "".join(f"# rocm-patch: {id_}\n{text}# rocm-patch: end\n" for id_, text in sorted(entries.items()))).encode()


def with_entry(data: bytes | None, id_: str, text: str) -> bytes:
    """The file with one entry more, or with that entry made anew; None: there is no file yet.

    Raises:
        FormatError: the file is not ours.
    """
    return render({**(parse(data) if data is not None else {}), id_: text})


def without_entry(data: bytes, id_: str) -> bytes | None:
    """The file without one entry; None where nothing is left in it.

    Raises:
        FormatError: the file is not ours.
    """
    left = {name: text for name, text in parse(data).items() if name != id_}
    return render(left) if left else None
