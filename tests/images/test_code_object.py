"""Code objects: targets, kernels, functions, and what hostile ones may do."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import build
from rocm_patch.errors import FormatError
from rocm_patch.images import code_object
from rocm_patch.images.source import Bytes


@pytest.mark.parametrize(
    "target", ["gfx1010", "gfx1010:xnack-", "gfx1012:xnack+", "gfx90a:sramecc+:xnack-", "gfx10-1-generic", "gfx10-3-generic", "gfx1036"]
)
def test_the_target_is_read_from_the_flags(target):
    assert code_object.target(Bytes(build.elf_object(target))) == target


def test_old_objects_state_features_in_other_bits():
    data = bytearray(build.elf_object("gfx906", abi_version=1))
    data[48:52] = struct.pack("<I", 0x2F | 0x300)
    assert code_object.target(Bytes(bytes(data))) == "gfx906:sramecc+:xnack+"


def test_kernels_and_their_instructions():
    text = bytes(range(48))
    found = code_object.read(Bytes(data := build.elf_object("gfx1030", ["alpha", "beta", "gamma"], text)))
    assert found.kernel_names == ("alpha", "beta", "gamma")
    assert found.kernels == 3
    assert [function.kernel for function in found.functions] == [True] * 3
    assert b"".join(data[function.offset : function.offset + function.size] for function in found.functions) == text
    assert (found.text_address, found.text_size) == (0x1000, 48)
    assert data[found.text_offset : found.text_offset + 48] == text


def sections(*code, kind=1, flags=6):
    """A code object of executable sections (address, bytes), without symbols."""
    return build.elf([(".text", kind, flags, address, data, 0) for address, data in code], machine=224, flags=0x33, abi=64, abi_version=2)


def move(data, number, *, offset):
    """The object with section `number` (the first is 1) at another offset in the file."""
    [table] = struct.unpack_from("<Q", data, 40)
    place = table + 64 * number + 24
    return data[:place] + struct.pack("<Q", offset) + data[place + 8 :]


def test_all_sections_of_code_are_told_in_file_order():
    data = sections((0x2000, b"a" * 8), (0x1000, b""), (0x1000, b"b" * 4))
    swapped = move(move(data, 1, offset=128), 3, offset=64)
    assert code_object.read(Bytes(data)).code == ((64, 0x2000, 8), (128, 0x1000, 4))
    assert code_object.read(Bytes(swapped)).code == ((64, 0x1000, 4), (128, 0x2000, 8))
    assert code_object.read(Bytes(sections((0, b"abcd"), flags=2))).code == ()
    assert code_object.read(Bytes(sections((0, b"abcd"), kind=8))).code == ()


def test_sections_of_code_over_each_other_beyond_the_file_or_without_number_are_refused():
    data = sections((0, b"a" * 8), (0, b"b" * 8))
    for changed, why in (
        (move(data, 2, offset=64), "over each other"),
        (move(data, 2, offset=71), "over each other"),
        (move(data, 1, offset=len(data) - 4), "beyond the file"),
        (move(data, 1, offset=2**64 - 4), "beyond the file"),
        (sections(*[(0, b"abcd")] * (code_object.CODE_LIMIT + 1)), "4097 sections"),
    ):
        with pytest.raises(FormatError, match=why):
            code_object.read(Bytes(changed))


def test_a_function_without_a_size_lasts_until_the_next_symbol():
    data = bytearray(build.elf_object("gfx1010", ["a", "b"], bytes(64)))
    table = data.index(struct.pack("<QQ", 0x1000, 32)) - 8
    assert table > 0
    for value in (0x1000, 0x1020):
        place = data.index(struct.pack("<QQ", value, 32))
        data[place + 8 : place + 16] = bytes(8)
    assert [(f.address, f.size) for f in code_object.read(Bytes(bytes(data))).functions] == [(0x1000, 32), (0x1020, 32)]


def test_counting_agrees_with_reading_and_is_fast():
    names = [f"_ZN7rocprim6detail{'x' * 60}{number}" for number in range(6000)]
    source = Bytes(build.elf_object("gfx1010", names))
    assert code_object.count(source) == ("gfx1010", 6000)
    started = time.process_time()
    for _ in range(20):
        code_object.count(source)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("data", [b"", b"\x7fELF", build.elf([]), build.elf_object()[:100]])
def test_what_is_no_code_object_is_refused(data):
    with pytest.raises(FormatError):
        code_object.read(Bytes(data))


def test_an_unknown_processor_is_named():
    data = bytearray(build.elf_object())
    data[48] = 0xEE
    with pytest.raises(FormatError, match="0xee"):
        code_object.count(Bytes(bytes(data)))


def test_a_table_of_overlapping_names_ends_soon():
    strings = b"\0" + b"a" * 60_000 + b".kd\0"
    symbols = bytes(24) + b"".join(struct.pack("<IBBHQQ", 1 + n % 60_000, 1, 0, 1, 0, 0) for n in range(400_000))
    data = build.elf([(".dynsym", 11, 2, 0, symbols, 2), (".dynstr", 3, 2, 0, strings, 0)], machine=224, flags=0x33, abi=64, abi_version=2)
    started = time.process_time()
    assert code_object.count(Bytes(data)) == ("gfx1010", 400_000)
    with pytest.raises(FormatError, match="names"):
        code_object.read(Bytes(data))
    assert time.process_time() - started < 2


@settings(deadline=2000, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12), st.integers(0, 2000))
def test_changed_bytes_give_an_answer_or_our_error(changes, cut):
    data = bytearray(build.elf_object("gfx1010", ["alpha", "beta"], bytes(32)))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = code_object.read(Bytes(bytes(data[: len(data) - cut] if cut < 200 else data)))
    except FormatError:
        return
    assert found.target.startswith("gfx")
