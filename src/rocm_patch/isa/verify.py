"""Our decoder against a real LLVM, instruction by instruction, on code that is at hand.

An old LLVM is worse than none: it fails on encodings of newer compilers, goes on in the middle of an instruction and finds others
there. So what an LLVM cannot read is told apart from what it reads otherwise, and each is known by what it fails on, not by its age.
LLVM can die of a signal on damaged code: this runs in a child with limits (`main`), or on trusted files only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rocm_patch.errors import FormatError, RocmPatchError
from rocm_patch.images import code_object, worker
from rocm_patch.images.coverage import base
from rocm_patch.images.source import Source
from rocm_patch.isa import stretches, table
from rocm_patch.isa.llvm import Disassembler, open_library
from rocm_patch.isa.worker import codes

__all__ = ["Comparison", "blind_spots", "compare"]

RATE: Final = 100 << 10
"""Bytes of code a second at which an LLVM counts as stuck; 1 MB/s are usual."""
MEMORY: Final = 1 << 30
EXAMPLES: Final = 5
_ENDINGS: Final = ("_e32", "_e64", "_sdwa", "_dpp", "_dpp8", "_e64_dpp")
# Fields that an instruction does not use hold fillers, which compilers have changed: what an LLVM takes for granted dates it.
_SPOTS: Final = (
    ("unused operands as compilers fill them since LLVM 23 (v_cmp, v_add_co, v_pk_mul and others)", bytes.fromhex("0900c4d4090a0202")),
    ("the long v_cmpx of ROCm 5, with an empty destination", bytes.fromhex("0000d4d406480200")),
)


@dataclass
class Comparison:
    """How many instructions were compared, and how LLVM differs: `blind` where it reads none and we do, `different` else."""

    instructions: int = 0
    distinct: int = 0
    different: int = 0
    blind: int = 0
    undecoded: int = 0
    examples: list[str] = field(default_factory=list)


def blind_spots(loaded: Any) -> tuple[str, ...]:
    """What this LLVM cannot read of the code that is about."""
    chip = Disassembler(loaded, "gfx1030")
    return tuple(words for words, data in _SPOTS if not chip.one(data + bytes(12))[0])


def compare(source: Source, loaded: Any, chip: str, seen: dict[tuple[str, bytes], tuple[int, str, str]], into: Comparison) -> None:
    """Compare one code object, for the chip that it was made for and for `chip`. `seen` holds what LLVM said about first words.

    Raises:
        FormatError: it is no code object.
        ValueError: it is not for gfx10.
    """
    read = code_object.read(source)
    native, other = Disassembler(loaded, base(read.target)), Disassembler(loaded, chip)
    opcodes = table.load()
    for _, code, unknown in stretches(source, read, chip):
        into.undecoded += unknown
        here = code.instructions
        end = min(source.size - code.base, (int(here.at[-1]) + 8) * 4)
        data = source.read(code.base, end)
        for at, length, opcode in zip(here.at.tolist(), here.length.tolist(), here.opcode.tolist(), strict=True):
            into.instructions += 1
            key = (read.target, data[4 * at : 4 * at + 8])
            found = seen.get(key)
            if found is None:
                into.distinct += 1
                text = data[4 * at : 4 * at + 20] + bytes(8)
                count, line = native.one(text)
                found = seen[key] = (count, _plain(line), _plain(other.one(text)[1]))
            name = opcodes.name(opcode, code.made_for)
            if not name and not found[0]:
                continue
            if name and not found[0]:
                into.blind += 1
            elif (4 * length, name, opcodes.name(opcode, code.chip)) != found:
                into.different += 1
                if len(into.examples) < EXAMPLES:
                    into.examples.append(f"{key[1].hex()}: {name or 'nothing'} here, {found[1] or 'nothing'} there")


def main() -> None:
    """Answer lines until there are no more: the child of `safety.verify`."""
    worker.serve(sys.stdin, _answer, MEMORY)


def _answer(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        loaded, library = open_library(task["llvm"])
    except RocmPatchError as error:
        yield {"why": error.what}
        return
    seen: dict[tuple[str, bytes], tuple[int, str, str]] = {}
    spots = blind_spots(loaded)
    for _, item in codes(task):
        found = Comparison()
        try:
            compare(item.data, loaded, task["chip"], seen, found)
        except FormatError as error:
            yield {"why": f"{item.inside}: {error.what}"}
        yield {"version": library.version, "spots": spots, "bytes": item.data.size, "found": vars(found)}


def _plain(text: str) -> str:
    name = text.partition(" ")[0].partition("\t")[0]
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name
