"""GRUB's environment block: 1,024 bytes, lines NAME=VALUE, the rest '#'. GRUB writes over its sectors at boot, in place.

So its length never changes, and what is not understood stays byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError

SIGNATURE: Final = b"# GRUB Environment Block\n"
SIZE_LIMIT: Final = 64 << 10
_NAME: Final = re.compile(rb"[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Block:
    """The lines after the signature, without their newlines, and the length of the whole."""

    lines: tuple[bytes, ...]
    size: int

    def value(self, name: str) -> str:
        """A variable's value; empty where it is not set."""
        return self.values().get(name, "")

    def values(self) -> dict[str, str]:
        """Every variable."""
        found = {}
        for line in self.lines:
            key, equals, value = line.partition(b"=")
            if equals and not line.startswith(b"#"):
                found[key.decode("utf-8", "replace")] = re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL).decode("utf-8", "replace")
        return found

    def with_value(self, name: str, value: str | None) -> Block:
        """The block with a variable set, in its place or at the end; None takes it out.

        Raises:
            FormatError: no room for it.
        """
        key = name.encode()
        if not _NAME.fullmatch(key):
            raise FormatError(f"{name!r} is no variable's name")
        mine = [index for index, line in enumerate(self.lines) if line.startswith(key + b"=")]
        lines = [line for index, line in enumerate(self.lines) if index not in mine]
        if value is not None:
            text = key + b"=" + re.sub(rb"([\\\n])", rb"\\\1", value.encode())
            lines.insert(mine[0] if mine else len(lines), text)
        changed = Block(tuple(lines), self.size)
        render(changed)
        return changed


def parse(data: bytes) -> Block:
    """Read a block.

    Raises:
        FormatError: it is none.
    """
    if not data.startswith(SIGNATURE):
        raise FormatError("the environment block does not begin as GRUB's do")
    if len(data) > SIZE_LIMIT:
        raise FormatError(f"the environment block is longer than {SIZE_LIMIT} bytes")
    lines, at = list[bytes](), len(SIGNATURE)
    while at < len(data):
        end = at
        while end < len(data) and data[end] != 0x0A:
            end += 2 if data[end] == 0x5C else 1
        if end >= len(data):
            break
        lines.append(data[at:end])
        at = end + 1
    if data[at:].strip(b"#"):
        raise FormatError("the environment block does not end as GRUB's do")
    return Block(tuple(lines), len(data))


def render(block: Block) -> bytes:
    """The block's bytes; `render(parse(data)) == data`.

    Raises:
        FormatError: more than fits into its length.
    """
    data = SIGNATURE + b"".join(line + b"\n" for line in block.lines)
    if len(data) > block.size:
        raise FormatError(f"the environment block has {block.size} bytes, and that is too little")
    return data + b"#" * (block.size - len(data))
