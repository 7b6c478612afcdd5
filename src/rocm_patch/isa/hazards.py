"""The rules: what in code for one gfx10 chip is unsafe on another. Each is a row of rules.toml and a function here, found by the row's id.

A rule looks at one stretch of code (`Code`) and returns `Hits`: instructions where the pattern is complete on every path
to them (certain) or on some path (possible). The conditions are those under which LLVM's GCNHazardRecognizer, compiling
for the chip that has the bug, would have put something in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy

from rocm_patch.isa import facts, table
from rocm_patch.isa.decode import Instructions
from rocm_patch.isa.facts import EXEC, Is, Masks
from rocm_patch.isa.flow import Blocks, spread
from rocm_patch.isa.table import ENCODINGS

__all__ = ["CHECKS", "Code", "Hits", "Rule"]

Array = Any
_NONE: Final = numpy.zeros(0, numpy.int64)
_EXEC_BITS: Final = numpy.uint64(3 << (EXEC - 64))
_WORD: Final = numpy.uint64
_SHADER_CYCLES: Final = 29
_WIDE: Final = frozenset(
    f"{begin}{end}"
    for begins, ends in (
        (("ds_read_", "ds_write_"), ("b64", "b96", "b128")),
        (("ds_read2_", "ds_write2_"), ("b64",)),
        (("flat_load_", "flat_store_"), ("dwordx2", "dwordx3", "dwordx4")),
    )
    for begin in begins
    for end in ends
)


@dataclass(frozen=True)
class Rule:
    """A row of rules.toml. `bug`: LLVM's name for it; `chips`: who has it; `same_size`: a same-size edit removes it."""

    id: str
    title: str
    means: str
    bug: str
    chips: tuple[str, ...]
    same_size: bool
    source: str


@dataclass(frozen=True)
class Hits:
    """Indices of instructions."""

    certain: Array
    possible: Array = field(default_factory=lambda: _NONE)


@dataclass(frozen=True)
class Code:
    """A stretch of decoded code and its blocks. `base`: where it lies in its file, in bytes; `first`: instructions that begin a
    function; `made_for` and `chip`: letters of the opcode table; `wave`: 32 or 64 lanes, by instruction.
    """

    base: int
    instructions: Instructions
    kinds: Array
    first: Array
    graph: Blocks
    made_for: str
    chip: str
    wave: Array

    def any(self, kind: Is) -> Array:
        """Which instructions are of one of these kinds."""
        return self.kinds & numpy.uint32(kind) != 0

    def wait(self, kind: Is, mask: int) -> Array:
        """Which instructions are a wait of this kind that brings the masked counter to zero."""
        return self.any(kind) & (self.instructions.first & mask == 0)

    @property
    def null(self) -> Array:
        """Where a SOPK instruction names the null register."""
        return (self.instructions.first >> 16) & 0x7F == facts.NULL


def illegal_instruction(code: Code) -> Hits:
    """The chip has no such opcode."""
    known = table.load().known
    opcode = code.instructions.opcode
    return Hits(numpy.flatnonzero((known[code.made_for][opcode] > 0) & (known[code.chip][opcode] == 0)))


def other_instruction(code: Code) -> Hits:
    """The chip takes the opcode for another instruction."""
    known = table.load().known
    made, here = (known[each][code.instructions.opcode] for each in (code.made_for, code.chip))
    return Hits(numpy.flatnonzero((made > 0) & (here > 0) & (made != here)))


def missing_register(code: Code) -> Hits:
    """`s_getreg_b32` of the cycle counter, which came with gfx10.3."""
    return Hits(numpy.flatnonzero(code.any(Is.READS_HARDWARE) & (code.instructions.first & 0x3F == _SHADER_CYCLES)))


def inst_prefetch(code: Code) -> Hits:
    """`s_inst_prefetch`, whatever it asks for."""
    return Hits(numpy.flatnonzero(code.any(Is.PREFETCH)))


def flat_offset(code: Code) -> Hits:
    """FLAT proper with an immediate offset: the chip ignores it where the address is in global memory."""
    return Hits(numpy.flatnonzero(code.any(Is.FLAT) & (code.instructions.first & 0xFFF != 0)))


def branch_offset_3f(code: Code) -> Hits:
    """A direct branch over exactly 0x3f words."""
    return Hits(numpy.flatnonzero(code.any(Is.BRANCH) & (code.instructions.first & 0xFFFF == 0x3F)))


def negative_unaligned_scratch(code: Code) -> Hits:
    """SCRATCH with a negative offset that is no multiple of four."""
    offset = code.instructions.first & 0xFFF
    scratch = code.instructions.encoding == ENCODINGS.index("SCRATCH")
    return Hits(numpy.flatnonzero(scratch & (offset & 0x800 != 0) & (offset & 3 != 0)))


