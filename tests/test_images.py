"""Reading targets out of libraries: bundles built here from a readable description, and hostile bytes."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorded_machines import MACHINES
from rocm_patch import images, knowledge, machine
from rocm_patch.images import fatbin
from rocm_patch.model import FormatError
from rocm_patch.root import Root


def bundle(*entries):
    """An offload bundle as the Clang documentation lays it out: magic, count, then offset, size, id of each entry."""
    head = 32 + sum(24 + len(name) for name, _ in entries)
    table, body = b"", b""
    for name, data in entries:
        table += struct.pack("<QQQ", head + len(body), len(data), len(name)) + name.encode()
        body += data
    return fatbin.BUNDLE + struct.pack("<Q", len(entries)) + table + body


def elf(section):
    """A little-endian ELF64 with one section called .hip_fatbin."""
    names = b"\0.hip_fatbin\0.shstrtab\0"
    offset = 64
    table = offset + len(section) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    rows = bytes(64)
    rows += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, offset, len(section), 0, 0, 16, 0)
    rows += struct.pack("<IIQQQQIIQQ", 13, 3, 0, 0, offset + len(section), len(names), 0, 0, 1, 0)
    return header + section + names + rows


HOST = ("host-x86_64-unknown-linux-gnu--", b"")


def test_targets_of_all_bundles_are_added_up():
    one = bundle(HOST, ("hipv4-amdgcn-amd-amdhsa--gfx1030", b"12345678"), ("hipv4-amdgcn-amd-amdhsa--gfx1010:xnack-", b"1234"))
    two = bundle(HOST, ("hipv4-amdgcn-amd-amdhsa--gfx1030", b"12"))
    data = elf(one + bytes(-len(one) % 4096) + two)
    place = fatbin.section(io.BytesIO(data))
    assert place is not None
    assert fatbin.targets(io.BytesIO(data), *place) == ({"gfx1030": 10, "gfx1010": 4}, 0)


def test_compressed_bundles_are_counted_and_not_called_empty():
    data = bundle(HOST, ("hipv4-amdgcn-amd-amdhsa--gfx1030", b"12345678"))
    data += bytes(-len(data) % 8) + fatbin.COMPRESSED + bytes(60)
    assert fatbin.targets(io.BytesIO(data), 0, len(data)) == ({"gfx1030": 8}, 1)


def test_a_magic_on_the_border_of_two_reads_is_found(monkeypatch):
    monkeypatch.setattr(fatbin, "_CHUNK", 64)
    body = bundle(("hipv4-amdgcn-amd-amdhsa--gfx1010", b"x"))
    for shift in range(40, 64, 8):
        data = bytes(shift) + body
        assert fatbin.targets(io.BytesIO(data), 0, len(data)) == ({"gfx1010": 1}, 0), shift


@pytest.mark.parametrize(
    "data",
    [
        fatbin.BUNDLE,
        fatbin.BUNDLE + struct.pack("<Q", 1 << 60),
        fatbin.BUNDLE + struct.pack("<Q", 1) + struct.pack("<QQQ", 0, 1, 1 << 40),
        fatbin.BUNDLE + struct.pack("<Q", 1) + struct.pack("<QQQ", 1 << 50, 1 << 50, 4) + b"host",
    ],
)
def test_bundles_that_lie_are_refused(data):
    with pytest.raises(FormatError):
        fatbin.targets(io.BytesIO(data), 0, len(data))


@given(st.binary(max_size=400), st.booleans())
def test_only_our_error_leaves_the_reader(data, real):
    stream = io.BytesIO(elf(b"")[:64] + data if real else data)
    try:
        place = fatbin.section(stream)
        if place:
            fatbin.targets(stream, *place)
    except FormatError as error:
        assert error.what


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        ("hipv4-amdgcn-amd-amdhsa--gfx1010:xnack-", "gfx1010"),
        ("hip-amdgcn-amd-amdhsa--gfx90a:sramecc+:xnack-", "gfx90a"),
        ("hipv4-amdgcn-amd-amdhsa--gfx10-3-generic", "gfx10-3-generic"),
        ("host-x86_64-unknown-linux-gnu--", None),
    ],
)
def test_entry_names_are_cut_at_the_colon(entry, target):
    assert fatbin.target_of(entry) == target


@pytest.mark.parametrize(("content", "store", "unread"), [(b"not an ELF", {}, True), (None, {"gfx1010"}, False)])
def test_a_library_of_a_torch_is_read(copy_of, content, store, unread):
    root = copy_of("rx5600xt-ubuntu2404-mission")
    site = root / "home/user/cnn-training/venv/lib/python3.12/site-packages/torch/lib"
    site.mkdir(parents=True, exist_ok=True)
    data = elf(bundle(HOST, ("hipv4-amdgcn-amd-amdhsa--gfx1010", b"code"))) if content is None else content
    (site / "libtorch_hip.so").write_bytes(data)
    tables = knowledge.load()
    found = machine.collect(Root(str(root)), tables)
    first = images.scan(Root(str(root)), found, tables).files[0]
    assert first.store == "fatbin"
    assert set(first.targets) == set(store)
    assert bool(first.unread) is unread


def test_a_recorded_tree_without_libraries_is_judged_by_names():
    tables = knowledge.load()
    root = Root(str(MACHINES / "rx5700xt-native"))
    code = images.scan(root, machine.collect(root, tables), tables)
    assert [(item.store, set(item.targets)) for item in code.files] == [("package name", {"gfx1010"})]
