"""Files, folders, wheels and split libraries; the children that read them; and what hostile files may cost."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import build
from rocm_patch.errors import FormatError
from rocm_patch.images import archive, coverage, pool, rows, split, walk, worker
from rocm_patch.images.files import open_file
from rocm_patch.images.source import Bytes, Unread
from rocm_patch.model import Image, TargetCode

OBJECT = build.elf_object("gfx1010", ["a", "b"])
LIBRARY = build.library(build.plain_bundle({"gfx1010": OBJECT, "gfx1030": build.elf_object("gfx1030", ["a", "b", "c"])}))


def kpack(codes):
    """A .kpack archive without compression, of binary -> target -> code."""
    body, blobs, toc = bytes(64), [], {}
    for binary, targets in codes.items():
        for target, code in targets.items():
            toc.setdefault(binary, {})[target] = {"type": "hsaco", "ordinal": len(blobs)}
            blobs.append({"offset": len(body), "size": len(code)})
            body += code
    table = msgpack.packb({"compression_scheme": "none", "blobs": blobs, "toc": toc})
    return b"KPAK" + struct.pack("<IQ", 1, len(body)) + body[16:] + table


def scanned(*paths, **options):
    """Rows by file name below the first path."""
    tasks = list(walk.candidates([str(path) for path in paths]))
    return {(os.path.basename(done.path), image.inside, image.store): image for done in pool.scan(tasks, **options) for image in done.images}


def test_a_library_is_one_row_with_kernels_and_bytes(tmp_path):
    (tmp_path / "libx.so").write_bytes(LIBRARY)
    [image] = rows.images(str(tmp_path / "libx.so"))
    assert image == Image(str(tmp_path / "libx.so"), "", "fatbin", {"gfx1010": TargetCode(2, len(OBJECT)), "gfx1030": image.targets["gfx1030"]}, ())
    assert image.targets["gfx1030"].kernels == 3


def test_a_folder_with_loops_links_and_devices(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/libx.so").write_bytes(LIBRARY)
    (tmp_path / "a/k.hsaco").write_bytes(OBJECT)
    (tmp_path / "a/text.so").write_text("GROUP ( libx.so )")
    (tmp_path / "a/again").symlink_to("..")
    (tmp_path / "libx.so.1").symlink_to("a/libx.so")
    (tmp_path / "out.so").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo.so")
    assert set(scanned(tmp_path)) == {("libx.so", "", "fatbin"), ("k.hsaco", "", "object")}


def test_what_is_named_is_read_through_a_link_and_a_pipe_is_refused(tmp_path):
    (tmp_path / "libx.so").write_bytes(LIBRARY)
    (tmp_path / "link").symlink_to("libx.so")
    os.mkfifo(tmp_path / "fifo")
    found = scanned(tmp_path / "link", tmp_path / "fifo")
    assert found["link", "", "fatbin"].targets["gfx1010"].kernels == 2
    assert found["fifo", "", "object"].unread == ("not a regular file",)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_members_of_a_wheel(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x-1-py3-none-any.whl", "w", method) as wheel:
        wheel.writestr("x/lib/libx.so", LIBRARY)
        wheel.writestr("x/__init__.py", "print()")
        wheel.writestr("x/lib/rocblas/library/TensileLibrary_gfx1010.co", OBJECT)
    found = scanned(tmp_path)
    assert {inside: sorted(image.targets) for (_, inside, _), image in found.items()} == {
        "x/lib/libx.so": ["gfx1010", "gfx1030"],
        "x/lib/rocblas/library/TensileLibrary_gfx1010.co": ["gfx1010"],
    }


def test_large_members_are_unpacked_to_a_nameless_file(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MEMORY_LIMIT", 1000)
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("libx.so", LIBRARY)
    [image] = rows.images(str(tmp_path / "x.whl"))
    assert image.targets["gfx1010"].kernels == 2


def reference(*paths):
    """A host library of a split package."""
    said = msgpack.packb({"kernel_name": "lib/libx.so", "kpack_search_paths": list(paths)})
    return build.library(bytes(64), more=[(".rocm_kpack_ref", said)])


def test_split_libraries_are_followed(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / ".kpack").mkdir()
    (tmp_path / "lib/libx.so").write_bytes(reference("../.kpack/x_@GFXARCH@.kpack"))
    (tmp_path / ".kpack/x_gfx1010.kpack").write_bytes(kpack({"lib/libx.so#0": {"gfx1010": OBJECT}, "lib/other.so#0": {"gfx1030": OBJECT}}))
    [image] = rows.images(str(tmp_path / "lib/libx.so"))
    assert (image.store, dict(image.targets), image.unread) == ("kpack", {"gfx1010": TargetCode(2, len(OBJECT))}, ())


def test_a_split_library_without_its_archive_is_told(tmp_path):
    (tmp_path / "libx.so").write_bytes(reference("../.kpack/x_@GFXARCH@.kpack", "../../etc/passwd"))
    [image] = rows.images(str(tmp_path / "libx.so"))
    assert image.targets == {}
    assert [why.rpartition("points to ")[2] for why in image.unread] == [
        "../.kpack/x_@GFXARCH@.kpack, which is not there",
        "../../etc/passwd, which is not there",
    ]


@settings(max_examples=100, deadline=2000)
@given(st.binary(max_size=200))
def test_hostile_references_give_our_error(data):
    library = build.library(bytes(8), more=[(".rocm_kpack_ref", data)])
    try:
        said = split.reference(Bytes(library))
    except FormatError:
        return
    assert said is not None
    assert all(isinstance(item, Unread) for item in split.follow(said, "/nowhere", lambda _: [], open_file))


@settings(max_examples=200, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6), st.integers(0, 400))
def test_changed_zip_files_give_rows(tmp_path_factory, changes, cut):
    path = tmp_path_factory.getbasetemp() / "changed.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("libx.so", LIBRARY)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[-1 - place % len(data)] = value
    path.write_bytes(data[: len(data) - cut] if cut % 2 else data)
    assert all(image.targets or image.unread for image in rows.images(str(path)))


def test_a_zip_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 8 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("libx.so", LIBRARY + bytes(100 << 20))
        wheel.writestr("liby.so", LIBRARY)
    found = {image.inside: image for image in rows.images(str(tmp_path / "bomb.whl"))}
    assert "become more than" in found["libx.so"].unread[0]
    assert found["liby.so"].targets["gfx1010"].kernels == 2


def hostile_overlap():
    """Thousands of entries that all point to one object with a large symbol table."""
    code = build.elf_object("gfx1010", [f"k{n}" for n in range(20_000)])
    rows, head = [], 32 + 60_000 // 16 * 40
    for number in range(3750):
        rows.append(struct.pack("<QQQ", head - number % 2 * 0, len(code), 16) + b"hip-amdgcn-gfx%03d" % (number % 10 + 900))
    return build.library(build.MAGIC + struct.pack("<Q", len(rows)) + b"".join(rows) + bytes(8 * 3750) + code)


def hostile_bomb(method):
    """Sixty-four bundles at the limit of what may come out of them."""
    size = 190 << 20
    head = build.MAGIC + struct.pack("<QQQQ", 1, 4096, size - 4096, 8) + b"-gfx1010"
    raw = head + bytes(size - len(head))
    packed = build.zstd(raw) if method else zlib.compress(raw)
    bundle = b"CCOB" + struct.pack("<HHQQQ", 3, method, 32 + (1 << 20), size, 0) + packed.ljust(1 << 20, b"\0")
    return build.library((bundle + bytes(-len(bundle) % 4096)) * 60)


HOSTILE = {
    "entries": hostile_overlap,
    "zstd": lambda: hostile_bomb(1),
    "zlib": lambda: hostile_bomb(0),
    "magics": lambda: build.library(build.MAGIC * (60 << 20 >> 5)),
    "empty bundles": lambda: build.library((build.MAGIC + bytes(8)) * (60 << 20 >> 5)),
    "zeros": lambda: build.library(bytes(60 << 20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_soon_and_takes_little_memory(tmp_path, name):
    path = tmp_path / "libx.so"
    path.write_bytes(HOSTILE[name]())
    script = (
        "import resource, sys\nfrom rocm_patch.images import pool, walk\n"
        "rows = [image for done in pool.scan(list(walk.candidates(sys.argv[1:])), workers=1) for image in done.images]\n"
        # Not our own ru_maxrss: it outlives exec, and begins with what the tests had.
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "sys.exit(not any(row.unread or row.targets for row in rows) and bool(rows))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert all(int(kilobytes) < 256 << 10 for kilobytes in ended.stdout.split()), ended.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3, time.monotonic() - started


def test_a_file_that_kills_its_reader_is_told_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_HOME", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    tasks = [pool.Task({"do": what}, 0.3) for what in ("spin", "kill", "raise", "memory", "babble", "fine")]
    ends = {event.number: event.why for event in pool.run(tasks, "images.deadly", 2) if isinstance(event, pool.Ended)}
    assert "0.3 s of computing" in ends[0]
    assert ends[1] == f"its reader was ended by {signal.Signals.SIGSEGV.name}"
    assert "ZeroDivisionError" in ends[2]
    assert "memory" in ends[3]
    assert "nonsense" in ends[4]
    assert ends[5] == ""


def test_what_was_found_before_the_end_is_kept(tmp_path, monkeypatch):
    (tmp_path / "libx.so").write_bytes(LIBRARY)
    monkeypatch.setattr(pool, "seconds", lambda _: 0.001)
    [image] = scanned(tmp_path, workers=1).values()
    assert "of computing" in image.unread[0]


def test_a_larger_file_may_take_longer():
    assert worker.seconds(64 << 20) < 2
    assert worker.seconds(1 << 30) > 30


@pytest.mark.parametrize(
    ("targets", "answer"),
    [
        ({"gfx1010"}, "native"),
        ({"gfx1010:xnack-", "gfx1030"}, "native"),
        ({"gfx10-1-generic"}, "generic"),
        ({"gfx1030", "spirv"}, "other"),
        ({"gfx1010:xnack+"}, "other"),
        (set(), "none"),
    ],
)
def test_what_a_chip_gets(targets, answer):
    row = Image("/x", "", "fatbin", dict.fromkeys(targets, TargetCode(1, 1)), ())
    assert coverage.of([row], "gfx1010", "gfx10-1-generic").answer == answer
    broken = Image("/x", "", "kpack", {}, ("broken",))
    assert coverage.of([row, broken], "gfx1010", "gfx10-1-generic").answer == (answer if answer in ("native", "generic") else "unread")


@pytest.mark.parametrize(("value", "gfx"), [("10.3.0", "gfx1030"), ("9.0.10", "gfx90a"), ("10.1.2", "gfx1012"), ("10.3", None), ("gfx1030", None)])
def test_what_an_override_names(value, gfx):
    assert coverage.forced(value) == gfx
