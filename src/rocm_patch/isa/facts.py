"""What the rules want to know about instructions, as arrays: their kinds, and the scalar registers that they read and write."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy

from rocm_patch.isa import table
from rocm_patch.isa.decode import Instructions
from rocm_patch.isa.table import ENCODINGS, WAVE

__all__ = ["EXEC", "M0", "Is", "Masks", "kinds", "masks_read", "masks_written", "simm16"]

Array = Any
VCC: Final = 106
M0: Final = 124
NULL: Final = 125
EXEC: Final = 126
_SDWA: Final = 249


class Is(enum.IntFlag):
    """Kinds of instruction, as LLVM's hazard pass tells them apart."""

    SALU = 1  # scalar arithmetic, without SOPP
    SOPP = 2
    SMEM = 4
    VALU = 8
    VMEM = 16  # buffer, image, global and scratch
    FLAT = 32  # flat proper: the segment is found out at run time
    DS = 64
    BRANCH = 128  # direct
    STOPS = 256  # control does not go on to the next instruction
    CMPX = 512
    PERMLANE = 1024
    NOP = 2048  # v_nop
    READS_EXEC = 4096  # without naming it
    INERT = 8192  # scalar, but no help against the SMEM hazard
    NAMES_MASK = 16384  # a VALU instruction with a scalar destination other than a lane read
    PREFETCH = 1 << 15
    WAIT = 1 << 16  # s_waitcnt
    WAIT_DEPENDENCY = 1 << 17  # s_waitcnt_depctr
    WAIT_STORE = 1 << 18  # s_waitcnt_vscnt
    WAIT_SCALAR = 1 << 19  # s_waitcnt_lgkmcnt
    CLAUSE = 1 << 20
    READS_HARDWARE = 1 << 21  # s_getreg_b32
    READS_M0 = 1 << 22  # without naming it


@functools.lru_cache(maxsize=1)
def kinds() -> Array:
    """The kinds of each opcode."""
    opcodes = table.load()
    flags = numpy.zeros(len(opcodes.known["a"]), numpy.uint32)

    def mark(which: Array, kind: Is) -> None:
        flags[which] |= numpy.uint32(kind)

    def begins(*words: str) -> Array:
        return opcodes.where(lambda name: name.startswith(words))

    def named(*words: str) -> Array:
        return opcodes.where(lambda name: name in words)

    mark(opcodes.encoded("SOP1", "SOP2", "SOPC", "SOPK"), Is.SALU)
    mark(opcodes.encoded("SOPP"), Is.SOPP)
    mark(opcodes.encoded("SMEM"), Is.SMEM)
    mark(opcodes.encoded("VOP1", "VOP2", "VOPC", "VOP3", "VOP3P", "VINTRP"), Is.VALU)
    mark(opcodes.encoded("MUBUF", "MTBUF", "MIMG", "GLOBAL", "SCRATCH"), Is.VMEM)
    mark(opcodes.encoded("FLAT"), Is.FLAT)
    mark(opcodes.encoded("DS"), Is.DS)
    mark(opcodes.encoded("MUBUF", "MTBUF", "MIMG", "GLOBAL", "SCRATCH", "FLAT", "DS", "EXP"), Is.READS_EXEC)
    mark(opcodes.where(lambda name: "saveexec" in name or "wrexec" in name or name.startswith("s_cbranch_exec")), Is.READS_EXEC)
    mark(begins("s_branch", "s_cbranch", "s_subvector_loop"), Is.BRANCH)
    mark(named("s_branch", "s_endpgm", "s_endpgm_saved", "s_endpgm_ordered_ps_done", "s_setpc_b64", "s_rfe_b64"), Is.STOPS)
    mark(begins("v_cmpx"), Is.CMPX)
    mark(begins("v_permlane"), Is.PERMLANE)
    mark(named("v_nop"), Is.NOP)
    mark(named("s_version", "s_waitcnt_vscnt", "s_waitcnt_vmcnt", "s_waitcnt_expcnt", "s_waitcnt_lgkmcnt"), Is.INERT)
    mark(named("s_inst_prefetch"), Is.PREFETCH)
    mark(named("s_waitcnt"), Is.WAIT)
    mark(named("s_waitcnt_depctr"), Is.WAIT_DEPENDENCY)
    mark(named("s_waitcnt_vscnt"), Is.WAIT_STORE)
    mark(named("s_waitcnt_lgkmcnt"), Is.WAIT_SCALAR)
    mark(named("s_clause"), Is.CLAUSE)
    mark(named("s_getreg_b32"), Is.READS_HARDWARE)
    mark(begins("ds_append", "ds_consume", "ds_gws_", "ds_write_addtid", "ds_read_addtid"), Is.READS_M0)
    scalar_destination = numpy.logical_or.reduce([width > 0 for width in opcodes.written.values()])
    mark(scalar_destination & (flags & Is.VALU != 0) & ~begins("v_readlane", "v_readfirstlane"), Is.NAMES_MASK)
    return flags