def nsa(code: Code) -> Hits:
    """A long image instruction with scattered addresses right before a buffer instruction with an odd offset, or in a clause."""
    here = code.instructions
    long = (here.encoding == ENCODINGS.index("MIMG")) & (here.first & 6 != 0)
    if not long.any():
        return Hits(_NONE)
    buffers = numpy.isin(here.encoding, (ENCODINGS.index("MUBUF"), ENCODINGS.index("MTBUF"))) & (here.first & 6 != 0)
    after = numpy.flatnonzero(buffers[1:] & (long & (here.length >= 4))[:-1]) + 1
    clauses = numpy.flatnonzero(code.any(Is.CLAUSE))
    total = numpy.append(0, numpy.cumsum(long))
    ends = numpy.minimum(clauses + 2 + (here.first[clauses] & 63), len(long))
    return Hits(numpy.union1d(after, clauses[total[ends] > total[clauses]]))


def lds_misaligned(code: Code) -> Hits:
    """Several words at once from LDS (or FLAT, which may be LDS): whether the address is aligned, the bytes do not say.

    Nothing is said of code for a chip that has the bug itself: its compiler knew, and an offset alone tells nothing. A test
    of offsets found 16,500 places in natively compiled rocBLAS and rocSPARSE.
    """
    if code.made_for != "d":
        return Hits(_NONE)
    return Hits(_NONE, numpy.flatnonzero(_wide()[code.instructions.opcode]))


def smem_to_vector_write(code: Code) -> Hits:
    """A vector instruction writes a scalar register that a scalar load before it reads."""
    loads, writers = code.any(Is.SMEM), code.any(Is.VALU)
    ends = code.any(Is.SALU) & ~code.any(Is.INERT) | code.wait(Is.WAIT, 0x3F00) | (code.wait(Is.WAIT_SCALAR, 0xFFFF) & code.null)
    return _registers(code, loads, facts.masks_read, writers, ends)


def vmem_to_scalar_write(code: Code) -> Hits:
    """A scalar instruction writes a register that a memory instruction before it reads (its mask among them)."""
    reads, writers = code.any(Is.VMEM | Is.FLAT | Is.DS), code.any(Is.SALU | Is.SMEM)
    ends = code.any(Is.VALU) | code.wait(Is.WAIT, 0xFFFF) | code.wait(Is.WAIT_DEPENDENCY, 0x1C)

    def used(instructions: Instructions, which: Array, wave: Array) -> Masks:
        named = facts.masks_read(instructions, which, wave)
        implied = numpy.where(wave == 64, _EXEC_BITS, _WORD(1 << (EXEC - 64)))
        # A buffer load into LDS, and some LDS accesses, take an address or a count from M0.
        into_lds = (instructions.encoding[which] == ENCODINGS.index("MUBUF")) & (instructions.first[which] & 1 << 16 != 0)
        implied[(code.kinds[which] & Is.READS_M0 != 0) | into_lds] |= _WORD(1 << (facts.M0 - 64))
        return Masks(named.low, named.high | implied)

    return _registers(code, reads, used, writers, ends)


def vcmpx_exec_war(code: Code) -> Hits:
    """A vector comparison writes EXEC after something other than a vector instruction has read it."""
    names = numpy.flatnonzero(code.any(Is.SALU) & ~code.any(Is.READS_EXEC))
    explicit = facts.masks_read(code.instructions, names, code.wave[names]).high & _EXEC_BITS != 0
    reads = code.any(Is.READS_EXEC)
    reads[names[explicit]] = True
    ends = code.any(Is.NAMES_MASK) | code.wait(Is.WAIT_DEPENDENCY, 1)
    return _flag(code, reads, code.any(Is.CMPX), ends)


def vcmpx_permlane(code: Code) -> Hits:
    """A permlane right after a vector comparison that writes EXEC."""
    lanes = code.any(Is.PERMLANE)
    if not lanes.any():
        return Hits(_NONE)
    return _flag(code, code.any(Is.CMPX), lanes, code.any(Is.VALU) & ~code.any(Is.NOP))


def lds_branch_vmem(code: Code) -> Hits:
    """An LDS access and a vector memory access with a branch, but no wait for stores, between them.

    LLVM 22 began to count FLAT as vector memory here: as an access of that kind after LDS and a branch, and as one that ends
    what an LDS access before it began. Certain is what both readings find; what one of them finds is possible. Code that was
    compiled for a chip with the bug is held to what both find: its compiler had one of the two.
    """
    before = _lds_and(code, code.any(Is.VMEM))
    if not code.any(Is.FLAT).any():
        return before
    since = _lds_and(code, code.any(Is.VMEM | Is.FLAT))
    certain = numpy.intersect1d(before.certain, since.certain)
    join = numpy.union1d if code.made_for == "d" else numpy.intersect1d
    found = join(numpy.union1d(before.certain, before.possible), numpy.union1d(since.certain, since.possible))
    return Hits(certain, numpy.setdiff1d(found, certain))


