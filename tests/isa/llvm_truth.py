"""What LLVM itself says of a hazard: compile the same program for gfx1030 twice, the second time with one bug of gfx10.1 declared.

Where the two differ by LLVM's own remedy, LLVM found that bug's pattern in the first. Names of the features:
https://github.com/llvm/llvm-project/blob/main/llvm/lib/Target/AMDGPU/AMDGPU.td; the remedies:
https://github.com/llvm/llvm-project/blob/main/llvm/lib/Target/AMDGPU/GCNHazardRecognizer.cpp (sequences),
SIISelLowering.cpp (loops that prefetch, LDS alignment), SIInstrInfo.cpp (offsets), MCTargetDesc/AMDGPUAsmBackend.cpp (branches).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy
from elftools.elf.elffile import ELFFile
from programs import PROGRAMS, Program

TRIPLE = "amdgcn-amd-amdhsa"
Words = Any  # an array of 32-bit words


def exactly(word: int) -> Callable[[Words], int]:
    """How often this word is there."""
    return lambda words: int((words == word).sum())


def masked(mask: int, *values: int) -> Callable[[Words], int]:
    """How many words have one of these values under the mask."""
    return lambda words: int(numpy.isin(words & mask, values).sum())


def moves_onto_itself(words: Words) -> int:
    """v_mov_b32 vN, vN: the remedy before a permutation."""
    moves = words[(words & 0xFE01FF00) == 0x7E000300]
    return int((((moves >> 17) & 0xFF) == (moves & 0xFF)).sum())


def flat_offsets(words: Words) -> int:
    """FLAT instructions (no segment) with an offset; a second word that looks like one counts on both sides alike."""
    return int((((words & 0xFC00C000) == 0xDC000000) & ((words & 0xFFF) != 0)).sum())


WIDE_LDS = {0x4D: 4, 0x76: 4, 0x4E: 8, 0x77: 8, 0xDE: 9, 0xFE: 9, 0xDF: 16, 0xFF: 16}  # b64, two b64, b96, b128
WIDE_FLAT = {0x0D: 4, 0x1D: 4, 0x0F: 9, 0x1F: 9, 0x0E: 16, 0x1E: 16}  # dwordx2, x3, x4


def wide_accesses(words: Words) -> int:
    """LDS and FLAT accesses of several words, weighed by the square of their width: a split one weighs less than before."""
    local = (words[words >> 26 == 0x36] >> 18) & 0xFF
    flat = (words[(words & 0xFC00C000) == 0xDC000000] >> 18) & 0x7F
    return sum(
        weight * int((opcodes == opcode).sum()) for opcodes, table in ((local, WIDE_LDS), (flat, WIDE_FLAT)) for opcode, weight in table.items()
    )


def nothing(words: Words) -> int:
    """No word stands for the remedy: the program comes out another way."""
    return 0


@dataclass(frozen=True)
class Bug:
    """A feature of LLVM that is a bug of gfx10.1. A remedy is counted by a word that it adds or that it takes away."""

    feature: str
    rule: str
    added: Callable[[Words], int] = nothing
    removed: Callable[[Words], int] = nothing
    needs: tuple[str, ...] = ("",)
    """Texts of which a program that can have it has one: spares compilations."""


SEQUENCES = (
    # One pass of LLVM adds all of these, each with a word of its own, and none stands for another's remedy: one compilation asks for all.
    Bug("smem-to-vector-write-hazard", "smem-to-vector-write", added=exactly(0xBEFD0380)),  # s_mov_b32 null, 0
    Bug("vmem-to-scalar-write-hazard", "vmem-to-scalar-write", added=masked(0xFFFF001C, 0xBFA30000)),  # s_waitcnt_depctr vm_vsrc(0)
    Bug("vcmpx-exec-war-hazard", "vcmpx-exec-war", added=masked(0xFFFF0001, 0xBFA30000)),  # s_waitcnt_depctr sa_sdst(0)
    Bug("lds-branch-vmem-war-hazard", "lds-branch-vmem", added=exactly(0xBBFD0000)),  # s_waitcnt_vscnt null, 0
)
OTHERS = (
    Bug("inst-fwd-prefetch-bug", "inst-prefetch", removed=masked(0xFFFF0000, 0xBFA00000)),  # s_inst_prefetch
    Bug("flat-segment-offset-bug", "flat-offset", removed=flat_offsets),
    Bug("vcmpx-permlane-hazard", "vcmpx-permlane", added=moves_onto_itself, needs=("permlane",)),
    Bug("offset-3f-bug", "branch-offset-3f", removed=masked(0xFFF0FFFF, 0xBF80003F)),  # s_branch or s_cbranch over 0x3f words
    Bug("nsa-to-vmem-bug", "nsa", needs=("image",)),
    Bug("nsa-clause-bug", "nsa", needs=("image",)),
    Bug("negative-unaligned-scratch-offset-bug", "negative-unaligned-scratch", needs=("addrspace(5)",)),
    Bug("lds-misaligned-bug", "lds-misaligned", removed=wide_accesses),
)
RULES = tuple(dict.fromkeys(bug.rule for bug in SEQUENCES + OTHERS))


@dataclass(frozen=True)
class Build:
    """One program for one chip at one level: the object, and for gfx1030 what LLVM finds, as fix-ups by rule."""

    program: str
    chip: str
    level: int
    data: bytes
    code: bytes
    found: dict[str, int] = field(default_factory=dict)


@cache
def target() -> Any:
    """LLVM's AMDGPU target."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(TRIPLE)


