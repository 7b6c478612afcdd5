"""Sanitized copies: exactly the hints are replaced, all of it can be taken back, and whatever is not cured whole is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import build
from rocm_patch import isa, knowledge, sanitize
from rocm_patch.errors import FormatError, RefusedError, UsageError
from rocm_patch.images import fatbin
from rocm_patch.images.source import Bytes
from rocm_patch.knowledge.conditions import recommended, status
from rocm_patch.report.names import demangled, folded
from rocm_patch.sanitize import packed

CHIP, CODE, GENERIC = "gfx1010", "gfx1030", "gfx10-3-generic"
NOP, END, MOVE = 0xBF800000, 0xBF810000, 0x7E000280  # v_mov_b32 v0, 0
PREFETCH = (0xBFA00001, 0xBFA00002, 0xBFA00003)
READ_LDS = (0xD8D80000, 0x00000000)  # ds_read_b32 v0, v0
BRANCH = 0xBF820000  # s_branch to the next instruction
LOAD = (0xDC308000, 0x007D0000)  # global_load_dword v0, v[0:1], off


def words(*values):
    return b"".join(struct.pack("<I", value) for value in values)


PLAIN = words(MOVE, PREFETCH[0], MOVE, MOVE, PREFETCH[1], MOVE, NOP, END)
CLEAN = words(MOVE, END, MOVE, END)
LDS = words(PREFETCH[0], *READ_LDS, BRANCH, *LOAD, END)


def code(text=PLAIN, target=CODE, kernels=("first", "second")):
    return build.elf_object(target, kernels, text)


def compressed(entries, version, method):
    plain = build.plain_bundle(entries)
    made = bytearray(build.compressed_bundle(plain, version, method))
    end = {1: 20, 2: 24, 3: 32}[version]
    made[end - 8 : end] = hashlib.md5(plain).digest()[:8]
    return bytes(made)


def look(path, chip=CHIP, target=CODE):
    with sanitize.opened(str(path)) as file:
        return sanitize.outlook(file, str(path), chip, target, GENERIC)


def make(path, folder, observe=None):
    with sanitize.opened(str(path)) as file:
        view = sanitize.outlook(file, str(path), CHIP, CODE, GENERIC)
        return sanitize.make(file, str(path), view, (CHIP, CODE, GENERIC), str(folder), tool="test", observe=observe)


def differing(before, after):
    assert len(before) == len(after)
    return [index for index in range(0, len(before), 4) if before[index : index + 4] != after[index : index + 4]]


KINDS = [
    "object",
    "bundle",
    "library",
    *(f"v{version} {method} {shape}" for version in (1, 2, 3) for method in ("zlib", "zstd") for shape in ("bundle", "library")),
]


def file_of(kind, entries):
    if kind == "object":
        return entries[CODE]
    if kind in ("bundle", "library"):
        made = build.plain_bundle(entries)
    else:
        version, method, _ = kind.split()
        made = compressed(entries, int(version[1]), method)
    return (
        build.library(made + bytes(-len(made) % 4096) + build.plain_bundle({"gfx906": code(CLEAN, "gfx906")})) if kind.endswith("library") else made
    )


def contents(data):
    """Every code object in a file, in order."""
    if data[:4] == b"\x7fELF" and data[18] == 224:
        return [data]
    return [item.data.read(0, item.data.size) for item in fatbin.read(Bytes(data), "")]


# ------------------------------------------------------------------ what is edited


@pytest.mark.parametrize("kind", KINDS)
def test_the_hints_and_nothing_else_are_replaced_and_can_be_put_back(kind, tmp_path):
    other = code(PLAIN, "gfx1100")
    original = file_of(kind, {"gfx1100": other, CODE: code(), "gfx1010": code(CLEAN, "gfx1010")})
    path = tmp_path / "libdevice.so"
    path.write_bytes(original)
    path.chmod(0o4750)
    made = make(path, tmp_path / "out" / "deep")
    after = (tmp_path / "out/deep/libdevice.so").read_bytes()
    assert path.read_bytes() == original
    assert os.stat(made.copy).st_mode & 0o7777 == 0o750
    assert os.stat(made.record_path).st_mode & 0o7777 == 0o640
    assert len(after) == len(original)

    pairs = list(zip(contents(original), contents(after), strict=True))
    edited = [(old, new) for old, new in pairs if old != new]
    assert [(old, len(new)) for old, new in edited] == [(code(), len(code()))]
    old, new = edited[0]
    wanted = sorted(site.offset for site in isa.sites(Bytes(old), CHIP) if site.rule == "inst-prefetch")
    assert len(wanted) == 2
    assert differing(old, new) == wanted
    assert all(new[place : place + 4] == words(NOP) for place in wanted)
    was, now = isa.judge(Bytes(old), CHIP), isa.judge(Bytes(new), CHIP)
    assert (now.instructions, now.undecoded, dict(now.rules)) == (was.instructions, 0, {})
    assert set(was.rules) == {"inst-prefetch"}

    told = [step for edit in made.record.edits for step in edit.instructions]
    assert [(step.kernel, step.address) for step in told] == [("first", 0x1004), ("second", 0x1010)]
    covered = {place for edit in made.record.edits for place in range(edit.offset, edit.offset + _size(edit))}
    assert {index for index in range(len(after)) if after[index] != original[index]} <= covered

    sanitize.undo(made.record_path, str(tmp_path / "back.so"))
    assert (tmp_path / "back.so").read_bytes() == original


def _size(edit):
    return len(edit.before) // 2 if edit.encoding == "hex" else len(edit.before) * 4 // 5


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_an_edited_bundle_has_the_header_that_a_bundler_would_write(version, method, tmp_path):
    path = tmp_path / "bundle.hipfb"
    path.write_bytes(compressed({CODE: code(PLAIN * 500)}, version, method))
    make(path, tmp_path / "out")
    old, new = path.read_bytes(), (tmp_path / "out/bundle.hipfb").read_bytes()
    end = {1: 20, 2: 24, 3: 32}[version]
    assert new[:8] == old[:8]
    assert len(new) == len(old)
    total = len(old) if version == 1 else struct.unpack_from("<I" if version == 2 else "<Q", new, 8)[0]
    assert len(old) - 7 <= total <= len(old)
    plain = zlib.decompress(new[end:]) if method == "zlib" else _all_frames(new[end:total])
    assert new[end - 8 : end] == hashlib.md5(plain).digest()[:8]
    claim = struct.unpack_from("<Q", new, 16)[0] if version == 3 else struct.unpack_from("<I", new, end - 12)[0]
    assert claim == len(plain)


def _all_frames(data):
    """As LLVM's one-shot decoder reads: every frame to the last byte, skippable ones passed over."""
    from rocm_patch.sanitize.packed import zstd

    return zstd.decompress(data)


