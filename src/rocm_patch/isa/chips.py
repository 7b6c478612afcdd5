"""Which chips have gfx10 encodings, and which columns of the opcode table are theirs."""

from __future__ import annotations

from typing import Final

_LETTERS: Final = {"gfx1010": "a", "gfx1011": "b", "gfx1012": "b", "gfx1013": "c", "gfx10-1-generic": "a", "gfx10-3-generic": "d"}
_LETTERS_103: Final = tuple(f"gfx103{number}" for number in range(7))


def letter(chip: str) -> str | None:
    """The column of a chip or generic target (features cut); None for anything but gfx10."""
    name = chip.partition(":")[0]
    return "d" if name in _LETTERS_103 else _LETTERS.get(name)
