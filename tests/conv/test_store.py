"""The store of tuned choices: what it answers, and what it bears. Violence is done to real files by real processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
import traceback
import warnings

import pytest

torch = pytest.importorskip("torch", reason="problems name devices and dtypes of torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from rocm_patch.conv import algorithms, choose, records, stack, store  # noqa: E402
from rocm_patch.conv.problem import DTYPES, OPERATIONS, Problem, map_size, parse  # noqa: E402
from rocm_patch.conv.records import Measured  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
CPU = torch.device("cpu")
PROBLEM = Problem("forward", CPU, torch.float32, 2, 3, 4, 1, (5, 6), (3, 4), (3, 3), (1, 1), (0, 0), (1, 1), True)
NAME = PROBLEM.name()
STACK = "a stack"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and nothing known of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records._said.clear()
    store.forget()
    yield records.path()
    store.forget()


def ok(microseconds, algorithm="native", variant=(), problem=NAME):
    return Measured(problem, algorithm, variant, "ok", microseconds)


def known(*rows):
    assert records.record(stack.fingerprint(CPU), rows) == ""
    store.forget()


def plain(rows):
    return sorted((row.problem, row.algorithm, row.variant, row.verdict, row.microseconds, row.error) for row in rows)


def forked(work):
    """Run it in a child; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def succeeds(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ------------------------------------------------------------------ names of problems


@st.composite
def problems(draw):
    dimensions = draw(st.integers(1, 3))

    def numbers(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * dimensions))

    kernel, stride, padding, dilation = numbers(1, 5), numbers(1, 3), numbers(0, 4), numbers(1, 3)
    image = tuple(draw(st.integers(d * (k - 1) + 1, 40)) for k, d in zip(kernel, dilation, strict=True))
    groups = draw(st.integers(1, 4))
    channels, filters = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    return Problem(
        draw(st.sampled_from(OPERATIONS)), CPU, draw(st.sampled_from(DTYPES)), draw(st.integers(1, 99)), channels, filters, groups, image,
        map_size(image, kernel, stride, padding, dilation), kernel, stride, padding, dilation, draw(st.booleans()),
    )  # fmt: skip


@given(problems())
def test_a_name_says_all_of_a_problem(problem):
    assert parse(problem.name(), CPU) == problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("forward", "sideways"),
        ("float32", "int8"),
        ("g1", "g2"),
        ("s1x1", "s0x1"),
        ("p0x0", "p0"),
        ("n2", "n-2"),
        ("n2", "n" + "9" * 30),
        (" bias", " bias "),
    ],
)
def test_what_is_no_name_is_refused(old, new):
    assert old in NAME
    with pytest.raises(ValueError):
        parse(NAME.replace(old, new), CPU)


# ------------------------------------------------------------------ answers


def test_the_fastest_right_candidate_is_best(cache):
    assert store.best(PROBLEM) is None
    known(ok(9.0), ok(5.0, "im2col"), Measured(NAME, "cpu", (), "failed"))
    assert store.best(PROBLEM) == ("im2col", ())
    assert store.failed(PROBLEM) == frozenset()
    assert choose.prepare(PROBLEM, choose.Settings()).algorithm == "im2col"
    known(ok(3.0))
    assert store.best(PROBLEM) == ("native", ())
    assert choose.prepare(PROBLEM, choose.Settings()).algorithm == "native"


@pytest.mark.parametrize("verdict", ["wrong", "crashed", "hung", "started"])
def test_what_was_bad_here_is_not_chosen_by_estimate_either(verdict):
    first = choose.prepare(PROBLEM, choose.Settings())
    known(Measured(NAME, first.algorithm, first.variant, verdict))
    assert store.failed(PROBLEM) == {(first.algorithm, first.variant)}
    assert choose.prepare(PROBLEM, choose.Settings()).name != first.name
    known(
        *(
            Measured(NAME, row.name, variant, verdict)
            for row in algorithms.ALGORITHMS
            if not row.guard(PROBLEM)
            for variant in row.variants(PROBLEM, 1 << 28)
        )
    )
    assert choose.prepare(PROBLEM, choose.Settings()).run is not None  # something always runs


