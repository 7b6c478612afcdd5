"""Measurements in a SQLite file, `choices.sqlite3` in the engine's cache folder.

It is a cache: a file that is damaged, foreign or out of reach is an empty one, and no error leaves this module. Every row carries a checksum,
so that what is read is what was written, whatever happened to the file in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import stat
import time
import urllib.parse
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import runtime
from .algorithms import Variant

if TYPE_CHECKING:
    import sqlite3

VERDICTS = ("ok", "wrong", "crashed", "hung", "failed", "started")
"""`started` was never heard of again: see `tune`."""
APPLICATION = 0x726F6370
TABLE = "choices_1"
"""A later version with other columns takes another table, and both can live in the file."""
COLUMNS = "stack, problem, algorithm, variant, verdict, microseconds, error, at, checksum"
WAIT = 10.0
"""Seconds to wait for another writer."""
READ_LIMIT = 2.0
"""Seconds that the one reading may take in a training run."""
MOST_ROWS = 200_000
HARMLESS = re.compile(r"locked|full|readonly|unable to open|disk I/O|interrupted|no such table", re.IGNORECASE)
"""What SQLite says where nothing is wrong with the file."""
NETWORK = re.compile(r"nfs|cifs|smb|9p|fuse\.|ceph|lustre|afs|gpfs|beegfs")

Key = tuple[str, Variant]


@dataclass(frozen=True)
class Measured:
    """One candidate for one problem."""

    problem: str
    algorithm: str
    variant: Variant
    verdict: str
    microseconds: float | None = None
    error: str = ""
    at: float = 0.0
    """Seconds since 1970."""

    @property
    def key(self) -> Key:
        """What tells candidates for one problem apart."""
        return self.algorithm, self.variant


T = TypeVar("T")


class ForeignError(Exception):
    """The file is none of ours."""


def path() -> Path:
    """Where the choices lie."""
    return runtime.cache_folder() / "choices.sqlite3"


def read(stack: str) -> list[Measured]:
    """All rows of a stack; none where the file is absent, damaged (it is moved aside then, and that is said once) or out of reach."""

    def work(connection: sqlite3.Connection) -> list[Any]:
        end = time.monotonic() + READ_LIMIT
        connection.set_progress_handler(lambda: int(time.monotonic() > end), 100_000)
        return connection.execute(f"SELECT {COLUMNS} FROM {TABLE} WHERE stack = ? LIMIT {MOST_ROWS}", (stack,)).fetchall()  # noqa: S608

    if not os.path.lexists(path()):
        return []
    found, _ = _attempt(work, write=False)
    return [row for row in map(_row, found or []) if row is not None]


def record(stack: str, rows: Iterable[Measured]) -> str:
    """Write rows, in place of those of the same candidates, durably: what begins next may take the machine down.

    Returns:
        Why they could not be written, or nothing.
    """
    values = [_values(stack, row) for row in rows]
    statement = f"INSERT OR REPLACE INTO {TABLE} ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)"  # noqa: S608
    return _attempt(lambda connection: connection.executemany(statement, values), write=True)[1]


def remove(stack: str, problem: str, keys: Iterable[Key]) -> str:
    """Take rows out, as if they had never been measured; the answer as of `record`."""
    values = [(stack, problem, algorithm, json.dumps(variant)) for algorithm, variant in keys]
    statement = f"DELETE FROM {TABLE} WHERE stack = ? AND problem = ? AND algorithm = ? AND variant = ?"  # noqa: S608
    return _attempt(lambda connection: connection.executemany(statement, values), write=True)[1]


def _attempt(work: Callable[[sqlite3.Connection], T], *, write: bool) -> tuple[T | None, str]:
    """What `work` gives, in one transaction, or why there is nothing. No error of the file goes further."""
    try:
        import sqlite3
    except ImportError:
        return None, "this Python has no sqlite3"
    why = ""
    for _ in range(2):  # the second time on a fresh file, where the first was damaged
        try:
            if write:
                path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _lock(fcntl.LOCK_SH) if write else contextlib.nullcontext():
                connection = _connect(write=write)
                try:
                    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                    if write:
                        _prepare(connection)
                    result = work(connection)
                    connection.execute("COMMIT")
                    return result, ""
                finally:
                    connection.close()
        except (sqlite3.DatabaseError, ForeignError) as error:
            why = f"{path()}: {error}"
            if isinstance(error, sqlite3.OperationalError) and HARMLESS.search(str(error)):
                return None, why
            if not _move_aside(str(error)) or not write:
                break
        except OSError as error:
            return None, f"{path().parent}: {error.strerror or error}"
    return None, why


def _connect(*, write: bool) -> sqlite3.Connection:
    """Open it, if it is ours or new."""
    import sqlite3

    place = path()
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise ForeignError("not a file")
    address = f"file:{urllib.parse.quote(str(place))}"
    for mode in ["rwc"] if write else ["ro", "ro&immutable=1"]:  # the last: a folder in which SQLite may write nothing
        connection = sqlite3.connect(f"{address}?mode={mode}", timeout=WAIT if write else READ_LIMIT, uri=True, isolation_level=None)
        connection.text_factory = _text
        try:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]  # the first real reading
            if tables and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
                raise ForeignError("another program's database")
            if write:
                connection.execute(f"PRAGMA journal_mode={'DELETE' if _on_network(place) else 'WAL'}")
                connection.execute("PRAGMA synchronous=FULL")
            return connection
        except sqlite3.OperationalError:
            connection.close()
            if mode != "ro":
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {TABLE} (stack TEXT NOT NULL, problem TEXT NOT NULL, algorithm TEXT NOT NULL, variant TEXT NOT NULL, "
        "verdict TEXT NOT NULL, microseconds REAL, error TEXT NOT NULL, at REAL NOT NULL, checksum INTEGER NOT NULL, "
        "PRIMARY KEY (stack, problem, algorithm, variant)) WITHOUT ROWID"
    )


def _on_network(place: Path) -> bool:
    """Where memory cannot be shared with other machines, so that SQLite's write-ahead log is not safe."""
    found = ("", "")
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, point, kind, *_ = line.split(" ")
            if len(point) >= len(found[0]) and place.is_relative_to(point):
                found = (point, kind)
    return NETWORK.match(found[1]) is not None


