"""The children that read files, what becomes of them and of their parent, and how much one file may say."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
import zipfile

import pytest

from images import build
from rocm_patch.images import pool, rows, walk, worker
from rocm_patch.images.source import Unread
from rocm_patch.model import TargetCode

DEADLY = """
import os, resource, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may ignore it
from rocm_patch.images import pool
pool._HOME = sys.argv[1]
for event in pool.run([pool.Task({"do": sys.argv[2]}, 60)], "images.deadly", 1):
    if isinstance(event, pool.Said) and "pid" in event.values:
        print(event.values["pid"], flush=True)
    if isinstance(event, pool.Ended):
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, open("/proc/self/status").read().split("VmHWM:")[1].split()[0], event.why)
"""


def deadly(what):
    """A process whose child does that."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return subprocess.Popen([sys.executable, "-c", DEADLY, home, what], stdout=subprocess.PIPE, text=True)


def alive(pid):
    """Whether a process computes: neither gone nor waiting for somebody to ask how it ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_long_line_costs_its_hearer_little():
    with deadly("long") as parent:
        seconds, kilobytes, *why = parent.stdout.read().split()
    assert why == []
    assert float(seconds) < 3
    assert int(kilobytes) < 200 << 10


def test_a_line_without_an_end_is_not_kept():
    with deadly("too long") as parent:
        _, kilobytes, why = parent.stdout.read().split(maxsplit=2)
    assert why.strip() == "its reader says too much"
    assert int(kilobytes) < 200 << 10


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_child_does_not_outlive_its_parent(number):
    with deadly("tell and spin") as parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(number)
        assert parent.wait(10) == -number
    until = time.monotonic() + 10
    while alive(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(child)


def test_a_child_whose_parent_ended_before_it_could_ask_begins_nothing(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = f"import sys; sys.path[:0] = {sys.path!r}; from images import deadly; deadly.main()"
    for parent, said in ((-1, b""), (os.getpid(), b'{"rows": []}\n{"end": ""}\n')):
        task = f'{{"do": "fine", "seconds": 5, "parent": {parent}}}\n'
        ended = subprocess.run([sys.executable, "-c", start], input=task.encode(), capture_output=True, timeout=30, check=True)
        assert ended.stdout == said


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), ValueError("x")])
def test_what_a_child_holds_is_sent_before_it_fails(monkeypatch, error):
    def items(path):
        yield "a", Unread("fatbin", "", "broken")
        raise error

    monkeypatch.setattr(walk, "items", items)
    said = worker._answer({"path": "/x", "count": True})
    assert next(said) == {"rows": [["a", "fatbin", "broken"]]}
    with pytest.raises(type(error)):
        next(said)


def test_long_words_of_a_file_are_cut(monkeypatch):
    monkeypatch.setattr(walk, "items", lambda path: iter([("m" * 5000, Unread("fatbin", "i" * 5000, "broken"))]))
    [said] = worker._answer({"path": "/x", "count": True})
    [[member, store, why]] = said["rows"]
    assert (len(member), store, why) == (worker.NAME_LIMIT, "fatbin", "i" * worker.NAME_LIMIT)


def test_rows_of_one_file_are_limited_and_the_rest_is_counted(monkeypatch):
    monkeypatch.setattr(rows, "ROW_LIMIT", 3)
    found = rows.Rows("/x")
    for number in range(5):
        found.code(f"m{number}", "fatbin", "gfx1010", 2, 100)
    found.code("m0", "fatbin", "gfx1010", 3, 50)
    found.unread("m4", "fatbin", "broken")
    found.why = "more than 1.7 s of computing"
    *shown, last = found.images()
    assert [(row.inside, row.targets["gfx1010"]) for row in shown] == [
        ("m0", TargetCode(5, 150)),
        ("m1", TargetCode(2, 100)),
        ("m2", TargetCode(2, 100)),
    ]
    assert (last.inside, dict(last.targets)) == ("", {})
    assert last.unread == ("3 more pieces of code, or reasons why it cannot be read, are left out", "more than 1.7 s of computing")


def test_reasons_of_one_file_are_limited_but_no_row_with_one_looks_whole(monkeypatch):
    monkeypatch.setattr(rows, "REASON_LIMIT", 20)
    found = rows.Rows("/x")
    found.code("late", "fatbin", "gfx1010", 1, 10)
    for number in range(30):
        found.unread("first", "fatbin", f"broken {number}")
    for number in range(10):
        found.unread(f"m{number}", "fatbin", "broken")
    found.unread("late", "fatbin", "broken")
    told = {row.inside: row.unread for row in found.images()}
    assert told["first"] == (*(f"broken {number}" for number in range(16)), "and 14 more reasons")
    assert [inside for inside in told if inside.startswith("m")] == ["m0", "m1", "m2", "m3"]
    assert told["late"] == ("reasons that are not told: 1",)
    assert told[""] == ("6 more pieces of code, or reasons why it cannot be read, are left out",)


def test_targets_of_one_file_are_limited(monkeypatch):
    monkeypatch.setattr(rows, "CODE_LIMIT", 4)
    found = rows.Rows("/x")
    for member in ("a", "b"):
        for number in range(3):
            found.code(member, "fatbin", f"gfx{number}", 1, 10)
    a, b = found.images()
    assert (len(a.targets), a.unread, len(b.targets)) == (3, (), 1)
    assert b.unread == ("more than 256 targets, or 4 in the file",)


@pytest.mark.slow
def test_a_wheel_of_ten_thousand_entries_costs_its_parent_no_more_rows(tmp_path):
    # Not more: the reader of forty thousand reached its limit of computing time on a busy machine, and said so.
    with zipfile.ZipFile(tmp_path / "one.whl", "w") as wheel:
        wheel.writestr("a.so", build.library(build.plain_bundle({"gfx1010": build.elf_object()})))
    raw = (tmp_path / "one.whl").read_bytes()
    start = raw.index(b"PK\1\2")
    rest, names = raw[start + 30 : start + 46], [b"a%05d.so" % number for number in range(10_000)]
    entries = b"".join(raw[start : start + 28] + struct.pack("<H", len(name)) + rest + name for name in names)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(names), len(names), len(entries), start, 0)
    (tmp_path / "one.whl").write_bytes(raw[:start] + entries + end)
    [done] = pool.scan(list(walk.candidates([str(tmp_path)])))
    assert len(done.images) == rows.REASON_LIMIT + 1
    assert done.images[-1].unread[0].startswith(f"{10_000 - rows.REASON_LIMIT:,} more")