@given(st.binary(min_size=1, max_size=400), st.sampled_from([1, 2, 3]), st.sampled_from(["zlib", "zstd"]), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_whatever_fits_is_packed_to_the_very_length(content, version, method, spare):
    packing = packed.pack(content, packed.Packed(len(content) + 100 + spare, version, ["zlib", "zstd"].index(method), b""))
    if packing is None:
        assert (version, method) == (1, "zstd")  # only there a gap of one to seven bytes has no filling
        return
    assert len(packing) == len(content) + 100 + spare
    again = packed.unpack(Bytes(packing), 0)
    assert again.plain == content
    assert again.size <= len(packing)


def test_what_does_not_fit_is_none():
    content = bytes(range(256)) * 4
    assert packed.pack(content, packed.Packed(60, 3, 1, b"")) is None


@given(st.lists(st.sampled_from([MOVE, NOP, *PREFETCH]), min_size=1, max_size=60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_random_placements(tmp_path_factory, body, bundles):
    folder = tmp_path_factory.mktemp("case")
    text = words(*body, END)
    whole = build.plain_bundle({CODE: code(text, kernels=("kernel",))})
    original = build.library(b"".join(whole + bytes(-len(whole) % 4096) for _ in range(bundles + 1)))
    path = folder / "lib.so"
    path.write_bytes(original)
    hints = sum(value in PREFETCH for value in body)
    if not hints:
        assert look(path).edits == look(path).reasons == ()
        return
    made = make(path, folder / "out")
    after = (folder / "out/lib.so").read_bytes()
    assert len(differing(original, after)) == hints * (bundles + 1) == len(made.record.edits)
    assert [edit.offset for edit in made.record.edits] == differing(original, after)
    sanitize.undo(made.record_path, str(folder / "back"))
    assert (folder / "back").read_bytes() == original


def test_native_code_with_hints_is_edited_where_it_is_asked_for(tmp_path):
    path = tmp_path / "winograd.o"
    path.write_bytes(code(PLAIN, "gfx1010:xnack-"))
    assert len(look(path, target="gfx1010").edits) == 2
    assert look(path).found.judged == 0


def test_the_generic_target_is_code_that_the_chip_may_load(tmp_path):
    path = tmp_path / "lib.so"
    generic = bytearray(code())
    generic[48] = next(number for number, name in build.GCN.items() if name == GENERIC)
    path.write_bytes(build.library(build.plain_bundle({GENERIC: bytes(generic)})))
    assert len(look(path).edits) == 2


# ------------------------------------------------------------------ what is refused


def test_nothing_is_written_where_something_unsafe_would_be_left(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(build.library(build.plain_bundle({CODE: code(LDS, kernels=("mixing",))})))
    view = look(path)
    assert view.edits == ()
    assert set(view.found.remaining) == {"lds-branch-vmem"}
    assert "lds-branch-vmem: 1 certain" in view.reasons[0]
    assert "mixing" in view.reasons[0]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (build.library(build.plain_bundle({CODE: code()})[:-8]), "beyond"),
        (build.library(build.plain_bundle({CODE: b"\x7fELF\x02\x01" + bytes(200)})), "not all could be read"),
        (build.library(compressed({CODE: code()}, 3, "zstd")[:-9]), "beyond its section"),
        (build.library(build.compressed_bundle({CODE: code()}, 3)), "hash|header says"),
        (build.library(b"CCOB" + struct.pack("<HHQQQ", 4, 1, 64, 64, 0) + bytes(64)), "version 4"),
        (code(words(PREFETCH[0], 0xFFFFFFFF, END, NOP)), "no instruction"),
    ],
)
def test_what_cannot_be_read_whole_is_refused(data, why, tmp_path):
    import re

    path = tmp_path / "lib.so"
    path.write_bytes(data)
    view = look(path)
    assert view.edits == ()
    assert any(re.search(why, reason) for reason in view.reasons), view.reasons


def test_code_that_belongs_to_no_function_was_not_judged(tmp_path):
    path = tmp_path / "object.co"
    whole = bytearray(code(words(PREFETCH[0], END, MOVE, END), kernels=("kernel",)))
    place = whole.index(struct.pack("<QQ", 0x1000, 16))
    whole[place + 8 : place + 16] = struct.pack("<Q", 8)  # the function ends before its last two instructions
    path.write_bytes(whole)
    assert look(path).reasons == ("not all could be read: gfx1030: 2 words of code belong to no function",)


UNSAFE = words(0xDC300004, 0x01000000, PREFETCH[0], END)  # FLAT with an offset


def object_with(more=(), segments=()):
    """A clean but for a hint object, with further sections and program headers (type, flags, offset, size)."""
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 18, 3, 3, 0x1000, 8)
    sections = [(".dynsym", 11, 2, 0x200, symbols, 2), (".dynstr", 3, 2, 0, b"\0a\0", 0), (".text", 1, 6, 0x1000, words(PREFETCH[0], END), 0)]
    made = bytearray(build.elf([*sections, *more], machine=224, flags=build.MACHS[CODE], abi=64, abi_version=2))
    struct.pack_into("<Q", made, 32, len(made))
    struct.pack_into("<H", made, 56, len(segments))
    for kind, flags, data, size in segments:
        made += struct.pack("<IIQQQQQQ", kind, flags, made.index(data), 0x3000, 0x3000, size, size, 4)
    return bytes(made)


def test_code_in_a_second_section_or_only_in_a_segment_is_not_overlooked(tmp_path):
    path = tmp_path / "object.co"
    path.write_bytes(object_with())
    assert len(look(path).edits) == 1
    for whole in (
        object_with([(".text2", 1, 6, 0x3000, UNSAFE, 0)]),
        object_with([(".data", 1, 3, 0x3000, UNSAFE, 0)], [(1, 5, UNSAFE, len(UNSAFE))]),
    ):
        path.write_bytes(whole)
        assert look(path).edits == ()
        assert "not all could be read: gfx1030: 4 words of code belong to no function" in look(path).reasons
    path.write_bytes(object_with([(".data", 1, 3, 0x3000, UNSAFE, 0)], [(1, 6, UNSAFE, len(UNSAFE))]))
    assert len(look(path).edits) == 1  # not executable: data
    path.write_bytes(object_with([(f".t{number}", 1, 6, 0x3000, UNSAFE, 0) for number in range(99)]))
    assert "executable code" in look(path).reasons[0]


def test_code_without_any_function_is_refused_and_no_defect(tmp_path):
    path = tmp_path / "object.co"
    whole = bytearray(object_with())
    place = whole.index(struct.pack("<IBBHQQ", 1, 18, 3, 3, 0x1000, 8))
    whole[place + 4] = 16  # a label: no type
    path.write_bytes(whole)
    assert look(path).reasons == ("not all could be read: gfx1030: 2 words of code belong to no function",)


@pytest.mark.parametrize("pack", [build.plain_bundle, lambda entries: compressed(entries, 3, "zstd")])
def test_an_entry_for_one_target_with_code_for_another_is_refused(pack, tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(build.library(pack({CODE: code(), "gfx1010": code(UNSAFE, CODE, ["z"])})))
    assert look(path).reasons == ("not all could be read: .hip_fatbin[0]: the entry for gfx1010 holds code for gfx1030",)
    assert look(path).edits == ()
    path.write_bytes(build.library(pack({CODE: code(target="gfx906")})))
    assert "the entry for gfx1030 holds code for gfx906" in " ".join(look(path).reasons)
    path.write_bytes(build.library(pack({CODE: code(), "spirv": b"\x03\x02\x23\x07" * 9, "gfx1010:xnack-": code(CLEAN, "gfx1010")})))
    assert look(path).reasons == ()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_bundle_that_becomes_too_large_is_refused_before_it_is_unpacked(version, tmp_path, monkeypatch):
    path = tmp_path / "lib.so"
    path.write_bytes(build.library(compressed({CODE: code()}, version, "zstd")))
    assert len(look(path).edits) == 1
    size = len(packed.unpack(Bytes(path.read_bytes()), path.read_bytes().index(b"CCOB")).plain)
    monkeypatch.setattr(packed, "LIMIT", size - 1)
    monkeypatch.setattr(packed, "Flow", None)  # not even begun
    assert look(path).edits == ()
    assert f"a compressed bundle of {size} bytes, and no more than" in look(path).reasons[0]
    assert packed.LIMIT < 256 << 20


def test_no_more_than_two_copies_of_a_bundle_are_held(tmp_path):
    path = tmp_path / "lib.hipfb"
    noise = b"".join(hashlib.sha256(bytes([index])).digest() for index in range(256)) * 8
    plain = {CODE: code(), "gfx906": code(CLEAN, "gfx906") + noise * 512}  # 32 MiB
    path.write_bytes(compressed(plain, 3, "zstd") + bytes(1 << 20))
    whole = bytearray(path.read_bytes())
    struct.pack_into("<Q", whole, 8, len(whole))  # the zeros are room
    path.write_bytes(whole)
    program = f"""
import resource
from rocm_patch import sanitize
path = {str(path)!r}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
with sanitize.opened(path) as file:
    import numpy
    from rocm_patch.isa import table
    table.load()
    before = peak()
    found = sanitize.survey(file, path, {CHIP!r}, {CODE!r}, {GENERIC!r})
    print(len(found.hints), peak() - before)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    hints, grown = map(int, ended.stdout.split())
    assert hints == 2
    assert grown < 2 * 32 + 24


def test_code_of_two_targets_in_the_same_bytes_is_refused(tmp_path):
    path = tmp_path / "bundle"
    made = bytearray(build.plain_bundle({CODE: code(), "gfx1031": code()}))
    first, second = (made.index(build.entry_id(target).encode()) - 24 for target in (CODE, "gfx1031"))
    made[second : second + 8] = made[first : first + 8]
    path.write_bytes(made)
    assert "overlap" in look(path).reasons[0]


def test_only_regular_files_of_the_right_kind(tmp_path):
    real = tmp_path / "real.so"
    real.write_bytes(code())
    (tmp_path / "link.so").symlink_to(real)
    os.mkfifo(tmp_path / "fifo.so")
    (tmp_path / "wheel.whl").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "text.so").write_bytes(b"hello" * 40)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RefusedError, match="is a link"):
        look(tmp_path / "link.so")
    for name, words_ in (
        ("fifo.so", "no regular file"),
        ("folder", "is a folder"),
        ("wheel.whl", "archive"),
        ("text.so", "no ELF library"),
    ):
        with pytest.raises(UsageError, match=words_):
            look(tmp_path / name)
    with pytest.raises(UsageError):
        look(tmp_path / "absent.so")
    with pytest.raises(UsageError):
        look(real, chip="gfx1100")


def test_nothing_is_overwritten_and_no_link_is_followed(tmp_path):
    path = tmp_path / "lib.co"
    path.write_bytes(code())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/lib.co").write_bytes(b"mine")
    with pytest.raises(RefusedError, match="exists already"):
        make(path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["lib.co"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="is a link"):
        make(path, tmp_path / "linked")
    (tmp_path / "elsewhere/lib.co").symlink_to(tmp_path / "target")
    with pytest.raises(RefusedError, match="exists already"):
        make(path, tmp_path / "elsewhere")
    assert not (tmp_path / "target").exists()
    made = make(path, tmp_path / "good")
    with pytest.raises(RefusedError, match="exists already"):
        sanitize.undo(made.record_path, str(path))


def test_undo_refuses_a_foreign_edit_and_a_damaged_record(tmp_path):
    path = tmp_path / "lib.co"
    path.write_bytes(code())
    made = make(path, tmp_path / "out")
    record = json.loads((tmp_path / "out/lib.co.record.json").read_text())
    for spoil, error in (
        (lambda r: r["edits"].pop(), FormatError),
        (lambda r: r["edits"][0].update(offset=r["edits"][0]["offset"] + 4), RefusedError),
        (lambda r: r["edits"][0].update(before="zz"), FormatError),
        (lambda r: r["edits"][0].update(offset=-4), RefusedError),
        (lambda r: r.update(name="../lib.co"), FormatError),
        (lambda r: r.update(name="lib.co\0"), FormatError),
        (lambda r: r.update(name="lib\ud800"), FormatError),
        (lambda r: r.update(name="l" * 256), FormatError),
        (lambda r: r.update(name=".."), FormatError),
        (lambda r: r.update(schema=2), FormatError),
        (lambda r: r.pop("edits"), FormatError),
    ):
        spoiled = json.loads(json.dumps(record))
        spoil(spoiled)
        (tmp_path / "out/other.json").write_text(json.dumps(spoiled))
        with pytest.raises(error):
            sanitize.undo(str(tmp_path / "out/other.json"), str(tmp_path / "back"))
    with open(made.copy, "r+b") as stream:
        stream.write(b"\x7fELf")
    with pytest.raises(RefusedError, match="somebody changed it"):
        sanitize.undo(made.record_path, str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


SEEDS = [
    code(),
    build.library(build.plain_bundle({CODE: code(), "gfx1010": code(CLEAN, "gfx1010")}, alignment=8)),
    *(build.library(compressed({CODE: code()}, version, "zlib")) for version in (1, 2, 3)),
]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6), st.integers(0, 64))
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_refused_or_edited_so_that_it_can_be_taken_back(tmp_path_factory, seed, damage, cut):
    data = bytearray(seed[: len(seed) - cut])
    for place, value in damage:
        data[int(place * len(data))] = value
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "lib.so").write_bytes(data)
    try:
        view = look(folder / "lib.so")
    except (RefusedError, UsageError):
        return
    assert not (view.edits and view.reasons)
    if view.edits:
        made = make(folder / "lib.so", folder / "out")
        sanitize.undo(made.record_path, str(folder / "back"))
        assert (folder / "back").read_bytes() == data


# ------------------------------------------------------------------ killed at any moment


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_before_any_step_leaves_no_half_file_and_the_next_run_finishes(tmp_path, monkeypatch):
    path = tmp_path / "lib.co"
    path.write_bytes(code())
    steps = []
    make(path, tmp_path / "reference", steps.append)
    whole = {name: (tmp_path / "reference" / name).read_bytes() for name in os.listdir(tmp_path / "reference")}
    assert len(steps) > 6
    calls = [step.call for step in steps]
    assert calls.index("rename") > max(index for index, call in enumerate(calls) if call == "fsync")
    for number in range(len(steps)):
        folder = tmp_path / f"out{number}"
        program = f"""
import os, sys
from rocm_patch import sanitize
left = {number}
def observe(step):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
path = {str(path)!r}
with sanitize.opened(path) as file:
    view = sanitize.outlook(file, path, {CHIP!r}, {CODE!r}, {GENERIC!r})
    sanitize.make(file, path, view, ({CHIP!r}, {CODE!r}, {GENERIC!r}), {str(folder)!r}, tool="test", observe=observe)
"""
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
        left = {name: (folder / name).read_bytes() for name in os.listdir(folder)} if folder.exists() else {}
        named = {name: data for name, data in left.items() if not name.startswith(".rocm-patch-")}
        assert all(whole[name] == data for name, data in named.items()), number
        assert "lib.co" not in named or "lib.co.record.json" in named
        if "lib.co" not in named:
            make(path, folder)
        assert (folder / "lib.co").read_bytes() == whole["lib.co"]


def test_a_failed_write_removes_what_it_began(tmp_path):
    path = tmp_path / "lib.co"
    path.write_bytes(code())
    (tmp_path / "out").mkdir()

    def fail(step):
        if step.call == "rename":
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        make(path, tmp_path / "out", fail)
    assert os.listdir(tmp_path / "out") == []


# ------------------------------------------------------------------ the command, and what is said of it


def command(*arguments, environment=None):
    whole = {**os.environ, **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", "rocm_patch", "sanitize", *map(str, arguments)], capture_output=True, text=True, check=False, env=whole
    )


def test_the_command_there_and_back(tmp_path):
    path = tmp_path / "libdevice.so"
    path.write_bytes(build.library(compressed({CODE: code()}, 3, "zstd")))
    environment = {"XDG_DATA_HOME": str(tmp_path / "data")}
    dry = command("--for", CHIP, "--dry-run", path, environment=environment)
    assert dry.returncode == 0, dry.stderr
    assert "2 of 8 instructions" in dry.stdout
    assert not (tmp_path / "data").exists()
    done = command("--for", CHIP, path, environment=environment)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data/rocm-patch/sanitized" / hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert sorted(os.listdir(folder)) == ["libdevice.so", "libdevice.so.record.json"]
    assert "not proven" in done.stdout
    assert f"LD_LIBRARY_PATH={folder}" in done.stdout
    again = command("--for", CHIP, path, environment=environment)
    assert again.returncode == 5
    assert "exists already" in again.stderr
    back = command("--undo", folder / "libdevice.so.record.json", "-o", tmp_path / "back.so", "--json")
    assert json.loads(back.stdout)["outcome"] == "restored"
    assert (tmp_path / "back.so").read_bytes() == path.read_bytes()


def test_json_refusals_and_nothing_to_do(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(build.library(build.plain_bundle({CODE: code(LDS, kernels=("mixing",))})))
    refused = command("--for", CHIP, "--json", path, "-o", tmp_path / "out")
    assert refused.returncode == 5
    document = json.loads(refused.stdout)
    assert document["outcome"] == "refused"
    assert document["remaining"]["lds-branch-vmem"]["certain"] == 1
    assert "native" in refused.stderr
    assert not (tmp_path / "out").exists()
    path.write_bytes(build.library(build.plain_bundle({CODE: code(CLEAN)})))
    nothing = command("--for", CHIP, path, "-o", tmp_path / "out")
    assert (nothing.returncode, nothing.stdout.startswith("Nothing to do")) == (0, True)
    assert not (tmp_path / "out").exists()
    assert command("--for", CHIP).returncode == 2
    assert command("--for", CHIP, path, "--undo", "x").returncode == 2


def test_names_that_are_not_utf_8_go_there_and_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.co")
    (tmp_path / name).write_bytes(code())
    made = make(tmp_path / name, tmp_path / "out")
    assert os.path.basename(made.copy) == name
    assert sanitize.undo(made.record_path, str(tmp_path / "back")).name == name
    assert (tmp_path / "back").read_bytes() == code()


def test_where_the_card_has_code_of_its_own_nothing_is_sanitized_unasked(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(build.library(build.plain_bundle({CODE: code(LDS, kernels=("mixing",)), "gfx1010:xnack-": code(CLEAN, "gfx1010")})))
    done = command("--for", CHIP, path, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "has native gfx1010:xnack- code" in done.stdout
    assert "unset" in done.stdout
    document = json.loads(command("--for", CHIP, path, "--json", "-o", tmp_path / "out").stdout)
    assert (document["outcome"], document["native"], document["edits"], document["reasons"]) == ("nothing to do", ["gfx1010:xnack-"], [], [])
    asked = command("--for", CHIP, "--code", CODE, path, "-o", tmp_path / "out")
    assert asked.returncode == 5
    assert "native gfx1010:xnack- code: take the override to gfx1030 away" in " ".join(asked.stderr.split())
    path.write_bytes(build.library(build.plain_bundle({CODE: code(), "gfx1010": code(CLEAN, CODE)})))
    assert command("--for", CHIP, path, "-o", tmp_path / "out").returncode == 5  # native by its name only
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_wrong_kind_is_a_mistake_in_the_call(tmp_path):
    (tmp_path / "text.txt").write_text("hello" * 40)
    (tmp_path / "wheel.whl").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in ("text.txt", "wheel.whl", ".", "absent"):
        assert command("--for", CHIP, tmp_path / name).returncode == 2, name


def test_kernel_names_are_told_as_people_write_them(tmp_path):
    path = tmp_path / "lib.so"
    symbol, readable = "_ZN2ns6kernelIfLi2EEEvPT_", "ns::kernel<...>"
    here = folded(demangled([symbol])[symbol])
    assert here in (readable, symbol)  # the symbol: a machine without c++filt
    for text, told in ((LDS, "stderr"), (PLAIN, "stdout")):
        path.write_bytes(build.library(build.plain_bundle({CODE: code(text, kernels=(symbol,))})))
        assert f"in {here}" in getattr(command("--for", CHIP, "--dry-run", path), told)
    document = json.loads(command("--for", CHIP, "--dry-run", "--json", path).stdout)
    assert document["edits"][0]["instructions"][0]["kernel"] == symbol


def test_the_remedy_is_untested_and_never_recommended():
    tables = knowledge.load()
    rows = [row for row in tables.evidence if row.remedy == "sanitize"]
    assert tables.remedies["sanitize"].level == "disruptive"
    assert tables.remedies["sanitize"].kind == "manual"
    assert rows
    assert status(rows) == "untested"
    assert not recommended(rows)
