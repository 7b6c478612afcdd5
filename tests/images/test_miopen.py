"""MIOpen's kernel databases, made with SQLite and MIOpen's own statement; its cache folders; hostile ones."""

from __future__ import annotations

import bz2
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.build import elf_object
from rocm_patch.errors import FormatError
from rocm_patch.images import miopen
from rocm_patch.images.source import Bytes, Code, Unread

CREATE = (
    "CREATE TABLE IF NOT EXISTS `kern_db` (`id` INTEGER PRIMARY KEY ASC,`kernel_name` TEXT NOT NULL,`kernel_args` TEXT NOT NULL"
    ",`kernel_blob` BLOB NOT NULL,`kernel_hash` TEXT NOT NULL,`uncompressed_size` INT NOT NULL);"
    "CREATE UNIQUE INDEX IF NOT EXISTS `idx_kern_db` ON kern_db(kernel_name, kernel_args, kernel_hash, uncompressed_size);"
)
Row = tuple[str, bytes, int]
CONV = elf_object("gfx1030", ["naive_conv_fwd_nchw", "naive_conv_bwd_nchw"])
POOL = elf_object("gfx1030", ["mloPoolingG"])


def packed(name: str, code: bytes) -> Row:
    return name, bz2.compress(code), len(code)


def database(rows: Sequence[Row], create: str = CREATE) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gfx1030.kdb")
        connection = sqlite3.connect(path)
        connection.executescript(create)
        for number, (name, blob, size) in enumerate(rows):
            values = (name, f"-DNUMBER={number} -mcpu=gfx1030", blob, hashlib.md5(blob).hexdigest(), size)
            connection.execute(
                "INSERT INTO kern_db(kernel_name, kernel_args, kernel_blob, kernel_hash, uncompressed_size) VALUES (?,?,?,?,?)", values
            )
        connection.commit()
        connection.close()
        with open(path, "rb") as stream:
            return stream.read()


def items(data: bytes, path: str = "share/miopen/db/gfx1030.kdb") -> list[Code | Unread]:
    return list(miopen.read(Bytes(data), path))


def test_compressed_and_plain_kernels() -> None:
    found = items(database([packed("naive_conv.cpp.o", CONV), ("MIOpenPooling.cl.o", POOL, 0)]))
    assert [(item.inside, item.target, item.data.read(0, item.data.size)) for item in found if isinstance(item, Code)] == [
        ("naive_conv.cpp.o[1]", "gfx1030", CONV),
        ("MIOpenPooling.cl.o[2]", "gfx1030", POOL),
    ]
    assert {item.store for item in found} == {"miopen"}


def test_a_renamed_database_still_says_what_it_is_for() -> None:
    (item,) = items(database([packed("a.o", CONV)]), "share/miopen/db/gfx1010_20.kdb")
    assert isinstance(item, Code)
    assert item.target == "gfx1030"


@pytest.mark.parametrize(
    ("path", "head", "ours"),
    [
        ("share/miopen/db/gfx1030_36.kdb", b"SQLite format 3\0", True),
        ("home/.cache/miopen/3.2.0/gfx1010_20.ukdb", b"", True),
        ("gfx90878.kdb", b"", True),
        ("home/.cache/miopen/3.2.0.-/0123456789abcdef/naive_conv.cpp.o", CONV[:64], True),
        ("home/.cache/miopen/3.2.0.-/0123456789abcdef/Conv.cl.o", CONV[:64], True),
        ("share/miopen/db/gfx1030_36.HIP.fdb.txt", b"1-1-1", False),
        ("config/miopen/gfx1010_20.HIP.3_2_0.ufdb.txt", b"1-1-1", False),
        ("share/miopen/db/gfx1030_36.db", b"SQLite format 3\0", False),
        ("share/miopen/db/gfx942.tn.model", b"{", False),
        ("share/miopen/db/notes.txt", b"text", False),
        ("lib/libMIOpenCKGroupedConv_gfx1030.so", b"\x7fELF\x02\x01" + bytes(12) + b"\x3e", False),
        ("home/passwords.kdb", b"\x03\xd9\xa2\x9a", False),
        ("elsewhere/a.o", CONV[:64], False),
    ],
)
def test_recognised(path: str, head: bytes, ours: bool) -> None:
    assert miopen.recognise(path, head) is ours


