"""Offload bundles, plain and compressed, in libraries and alone: what is found, what is told, what hostile ones may do."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import build
from rocm_patch.errors import FormatError
from rocm_patch.images import fatbin, flow, inflate
from rocm_patch.images.source import Bytes, Unread

TWO = {target: build.elf_object(target) for target in ("gfx1010:xnack-", "gfx1030")}


def scanned(data):
    """Targets with their bytes as found, and the reasons."""
    code, unread = [], []
    for item in fatbin.read(Bytes(data), "lib.so"):
        if isinstance(item, Unread):
            unread.append(item.why)
        else:
            code.append((item.store, item.inside, item.target, item.data.read(0, item.data.size)))
    return code, unread


def test_all_bundles_of_a_section_are_read():
    one, two = build.plain_bundle(TWO), build.plain_bundle({"gfx10-3-generic": b"code", "spirv": b"module"})
    code, unread = scanned(build.library(one + bytes(-len(one) % 4096) + two))
    assert unread == []
    assert [(store, inside, target) for store, inside, target, _ in code] == [
        ("fatbin", ".hip_fatbin[0]", "gfx1010:xnack-"),
        ("fatbin", ".hip_fatbin[0]", "gfx1030"),
        ("fatbin", ".hip_fatbin[1]", "gfx10-3-generic"),
        ("fatbin", ".hip_fatbin[1]", "spirv"),
    ]
    assert [data for *_, data in code] == [*TWO.values(), b"code", b"module"]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_compressed_bundles_of_every_version(version, method):
    packed = build.compressed_bundle(TWO, version, method)
    section = packed + bytes(-len(packed) % 4096) + build.plain_bundle({"gfx1012": b"more"})
    code, unread = scanned(build.library(section))
    assert unread == []
    assert [(store, target, data) for store, _, target, data in code] == [
        ("compressed fatbin", "gfx1010:xnack-", TWO["gfx1010:xnack-"]),
        ("compressed fatbin", "gfx1030", TWO["gfx1030"]),
        ("fatbin", "gfx1012", b"more"),
    ]


@pytest.mark.parametrize("data", [build.plain_bundle(TWO), build.compressed_bundle(TWO)])
def test_a_bundle_may_be_a_file_of_its_own(data):
    assert fatbin.recognise("kernels.hipfb", data[:64])
    assert [target for _, _, target, _ in scanned(data)[0]] == list(TWO)


def test_a_windows_library():
    bundle = build.plain_bundle(TWO)
    head = b"MZ" + bytes(58) + struct.pack("<I", 64) + struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 0, 0)
    head += struct.pack("<8sIIIIIIHHI", b".hip_fat", len(bundle), 0x1000, len(bundle), 4096, 0, 0, 0, 0, 0)
    code, unread = scanned(head + bytes(4096 - len(head)) + bundle)
    assert [target for _, _, target, _ in code] == list(TWO)
    assert unread == []


def test_magics_in_code_are_no_bundles():
    inner = b"x" * 8 + build.MAGIC + b"CCOB" + bytes(100)
    code, unread = scanned(build.library(build.plain_bundle({"gfx1010": inner, "gfx1030": b"y"})))
    assert [target for _, _, target, _ in code] == ["gfx1010", "gfx1030"]
    assert unread == []


def test_a_broken_bundle_is_told_and_the_rest_is_read():
    broken = build.MAGIC + struct.pack("<Q", 1 << 60)
    good = build.plain_bundle({"gfx1010": b"code"})
    code, unread = scanned(build.library(broken + bytes(4096 - len(broken)) + good))
    assert [target for _, _, target, _ in code] == ["gfx1010"]
    assert unread == [f"a bundle that claims {1 << 60} entries"]


@pytest.mark.parametrize(
    "data",
    [
        build.MAGIC,
        build.MAGIC + struct.pack("<Q", 1) + struct.pack("<QQQ", 0, 1, 1 << 40),
        build.MAGIC + struct.pack("<QQQQ", 1, 1 << 50, 1 << 50, 8) + b"-gfx1010",
        build.MAGIC + struct.pack("<QQQQ", 1, 32, 4, 6) + b"nvptx!",
        b"CCOB" + bytes(60),
        b"CCOB" + struct.pack("<HHQQQ", 3, 1, 1 << 40, 10, 0) + bytes(60),
        b"CCOB" + struct.pack("<HHQQQ", 3, 1, 64, 10, 0) + bytes(60),
        b"CCOB" + struct.pack("<HHIQ", 1, 7, 10, 0) + bytes(60),
        build.compressed_bundle(b"not a bundle at all, and long enough"),
        build.compressed_bundle(TWO)[:-30],
    ],
)
def test_bundles_that_lie_are_told(data):
    code, unread = scanned(data)
    assert code == []
    assert len(unread) >= 1


def test_a_stream_that_ends_early_gives_what_came_before():
    packed = bytearray(build.compressed_bundle({"gfx1010": b"first", "gfx1030": bytes(range(256)) * 4000}, 3, "zlib"))
    del packed[-200:]
    packed[8:16] = struct.pack("<Q", len(packed))
    items = fatbin.read(Bytes(bytes(packed)), "")
    assert next(items).data.read(0, 5) == b"first"
    second = next(items)
    with pytest.raises(FormatError, match="middle"):
        second.data.read(0, 1)


def test_entries_that_overlap_in_a_stream_are_told_when_read():
    data = bytearray(build.plain_bundle({"gfx1010": b"a" * 64, "gfx1030": b"b" * 64}))
    second = data.index(struct.pack("<QQ", 8192, 64))
    data[second : second + 8] = struct.pack("<Q", 4100)
    items = fatbin.read(Bytes(build.compressed_bundle(bytes(data))), "")
    assert next(items).data.read(0, 64) == b"a" * 64
    with pytest.raises(FormatError, match="overlaps"):
        next(items).data.read(0, 64)


def test_what_nobody_reads_is_not_unpacked(monkeypatch):
    def refuse(self, count):
        raise AssertionError(count)

    monkeypatch.setattr(flow.Flow, "take", refuse)
    items = list(fatbin.read(Bytes(build.compressed_bundle(TWO)), ""))
    assert [(item.target, item.data.size) for item in items] == [(target, len(data)) for target, data in TWO.items()]


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_a_decompression_bomb_is_stopped(method, monkeypatch):
    monkeypatch.setattr(inflate, "FLOOR", 1 << 16)
    size = 400 << 20
    head = build.MAGIC + struct.pack("<QQQQ", 1, 4096, size - 4096, 8) + b"-gfx1010"
    if method == "zlib":
        packer = zlib.compressobj()
        packed = packer.compress(head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    else:
        packed = build.zstd(head + bytes(size))
    data = b"CCOB" + struct.pack("<HHQQQ", 3, int(method == "zstd"), 32 + len(packed), 10, 0) + packed
    started = time.process_time()
    items = fatbin.read(Bytes(data), "")
    item = next(items)
    with pytest.raises(FormatError, match="times its size"):
        item.data.read(0, 64)
    assert time.process_time() - started < 2


def test_thousands_of_broken_bundles_end_soon():
    started = time.process_time()
    code, unread = scanned(build.library(b"CCOB\xff\xff\xff\xff" * 1_000_000))
    assert code == []
    assert len(unread) == fatbin.UNREAD_LIMIT + 1
    assert "given up" in unread[-1]
    assert time.process_time() - started < 1


def test_a_section_that_was_cut_off_is_told():
    data = build.library(build.plain_bundle(TWO))
    place = data.index(struct.pack("<Q", len(build.plain_bundle(TWO))), data.index(b".shstrtab"))
    grown = bytearray(data)
    grown[place : place + 8] = struct.pack("<Q", 1 << 40)
    code, unread = scanned(bytes(grown))
    assert code == []
    assert "cut off" in unread[0]


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        ("hipv4-amdgcn-amd-amdhsa--gfx1010:xnack-", "gfx1010:xnack-"),
        ("hip-amdgcn-amd-amdhsa--gfx90a:sramecc+:xnack-", "gfx90a:sramecc+:xnack-"),
        ("hip-amdgcn-amd-amdhsa-gfx803", "gfx803"),
        ("hip-amdgcn-amd-amdhsa-unknown-gfx906", "gfx906"),
        ("hipv4-amdgcn-amd-amdhsa--gfx10-3-generic", "gfx10-3-generic"),
        ("hip-spirv64-amd-amdhsa--amdgcnspirv", "spirv"),
        ("host-x86_64-unknown-linux-gnu--", None),
    ],
)
def test_ids_of_entries(entry, target):
    assert fatbin.target_of(entry) == target


@settings(deadline=2000, max_examples=300)
@given(
    st.sampled_from([build.library(build.plain_bundle(TWO)), build.library(build.compressed_bundle(TWO)), build.compressed_bundle(TWO, 1, "zlib")]),
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 40_000),
)
def test_changed_bytes_give_items_or_our_error(data, changes, cut):
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    whole = bytes(changed[: len(changed) - cut] if cut % 3 == 0 and cut < len(changed) else changed)
    for item in fatbin.read(Bytes(whole), "lib.so") if fatbin.recognise("lib.so", whole[:64]) else ():
        try:
            assert isinstance(item, Unread) or item.data.read(0, item.data.size) is not None
        except FormatError as error:
            assert error.what
