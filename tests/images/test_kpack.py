"""kpack archives built here from the published layout; and what a broken one says."""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.build import elf_object
from rocm_patch.errors import FormatError
from rocm_patch.images import code_object, kpack
from rocm_patch.images.source import Bytes, Code, Unread

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Kernels = Mapping[str, Mapping[str, bytes]]
KERNELS: Kernels = {
    "lib/librocblas.so#0": {"gfx1010": elf_object("gfx1010", ["gemm", "gemv"]), "gfx90a:xnack-": elf_object("gfx90a:xnack-")},
    "lib/librocblas.so#1": {"gfx1010": elf_object("gfx1010", ["trsm"])},
    "bin/rocfft_test#0": {"gfx10-1-generic": elf_object("gfx10-1-generic")},
}


def archive(kernels: Kernels, scheme: str = "zstd-per-kernel", **changed: Any) -> bytes:
    """An archive as the reference writer lays it out; `changed` replaces fields of the table, or removes them with None."""
    body, toc, blobs, frames = b"", {}, [], b""
    ordinal = 0
    for binary, targets in kernels.items():
        toc[binary] = {}
        for target, data in targets.items():
            toc[binary][target] = {"type": "hsaco", "ordinal": ordinal, "original_size": len(data)}
            frame = zstd.compress(data)
            frames += struct.pack("<I", len(frame)) + frame
            blobs.append({"offset": 64 + len(body), "size": len(data)})
            body += data
            ordinal += 1
    if scheme != "none":
        body = struct.pack("<I", ordinal) + frames
    table = {
        "format_version": 1,
        "group_name": "blas",
        "gfx_arch_family": "gfx101X",
        "gfx_arches": ["gfx1010"],
        "toc": toc,
        "compression_scheme": scheme,
    }
    table |= {"blobs": blobs} if scheme == "none" else {"zstd_offset": 64, "zstd_size": len(body)}
    table = {name: value for name, value in (table | changed).items() if value is not None}
    header = struct.pack("<4sIQ", b"KPAK", 1, 64 + len(body))
    return header + bytes(64 - len(header)) + body + msgpack.packb(table)


def items(data: bytes) -> list[Code | Unread]:
    return list(kpack.read(Bytes(data), "x.kpack"))


def whys(data: bytes) -> list[str]:
    return [item.why for item in items(data) if isinstance(item, Unread)]


@pytest.mark.parametrize("scheme", ["none", "zstd-per-kernel"])
def test_every_binary_and_target_with_its_bytes(scheme: str) -> None:
    found = items(archive(KERNELS, scheme))
    assert [type(item) for item in found] == [Code] * 4
    assert {(item.inside, item.target): item.data.read(0, item.data.size) for item in found if isinstance(item, Code)} == {
        (binary, target): data for binary, targets in KERNELS.items() for target, data in targets.items()
    }
    assert all(item.store == "kpack" and code_object.target(item.data) == item.target for item in found if isinstance(item, Code))


def test_known_by_magic_or_by_name() -> None:
    assert kpack.recognise("a/blob", b"KPAK" + bytes(60))
    assert kpack.recognise(".kpack/rocm-gfx1010.kpack", b"")
    assert not kpack.recognise("lib/libtorch_hip.so", b"\x7fELF")


def test_the_size_is_optional_and_is_held_against_what_comes_out() -> None:
    toc = {"lib/a.so#0": {"gfx1010": {"ordinal": 0}, "gfx1030": {"ordinal": 0, "original_size": 5}}}
    plain, lying = items(archive({"x": {"y": b"kernel"}}, toc=toc))
    assert isinstance(plain, Code)
    assert isinstance(lying, Code)
    assert plain.data.read(0, 6) == b"kernel"
    with pytest.raises(FormatError, match="becomes more than 5"):
        lying.data.read(0, 1)


