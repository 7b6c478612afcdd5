"""How an edit marks itself in the text, so that the text alone tells what was there before.

An edit only adds bytes, or keeps what it replaces within its closing comment. Whoever reads the patched file sees which patch did
what; `strip` gives back the file to the byte, whatever else was edited around it since.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from rocm_patch.errors import RefusedError

_INDENT: Final = re.compile(rb"[ \t]*\Z")
_BLOCK: Final = re.compile(
    rb"/\* rocm-patch (?P<name>[a-z0-9-]{1,80}) begin \*/(?:(?!/\* rocm-patch )[\s\S])*/\* rocm-patch (?P=name) end \*/\r?\n[ \t]*"
)


def inline(name: str, text: bytes) -> bytes:
    """Text that is added within a line."""
    return b"/* rocm-patch %b { */%b/* } rocm-patch */" % (name.encode(), text)


def instead(name: str, text: bytes, old: bytes) -> bytes:
    """Text in the place of another. Raises RefusedError if the old text cannot stand in a comment."""
    if b"*/" in old or b"rocm-patch" in old or b"\n" in old:
        raise RefusedError("the text to be replaced holds a comment or a line break")
    return b"/* rocm-patch %b { */%b/* } was: %b rocm-patch */" % (name.encode(), text, old)


def block(name: str, text: str, data: bytes, start: int) -> bytes:
    """Lines before the line that starts with the site at `start`. Raises RefusedError if something else stands before it."""
    head = data[data.rfind(b"\n", 0, start) + 1 : start]
    if not _INDENT.match(head):
        raise RefusedError("the place does not start its line")
    following = data.find(b"\n", start)
    end = b"\r\n" if following > 0 and data[following - 1 : following] == b"\r" else b"\n"
    lines = [f"/* rocm-patch {name} begin */", *text.strip("\n").split("\n"), f"/* rocm-patch {name} end */"]
    # Preprocessor lines start at the margin, the first line continues where the site's line was.
    whole = end.join(line.encode() if not line or line.startswith("#") else head + line.encode() for line in lines)
    return whole[len(head) :] + end + head


def above(data: bytes, name: str, start: int) -> int:
    """Where the block of a patch goes that is meant for `start`: blocks of several patches at one place are in the order of their names.

    So the text is the same whichever came first. When each went next to the place, the first was taken for an edit of another version.
    """
    blocks = {match.end(): match for match in _BLOCK.finditer(data)}
    while (block := blocks.get(start)) and name.encode() < block["name"]:
        start = block.start()
    return start


def strip(data: bytes, name: str) -> tuple[bytes, int]:
    """The text without the edits of a patch, and how many there were."""
    counted = 0

    def back(match: re.Match[bytes]) -> bytes:
        nonlocal counted
        counted += 1
        return match.group("old") or b""

    if b"rocm-patch" not in data:
        return data, 0
    return _marks(name).sub(back, data), counted


def names(data: bytes) -> frozenset[str]:
    """The patches whose marks are in a text."""
    return frozenset(match.decode() for match in re.findall(rb"/\* rocm-patch ([a-z0-9-]{1,80}) (?:\{|begin) \*/", data))


@functools.cache
def _marks(name: str) -> re.Pattern[bytes]:
    mark = re.escape(name.encode())
    return re.compile(
        rb"/\* rocm-patch " + mark + rb" begin \*/(?:(?!/\* rocm-patch )[\s\S])*/\* rocm-patch " + mark + rb" end \*/\r?\n[ \t]*"
        rb"|/\* rocm-patch " + mark + rb" \{ \*/(?:(?!/\* \})[\s\S])*/\* \} (?:was: (?P<old>[^\n]*?) )?rocm-patch \*/"
    )