def _lds_and(code: Code, vector: Array) -> Hits:
    local = code.any(Is.DS)
    if not (local.any() and vector.any()):
        return Hits(_NONE)
    waits = code.wait(Is.WAIT_STORE, 0xFFFF) & code.null
    events = numpy.flatnonzero(local | vector | waits)
    graph = code.graph
    block = graph.of[events]
    heads = numpy.flatnonzero(numpy.append(True, block[1:] != block[:-1]))
    tails = numpy.append(heads[1:], len(events)) - 1
    having, first, last = block[heads], events[heads], events[tails]
    moved = code.any(Is.BRANCH | Is.STOPS)[graph.end - 1]
    made = numpy.zeros((len(graph.start), 1), _WORD)
    kept = numpy.full((len(graph.start), 1), ~_WORD(0))
    state = local[last] * _WORD(1) + vector[last] * _WORD(2)
    made[having, 0] = numpy.where(moved[having], state << _WORD(2), state)
    kept[having] = 0
    some, every = spread(graph, made, kept, moved)
    opposite = local[first] * _WORD(8) + vector[first] * _WORD(4)
    certain = every[having, 0] & opposite != 0
    return Hits(first[certain], first[(some[having, 0] & opposite != 0) & ~certain])


def _registers(code: Code, makers: Array, mask: Callable[[Instructions, Array, Array], Masks], writers: Array, ends: Array) -> Hits:
    """Instructions that write a register which an earlier one reads, with nothing in between that ends the danger."""
    where_made = numpy.flatnonzero(makers)
    made = mask(code.instructions, where_made, code.wave[where_made])
    where_hit = numpy.flatnonzero(writers)
    hit = facts.masks_written(code.instructions, where_hit, code.wave[where_hit])
    real = (hit.low | hit.high) != 0
    where_hit, low, high = where_hit[real], hit.low[real], hit.high[real]
    columns = numpy.stack([made.low, made.high], axis=1)
    return _pattern(code, where_made, columns, where_hit, numpy.stack([low, high], axis=1), ends)


def _flag(code: Code, makers: Array, sinks: Array, ends: Array) -> Hits:
    where_made, where_hit = numpy.flatnonzero(makers), numpy.flatnonzero(sinks)
    ones = [numpy.ones((len(where), 1), _WORD) for where in (where_made, where_hit)]
    return _pattern(code, where_made, ones[0], where_hit, ones[1], ends)


def _pattern(code: Code, where_made: Array, made: Array, where_hit: Array, wanted: Array, ends: Array) -> Hits:
    """Facts made at some instructions, asked for at others, ended at others. At one instruction: ask, then end, then make."""
    if not len(where_made) or not len(where_hit):
        return Hits(_NONE)
    graph = code.graph
    leads = numpy.zeros(len(ends), bool)
    leads[graph.start] = True
    ended = numpy.cumsum(ends)
    life = ended + numpy.cumsum(leads)  # facts live within one number
    alive = life[where_made]
    gathered = _running_or(made, alive)
    # Within the block: the last fact made before, if nothing ended it.
    before = numpy.searchsorted(where_made, where_hit) - 1
    asked = life[where_hit] - ends[where_hit]
    near = (before >= 0) & (alive[before] == asked) & ~leads[where_hit]
    certain = near & ((gathered[before] & wanted) != 0).any(axis=1)
    # Across blocks: what the block's beginning may bring, where nothing in the block has ended it.
    bringing = numpy.zeros((len(graph.start), made.shape[1]), _WORD)
    kept = numpy.zeros_like(bringing)
    final = numpy.searchsorted(where_made, graph.end) - 1
    lasting = (final >= 0) & (alive[final] == life[graph.end - 1])
    bringing[lasting] = gathered[final[lasting]]
    quiet = ended[graph.end - 1] == ended[graph.start] - ends[graph.start]
    kept[quiet] = ~_WORD(0)
    block = graph.of[where_hit]
    open_ = ended[where_hit] - ends[where_hit] == ended[graph.start[block]] - ends[graph.start[block]]
    some, every = spread(graph, bringing, kept)
    certain |= open_ & ((every[block] & wanted) != 0).any(axis=1)
    possible = ~certain & open_ & ((some[block] & wanted) != 0).any(axis=1)
    return Hits(where_hit[certain], where_hit[possible])


def _running_or(values: Array, group: Array) -> Array:
    """Or of all values of the same group up to each row; groups are runs of equal numbers."""
    result = values.copy()
    reach = 1
    while reach < len(group):
        same = numpy.flatnonzero(group[reach:] == group[:-reach])
        if not len(same):
            return result
        shifted = result[same].copy()
        result[same + reach] |= shifted
        reach *= 2
    return result


@functools.lru_cache(maxsize=1)
def _wide() -> Array:
    """LDS and FLAT accesses of several words."""
    return table.load().where(_WIDE.__contains__)


CHECKS: Final[dict[str, Callable[[Code], Hits]]] = {
    name.replace("_", "-"): check
    for name, check in globals().items()
    if callable(check) and getattr(check, "__module__", "") == __name__ and not name.startswith("_") and name.islower()
}
