"""Which code a chip would run, judged by children; what was judged is not judged again."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from images.build import S_ENDPGM, compressed_bundle, elf_object, library, plain_bundle
from rocm_patch import safety
from rocm_patch.images import rows, walk
from rocm_patch.isa.llvm import find
from rocm_patch.model import Image, TargetCode
from rocm_patch.safety import Chip, judge, kernels, loaded, summed

PREFETCH = struct.pack("<I", 0xBFA00003)
NAVI10 = Chip("gfx1010", "gfx10-1-generic")
FORCED = Chip("gfx1010", "gfx10-1-generic", "10.3.0", "gfx1030", "gfx10-3-generic")


def code(target: str, text: bytes = b"", names: tuple[str, ...] = ("kernel",)) -> bytes:
    return elf_object(target, names, text + S_ENDPGM)


def row(*targets: str) -> Image:
    return Image("x", "", "fatbin", dict.fromkeys(targets, TargetCode(1, 1)), ())


@pytest.mark.parametrize(
    ("targets", "chip", "expected"),
    [
        (("gfx1010:xnack-", "gfx1030"), NAVI10, ("gfx1010",)),
        (("gfx1010", "gfx1030"), FORCED, ("gfx1030",)),
        (("gfx10-1-generic", "gfx1030"), NAVI10, ("gfx10-1-generic",)),
        (("gfx1030", "gfx1100"), NAVI10, ("gfx1030",)),
        (("gfx10-3-generic",), FORCED, ("gfx10-3-generic",)),
        (("gfx1010",), FORCED, ()),
        (("gfx1100",), NAVI10, ()),
        (("gfx1100",), Chip("gfx1010", "", "11.0.0", "gfx1100"), ()),
        ((), NAVI10, ()),
    ],
)
def test_what_would_be_loaded(targets: tuple[str, ...], chip: Chip, expected: tuple[str, ...]) -> None:
    assert loaded([row(*targets)], chip) == expected


def scanned(path: Path) -> tuple[Image, ...]:
    return tuple(image for candidate in walk.candidates([str(path)]) for image in rows.images(candidate.path))


def test_the_loaded_code_decides(tmp_path: Path) -> None:
    data = library(plain_bundle({"gfx1010": code("gfx1010"), "gfx1030": code("gfx1030", PREFETCH)}))
    path = tmp_path / "libx.so"
    path.write_bytes(data)
    rows = scanned(path)
    (native,) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert (native.safety["gfx1010"].certain, native.safety["gfx1010"].code) == (0, "gfx1010")
    found = list(judge(rows, FORCED))
    (forced,) = summed(rows, found, FORCED)
    assert (forced.safety["gfx1010"].certain, forced.safety["gfx1010"].unsafe, forced.safety["gfx1010"].functions) == (1, 1, 1)
    assert dict(forced.safety["gfx1010"].rules) == {"inst-prefetch": 1}
    assert [(kernel.name, kernel.target) for kernel in kernels(found)] == [("kernel", "gfx1030")]
    assert path.read_bytes() == data


def test_members_of_a_wheel_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "x-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("x/liba.so", library(compressed_bundle({"gfx1010": code("gfx1010"), "gfx1030": code("gfx1030", PREFETCH)})))
        wheel.writestr("x/libb.so", library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH * 2)})))
    rows = scanned(path)
    found = {image.inside: image.safety["gfx1010"].certain for image in summed(rows, judge(rows, NAVI10), NAVI10)}
    assert sorted(found.items()) == [("x/liba.so", 0), ("x/libb.so", 2)]


def test_a_broken_code_object_is_told_and_the_others_judged(tmp_path: Path) -> None:
    broken = bytearray(code("gfx1030", PREFETCH))
    broken[40:48] = struct.pack("<Q", 1 << 40)  # the section headers lie nowhere
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": bytes(broken)}) + plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    rows = (Image(str(path), "", "fatbin", {"gfx1030": TargetCode(2, 400)}, ()),)
    (image,) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert image.safety["gfx1010"].certain == 1
    assert any("not judged" in why for why in image.unread)


def test_words_that_are_no_instruction_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.hsaco"
    path.write_bytes(code("gfx1030", struct.pack("<I", 0xC1FFFFFF)))
    rows = scanned(path)
    (image,) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert any("no instruction" in why for why in image.unread)


def test_a_scan_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    bundles = b"".join(plain_bundle({"gfx1030": code("gfx1030", PREFETCH * (number + 1))}) for number in range(12))
    path = tmp_path / "libx.so"
    path.write_bytes(library(bundles))
    kept = str(tmp_path / "cache")
    rows = scanned(path)
    running = judge(rows, NAVI10, kept, workers=1)
    first = [next(running) for _ in range(5)]
    running.close()
    assert not any(each.known for each in first)
    again = list(judge(rows, NAVI10, kept, workers=1))
    assert sum(each.known for each in again) >= 5
    assert len(again) == 12
    assert all(each.known for each in judge(rows, NAVI10, kept))
    assert summed(rows, again, NAVI10) == summed(rows, judge(rows, NAVI10), NAVI10)


def test_a_large_file_is_shared_and_each_part_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = b"".join(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)}) for _ in range(9))
    path = tmp_path / "libx.so"
    path.write_bytes(library(bundles))
    rows = scanned(path)
    monkeypatch.setattr(safety, "PART", 1000)
    found = list(judge(rows, NAVI10, workers=2))
    assert len(found) == 9
    assert len({each.inside for each in found}) == 9


def test_a_file_that_is_gone_meanwhile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    rows = scanned(path)
    path.unlink()
    (image,) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert not image.safety
    assert any("not judged" in why for why in image.unread)


def test_a_child_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH * 900_000)})))
    monkeypatch.setattr(safety, "seconds", lambda _size: 0.01)
    rows = scanned(path)
    (image, told) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert not image.safety
    assert any("of computing" in why for why in told.unread)


def test_a_real_llvm_agrees_and_a_missing_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH + struct.pack("<2I", 0xF4000100, 0xFA000000))})))
    rows = scanned(path)
    ((_, told),) = safety.verify(rows, NAVI10, str(tmp_path / "libLLVM.so"))
    assert "cannot serve" in str(told["why"])
    libraries = find()
    if not libraries:
        pytest.skip("no LLVM on this machine: rocm_patch.isa.llvm.find() looked for libLLVM")
    ((where, said),) = safety.verify(rows, NAVI10, libraries[0].path)
    counts = said["found"]
    assert isinstance(counts, dict)
    assert (where, counts["instructions"], counts["different"], counts["blind"]) == (str(path), 3, 0, 0)


def test_what_was_found_is_recalled_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    kept = str(tmp_path / "cache")
    rows = scanned(path)
    assert safety.recall(rows, NAVI10, kept) == rows
    assert not (tmp_path / "cache").exists()
    judged = summed(rows, judge(rows, NAVI10), NAVI10)
    safety.remember(judged, NAVI10, kept)
    assert safety.recall(rows, NAVI10, kept) == judged
    assert safety.recall(rows, FORCED, kept) == rows  # another question
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030")})))
    assert safety.recall(rows, NAVI10, kept) == rows
