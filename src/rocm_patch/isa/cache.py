"""Judgements kept by the content they are about: a second scan, or one that was broken off, does not judge the same code again.

One SQLite file in the user's cache folder. The key has the code's SHA-256, the chip, and the version of the rules, so that
nothing stale is ever found. A cache that cannot be read or written is an empty cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sqlite3
import stat
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Final

from rocm_patch.isa import Count, Judgement

__all__ = ["Cache", "counts_of", "folder", "from_json", "key", "pack", "to_json"]

SCHEMA: Final = 1
_PARTS: Final = ("opcodes.tsv", "rules.toml", "decode.py", "facts.py", "flow.py", "hazards.py", "stretch.py", "table.py", "chips.py", "__init__.py")
_TABLES: Final = ("judgement", "file")
_PATIENCE: Final = 10.0
"""Seconds for one question."""
_TOO_MUCH: Final = 64 << 20
"""Bytes of one judgement, unpacked."""


def folder(environment: Mapping[str, str]) -> str:
    """Where caches lie for a user: $XDG_CACHE_HOME/rocm-patch; empty where there is no home."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = environment.get("HOME", "")
        base = os.path.join(home, ".cache") if os.path.isabs(home) else ""
    return os.path.join(base, "rocm-patch") if base else ""


@functools.lru_cache(maxsize=1)
def version() -> str:
    """A digest of everything that a judgement depends on beside the code."""
    digest = hashlib.sha256(str(SCHEMA).encode())
    for name in _PARTS:
        digest.update(resources.files(__package__).joinpath(name).read_bytes())
    digest.update(resources.files("rocm_patch.images").joinpath("code_object.py").read_bytes())
    return digest.hexdigest()[:16]


def key(content: str, chip: str) -> str:
    """The key of code with the SHA-256 `content` on a chip."""
    return f"{content} {chip} {version()}"


def to_json(found: Judgement) -> dict[str, Any]:
    """A judgement as plain values."""
    return {
        "instructions": found.instructions,
        "undecoded": found.undecoded,
        "functions": found.functions,
        "rules": _pairs(found.rules),
        "kernels": {name: _pairs(counts) for name, counts in found.kernels.items()},
    }


def _pairs(counts: Mapping[str, Count]) -> dict[str, list[int]]:
    return {rule: [count.certain, count.possible] for rule, count in counts.items()}


def counts_of(pairs: Mapping[str, Any]) -> dict[str, Count]:
    """Counts by rule from their plain values. Raises TypeError or ValueError for anything else."""
    return {str(rule): Count(*map(int, pair)) for rule, pair in pairs.items()}


def from_json(values: Mapping[str, Any]) -> Judgement:
    """And back. Raises KeyError, TypeError or ValueError for anything else."""
    return Judgement(
        int(values["instructions"]),
        int(values["undecoded"]),
        counts_of(values["rules"]),
        {str(name): counts_of(pairs) for name, pairs in values["kernels"].items()},
        int(values["functions"]),
    )


def pack(values: Any) -> bytes:
    """Plain values as they are kept."""
    return zlib.compress(json.dumps(values).encode(), 1)


def _ours(path: str, kind: Callable[[int], bool]) -> bool:
    """Whether it is ours and no link: in a folder of somebody else, what we write goes where they want it."""
    status = os.lstat(path)
    return kind(status.st_mode) and status.st_uid == os.geteuid()


class Cache:
    """The file, opened for as long as a scan lasts. `write` False: only asked, never made or changed."""

    def __init__(self, place: str, write: bool) -> None:
        self._connection: sqlite3.Connection | None = None
        self._deadline = 0.0
        path = os.path.join(place, "judgements.sqlite")
        if not place or (not write and not os.path.exists(path)):
            return
        try:
            if write:
                os.makedirs(place, mode=0o700, exist_ok=True)
            if not _ours(place, stat.S_ISDIR) or (os.path.lexists(path) and not _ours(path, stat.S_ISREG)):
                return
            if write:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
                self._connection = sqlite3.connect(path, timeout=5, isolation_level=None)
                for name in _TABLES:
                    self._connection.execute(f"create table if not exists {name} (key text primary key, value blob) without rowid")
            else:
                self._connection = sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro", uri=True, timeout=5)
            # What stands in the file may be anything: a view that never ends among it.
            self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 10_000)
        except (OSError, sqlite3.Error):
            self._connection = None

    def get(self, wanted: str) -> Judgement | None:
        """What is known of code by its key."""
        try:
            values = self._get("judgement", wanted)
            return None if values is None else from_json(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, wanted: str, found: Judgement) -> None:
        """Keep a judgement."""
        self.put_packed(wanted, pack(to_json(found)))

    def put_packed(self, wanted: str, packed: bytes) -> None:
        """Keep a judgement that was packed elsewhere."""
        self._put("judgement", wanted, packed)

    def get_file(self, wanted: str) -> Any:
        """What was noted of a file: plain values, None if nothing."""
        return self._get("file", wanted)

    def put_file(self, wanted: str, values: Any) -> None:
        """Note plain values of a file."""
        self._put("file", wanted, pack(values))

    def _get(self, name: str, wanted: str) -> Any:
        if self._connection is None:
            return None
        self._deadline = time.monotonic() + _PATIENCE
        try:
            row = self._connection.execute(f"select value from {name} where key = ?", (wanted,)).fetchone()  # noqa: S608 - one of two words
            return None if row is None else json.loads(zlib.decompressobj().decompress(row[0], _TOO_MUCH))
        except (sqlite3.Error, zlib.error, ValueError, TypeError, RecursionError):
            return None

    def _put(self, name: str, wanted: str, packed: bytes) -> None:
        # A full disk or a locked file is no reason to stop.
        if self._connection is not None:
            self._deadline = time.monotonic() + _PATIENCE
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute(f"insert or replace into {name} values (?, ?)", (wanted, packed))  # noqa: S608

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