def test_files_of_the_cache_speak_for_themselves() -> None:
    (item,) = items(elf_object("gfx1010"), "home/.cache/miopen/3.2.0/ab/naive_conv.cpp.o")
    assert isinstance(item, Code)
    assert item.target == "gfx1010"


def test_what_cannot_be_read_is_told_and_the_rest_read() -> None:
    found = items(
        database(
            [("lies.o", bz2.compress(CONV), 7), ("cut.o", bz2.compress(CONV)[:-9], len(CONV)), ("text.o", b"no code", 0), packed("good.o", CONV)]
        )
    )
    assert [item.inside for item in found] == ["lies.o[1]", "cut.o[2]", "text.o[3]", "good.o[4]"]
    assert [type(item) for item in found] == [Unread, Unread, Unread, Code]


def test_databases_that_are_none() -> None:
    for data, why in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not the database"),
        (b"", "cut short: 100 bytes are needed and 0 are there"),
        (bytes(200), "not an SQLite database"),
        (database([], create="CREATE TABLE perf_db(id INTEGER PRIMARY KEY)"), "no table kern_db"),
        (database([], create="CREATE TABLE kern_db(kernel_name, kernel_args)"), "the table kern_db has no column kernel_blob"),
    ):
        (item,) = items(data)
        assert isinstance(item, Unread)
        assert item.why == why


def test_behind_the_sample_the_target_is_taken_over_and_nothing_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miopen, "SAMPLE", 2 * len(CONV) + 10)
    rows = [packed(f"{number}.o", CONV) for number in range(4)]
    found = items(database([*rows, ("broken.o", b"BZh9", len(CONV))]))
    assert [item.target for item in found if isinstance(item, Code)] == ["gfx1030"] * 5
    assert isinstance(found[4], Code)
    with pytest.raises(FormatError):
        found[4].data.read(0, 4)


def test_kernels_of_a_large_database_stay_uncounted() -> None:
    small, large = items(database([packed("a.o", CONV)])), items(database([packed("a.o", CONV), ("b.o", CONV + bytes(3 << 20), 0)]))
    assert [item.kernels for item in small if isinstance(item, Code)] == [None]
    assert [item.kernels for item in large if isinstance(item, Code)] == [-1, -1]


def test_a_mixed_database_beyond_the_sample_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = elf_object("gfx1010", ["naive_conv_fwd_nchw", "naive_conv_bwd_nchw"])
    monkeypatch.setattr(miopen, "SAMPLE", len(CONV) + len(other) + 10)
    found = items(database([packed("a.o", CONV), packed("b.o", other), packed("c.o", CONV)]))
    assert [item.target for item in found if isinstance(item, Code)] == ["gfx1030", "gfx1010"]
    assert isinstance(found[2], Unread)
    assert found[2].why.startswith("1 more kernels, not opened")


def test_a_bomb_is_not_opened() -> None:
    bomb = bz2.compress(bytes(64 << 20))
    for size in (64 << 20, len(bomb) * 1000, 5_000_000):
        found = items(database([("bomb.o", bomb, size), packed("good.o", CONV)]))
        assert isinstance(found[-1], (Code, Unread))
        assert not any(isinstance(item, Code) and item.inside == "bomb.o[1]" for item in found)


def test_a_thousand_broken_rows_are_counted() -> None:
    found = items(database([(f"{number}.o", b"", 0) for number in range(1000)]))
    assert len(found) == 65
    assert isinstance(found[-1], Unread)
    assert found[-1].why == "936 more could not be read"


BASE = database([packed(f"{number}.o", elf_object("gfx1030", [f"kernel{number}"], os.urandom(400 * number + 4))) for number in range(8)])


@settings(max_examples=200, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=10), st.integers(0, 3000))
def test_mutated_databases(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(BASE)
    for place, value in changes:
        data[place] = value
    assert all(isinstance(item, (Code, Unread)) for item in items(bytes(data[: len(data) - cut])))


@settings(max_examples=100, deadline=2000)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for path in ("gfx1030.kdb", ".cache/miopen/1/a.o"):
        for hostile in (data, b"SQLite format 3\0" + data):
            assert all(isinstance(item, (Code, Unread)) for item in items(hostile, path))
