"""Bytes of some functions -> `Code`: decoded, kinds looked up, cut into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy

from rocm_patch.errors import FormatError
from rocm_patch.isa import facts, table
from rocm_patch.isa.decode import Instructions, decode
from rocm_patch.isa.facts import EXEC, Is
from rocm_patch.isa.flow import blocks
from rocm_patch.isa.hazards import Code

__all__ = ["FUNCTION_LIMIT", "prepare"]

FUNCTION_LIMIT: Final = 4 << 20
"""Bytes of one function. The largest seen in a real library has 0.6 MB; arrays over more would not fit into a limited child."""


def prepare(data: bytes, base: int, places: Sequence[tuple[int, int]], made_for: str, chip: str) -> tuple[Code, int]:
    """Decode functions at `places` (offset and size within `data`, in order), and count words that are no instruction.

    Raises:
        FormatError: a function that is not made of whole words, or is too long to look at.
    """
    if any(offset % 4 or size > FUNCTION_LIMIT for offset, size in places):
        raise FormatError(f"a function that does not begin at a word, or is longer than {FUNCTION_LIMIT >> 20} MiB")
    words = numpy.frombuffer(data[: len(data) & ~3], "<u4")
    starts = numpy.array([offset // 4 for offset, _ in places], numpy.int64)
    ends = numpy.array([(offset + size) // 4 for offset, size in places], numpy.int64)
    # Symbols may overlap: a function lasts until the next begins.
    ends = numpy.minimum(ends, numpy.append(starts[1:], len(words)))
    code = decode(words, starts, ends)
    known = table.load().known[made_for][code.opcode]
    unknown = int(numpy.count_nonzero(known == 0))
    kinds = facts.kinds()[code.opcode]
    kinds[known == 0] = 0
    first = numpy.zeros(len(code.at), bool)
    first[numpy.searchsorted(code.at, starts[ends > starts])] = True
    offset = facts.simm16(code.first)
    graph = blocks(code.at, code.length.astype(numpy.int64), len(words), kinds & Is.BRANCH != 0, kinds & Is.STOPS == 0, offset, first)
    return Code(base, code, kinds, first, graph, made_for, chip, _wave(code, kinds)), unknown


def _wave(code: Instructions, kinds: Any) -> int:
    """Lanes of a wave: the width of the masks that scalar code writes to EXEC says so; 32 where none does."""
    scalar = numpy.flatnonzero((kinds & Is.SALU != 0) & ((code.first >> 16) & 0x7F == EXEC))
    width = table.load().written["sdst"][code.opcode[scalar]]
    return 64 if numpy.count_nonzero(width == 2) > numpy.count_nonzero(width == 1) else 32
