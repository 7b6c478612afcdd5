"""What an edit could cure in a file, and what it could not: every code object that the chip would load is judged."""

from __future__ import annotations

import bisect
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch import isa
from rocm_patch.errors import FormatError
from rocm_patch.images import code_object
from rocm_patch.images.code_object import CodeObject, Function
from rocm_patch.images.coverage import loadable
from rocm_patch.images.source import Source
from rocm_patch.isa import Count
from rocm_patch.sanitize.places import Part, Piece, missed, open_piece, pieces

__all__ = ["S_NOP", "Hint", "Survey", "survey"]

S_NOP: Final = struct.pack("<I", 0xBF800000)
_SHOWN: Final = 3
"""Kernels named for each rule."""
_PADDING: Final = (0, 0xBF800000, 0xBF9F0000)
"""Words that may lie between functions: nothing, s_nop 0, s_code_end."""


@dataclass(frozen=True)
class Cure:
    """An instruction of one word, told by its upper half: whatever the lower half says, `s_nop 0` takes its place."""

    upper: int


CURES: Final[Mapping[str, Cure]] = {"inst-prefetch": Cure(0xBFA0)}
"""By rule, for the rules whose row says `same_size`. SOPP opcode 32, from AMD's "RDNA2 ISA", chapter 16.5."""


@dataclass(frozen=True)
class Hint:
    """An instruction to replace: `place` in bytes of the file or of the unpacked bundle, `address` as linked."""

    piece: Piece
    place: int
    target: str
    kernel: str
    address: int
    before: bytes


@dataclass(frozen=True)
class Survey:
    """`targets`: all that the file has code for; `judged`: code objects that the chip would load; `instructions` in them.

    `remaining`: what no edit of the same size cures, by rule; `kernels`: the first in which it is; `unread`: why not all was read.
    """

    targets: tuple[str, ...]
    judged: int
    instructions: int
    hints: tuple[Hint, ...]
    remaining: Mapping[str, Count]
    kernels: Mapping[str, tuple[str, ...]]
    unread: tuple[str, ...]


def survey(file: Source, path: str, chip: str, code: str, generic: str) -> Survey:
    """Judge on `chip` what it would load of a file while it passes for `code`, with the generic target that covers that.

    Raises:
        RefusedError: a file of another kind.
        ValueError: `chip` or `code` is not gfx10; ask `isa.judges` first.
    """
    seen = Counter[tuple[str, int]]()
    unread: list[str] = []
    hints: list[Hint] = []
    remaining: dict[str, Count] = {}
    kernels: dict[str, list[str]] = {}
    judged = instructions = 0
    try:
        for piece in pieces(file, path):
            for part in open_piece(file, piece)[1]:
                seen[part.target, part.data.size] += 1
                if not loadable(part.target, code, generic):
                    continue
                found = isa.judge(part.data, chip)
                judged, instructions = judged + 1, instructions + found.instructions
                read = code_object.read(part.data)
                unread += [f"{piece.inside}: {part.target}: {why}".lstrip(": ") for why in _gaps(part.data, read, found.undecoded)]
                for rule, count in found.rules.items():
                    if rule not in _curable():
                        remaining[rule] = remaining.get(rule, Count()) + count
                        kernels.setdefault(rule, []).extend(name for name, rules in found.kernels.items() if rule in rules)
                if not _curable().isdisjoint(found.rules):
                    hints += _hints(piece, part, read, chip)
    except FormatError as error:
        unread.append(error.what)
    unread += [why for why in missed(file, path, seen) if why not in unread] if not unread else []
    first = {rule: tuple(dict.fromkeys(names))[:_SHOWN] for rule, names in kernels.items()}
    targets = tuple(sorted({target for target, _ in seen}))
    return Survey(targets, judged, instructions, tuple(hints), remaining, first, tuple(unread))


def _curable() -> frozenset[str]:
    return frozenset(rule.id for rule in isa.rules() if rule.same_size and rule.id in CURES)


def _hints(piece: Piece, part: Part, read: CodeObject, chip: str) -> list[Hint]:
    functions = sorted(read.functions, key=lambda function: function.offset)
    starts = [function.offset for function in functions]
    hints = []
    for site in isa.sites(part.data, chip):
        if site.rule not in _curable():
            continue
        before = part.data.read(site.offset, 4)
        if struct.unpack("<I", before)[0] >> 16 != CURES[site.rule].upper:
            raise FormatError(f"{before.hex()} at {site.offset:#x} is not what {site.rule} names")
        function = functions[bisect.bisect_right(starts, site.offset) - 1]
        hints.append(Hint(piece, part.start + site.offset, part.target, function.name, function.address + site.offset - function.offset, before))
    return sorted(hints, key=lambda hint: hint.place)


def _gaps(code: Source, read: CodeObject, undecoded: int) -> list[str]:
    """Words that were not judged: a verdict of "nothing unsafe" speaks of all code, or it is none."""
    why = [f"{undecoded} words are no instruction of this target"] if undecoded else []
    outside = _outside(code, read, read.functions)
    if outside:
        why.append(f"{outside} words of code belong to no function")
    return why


def _outside(code: Source, read: CodeObject, functions: Sequence[Function]) -> int:
    import numpy

    words = numpy.frombuffer(code.read(read.text_offset, read.text_size & ~3), "<u4")
    free = ~numpy.isin(words, _PADDING)
    for function in functions:
        first = function.offset - read.text_offset
        # From below the first whole word to above the last: code elsewhere than .text is judged by its own symbols.
        free[max(first, 0) // 4 : max(first + function.size, 0) // 4] = False
    return int(numpy.count_nonzero(free))
