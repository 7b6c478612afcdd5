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
"""Bytes of one function. The largest seen in a real library has 0.6 MB, and a child's memory ends somewhere beyond."""


def prepare(data: bytes, base: int, places: Sequence[tuple[int, int, int]], made_for: str, chip: str) -> tuple[Code, int]:
    """Decode functions at `places` (offset and size within `data`, lanes of a wave or 0; in order), and count words that are no instruction.

    Raises:
        FormatError: a function that is not made of whole words, or is too long to look at.
    """
    if any(offset % 4 or size > FUNCTION_LIMIT for offset, size, _ in places):
        raise FormatError(f"a function that does not begin at a word, or is longer than {FUNCTION_LIMIT >> 20} MiB")
    words = numpy.frombuffer(data[: len(data) & ~3], "<u4")
    starts = numpy.array([offset // 4 for offset, _, _ in places], numpy.int64)
    ends = numpy.array([(offset + size) // 4 for offset, size, _ in places], numpy.int64)
    # Symbols may overlap, or lie within a function: each lasts until the next begins, and the last of them to the end of all.
    ends = numpy.minimum(numpy.maximum.accumulate(ends), numpy.append(starts[1:], len(words)))
    code = decode(words, starts, ends)
    known = table.load().known[made_for][code.opcode]
    unknown = int(numpy.count_nonzero(known == 0))
    kinds = facts.kinds()[code.opcode]
    kinds[known == 0] = 0
    first = numpy.zeros(len(code.at), bool)
    first[numpy.searchsorted(code.at, starts[ends > starts])] = True
    offset = facts.simm16(code.first)
    graph = blocks(code.at, code.length.astype(numpy.int64), len(words), kinds & Is.BRANCH != 0, kinds & Is.STOPS == 0, offset, first)
    owner = numpy.cumsum(first) - 1
    waves = _waves(code, kinds, owner, numpy.array([wave for _, _, wave in places])[ends > starts])
    return Code(base, code, kinds, first, graph, made_for, chip, waves[owner]), unknown


def _waves(code: Instructions, kinds: Any, owner: Any, told: Any) -> Any:
    """Lanes of a wave by function: what its descriptor says, else the width of the masks that it writes to EXEC, else what most others have."""
    scalar = numpy.flatnonzero((kinds & Is.SALU != 0) & ((code.first >> 16) & 0x7F == EXEC))
    width = table.load().written["sdst"][code.opcode[scalar]].astype(numpy.int64)
    votes = numpy.zeros(len(told), numpy.int64)
    numpy.add.at(votes, owner[scalar], (width == 2).astype(numpy.int64) - (width == 1))
    waves = numpy.where(told != 0, told, numpy.where(votes > 0, 64, numpy.where(votes < 0, 32, 0)))
    usual = 64 if numpy.count_nonzero(waves == 64) > numpy.count_nonzero(waves == 32) else 32
    return numpy.where(waves != 0, waves, usual)
