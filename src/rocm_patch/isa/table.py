"""The opcodes of gfx10 as look-up arrays: `opcodes.tsv`, made from LLVM by tools/opcodes.py, read once.

An opcode's number here is `encoding index * 1024 + opcode field`; every array is indexed by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy

from rocm_patch.errors import KnowledgeError

__all__ = ["ENCODINGS", "WAVE", "Opcodes", "load"]

Array = Any  # numpy's own annotations differ too much between 1.26 and 2.x to be checked strictly

ENCODINGS: Final = (
    *("SOP2", "SOPK", "SOP1", "SOPC", "SOPP", "SMEM", "VOP1", "VOP2", "VOPC", "VOP3", "VOP3P", "VINTRP"),
    *("DS", "FLAT", "SCRATCH", "GLOBAL", "MUBUF", "MTBUF", "MIMG", "EXP"),
)
SPAN: Final = 1024
WAVE: Final = 255
"""A width that follows the wave size: one register in wave32, two in wave64."""


@dataclass(frozen=True)
class Opcodes:
    """`known[letter]`: number of the mnemonic that the chip decodes, 0 for none. `written` and `read`: registers that a field names."""

    names: tuple[str, ...]
    """Mnemonics by number; number 0 is no instruction."""
    known: dict[str, Array]
    written: dict[str, Array]
    read: dict[str, Array]

    def name(self, opcode: int, letter: str) -> str:
        """The mnemonic on a chip; empty where it has none."""
        return self.names[int(self.known[letter][opcode])]

    def where(self, wanted: Callable[[str], bool]) -> Array:
        """Which opcodes have, on any chip, a mnemonic that is wanted."""
        fits = numpy.array([bool(name) and wanted(name) for name in self.names])
        return numpy.logical_or.reduce([fits[known] for known in self.known.values()])

    def encoded(self, *encodings: str) -> Array:
        """Which opcodes are of these encodings."""
        found = numpy.zeros(SPAN * len(ENCODINGS), bool)
        for encoding in encodings:
            start = ENCODINGS.index(encoding) * SPAN
            found[start : start + SPAN] = True
        return found


@functools.lru_cache(maxsize=1)
def load() -> Opcodes:
    """Read the table. Raises KnowledgeError for a line that is not one."""
    size = len(ENCODINGS) * SPAN
    numbers = {"": 0}
    known = {each: numpy.zeros(size, numpy.uint16) for each in "abcd"}
    written: dict[str, Array] = {}
    read: dict[str, Array] = {}
    text = resources.files(__package__).joinpath("opcodes.tsv").read_text(encoding="ascii")
    for line in text.splitlines():
        if line.startswith(("#", "encoding\t")):
            continue
        try:
            encoding, field_value, name, chips, writes, reads = line.split("\t")
            opcode = ENCODINGS.index(encoding) * SPAN + int(field_value)
            for each in chips:
                known[each][opcode] = numbers.setdefault(name, len(numbers))
            for fields, into in ((writes, written), (reads, read)):
                for field, _, width in (part.partition(":") for part in fields.split() if part != "-"):
                    array = into.setdefault(field, numpy.zeros(size, numpy.uint8))
                    array[opcode] = WAVE if width == "w" else int(width)
        except (ValueError, KeyError) as error:
            raise KnowledgeError(f"opcodes.tsv: {line!r}: {error}") from error
    return Opcodes(tuple(numbers), known, written, read)