def test_a_bomb_is_not_opened() -> None:
    bomb = zstd.compress(bytes(64 << 20))
    run = struct.pack("<II", 1, len(bomb)) + bomb
    for size, why in ((64 << 20, "claim to become"), (None, "becomes more than")):
        entry = {"ordinal": 0} | ({"original_size": size} if size else {})
        table = {"toc": {"a": {"gfx1010": entry}}, "compression_scheme": "zstd-per-kernel", "zstd_offset": 16, "zstd_size": len(run)}
        (code,) = items(struct.pack("<4sIQ", b"KPAK", 1, 16 + len(run)) + run + msgpack.packb(table))
        assert isinstance(code, Code)
        with pytest.raises(FormatError, match=why):
            code.data.read(0, 1)


def test_what_is_not_known_is_told() -> None:
    assert whys(archive(KERNELS, compression_scheme="lz4-block")) == ["the compression 'lz4-block' is not known"]
    assert whys(archive(KERNELS, toc=None)) == ["no table of contents"]
    assert f"cut short: {(1 << 40) + 64} bytes" in whys(archive(KERNELS, zstd_size=1 << 40))[0]
    assert whys(archive(KERNELS)[:4] + struct.pack("<I", 2) + archive(KERNELS)[8:]) == ["a kpack archive of version 2; known is 1"]
    assert whys(b"KPAK") == ["cut short: 16 bytes are needed and 4 are there"]
    assert whys(archive(KERNELS, toc={"a": {"gfx1010": {"ordinal": 9}}})) == ["gfx1010: blob 9 of 4"]
    assert whys(archive(KERNELS, toc={"a": {"gfx1010": {"ordinal": 0, "type": "spirv"}}})) == ["gfx1010: code of the unknown kind 'spirv'"]


def test_what_stands_before_a_broken_blob_is_read() -> None:
    data = bytearray(archive(KERNELS))
    second = 64 + 4 + 4 + int.from_bytes(data[68:72], "little")
    data[second : second + 4] = b"\xff\xff\xff\x7f"
    found = items(bytes(data))
    assert [type(item) for item in found] == [Code, Unread, Unread, Unread]
    assert [item.why for item in found if isinstance(item, Unread)] == [
        "gfx90a:xnack-: blob 1 of 1",
        "gfx1010: blob 2 of 1",
        "gfx10-1-generic: blob 3 of 1",
    ]


def test_a_thousand_broken_members_are_counted() -> None:
    toc = {f"lib/{number}.so#0": {"gfx1010": {"ordinal": 1 << 40}} for number in range(1000)}
    assert len(whys(archive(KERNELS, toc=toc))) == 65
    assert whys(archive(KERNELS, toc=toc))[-1] == "936 more could not be read"


def test_a_table_of_empty_parts_does_not_fill_the_memory() -> None:
    header = struct.pack("<4sIQ", b"KPAK", 1, 16)
    assert whys(header + b"\xdd" + struct.pack(">I", 1 << 20) + b"\x80" * (1 << 20)) == ["a table of more than 262144 parts"]
    assert whys(header + bytes(5 << 20)) == [f"{5 << 20} bytes of table of contents"]
    assert "not a MessagePack table" in whys(header + b"\x91" * 5000)[0]


def opened(data: bytes) -> None:
    """Everything that a scan would do with the archive; only FormatError may leave."""
    for item in items(data):
        assert isinstance(item, (Code, Unread))
        if isinstance(item, Code):
            with contextlib.suppress(FormatError):
                item.data.read(0, item.data.size)


VALID = [archive(KERNELS, scheme) for scheme in ("none", "zstd-per-kernel")]


@settings(max_examples=300, deadline=2000)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=12), st.integers(0, 64))
def test_mutated_archives(valid: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(valid)
    for place, value in changes:
        data[place % len(data)] = value
    opened(bytes(data[: len(data) - cut]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=8) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=2000)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("toc", "compression_scheme", "blobs", "zstd_offset", "zstd_size"), VALUES)))
def test_tables_of_anything(changed: dict[str, Any]) -> None:
    for scheme in ("none", "zstd-per-kernel"):
        opened(archive(KERNELS, scheme, **changed))


@settings(max_examples=100, deadline=2000)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    opened(data)
    opened(struct.pack("<4sIQ", b"KPAK", 1, 16) + data)