def simm16(first: Array) -> Array:
    """The immediate of SOPP and SOPK, signed."""
    return (first & 0xFFFF).astype(numpy.uint16).view(numpy.int16).astype(numpy.int64)


@dataclass(frozen=True)
class Masks:
    """One bit a scalar register, 128 a row: two columns of uint64."""

    low: Array
    high: Array


def masks_written(code: Instructions, which: Array, wave: Array) -> Masks:
    """Scalar registers that the instructions `which` (indices) write by name, and vcc and exec where the encoding implies them.

    `wave`: lanes, for each of them.
    """
    opcodes = table.load()
    first, second, opcode, encoding = code.first[which], code.second[which], code.opcode[which], code.encoding[which]
    low = numpy.zeros(len(which), numpy.uint64)
    high = numpy.zeros(len(which), numpy.uint64)
    long = encoding == ENCODINGS.index("VOP3")
    values = {
        "sdst": numpy.where(long, (first >> 8) & 0x7F, (first >> 16) & 0x7F),
        "vdst": numpy.where(long, first & 0x7F, (first >> 17) & 0x7F),
        "sdata": (first >> 6) & 0x7F,
        "vcc": numpy.full(len(which), VCC, numpy.uint32),
        "exec": numpy.full(len(which), EXEC, numpy.uint32),
    }
    # A comparison in SDWA form can name its destination.
    named = (encoding == ENCODINGS.index("VOPC")) & ((first & 0x1FF) == _SDWA) & ((second >> 15) & 1 == 1)
    values["vcc"] = numpy.where(named, (second >> 8) & 0x7F, values["vcc"])
    for field, width in opcodes.written.items():
        _add(low, high, values[field], width[opcode], wave)
    return Masks(low, high)


def masks_read(code: Instructions, which: Array, wave: Array) -> Masks:
    """Scalar registers that the instructions `which` (indices) read by name. `wave`: lanes, for each of them."""
    opcodes = table.load()
    first, second, opcode, encoding = code.first[which], code.second[which], code.opcode[which], code.encoding[which]
    low = numpy.zeros(len(which), numpy.uint64)
    high = numpy.zeros(len(which), numpy.uint64)
    scalar_memory = encoding == ENCODINGS.index("SMEM")
    address = (second >> 16) & 0x7F
    values = {
        "ssrc0": first & 0xFF,
        "ssrc1": (first >> 8) & 0xFF,
        "sdst": (first >> 16) & 0x7F,
        "sbase": (first & 0x3F) << 1,
        "sdata": (first >> 6) & 0x7F,
        "soffset": numpy.where(scalar_memory, (second >> 25) & 0x7F, (second >> 24) & 0xFF),
        "saddr": numpy.where(address == 127, NULL, address),  # both numbers mean "no base"
        "srsrc": ((second >> 16) & 0x1F) << 2,
        "ssamp": ((second >> 21) & 0x1F) << 2,
    }
    for field, value in values.items():
        if field in opcodes.read:
            _add(low, high, value, opcodes.read[field][opcode], wave)
    return Masks(low, high)


def _add(low: Array, high: Array, value: Array, width: Array, wave: Array) -> None:
    """Set the bits of `width` registers from `value` on. Numbers from 128 on are constants, and null is no register."""
    some = numpy.flatnonzero((width > 0) & (value < 128) & (value != NULL))
    if not len(some):
        return
    start = value[some].astype(numpy.uint64)
    count = numpy.where(width[some] == WAVE, wave[some] // 32, width[some]).astype(numpy.uint64)
    one, border = numpy.uint64(1), numpy.uint64(64)
    bits = (one << count) - one
    upper = start >= border
    inside = numpy.where(upper, start - border, start)
    low[some] |= numpy.where(upper, numpy.uint64(0), bits << inside)
    # What of a lower run reaches over the border; in two steps, since a shift by 64 is no shift.
    high[some] |= numpy.where(upper, bits << inside, (bits >> one) >> (border - one - inside))
