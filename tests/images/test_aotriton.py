"""AKS2 files built here from the published layout; older single kernels; and hostile ones."""

from __future__ import annotations

import lzma
import struct
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.build import elf_object
from rocm_patch.images import aotriton
from rocm_patch.images.source import Bytes, Code, Unread

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PATH = "torch/lib/aotriton.images/amd-gfx11xx/flash/attn_fwd/FONLY__fp16.aks2"
WAVES = [(f"attn_fwd-Sig-F__fp16__P__CO__wave{waves}--Arch_gfx1100", elf_object("gfx1100", [f"attn_fwd{waves}"])) for waves in (1, 2, 4)]


def aks2(kernels: Sequence[tuple[str, bytes]], *, size: int | None = None, count: int | None = None, directory_size: int | None = None) -> bytes:
    """The file as AOTriton's own tool lays it out; sizes can be made to lie."""
    directory, images = b"", b""
    for name, image in kernels:
        raw = name.encode() + b"\0"
        directory += struct.pack("<IIIII", 65536, 128, len(images), len(image), len(raw)) + raw
        images += image
    numbers = (
        len(directory + images) if size is None else size,
        len(kernels) if count is None else count,
        len(directory) if directory_size is None else directory_size,
    )
    return b"AKS2" + struct.pack("<III", *numbers) + lzma.compress(directory + images)


def items(data: bytes, path: str = PATH) -> list[Code | Unread]:
    return list(aotriton.read(Bytes(data), path))


def whys(data: bytes) -> list[str]:
    return [item.why for item in items(data) if isinstance(item, Unread)]


def test_every_kernel_with_its_name_target_and_bytes() -> None:
    found = items(aks2(WAVES))
    assert [(item.inside, item.target, item.data.read(0, item.data.size)) for item in found if isinstance(item, Code)] == [
        (name, "gfx1100", image) for name, image in WAVES
    ]
    assert {item.store for item in found} == {"aotriton"}
    assert len(found) == 3


def test_variants_that_did_not_compile_are_passed_over() -> None:
    assert [item.inside for item in items(aks2([("failed", b""), *WAVES[:1]]))] == [WAVES[0][0]]


def test_the_bytes_say_the_target_not_folder_or_name() -> None:
    (item,) = items(aks2([("attn--Arch_gfx1100", elf_object("gfx1103"))]))
    assert isinstance(item, Code)
    assert item.target == "gfx1103"


def test_single_kernels_of_older_wheels() -> None:
    image = elf_object("gfx90a:xnack-")
    (plain,) = items(image, "lib/aotriton.images/amd-gfx90a/a.hsaco")
    (packed,) = items(zstd.compress(image), "torch/lib/aotriton.images/amd-gfx90a/a.hsaco.zst")
    assert isinstance(plain, Code)
    assert isinstance(packed, Code)
    assert plain.target == packed.target == "gfx90a:xnack-"
    assert packed.data.read(0, packed.data.size) == image


@pytest.mark.parametrize(
    ("path", "head", "ours"),
    [
        ("x/y.aks2", b"", True),
        ("flash.zip/entry", b"AKS2" + bytes(60), True),
        ("torch/lib/aotriton.images/amd-gfx90a/a.hsaco", elf_object()[:64], True),
        ("torch/lib/aotriton.images/amd-gfx90a/a.hsaco.zst", b"\x28\xb5\x2f\xfd", True),
        ("torch/lib/aotriton.images/amd-gfx90a/a.json", b"{", False),
        ("torch/lib/libaotriton_v2.so", b"\x7fELF\x02\x01", False),
        ("elsewhere/a.hsaco", elf_object()[:64], False),
    ],
)
def test_recognised(path: str, head: bytes, ours: bool) -> None:
    assert aotriton.recognise(path, head) is ours


def test_lies_about_sizes_are_told() -> None:
    assert whys(aks2(WAVES, size=0xFFFFFFFF))[0].endswith("claim to become 4294967295")
    assert "becomes more than 100 bytes" in whys(aks2(WAVES, size=100))[0]
    assert "are promised" in whys(aks2(WAVES, size=100_000))[0]
    assert whys(aks2(WAVES, count=1 << 20)) == ["1048576 kernels"]
    assert whys(aks2(WAVES, directory_size=80)) == [f"a directory of {sum(20 + len(name) + 1 for name, _ in WAVES)} bytes where 80 are promised"]
    assert len(whys(aks2(WAVES, count=9))) == 1
    assert whys(b"AKS2") == ["cut short: 16 bytes are needed and 4 are there"]
    assert "not an xz stream" in whys(aks2(WAVES)[:16] + b"no stream at all")[0]
    assert "not an xz stream" in whys(aks2(WAVES)[:-40])[0] or "ends in the middle" in whys(aks2(WAVES)[:-40])[0]


def test_a_bomb_is_not_opened() -> None:
    assert "claim to become" in whys(b"AKS2" + struct.pack("<III", 256 << 20, 1, 24) + lzma.compress(bytes(256 << 20), preset=0))[0]


def test_a_broken_member_does_not_hide_the_others() -> None:
    found = items(aks2([WAVES[0], ("broken", b"no code object"), WAVES[1]]))
    assert [type(item) for item in found] == [Code, Unread, Code]


@settings(max_examples=200, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_mutated_files(changes: list[tuple[int, int]], within: bool) -> None:
    plain = aks2(WAVES)
    data = bytearray(lzma.decompress(plain[16:]) if within else plain)
    for place, value in changes:
        data[place % (200 if within else len(data))] = value
    for item in items(plain[:16] + lzma.compress(bytes(data)) if within else bytes(data)):
        assert isinstance(item, (Code, Unread))
        if isinstance(item, Code):
            assert len(item.data.read(0, item.data.size)) == item.data.size


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=200), st.sampled_from([PATH, "aotriton.images/a.hsaco", "aotriton.images/a.hsaco.zst"]))
def test_any_bytes(data: bytes, path: str) -> None:
    for hostile in (data, b"AKS2" + data, b"AKS2" + struct.pack("<III", len(data), 3, len(data) // 2) + lzma.compress(data)):
        assert all(isinstance(item, (Code, Unread)) for item in items(hostile, path))