def test_rows_of_another_stack_and_of_nobody_are_ignored():
    assert records.record("another stack", [ok(1.0)]) == ""
    known(
        ok(1.0, "quantum"), ok(2.0, "native", ("made", "up")), ok(3.0, "pointwise", ("batched",)), ok(math.inf, "im2col"), ok(math.nan, "im2col"),
        ok(-1.0, "im2col"), ok(0.0, "im2col"), ok(None, "im2col"), Measured(NAME, "im2col", (), "splendid", 1.0),
    )  # fmt: skip
    assert store.best(PROBLEM) is None
    known(ok(7.0))
    assert store.best(PROBLEM) == ("native", ())
    assert store.best(PROBLEM, lambda algorithm, variant: False) is None


def test_another_stack_has_another_fingerprint(monkeypatch):
    before = stack.fingerprint(CPU)
    assert torch.__version__ in before
    assert stack.kernels_hash() in before
    stack.fingerprint.cache_clear()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert stack.fingerprint(CPU) != before
    finally:
        torch.set_num_threads(threads)


def test_the_hash_covers_every_module_of_an_algorithm(tmp_path, monkeypatch):
    before = stack.kernels_hash.__wrapped__()
    copy = tmp_path / "kernels"
    shutil.copytree(stack.runtime.FOLDER, copy)
    monkeypatch.setattr(stack.runtime, "FOLDER", copy)
    assert stack.kernels_hash.__wrapped__() == before
    with (copy / "common.h").open("a") as file:
        file.write("\n")
    assert stack.kernels_hash.__wrapped__() != before


def test_the_file_is_read_once(cache):
    known(ok(9.0))
    assert store.best(PROBLEM) == ("native", ())
    cache.unlink()
    assert store.best(PROBLEM) == ("native", ())
    records.record(stack.fingerprint(CPU), [ok(1.0, "im2col")])
    assert store.best(PROBLEM) == ("native", ())
    store.forget()
    assert store.best(PROBLEM) == ("im2col", ())


def test_a_forked_worker_reads_nothing_but_keeps_what_was_read():
    known(ok(9.0))

    def empty():
        assert store.best(PROBLEM) is None

    def full():
        assert store.best(PROBLEM) == ("native", ())

    assert succeeds(forked(empty))
    assert store.best(PROBLEM) is not None
    assert succeeds(forked(full))


