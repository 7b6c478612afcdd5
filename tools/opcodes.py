"""Make src/rocm_patch/isa/opcodes.tsv: every gfx10 opcode, on which chips LLVM decodes it, and which scalar registers it names.

    python tools/opcodes.py LIBLLVM > src/rocm_patch/isa/opcodes.tsv

Nothing is typed in by hand: each opcode number of each encoding is decoded by LLVM for each chip with a distinct register in
every operand field; the text that comes back says which fields are scalar registers, how wide, and which come first (written).
Widths that follow the wave size are found by decoding twice.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rocm_patch.isa.llvm import GOOD, Disassembler, open_library

CHIPS = {"a": "gfx1010", "b": "gfx1011", "c": "gfx1013", "d": "gfx1030"}
"""gfx1012 decodes as gfx1011 and gfx1031-1036 as gfx1030: checked below."""
ALIKE = {"gfx1012": "gfx1011", **{f"gfx103{n}": "gfx1030" for n in range(1, 7)}}


@dataclass(frozen=True)
class Field:
    """An operand field and the register number that it is given."""

    name: str
    value: int
    shift: int
    word: int
    scale: int = 1  # register number = field * scale


@dataclass(frozen=True)
class Format:
    """An encoding: its first words, how many opcodes it has and where they stand."""

    name: str
    head: tuple[int, ...]
    opcodes: int
    place: tuple[int, int]  # word, shift of the opcode
    fields: tuple[Field, ...]
    variants: tuple[tuple[int, ...], ...] = ((),)  # bits that are flipped, tried in order


# Operands that an instruction does not have must be zero; the last ones are on the global share.
_OPERANDS = (0, 0x00300000, 0x40000000, 0x40300000, 0x00302000, 0x40302000, 0x40302010, 0x40300010)
DATA_SHARE = (*((0, flipped) for flipped in _OPERANDS), *((0x20000, flipped) for flipped in (0x40302010, 0x40302000, 0x00302000)))

FORMATS = (
    Format("SOP2", (0x80000000,), 96, (0, 23), (Field("sdst", 8, 16, 0), Field("ssrc0", 16, 0, 0), Field("ssrc1", 32, 8, 0))),
    Format("SOPK", (0xB0000000,), 29, (0, 23), (Field("sdst", 8, 16, 0),), ((), (0x1,), (0x6, 0))),
    Format("SOP1", (0xBE800000,), 256, (0, 8), (Field("sdst", 8, 16, 0), Field("ssrc0", 16, 0, 0))),
    Format("SOPC", (0xBF000000,), 128, (0, 16), (Field("ssrc0", 16, 0, 0), Field("ssrc1", 32, 8, 0))),
    Format("SOPP", (0xBF800000,), 128, (0, 16), ()),
    Format("SMEM", (0xF4000000, 0), 256, (0, 18), (Field("sdata", 32, 6, 0), Field("sbase", 64, 0, 0, 2), Field("soffset", 16, 25, 1))),
    Format("VOP1", (0x7E000000,), 256, (0, 9), (Field("vdst", 8, 17, 0), Field("src0", 16, 0, 0)), ((), (0x100,))),
    Format("VOP2", (0x00000000, 0), 62, (0, 25), (Field("vdst", 8, 17, 0), Field("src0", 16, 0, 0), Field("vsrc1", 40, 9, 0))),
    Format("VOPC", (0x7C000000,), 256, (0, 17), (Field("src0", 16, 0, 0), Field("vsrc1", 40, 9, 0))),
    Format(
        "VOP3",
        (0xD4000000, 0),
        1024,
        (0, 16),
        (
            Field("vdst", 8, 0, 0),
            Field("src0", 256 + 16, 0, 1),
            Field("src1", 256 + 24, 9, 1),
            Field("src2", 256 + 32, 18, 1),
            Field("sdst", 64, 8, 0),
        ),
        ((), (0, 0x100 << 9), (8 ^ 126,)),
    ),
    Format(
        "VOP3P",
        (0xCC000000, 0),
        128,
        (0, 16),
        (Field("vdst", 8, 0, 0), Field("src0", 256 + 16, 0, 1), Field("src1", 256 + 24, 9, 1), Field("src2", 256 + 32, 18, 1)),
    ),
    Format("VINTRP", (0xC8000000,), 4, (0, 16), ()),
    Format("DS", (0xD8000000, 0x40302010), 256, (0, 18), (), DATA_SHARE),
    Format("FLAT", (0xDC000000, 0x40002010), 128, (0, 18), (Field("saddr", 125, 16, 1),)),
    Format("SCRATCH", (0xDC004000, 0x40002010), 128, (0, 18), (Field("saddr", 32, 16, 1),)),
    Format("GLOBAL", (0xDC008000, 0x40002010), 128, (0, 18), (Field("saddr", 32, 16, 1),)),
    Format("MUBUF", (0xE0000000, 0x00002010), 256, (0, 18), (Field("srsrc", 64, 16, 1, 4), Field("soffset", 16, 24, 1))),
    Format("MTBUF", (0xE8B00000, 0x00002010), 16, (0, 16), (Field("srsrc", 64, 16, 1, 4), Field("soffset", 16, 24, 1))),
    Format(
        "MIMG", (0xF0000100, 0x00002010), 256, (0, 18), (Field("srsrc", 64, 16, 1, 4), Field("ssamp", 32, 21, 1, 4)), ((), (0x8,), (0x700,), (0xF00,))
    ),
    Format("EXP", (0xF8000000, 0x04030201), 1, (0, 0), (), ((0xF,),)),
)


def words(form: Format, opcode: int, variant: tuple[int, ...], fields: tuple[Field, ...]) -> bytes:
    made = list(form.head) + [0] * (5 - len(form.head))
    if form.name == "MTBUF":  # the fourth bit of the opcode lies in the second word
        made[1] |= (opcode >> 3) << 21
        made[0] |= (opcode & 7) << 16
    elif form.name == "MIMG":  # and the eighth in bit 0
        made[0] |= (opcode >> 7) | (opcode & 0x7F) << 18
    else:
        made[form.place[0]] |= opcode << form.place[1]
    for field in fields:
        made[field.word] |= (field.value // field.scale) << field.shift
    for index, flipped in enumerate(variant):
        made[index] ^= flipped
    return b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in made)


REGISTER = re.compile(r"(?<![\w.])s(?:\[(\d+):(\d+)\]|(\d+))(?!\w)")


def widths(text: str) -> dict[int, int]:
    """First register -> how many, of every scalar operand in a line."""
    found = {}
    for match in REGISTER.finditer(text.partition(" ")[2]):
        low = int(match.group(1) or match.group(3))
        found[low] = int(match.group(2) or low) - low + 1
    return found


def decodings(disassembler: Disassembler, form: Format, opcode: int) -> Iterator[tuple[int, str, tuple[Field, ...]]]:
    for variant in form.variants:
        for count in range(len(form.fields), -1, -1):
            fields = form.fields[:count]
            length, text = disassembler.one(words(form, opcode, variant, fields))
            if length:
                yield length, text, fields


def describe(form: Format, opcode: int, narrow: Disassembler, wide: Disassembler) -> str | None:
    """'mnemonic<TAB>written<TAB>read' or None where the chip has no such instruction."""
    best = next(decodings(narrow, form, opcode), None)
    if best is None:
        return None
    _, text, fields = best
    name = text.split(" ")[0]
    name = re.sub(r"_(e32|e64)$", "", name)
    here = widths(text)
    other = next(decodings(wide, form, opcode), None)
    there = widths(other[1]) if other else here
    operands = [part.strip() for part in text.partition(" ")[2].split(",")]
    written, read = [], []
    for field in fields:
        number = field.value - 256 if field.value >= 256 else field.value
        if number not in here or (field.value >= 256):
            continue
        width = f"{here[number]}" if here[number] == there.get(number) else "w"
        position = next((index for index, part in enumerate(operands) if re.match(rf"s(\[{number}:|{number}$)", part)), -1)
        destination = field.name in ("sdst", "vdst") or (field.name == "sdata" and writes_memory_result(name))
        if form.name == "SOPK" and (name.startswith(("s_cmpk", "s_setreg", "s_waitcnt"))):
            destination = False
        if form.name in ("SOP1", "SOPK") and field.name == "sdst" and position != 0:
            destination = False
        (written if destination else read).append(f"{field.name}:{width}")
        if destination and form.name == "SMEM" and "atomic" in name:
            read.append(f"{field.name}:{width}")
    if form.name in ("VOP2", "VOPC", "VOP3", "VOP1"):
        if name.startswith("v_cmpx"):
            written = ["exec:w"]
        elif (
            len(operands) > (1 if form.name != "VOPC" else 0) and operands[1 if form.name != "VOPC" else 0].startswith("vcc") and form.name != "VOP3"
        ):
            written.append("vcc:w")
    return f"{name}\t{' '.join(written) or '-'}\t{' '.join(read) or '-'}"


def writes_memory_result(name: str) -> bool:
    return not name.startswith(("s_store", "s_buffer_store", "s_scratch_store", "s_dcache", "s_atc_probe"))


def main() -> None:
    loaded, library = open_library(sys.argv[1])
    if not library.trusted:
        sys.exit(f"LLVM {library.version} misdecodes what newer compilers write: {GOOD} or newer is needed")
    narrow = {key: Disassembler(loaded, chip, "+wavefrontsize32,-wavefrontsize64") for key, chip in CHIPS.items()}
    wide = {key: Disassembler(loaded, chip, "-wavefrontsize32,+wavefrontsize64") for key, chip in CHIPS.items()}
    alike = {chip: (Disassembler(loaded, chip, "+wavefrontsize32,-wavefrontsize64"), twin) for chip, twin in ALIKE.items()}
    print(f"# Made by tools/opcodes.py with LLVM {library.version}; do not edit.")
    print("# chips: a gfx1010; b gfx1011, gfx1012; c gfx1013; d gfx1030 to gfx1036. w: as wide as the wave's mask.")
    print("encoding\topcode\tmnemonic\tchips\twritten\tread")
    for form in FORMATS:
        for opcode in range(form.opcodes):
            rows: dict[str, str] = {}
            for key in CHIPS:
                row = describe(form, opcode, narrow[key], wide[key])
                if row:
                    rows[row] = rows.get(row, "") + key
            for chip, (disassembler, twin) in alike.items():
                letter = next(key for key, name in CHIPS.items() if name == twin)
                own = next(decodings(disassembler, form, opcode), (0, "", ()))[1]
                same = next(decodings(narrow[letter], form, opcode), (0, "", ()))[1]
                if own != same:
                    sys.exit(f"{chip} is not like {twin}: {form.name} {opcode}: {own!r}, {same!r}")
            for row, chips in rows.items():
                name, written, read = row.split("\t")
                print(f"{form.name}\t{opcode}\t{name}\t{chips}\t{written}\t{read}")


if __name__ == "__main__":
    main()