@contextlib.contextmanager
def _lock(how: int) -> Iterator[None]:
    """Writers share it, and none of them is at work while a file is moved: the write-ahead log that goes with it could be the next file's."""
    with open(f"{path()}.lock", "w") as lock:
        with contextlib.suppress(OSError):  # a file system without such locks
            fcntl.flock(lock, how)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # closing it would not do: a process forked meanwhile has it open too
                fcntl.flock(lock, fcntl.LOCK_UN)


def _move_aside(reason: str) -> bool:
    """Whether the place is free, or holds a sound file by now: another process may have seen the same damage and moved it already."""
    place = path()
    try:
        with _lock(fcntl.LOCK_EX):
            if _sound():
                return True
            aside = f"{place}.damaged"
            try:
                os.replace(place, aside)
            except OSError:
                aside = f"{aside}-{time.time_ns()}"
                os.replace(place, aside)
            for end in ("-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{place}{end}")
    except FileNotFoundError:
        return True
    except OSError as error:
        say(f"the measured choices in {place} cannot be used ({reason}), nor moved ({error.strerror})")
        return False
    say(f"the measured choices in {place} cannot be used ({reason}); that file is {aside} now, and measuring begins anew")
    return True


def _sound() -> bool:
    import sqlite3

    if not os.path.lexists(place := path()):
        return True
    try:
        connection = _connect(write=False)
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return place.stat().st_size == 0
    except (sqlite3.DatabaseError, ForeignError):
        return False


# ------------------------------------------------------------------ rows


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _values(stack: str, row: Measured) -> tuple[Any, ...]:
    variant, at = json.dumps(row.variant), float(row.at or time.time())
    values = (stack, row.problem, row.algorithm, variant, row.verdict, row.microseconds, row.error[:2000], at)
    return (*values, _checksum(values))


def _checksum(values: tuple[Any, ...]) -> int:
    return zlib.crc32(repr(values).encode("utf-8", "replace"))


def _row(values: tuple[Any, ...]) -> Measured | None:
    """A row as it was written, or nothing."""
    *fields, checksum = values
    if checksum != _checksum(tuple(fields)):
        return None
    _, problem, algorithm, variant, verdict, microseconds, error, at = fields
    plain = {"problem": problem, "algorithm": algorithm, "variant": _json(variant), "verdict": verdict, "microseconds": microseconds}
    return measured(plain, str(error), at)


def _json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def measured(fields: dict[str, Any], error: str = "", at: object = 0.0) -> Measured | None:
    """A row of values that anybody may have written, or nothing."""
    problem, algorithm, variant, verdict, microseconds = (fields.get(name) for name in ("problem", "algorithm", "variant", "verdict", "microseconds"))
    if not isinstance(problem, str) or not isinstance(algorithm, str) or verdict not in VERDICTS or not isinstance(variant, list):
        return None
    if not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in variant):
        return None
    timed = float(microseconds) if isinstance(microseconds, (int, float)) and 0 < microseconds < math.inf else None
    if verdict == "ok" and timed is None:
        return None
    return Measured(problem, algorithm, tuple(variant), verdict, timed, error, at if isinstance(at, float) else 0.0)


_said: set[str] = set()


def say(what: str) -> None:
    """Once a process."""
    if what not in _said:
        _said.add(what)
        warnings.warn(f"rocm-patch: {what}", RuntimeWarning, stacklevel=2)