def test_a_shipped_table_serves_what_was_not_measured_here(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TUNED", tmp_path)
    target = stack.target(CPU)
    rows = [{"problem": NAME, "algorithm": "im2col", "variant": [], "verdict": "ok", "microseconds": 2.0}, {"problem": 7}, "text", None]
    (tmp_path / f"{target}-made.json").write_text(json.dumps({"schema": 1, "target": target, "rows": rows}))
    (tmp_path / "gfx9999.json").write_text(json.dumps({"rows": [{**rows[0], "algorithm": "native", "microseconds": 0.1}]}))
    assert store.best(PROBLEM) == ("im2col", ())
    known(ok(500.0))
    assert store.best(PROBLEM) == ("native", ())  # measured here wins over any figure from elsewhere
    known(Measured(NAME, "native", (), "failed"), Measured(NAME, "im2col", (), "wrong"))
    assert store.best(PROBLEM) is None  # and so does its verdict
    (tmp_path / f"{target}.json").write_text("[" * 100_000)
    store.forget()
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert store.best(PROBLEM) is None


# ------------------------------------------------------------------ violence


def many(count=120):
    return [Measured(f"problem {index}", "implicit", ("64x64x16", index), "ok", 1.5 + index, "é" * (index % 40)) for index in range(count)]


def test_rows_come_back_as_written():
    rows = [*many(), Measured("p", "cpu", (), "hung", None, "no answer")]
    assert records.record(STACK, rows) == ""
    assert plain(records.read(STACK)) == plain(rows)
    assert records.record(STACK, [Measured("p", "cpu", (), "ok", 4.0)]) == ""
    assert [row.verdict for row in records.read(STACK) if row.problem == "p"] == ["ok"]
    assert records.remove(STACK, "p", [("cpu", ())]) == ""
    assert plain(records.read(STACK)) == plain(many())


def test_writers_that_are_killed_leave_every_row_that_they_were_promised():
    draw = random.Random(1)
    promised = []
    for life in range(12):
        ours, theirs = os.pipe()

        def write(life=life, theirs=theirs):
            for index in range(10_000):
                assert records.record(STACK, [ok(1.0 + index, problem=f"{life} {index}")]) == ""
                os.write(theirs, b"%d\n" % index)

        pid = forked(write)
        os.close(theirs)
        time.sleep(draw.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(ours, "rb") as file:
            promised += [f"{life} {int(line)}" for line in file.read().split()]
        found = {row.problem for row in records.read(STACK)}
        assert found >= set(promised)
    assert len(promised) > 12
    with sqlite3.connect(records.path()) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_many_write_at_once():
    def write(number):
        for index in range(15):
            assert records.record(STACK, [ok(1.0, problem=f"{number} {index}"), ok(2.0 + number, problem="shared")]) == ""
            assert len(records.read(STACK)) > index

    children = [forked(lambda number=number: write(number)) for number in range(6)]
    assert [succeeds(pid) for pid in children] == [True] * 6
    found = records.read(STACK)
    assert {row.problem for row in found} == {"shared", *(f"{number} {index}" for number in range(6) for index in range(15))}


def damaged_reads(place, damage, rows):
    """Read after the damage: never an error, never a row that nobody wrote; and the file can be written again."""
    damage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = records.read(STACK)
        assert set(plain(found)) <= set(plain(rows))
        assert records.record(STACK, [ok(3.0)]) == ""
        assert ok(3.0).key in {row.key for row in records.read(STACK) if row.problem == NAME}
    return len(found)


def flatten(place):
    """One file without a log, and its bytes."""
    connection = sqlite3.connect(place)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return place.read_bytes()


def restore(place, data):
    for path in place.parent.iterdir():
        path.unlink()
    place.write_bytes(data)


def test_damage_in_every_region(cache):
    rows = many()
    assert records.record(STACK, rows) == ""
    data = flatten(cache)
    draw = random.Random(2)
    survived = []
    for at in [*range(0, 100, 4), *range(100, len(data), 509)]:
        restore(cache, data)

        def damage(at=at):
            with cache.open("r+b") as file:
                file.seek(at)
                file.write(draw.randbytes(12))

        survived.append(damaged_reads(cache, damage, rows))
    assert min(survived) == 0
    assert max(survived) >= len(rows) - 2


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut(cache, share):
    rows = many()
    assert records.record(STACK, rows) == ""
    data = flatten(cache)
    restore(cache, data[: int(len(data) * share)])
    damaged_reads(cache, lambda: None, rows)


def test_a_log_that_was_damaged(cache):
    """The write-ahead log of a writer that was killed, with bytes changed."""
    rows = many()
    connection = sqlite3.connect(cache) if cache.exists() else None
    assert connection is None

    def write():
        assert records.record(STACK, rows[:60]) == ""
        held = sqlite3.connect(cache)  # keeps the log from being folded in
        held.execute("SELECT count(*) FROM choices_1").fetchone()
        assert records.record(STACK, rows[60:]) == ""
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(write), 0)
    log = cache.with_name(cache.name + "-wal")
    files = {path: path.read_bytes() for path in cache.parent.iterdir()}
    assert len(files[log]) > 1000
    for at in range(0, len(files[log]), 997):
        for path in cache.parent.iterdir():
            path.unlink()
        for path, data in files.items():
            path.write_bytes(data)

        def damage(at=at):
            with log.open("r+b") as file:
                file.seek(at)
                file.write(b"\xff" * 8)

        damaged_reads(cache, damage, rows)


def test_a_row_that_was_changed_is_no_row(cache):
    assert records.record(STACK, [ok(3.0), Measured(NAME, "im2col", (), "wrong")]) == ""
    connection = sqlite3.connect(cache)
    with connection:
        connection.execute("UPDATE choices_1 SET verdict = 'ok', microseconds = 0.1 WHERE algorithm = 'im2col'")
    connection.close()
    assert [row.algorithm for row in records.read(STACK)] == ["native"]


def another_database(place):
    connection = sqlite3.connect(place)
    with connection:
        connection.execute("CREATE TABLE choices_1 (photograph BLOB)")
    connection.close()


FOREIGN = {
    "text": lambda place: place.write_text("a shopping list\n" * 100),
    "database": another_database,
    "folder": lambda place: (place / "sub").mkdir(parents=True),
    "fifo": os.mkfifo,
    "zeros": lambda place: place.write_bytes(b"\0" * 8192),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_moved_aside_and_said_once(cache, kind):
    cache.parent.mkdir(parents=True)
    FOREIGN[kind](cache)
    with pytest.warns(RuntimeWarning, match=r"cannot be used .*choices\.sqlite3\.damaged now"):
        assert records.read(STACK) == []
    assert os.path.lexists(f"{cache}.damaged")
    assert records.record(STACK, [ok(1.0)]) == ""
    assert len(records.read(STACK)) == 1


def test_a_link_to_nowhere_and_a_folder_that_cannot_be_made(cache, tmp_path, monkeypatch):
    cache.parent.mkdir(parents=True)
    cache.symlink_to(tmp_path / "nowhere" / "file")
    assert records.read(STACK) == []
    assert "unable to open" in records.record(STACK, [ok(1.0)])
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    assert records.read(STACK) == []
    assert "Not a directory" in records.record(STACK, [ok(1.0)])


def test_several_see_the_damage_at_once_and_none_moves_the_new_file(cache):
    for turn in range(5):
        restore(cache, b"rubbish" * 500) if cache.exists() else (cache.parent.mkdir(parents=True), cache.write_bytes(b"rubbish" * 500))

        def write(number):
            warnings.simplefilter("ignore")
            assert records.record(STACK, [ok(1.0, problem=f"{number}")]) == ""

        children = [forked(lambda number=number: write(number)) for number in range(6)]
        assert [succeeds(pid) for pid in children] == [True] * 6
        assert {row.problem for row in records.read(STACK)} == set("012345"), turn


def test_a_file_that_another_has_locked_is_sound(cache, monkeypatch):
    monkeypatch.setattr(records, "READ_LIMIT", 0.1)
    assert records.record(STACK, [ok(1.0)]) == ""
    with contextlib.closing(sqlite3.connect(cache, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=DELETE")  # as a new file is, until its first writer has switched it
        other.execute("BEGIN EXCLUSIVE")
        assert records._move_aside("seen a moment ago")
    assert not os.path.lexists(f"{cache}.damaged")
    assert len(records.read(STACK)) == 1


def test_no_file_is_moved_while_another_writes(cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"rubbish" * 500)

    def move():
        warnings.simplefilter("ignore")
        assert records._move_aside("rubbish")

    with records._lock(fcntl.LOCK_SH):
        child = forked(move)
        time.sleep(0.3)
        assert cache.read_bytes() == b"rubbish" * 500
    assert succeeds(child)
    assert not cache.exists()


def test_a_folder_in_which_nothing_may_be_written(cache):
    rows = many(5)
    assert records.record(STACK, rows) == ""
    flatten(cache)
    for path in cache.parent.iterdir():
        path.chmod(0o444)
    cache.parent.chmod(0o555)
    for folder in cache.parents:
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("conv", "rocm-patch", "cache", "test_", "pytest-")):
            folder.chmod(folder.stat().st_mode | 0o11)

    def look():
        if os.geteuid() == 0:
            os.setuid(65534)
        assert plain(records.read(STACK)) == plain(rows)
        assert records.record(STACK, [ok(1.0)]) != ""
        assert plain(records.read(STACK)) == plain(rows)

    try:
        assert succeeds(forked(look))
    finally:
        cache.parent.chmod(0o755)


def test_a_full_disk(cache):
    rows = many(5)
    assert records.record(STACK, rows) == ""
    flatten(cache)

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (cache.stat().st_size + 2000,) * 2)
        assert records.record(STACK, many(120)) != ""

    assert succeeds(forked(write))
    assert plain(records.read(STACK)) == plain(rows)
    assert records.record(STACK, many(120)) == ""


def test_an_old_python_without_sqlite(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sqlite3", None)
    assert "no sqlite3" in records.record(STACK, [ok(1.0)])
    known_none = records.read(STACK)
    assert known_none == []
