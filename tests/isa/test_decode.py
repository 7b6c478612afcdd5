"""The opcode table and the decoder: held against a real LLVM where one is found, and against any bytes."""

from __future__ import annotations

import random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch.errors import RocmPatchError
from rocm_patch.isa import chips, table
from rocm_patch.isa.decode import NONE, decode
from rocm_patch.isa.llvm import Disassembler, find, open_library


def test_the_table_says_what_the_chips_differ_in() -> None:
    opcodes = table.load()
    lacks = opcodes.where(lambda name: name.startswith("v_dot"))
    known = opcodes.known
    assert numpy.count_nonzero(lacks) >= 9
    assert not known["a"][lacks].any()
    assert known["b"][lacks].all()
    assert known["d"][lacks].all()
    newer = opcodes.where(lambda name: name in ("global_atomic_csub", "global_load_dword_addtid", "v_fma_legacy_f32"))
    assert not (known["a"][newer] == known["d"][newer]).any()
    older = opcodes.where(lambda name: name in ("s_store_dword", "s_atomic_add", "v_mac_f32", "s_get_waveid_in_workgroup"))
    assert numpy.count_nonzero(older) == 5  # v_mac_f32 has a long form
    assert not known["d"][older].any()


@pytest.mark.parametrize(
    ("chip", "letter"),
    [
        ("gfx1010", "a"),
        ("gfx1010:xnack-", "a"),
        ("gfx1012", "b"),
        ("gfx1036", "d"),
        ("gfx10-3-generic", "d"),
        ("gfx10-1-generic", "a"),
        ("gfx900", None),
        ("gfx1100", None),
    ],
)
def test_chips_by_letter(chip: str, letter: str | None) -> None:
    assert chips.letter(chip) == letter


def walk(words: numpy.ndarray, start: int, end: int) -> list[tuple[int, int]]:
    """One stretch, by asking for each instruction alone."""
    found = []
    at = start
    while at < end:
        one = decode(numpy.append(words[at:], numpy.zeros(6, numpy.uint32)), numpy.array([0]), numpy.array([1]))
        assert one.at.tolist() == [0]
        found.append((at, int(one.length[0])))
        at += int(one.length[0])
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0xD5000000, 0x000000FF, 0xBE8003FF, 0xF0800F06, 0x02FF, 0x7E0002F9, 0xBF800000])),
        min_size=1,
        max_size=60,
    ),
    st.data(),
)
def test_the_walk_takes_one_instruction_after_the_other(values: list[int], data: st.DataObject) -> None:
    words = numpy.array(values, numpy.uint32)
    cut = data.draw(st.integers(0, len(values)))
    starts, ends = [0], [len(values)]
    if 0 < cut < len(values):
        starts, ends = [0, cut], [cut, len(values)]
    found = decode(words, numpy.array(starts), numpy.array(ends))
    expected = [pair for start, end in zip(starts, ends, strict=True) for pair in walk(words, start, end)]
    assert list(zip(found.at.tolist(), found.length.tolist(), strict=True)) == expected


def random_instruction(chance: random.Random) -> bytes:
    heads = (0x80000000, 0xB0000000, 0xBE800000, 0xBF000000, 0xBF800000, 0xF4000000, 0x7E000000, 0x00000000, 0x7C000000)
    wide = (0xD4000000, 0xCC000000, 0xD8000000, 0xDC000000, 0xDC008000, 0xE0000000, 0xE8000000, 0xF0000000)
    head = chance.choice(heads + wide)
    words = [
        head | chance.getrandbits(26),
        chance.getrandbits(32) & chance.choice((0xFFFFFFFF, 0x01FF01FF, 0x007D0303)),
        chance.getrandbits(32),
        0,
        0,
    ]
    if head < 0x80000000 and words[0] & 0x1FF in (249, 250, 233, 234):
        words[0] ^= 0x100  # LLVM 23 dies of a signal on random SDWA words: one more reason not to have it in our process
    return b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize("chip", ["gfx1010", "gfx1011", "gfx1013", "gfx1030"])
def test_lengths_and_names_are_those_of_llvm(chip: str) -> None:
    libraries = find()
    if not libraries:
        pytest.skip("no LLVM on this machine: rocm_patch.isa.llvm.find() looked for libLLVM")
    loaded = None
    for library in libraries:
        try:
            loaded, library = open_library(library.path)
            break
        except RocmPatchError:
            continue
    if loaded is None:
        pytest.skip("none of the LLVMs on this machine has the AMDGPU disassembler")
    llvm = Disassembler(loaded, chip)
    chance = random.Random(f"{chip} 1")
    opcodes = table.load()
    letter = chips.letter(chip)
    assert letter
    compared = 0
    for _ in range(20_000):
        data = random_instruction(chance)
        length, text = llvm.one(data)
        if not length:
            continue  # operands that do not fit the opcode; what is no opcode at all is compared when the table is made
        if data[3] >> 3 in (0xE0 >> 3, 0xE8 >> 3) and data[7] == 255:
            continue  # LLVM reads a literal for a buffer's offset here; the manuals have none in this place
        name = text.split()[0]
        for ending in ("_e32", "_e64", "_sdwa", "_dpp", "_dpp8", "_e64_dpp"):
            name = name.removesuffix(ending)
        found = decode(numpy.frombuffer(data, "<u4"), numpy.array([0]), numpy.array([1]))
        assert found.encoding[0] != NONE, text
        assert (4 * int(found.length[0]), opcodes.name(int(found.opcode[0]), letter)) == (length, name), text
        compared += 1
    assert compared > 2_000
