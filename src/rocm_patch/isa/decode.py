"""Code bytes -> instructions, for the gfx10 encodings: where each begins, which opcode it is, how long.

The encodings are those of AMD's "RDNA 1.0 Instruction Set Architecture" and "RDNA2 ISA" manuals, chapter "Microcode
Formats"; the lengths agree with LLVM 23 on every real instruction tried (docs/override-safety.md has the count).
All arithmetic is on whole arrays: a Python loop over instructions would be ten times too slow, and only the walk from
one instruction to the next is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy

from rocm_patch.isa.table import ENCODINGS, SPAN

__all__ = ["NONE", "Instructions", "decode"]

Array = Any
NONE: Final = 255
"""The encoding number of a word that begins no gfx10 instruction."""


@dataclass(frozen=True)
class Instructions:
    """Arrays, one element an instruction: index of its first word, encoding, opcode number, first and second word, words."""

    at: Array
    encoding: Array
    opcode: Array
    first: Array
    second: Array
    length: Array


def _encodings() -> Array:
    """Encoding number by the upper nine bits of the first word."""
    table = numpy.full(512, NONE, numpy.uint8)
    index = {name: number for number, name in enumerate(ENCODINGS)}
    for high in range(512):
        if high < 0x100:
            name = "VOP1" if high >> 2 == 0x3F else "VOPC" if high >> 2 == 0x3E else "VOP2"
        elif high >> 7 == 0b10:
            special = {0x17D: "SOP1", 0x17E: "SOPC", 0x17F: "SOPP"}
            name = special.get(high) or ("SOPK" if high >> 5 == 0b1011 else "SOP2")
        else:
            wide = {0x32: "VINTRP", 0x33: "VOP3P", 0x35: "VOP3", 0x36: "DS", 0x37: "FLAT", 0x38: "MUBUF"}
            name = {**wide, 0x3A: "MTBUF", 0x3C: "MIMG", 0x3D: "SMEM", 0x3E: "EXP"}.get(high >> 3, "")
        if name:
            table[high] = index[name]
    return table


_INDEX: Final = {name: number for number, name in enumerate(ENCODINGS)}
_ENCODING: Final = _encodings()
_WIDE: Final = ("SMEM", "VOP3", "VOP3P", "DS", "FLAT", "SCRATCH", "GLOBAL", "MUBUF", "MTBUF", "MIMG", "EXP")
_BASE: Final = numpy.ones(256, numpy.uint8)  # words without literals; 1 also for what is no instruction
_BASE[[_INDEX[name] for name in _WIDE]] = 2
_PLACE: Final = {
    "SOP2": (23, 0x7F), "SOPK": (23, 0x1F), "SOP1": (8, 0xFF), "SOPC": (16, 0x7F), "SOPP": (16, 0x7F), "SMEM": (18, 0xFF),
    "VOP1": (9, 0xFF), "VOP2": (25, 0x3F), "VOPC": (17, 0xFF), "VOP3": (16, 0x3FF), "VOP3P": (16, 0x7F), "VINTRP": (16, 3),
    "DS": (18, 0xFF), "FLAT": (18, 0x7F), "SCRATCH": (18, 0x7F), "GLOBAL": (18, 0x7F), "MUBUF": (18, 0xFF), "MTBUF": (16, 7),
    "MIMG": (18, 0x7F), "EXP": (0, 0),
}  # fmt: skip
_SHIFT: Final = numpy.array([*(_PLACE[name][0] for name in ENCODINGS), *[0] * 236], numpy.uint32)
_MASK: Final = numpy.array([*(_PLACE[name][1] for name in ENCODINGS), *[0] * 236], numpy.uint32)
_LITERAL: Final = 255
# A first source with one of these numbers is followed by a word: literal, SDWA, DPP16, DPP8 and DPP8 with inactive lanes.
_FOLLOWED: Final = numpy.zeros(512, bool)
_FOLLOWED[[_LITERAL, 249, 250, 233, 234]] = True
_FUSED: Final = (32, 33, 44, 45, 55, 56)  # v_madmk, v_madak, v_fmamk and v_fmaak: always a literal
_SET_REGISTER_LITERAL: Final = 21  # s_setreg_imm32_b32
_GROUP: Final = numpy.zeros(256, numpy.uint8)  # which rule for the length
for _rule, _names in enumerate((("SOP2", "SOPC"), ("SOP1",), ("VOP1", "VOP2", "VOPC"), ("VOP3", "VOP3P"), ("MIMG",), ("SOPK",)), 1):
    _GROUP[[_INDEX[name] for name in _names]] = _rule


def decode(words: Array, starts: Array, ends: Array) -> Instructions:
    """Walk each stretch [start, end) of `words` (uint32) from its first word. Stretches are in order and apart."""
    following = numpy.empty_like(words)
    following[:-1] = words[1:]
    following[-1:] = 0
    encoding = _ENCODING[words >> 23]
    length = _lengths(words, following, encoding)
    at = _walk(length, starts, ends)
    encoding = encoding[at]
    first, second = words[at], following[at]
    flat = numpy.flatnonzero(encoding == _INDEX["FLAT"])
    segment = (first[flat] >> 14) & 3
    encoding[flat] = numpy.array([_INDEX["FLAT"], _INDEX["SCRATCH"], _INDEX["GLOBAL"], NONE], numpy.uint8)[segment]
    opcode = (first >> _SHIFT[encoding]) & _MASK[encoding]
    typed = numpy.flatnonzero(encoding == _INDEX["MTBUF"])
    opcode[typed] |= ((second[typed] >> 21) & 1) << 3
    image = numpy.flatnonzero(encoding == _INDEX["MIMG"])
    opcode[image] |= (first[image] & 1) << 7
    number = encoding.astype(numpy.uint32) * SPAN + opcode
    number[encoding == NONE] = SPAN * len(ENCODINGS) - 1  # an opcode that no chip has
    return Instructions(at, encoding, number.astype(numpy.int32), first, second, length[at])


def _lengths(words: Array, following: Array, encoding: Array) -> Array:
    """Words of the instruction that would begin at each word."""
    length = _BASE[encoding]
    group = _GROUP[encoding]
    # numpy.flatnonzero first and work on the few: most words of most groups need nothing.
    some = numpy.flatnonzero(group == 1)
    here = words[some]
    length[some] += ((here & 0xFF) == _LITERAL) | (((here >> 8) & 0xFF) == _LITERAL)
    some = numpy.flatnonzero(group == 2)
    length[some] += (words[some] & 0xFF) == _LITERAL
    some = numpy.flatnonzero(group == 3)
    here = words[some]
    fused = (encoding[some] == _INDEX["VOP2"]) & numpy.isin((here >> 25), _FUSED)
    length[some] += _FOLLOWED[here & 0x1FF] | fused
    some = numpy.flatnonzero(group == 4)
    here = following[some]
    length[some] += ((here & 0x1FF) == _LITERAL) | (((here >> 9) & 0x1FF) == _LITERAL) | (((here >> 18) & 0x1FF) == _LITERAL)
    some = numpy.flatnonzero(group == 5)
    length[some] += ((words[some] >> 1) & 3).astype(numpy.uint8)
    some = numpy.flatnonzero(group == 6)
    length[some] += ((words[some] >> 23) & 0x1F) == _SET_REGISTER_LITERAL
    return length


def _walk(length: Array, starts: Array, ends: Array) -> Array:
    """Indices of first words: every word of a stretch but those that a longer instruction covers.

    A word that looks like a longer instruction is one for sure where nothing that looks like one before it reaches so far.
    Only from there on, as long as they overlap, does it matter which comes first.
    """
    edges = numpy.zeros(len(length) + 1, numpy.int8)
    edges[starts] += 1
    edges[ends] -= 1  # where one stretch follows another at once, both fall on one word
    inside = numpy.cumsum(edges[:-1]) > 0
    long = numpy.flatnonzero(inside & (length > 1))
    limit = ends[numpy.searchsorted(starts, long, side="right") - 1]
    over = numpy.minimum(long + length[long], limit)
    reach = numpy.maximum.accumulate(over)
    sure = numpy.append(True, long[1:] >= reach[:-1])[: len(long)]
    real = sure.copy()
    doubtful = numpy.flatnonzero(~sure)
    if len(doubtful):
        # Each run of doubtful ones follows a sure one.
        before = numpy.append(True, doubtful[1:] != doubtful[:-1] + 1)
        places, finish = long[doubtful].tolist(), over[doubtful].tolist()
        leading = over[doubtful - 1].tolist()
        kept = []
        done = 0
        for index, (fresh, place) in enumerate(zip(before.tolist(), places, strict=True)):
            if fresh:
                done = leading[index]
            if place >= done:
                done = finish[index]
                kept.append(index)
        real[doubtful[kept]] = True
    for more in range(1, 5):
        some = long[real & (over - long > more)]
        inside[some + more] = False
    return numpy.flatnonzero(inside)
