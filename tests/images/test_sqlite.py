"""Our reader of SQLite files against SQLite itself, over page sizes, long values and deleted rows; then hostile files."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch.errors import FormatError
from rocm_patch.images import sqlite
from rocm_patch.images.source import Bytes

SCHEMA = "CREATE TABLE other(x); CREATE TABLE `t` (`id` INTEGER PRIMARY KEY ASC,`name` TEXT NOT NULL,[size] INT CHECK (size >= 0, 1), blob BLOB)"
Row = tuple[str, int, bytes]


def database(rows: Sequence[Row], *pragmas: str, schema: str = SCHEMA, after: str = "") -> bytes:
    """The bytes of a database that SQLite wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.db")
        connection = sqlite3.connect(path)
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(schema.replace("CHECK (size >= 0, 1)", "CHECK (size IN (size, 1))"))
        connection.executemany("INSERT INTO t(name, size, blob) VALUES (?, ?, ?)", rows)
        connection.commit()
        connection.executescript(after)
        connection.close()
        with open(path, "rb") as stream:
            return stream.read()


def read(data: bytes, columns: Sequence[str] = ("name", "size", "blob")) -> list[tuple[int, tuple[object, ...]]]:
    def plain(value: sqlite.Value) -> object:
        return value if value is None or isinstance(value, (int, str)) else value.read(0, value.size)

    return [(row, tuple(plain(value) for value in values)) for row, values in sqlite.rows(Bytes(data), "t", columns)]


@pytest.mark.parametrize("page", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_rows_as_sqlite_wrote_them(page: int, encoding: str) -> None:
    rows = [(f"kernel_ü_{number}", number * number - 50, os.urandom(number * 37 % 9000)) for number in range(400)]
    data = database(rows, f"page_size={page}", f"encoding='{encoding}'")
    assert read(data) == [(number + 1, row) for number, row in enumerate(rows)]


@settings(max_examples=100, deadline=2000)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.integers(-(1 << 63), (1 << 63) - 1), st.binary(max_size=2000)),
        max_size=30,
    )
)
def test_any_rows(rows: list[Row]) -> None:
    assert read(database(rows, "page_size=512")) == [(number + 1, row) for number, row in enumerate(rows)]


def test_deleted_and_moved_rows() -> None:
    rows = [(f"kernel{number}", number, bytes(3000)) for number in range(200)]
    data = database(rows, "page_size=1024", "auto_vacuum=FULL", after="DELETE FROM t WHERE size % 3; UPDATE t SET blob = x'00ff' WHERE size = 6;")
    assert [row for row, _ in read(data)] == [number + 1 for number in range(0, 200, 3)]
    assert read(data)[2] == (7, ("kernel6", 6, b"\x00\xff"))


def test_columns_that_came_later_are_none_in_older_rows() -> None:
    data = database([("a", 1, b"")], after="ALTER TABLE t ADD COLUMN hash TEXT")
    assert read(data, ["hash", "name"]) == [(1, (None, "a"))]


def test_long_values_are_not_read_before_they_are_asked_for() -> None:
    class Counted(Bytes):
        read_bytes = 0

        def read(self, offset: int, count: int) -> bytes:
            Counted.read_bytes += count
            return super().read(offset, count)

    source = Counted(database([(f"k{number}", 0, os.urandom(1 << 20)) for number in range(8)]))
    values = [values[0] for _, values in sqlite.rows(source, "t", ["blob"])]
    assert source.size > 8 << 20
    assert Counted.read_bytes < 1 << 17
    tail = next(value for _, (value,) in sqlite.rows(source, "t", ["blob"]) if value is not None and not isinstance(value, (int, str)))
    assert tail.read((1 << 20) - 5000, 5000) == tail.read(0, 1 << 20)[-5000:]
    assert tail.find(tail.read(9000, 40), 0, tail.size) == 9000
    assert all(value is not None and not isinstance(value, (int, str)) and len(value.read(0, value.size)) == 1 << 20 for value in values)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut short"),
        (bytes(100), "not an SQLite database"),
        (b"SQLite format 3\0" + bytes(100), "cannot be"),
        (database([], schema="CREATE TABLE t2(a); CREATE TABLE t(name, size, blob)").replace(b"table", b"tablf"), "no table t"),
        (database([], schema="CREATE TABLE t(name PRIMARY KEY, size, blob) WITHOUT ROWID"), "not part of a table"),
        (database([], schema="CREATE TABLE t(name, size, blob, PRIMARY KEY (name))")[:5000], "of 1 pages"),
        (database([("a", 1, b"")], schema="CREATE TABLE t(name, size, blob)").replace(b"size, blob)", b"siza, blob)"), "no column size"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        read(data)


def looped() -> bytes:
    data = bytearray(database([(f"k{number}", 0, bytes(100)) for number in range(100)], "page_size=512"))
    root = next(page for page in range(1, len(data) // 512) if data[page * 512] == 5)
    data[root * 512 + 8 : root * 512 + 12] = (root + 1).to_bytes(4, "big")
    return bytes(data)


def test_a_tree_with_a_loop_ends() -> None:
    with pytest.raises(FormatError, match="twice"):
        read(looped())


def test_a_chain_of_pages_with_a_loop_ends() -> None:
    data = bytearray(database([("a", 0, os.urandom(20_000))], "page_size=512"))
    for page in range(3, len(data) // 512):
        data[page * 512 : page * 512 + 4] = (4).to_bytes(4, "big")
    started = time.process_time()
    read(bytes(data))
    assert time.process_time() - started < 1


BASE = database([(f"kernel{number}", number, os.urandom(number * 60)) for number in range(30)], "page_size=512")


@settings(max_examples=400, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=10), st.integers(0, len(BASE)))
def test_mutated_files(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(BASE)
    for place, value in changes:
        # Where the structure is: headers of pages and the first rows.
        data[place // 512 * 512 + place % 64] = value
    for hostile in (data, data[: len(data) - cut]):
        try:
            assert len(read(bytes(hostile))) <= sqlite.ROW_LIMIT
        except FormatError as error:
            assert error.what