@cache
def machine(chip: str, level: int, features: str) -> Any:
    """A code generator."""
    return target().create_target_machine(cpu=chip, opt=level, features=features)


def compiled(program: Program, chip: str, level: int, feature: str = "") -> bytes:
    """The relocatable object. At level 3 the module goes through LLVM's optimiser first, as a compiler would do it."""
    import llvmlite.binding as llvm

    generator = machine(chip, level, ",".join(each for each in (program.features, feature) if each))
    module = llvm.parse_assembly(program.text)
    module.data_layout = str(generator.target_data)
    if level == 3:
        builder = llvm.create_pass_builder(generator, llvm.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(module, builder)
    data = bytes(generator.emit_object(module))
    assert b"\0llvm." not in data, f"{program.name} calls an intrinsic that this LLVM does not have"
    return data


def code_of(data: bytes) -> bytes:
    """The section that the instructions are in."""
    return bytes(ELFFile(io.BytesIO(data)).get_section_by_name(".text").data())


def words_of(code: bytes) -> Words:
    """As 32-bit words."""
    return numpy.frombuffer(code[: len(code) & ~3], dtype="<u4")


def fixes(bug: Bug, plain: bytes, declared: bytes) -> int:
    """How many remedies tell the two builds apart; where no word counts for the remedy: 1 if they differ."""
    before, after = words_of(plain), words_of(declared)
    if bug.added is nothing and bug.removed is nothing:
        return int(plain != declared)
    return max(0, bug.added(after) - bug.added(before)) + max(0, bug.removed(before) - bug.removed(after))


def truth(program: Program, level: int, plain: bytes) -> dict[str, int]:
    """Fix-ups by rule that LLVM makes in this program's gfx1030 build when the bug is declared. `plain` is the code without."""

    def again(*bugs: Bug) -> bytes:
        return code_of(compiled(program, "gfx1030", level, ",".join(f"+{bug.feature}" for bug in bugs)))

    declared = again(*SEQUENCES)
    found = Counter({bug.rule: fixes(bug, plain, declared) for bug in SEQUENCES})
    for bug in OTHERS:
        nothing_to_remove = bug.removed is not nothing and not bug.removed(words_of(plain))
        if any(text in program.text for text in bug.needs) and not nothing_to_remove:
            found[bug.rule] += fixes(bug, plain, again(bug))
    return {rule: count for rule, count in found.items() if count}


HALF = {"gfx1011": (1, 3), "gfx1012": (0, 2)}
"""Their code is mostly that of gfx1010 and of each other: half the levels each."""


def builds_of(name: str) -> list[Build]:
    """All builds of one program. Runs in a child: LLVM ends the process where it cannot go on."""
    program = next(each for each in PROGRAMS if each.name == name)
    made = []
    for chip in program.chips:
        for level in set(program.levels) & set(HALF.get(chip, program.levels)):
            data = compiled(program, chip, level)
            code = code_of(data)
            made.append(Build(name, chip, level, data, code, truth(program, level, code) if chip == "gfx1030" else {}))
    return made


def all_builds(names: Iterable[str], workers: int = 2) -> list[Build]:
    """The builds of these programs, made by a few processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [build for builds in pool.map(builds_of, names, chunksize=8) for build in builds]
