"""Initramfs images read without a tool: chains of archives, packed in every way, damaged ones refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import subprocess

import pytest
from kernel_support import archive, image

from rocm_patch.changes import unpack
from rocm_patch.errors import FormatError, RocmPatchError

FILES = {"init": b"#!/bin/sh\n", "etc/modprobe.d/zz-rocm-patch.conf": b"options amdgpu noretry=0\n", "lib/x.ko": b"x" * 7001}
OURS = "etc/modprobe.d/zz-rocm-patch.conf"


def by_program(*argv):
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} is not installed")
    return lambda data: subprocess.run(argv, input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("scheme", ["plain", "gzip", "xz", "xz as the kernel takes it", "lzma", "bzip2", "zstd", "lz4"])
def test_every_packing(scheme, early):
    packed = {
        "plain": lambda: bytes,
        "gzip": lambda: gzip.compress,
        "xz": lambda: lzma.compress,
        "xz as the kernel takes it": lambda: lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
        "lzma": lambda: lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
        "bzip2": lambda: bz2.compress,
        "zstd": lambda: by_program("zstd", "-cq"),
        "lz4": lambda: by_program("lz4", "-lcq"),
    }[scheme]()
    found = unpack.contents(image(FILES, early, packed), (OURS,))
    assert found.names == {*FILES, *(["kernel/x86/microcode/AuthenticAMD.bin"] if early else [])}
    assert found.files == {OURS: FILES[OURS]}


def test_hard_links_carry_their_bytes_once():
    """cpio writes the content with the last name only."""
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    two = bytearray(archive({"a": b"", OURS: b"text"}))
    two[6:14] = two[two.index(b"070701", 10) + 6 : two.index(b"070701", 10) + 14]
    assert unpack.contents(bytes(two), ("a", OURS)).files == {"a": b"text", OURS: b"text"}


def test_the_same_as_cpio_says(tmp_path):
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    listing = subprocess.run(["find", ".", "-print"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    made = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=tmp_path, input=listing.encode(), capture_output=True, check=True).stdout
    found = unpack.contents(gzip.compress(made), (OURS,))
    assert {name for name in found.names if name not in ("", ".")} == {line.removeprefix("./") for line in listing.split() if line != "."}
    assert found.files[OURS] == FILES[OURS]


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 600, b"not an image at all" * 40, image(FILES)[:-9], image(FILES, packed=bytes)[:-60], b"070701" + b"Z" * 200, archive({})[:30]],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(FormatError):
        unpack.contents(data)


def test_damaged_images_end_in_errors_of_ours():
    dice, whole = random.Random(3), image(FILES, packed=bytes)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(whole)
        for _ in range(dice.randrange(1, 5)):
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        try:
            unpack.contents(bytes(mutant), (OURS,))
        except RocmPatchError:
            refused += 1
    assert refused > 100


def test_a_bomb_does_not_go_off():
    with pytest.raises(FormatError, match="becomes more than"):
        unpack.expand(gzip.compress(bytes(unpack.FLOOR + 1)))


def test_a_real_image_as_lsinitramfs_lists_it():
    if not shutil.which("lsinitramfs"):
        pytest.skip("initramfs-tools is not installed")
    path = next((f"/boot/{name}" for name in sorted(os.listdir("/boot")) if name.startswith("initrd.img-")), "")
    if not path or not os.access(path, os.R_OK):
        pytest.skip("no initramfs here that can be read")
    with open(path, "rb") as file:
        found = unpack.contents(file.read())
    listed = set(subprocess.run(["lsinitramfs", path], capture_output=True, text=True, check=True).stdout.split("\n")) - {"", "."}
    assert found.names - {"", "."} == listed


def test_a_negative_size_is_no_way_round_in_a_circle():
    """240 bytes whose first member says that it ends where it begins."""
    data = bytearray(archive({"abc": b""}))
    data[54:62] = b"-0000074"
    with pytest.raises(FormatError, match="damaged"):
        unpack.contents(bytes(data))


@pytest.mark.parametrize("gap", [b"", bytes(7)])
@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress, bz2.compress])
def test_what_follows_a_compressed_archive_is_read_as_well(packed, gap):
    """The driver in the second of two was overlooked, and the image was said to hold none."""
    found = unpack.contents(packed(archive({"init": b"x"})) + gap + gzip.compress(archive(FILES)) + archive({"late": b""}), (OURS,))
    assert found.names == {*FILES, "late"}
    assert found.files == {OURS: FILES[OURS]}


@pytest.mark.parametrize("argv", [("zstd", "-cq"), ("lz4", "-lcq"), ("lz4", "-cq")])
def test_what_was_not_read_to_its_end_is_refused(argv):
    """A program gives what it could read, and does not say where that ended."""
    first = by_program(*argv)(archive({"init": b"x"}))
    try:
        names = unpack.contents(first + archive(FILES)).names
    except FormatError:
        return
    assert names >= FILES.keys()


def test_more_members_and_pieces_than_any_image_has():
    one = archive({"a": b""})
    member = one[: one.index(b"070701", 6)]
    with pytest.raises(FormatError, match="more than 100000 files"):
        unpack.contents(gzip.compress(member * 100_001 + one))
    with pytest.raises(FormatError, match="more than 64 archives"):
        unpack.contents(one + gzip.compress(b"") * 800_000)
