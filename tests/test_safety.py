"""Which code a chip would run, judged by children; what was judged is not judged again."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest

from images.build import S_ENDPGM, compressed_bundle, elf_object, library, plain_bundle
from rocm_patch import safety
from rocm_patch.images import walk
from rocm_patch.images.rows import images as images_of
from rocm_patch.isa.llvm import find
from rocm_patch.model import Image, TargetCode
from rocm_patch.safety import Chip, Judged, Outlook, judge, outlook, summed

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
        (("gfx1010:xnack-", "gfx1030"), NAVI10, Outlook("own", "gfx1010", True)),
        (("gfx1010:xnack+", "gfx1030"), NAVI10, Outlook("sibling", "gfx1030")),
        (("gfx1010:xnack+",), NAVI10, Outlook("foreign")),
        (("spirv",), NAVI10, Outlook("spirv")),
        (("gfx1010", "spirv"), NAVI10, Outlook("own", "gfx1010", True)),
        (("gfx1010", "gfx1030"), FORCED, Outlook("override", "gfx1030", True)),
        (("gfx10-1-generic", "gfx1030"), NAVI10, Outlook("own", "gfx10-1-generic", True)),
        (("gfx1030", "gfx1100"), NAVI10, Outlook("sibling", "gfx1030")),
        (("gfx1010", "gfx1030"), Chip("gfx1012", "gfx10-1-generic"), Outlook("sibling", "gfx1010")),
        (("gfx1010", "gfx1030"), Chip("gfx1032", "gfx10-3-generic"), Outlook("sibling", "gfx1030")),
        (("gfx10-3-generic",), FORCED, Outlook("override", "gfx10-3-generic")),
        (("gfx1010",), FORCED, Outlook("hidden", "gfx1010", True)),
        (("gfx1100",), FORCED, Outlook("nothing")),
        (("gfx1010",), Chip("gfx1010", "", "nonsense"), Outlook("hidden", "gfx1010", True)),
        (("gfx1010",), Chip("gfx1010", "", "10.1.0", "gfx1010"), Outlook("own", "gfx1010", True)),
        (("gfx1100",), NAVI10, Outlook("foreign")),
        ((), NAVI10, Outlook("none")),
    ],
)
def test_what_happens_with_a_library(targets: tuple[str, ...], chip: Chip, expected: Outlook) -> None:
    assert outlook([row(*targets)], chip) == expected


def test_a_folder_of_files_by_chip_is_one_library(tmp_path: Path) -> None:
    """rocBLAS has a file for each chip: a card that has its own never opens those of others."""
    folder = tmp_path / "rocblas" / "library"
    folder.mkdir(parents=True)
    (folder / "Kernels.so-000-gfx1010.hsaco").write_bytes(code("gfx1010"))
    (folder / "Kernels.so-000-gfx1030.hsaco").write_bytes(code("gfx1030", PREFETCH))
    rows = tuple(image for candidate in walk.candidates([str(tmp_path)]) for image in images_of(candidate.path))
    found = summed(rows, judge(rows, NAVI10), NAVI10)
    assert [image.safety["gfx1010"].certain for image in found if image.safety] == [0]
    forced = summed(rows, judge(rows, FORCED), FORCED)
    assert [image.safety["gfx1010"].certain for image in forced if image.safety] == [1]


def scanned(path: Path) -> tuple[Image, ...]:
    return tuple(image for candidate in walk.candidates([str(path)]) for image in images_of(candidate.path))


def test_the_loaded_code_decides(tmp_path: Path) -> None:
    data = library(plain_bundle({"gfx1010": code("gfx1010"), "gfx1030": code("gfx1030", PREFETCH)}))
    path = tmp_path / "libx.so"
    path.write_bytes(data)
    rows = scanned(path)
    (native,) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert (native.safety["gfx1010"].certain, native.safety["gfx1010"].code) == (0, "gfx1010")
    found = list(judge(rows, FORCED, kernels=True))
    (forced,) = summed(rows, found, FORCED)
    assert (forced.safety["gfx1010"].certain, forced.safety["gfx1010"].unsafe, forced.safety["gfx1010"].functions) == (1, 1, 1)
    assert dict(forced.safety["gfx1010"].rules) == {"inst-prefetch": 1}
    assert [(kernel.name, kernel.target) for each in found for kernel in each.kernels] == [("kernel", "gfx1030")]
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
    assert len({each.inside for each in first}) == 5
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
    safety.remember(judged, NAVI10, kept, {str(path): safety.state(str(path))})
    assert safety.recall(rows, NAVI10, kept) == judged
    assert safety.recall(rows, FORCED, kept) == rows  # another question
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030")})))
    assert safety.recall(rows, NAVI10, kept) == rows


def test_a_container_that_lies_about_its_code_is_told_and_the_rest_judged(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    lie = plain_bundle({"gfx1030": code("gfx900")})
    path.write_bytes(library(lie + plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    rows = scanned(path)
    (image,) = summed(rows, judge(rows, NAVI10), NAVI10)
    assert image.safety["gfx1010"].certain == 1
    assert any("the code itself is for gfx900" in why for why in image.unread)


def test_what_could_not_be_judged_is_not_safe(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030")})))
    rows = scanned(path)
    told = [Judged(str(path), "", "fatbin", "x", "gfx1030", 0, "a reason")]
    (image,) = summed(rows, told, NAVI10)
    assert not image.safety
    kept = str(tmp_path / "cache")
    safety.remember((image,), NAVI10, kept, {str(path): safety.state(str(path))})
    assert safety.recall(rows, NAVI10, kept) == rows


def test_entries_on_the_same_bytes_are_judged_once(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)}) * 50))
    rows = scanned(path)
    found = list(judge(rows, NAVI10, str(tmp_path / "cache"), workers=1))
    assert len(found) == 50
    assert summed(rows, found, NAVI10)[0].safety["gfx1010"].certain == 50


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.so"
    Path(os.fsdecode(path)).write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    rows = scanned(Path(os.fsdecode(path)))
    found = summed(rows, judge(rows, NAVI10), NAVI10)
    kept = str(tmp_path / "cache")
    safety.remember(found, NAVI10, kept, {os.fsdecode(path): safety.state(os.fsdecode(path))})
    assert safety.recall(rows, NAVI10, kept) == found


def test_a_file_that_was_replaced_meanwhile_is_not_noted(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030")})))
    before = {str(path): safety.state(str(path))}
    rows = scanned(path)
    found = summed(rows, judge(rows, NAVI10), NAVI10)
    path.unlink()
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    kept = str(tmp_path / "cache")
    safety.remember(found, NAVI10, kept, before)
    assert safety.recall(rows, NAVI10, kept) == rows


def test_a_broken_part_does_not_hide_that_code_is_missing(tmp_path: Path) -> None:
    image = Image("x", "", "fatbin", {"gfx1030": TargetCode(1, 1)}, ("a bundle is broken",))
    assert outlook([image], NAVI10) == Outlook("sibling", "gfx1030")
    assert outlook([Image("x", "", "fatbin", {}, ("broken",))], NAVI10) == Outlook("unread")


def test_loose_files_are_one_library_only_where_their_names_say_so() -> None:
    def named(name: str, target: str) -> Image:
        return Image(f"/x/{name}", "", "object", {target: TargetCode(1, 1)}, ())

    images = [named("a_gfx1010.co", "gfx1010"), named("a_gfx1030.co", "gfx1030"), named("b.co", "gfx1030")]
    groups = safety.libraries(images)
    assert [len(rows) for rows in groups.values()] == [2, 1]
    assert [outlook(rows, NAVI10).how for rows in groups.values()] == ["own", "sibling"]


def test_a_cache_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    path = tmp_path / "libx.so"
    path.write_bytes(library(plain_bundle({"gfx1030": code("gfx1030", PREFETCH)})))
    rows = scanned(path)
    list(judge(rows, NAVI10, str(tmp_path / "link")))
    assert not list(elsewhere.iterdir())
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "judgements.sqlite").symlink_to(tmp_path / "target")
    assert summed(rows, judge(rows, NAVI10, str(tmp_path / "cache")), NAVI10)[0].safety["gfx1010"].certain == 1
    assert not (tmp_path / "target").exists()
