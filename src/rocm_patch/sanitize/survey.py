"""What an edit could cure in a file, and what it could not: every code object that the chip would load is judged."""

from __future__ import annotations

import bisect
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rocm_patch import isa
from rocm_patch.errors import FormatError
from rocm_patch.images import code_object
from rocm_patch.images.code_object import CodeObject
from rocm_patch.images.coverage import base, loadable
from rocm_patch.images.source import Source
from rocm_patch.isa import Count
from rocm_patch.sanitize.places import Part, Piece, missed, open_piece, pieces

__all__ = ["S_NOP", "Hint", "Survey", "survey"]

S_NOP: Final = struct.pack("<I", 0xBF800000)
_SHOWN: Final = 3
"""Kernels named for each rule."""
_CHUNK: Final = 1 << 20
"""Bytes of code that are looked at together."""
_RUNS: Final = 64
"""Executable sections and segments of a code object; compilers make one or two."""
_LOADED, _EXECUTABLE = 1, 1
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")


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
        UsageError: a file of another kind.
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
                wanted = loadable(part.target, code, generic)
                lies = _other(part, wanted)
                unread += [f"{piece.inside}: {why}".lstrip(": ") for why in lies]
                if lies or not wanted:
                    continue
                found = isa.judge(part.data, chip)
                judged, instructions = judged + 1, instructions + found.instructions
                read = code_object.read(part.data)
                gaps = _gaps(part.data, read, found.undecoded)
                unread += [f"{piece.inside}: {part.target}: {why}".lstrip(": ") for why in gaps]
                for rule, count in found.rules.items():
                    if rule not in _curable():
                        remaining[rule] = remaining.get(rule, Count()) + count
                        kernels.setdefault(rule, []).extend(name for name, rules in found.kernels.items() if rule in rules)
                if not gaps and not _curable().isdisjoint(found.rules):
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
    outside = _outside(code, read)
    if outside:
        why.append(f"{outside} words of code belong to no function")
    return why


def _other(part: Part, wanted: bool) -> list[str]:
    """An entry that is named for one target and holds code for another: who loads it, and what it is, are two things."""
    try:
        inside = code_object.target(part.data)
    except FormatError:
        if wanted:
            raise
        return []  # the chip does not load it, and it may be no ELF file, as SPIR-V is none
    return [f"the entry for {part.target} holds code for {inside}"] if base(inside) != base(part.target) else []


def _outside(code: Source, read: CodeObject) -> int:
    """Words that are no padding and that no function covers, in all that is loaded to be executed."""
    import numpy

    functions = sorted((function.offset, function.offset + (function.size & ~3)) for function in read.functions)
    starts = numpy.array([start for start, _ in functions], numpy.int64)
    ends = numpy.maximum.accumulate(numpy.array([0, *(end for _, end in functions)], numpy.int64))
    count = 0
    for first, last in _runs(code, read):
        for place in range(first, last, _CHUNK):
            words = numpy.frombuffer(code.read(place, min(_CHUNK, last - place) & ~3), "<u4")
            used = place + 4 * numpy.flatnonzero(~numpy.isin(words, isa.PADDING))
            count += int(numpy.count_nonzero(used >= ends[numpy.searchsorted(starts, used, "right")]))
    return count


def _runs(code: Source, read: CodeObject) -> Iterator[tuple[int, int]]:
    """Where executable bytes begin and end in a code object, apart from each other: by its sections and by its segments. Raises FormatError."""
    found = {(offset, offset + size) for offset, _, size in read.code}
    table, entry, number = (int.from_bytes(code.read(place, size), "little") for place, size in ((32, 8), (54, 2), (56, 2)))
    if number and entry != _SEGMENT.size:
        raise FormatError(f"program headers of {entry} bytes")
    for kind, flags, offset, _, _, size, _, _ in _SEGMENT.iter_unpack(code.read(table, number * entry)):
        if kind == _LOADED and flags & _EXECUTABLE:
            found.add((offset, offset + size))
    if len(found) > _RUNS or any(start % 4 for start, _ in found):
        raise FormatError(f"{len(found)} runs of executable code, or one that does not begin at a word")
    done = 0
    for start, end in sorted(found):
        if end > max(start, done):
            yield max(start, done), end
        done = max(done, end)
