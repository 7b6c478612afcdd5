"""Why a build failed, from the end of its log: rows of `failures.toml`, like the signatures of `explain`."""

from __future__ import annotations

import functools
import importlib.resources
import os
import re
from dataclasses import dataclass
from typing import Final

from rocm_patch import codec

_TAIL: Final = 4 << 20
_LINE: Final = 4000
_SHOWN: Final = 12
_QUOTED: Final = re.compile(r"\s*\d*\s*\|")
"""A compiler shows the source that it warns of; a program may well hold the words "No space left on device"."""


@dataclass(frozen=True)
class Failure:
    """A row."""

    id: str
    pattern: str
    meaning: str
    remedy: str
    sample: str


@dataclass(frozen=True)
class Reason:
    """What a log says. `id` is empty where no row knows it; `lines` are the log's own last words."""

    id: str
    meaning: str
    remedy: str
    lines: tuple[str, ...]


@functools.cache
def load() -> tuple[Failure, ...]:
    """All rows. Raises FormatError."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    raw = tomllib.loads((importlib.resources.files(__package__) / "failures.toml").read_text("utf-8"))
    rows: tuple[Failure, ...] = codec.decode(tuple[Failure, ...], raw["failure"], "failures.toml")
    return rows


def explain(text: str, packages: str) -> Reason:
    """The reason in a log. `packages` is the command that installs what the recipe needs."""
    lines = [line[:_LINE] for line in text.splitlines()]
    for row in load():
        pattern = _compiled(row.pattern)
        for number, line in enumerate(lines):
            if not _QUOTED.match(line) and (match := pattern.search(line)):
                named = next((group for group in match.groups() if group), "")
                meaning, remedy = (words.replace("{1}", named).replace("{packages}", packages) for words in (row.meaning, row.remedy))
                return Reason(row.id, meaning, remedy, tuple(lines[max(0, number - 2) : number + 3]))
    first = next((number for number, line in enumerate(lines) if line.startswith("CMake Error")), max(0, len(lines) - _SHOWN))
    return Reason("", "No known cause.", "The log holds the whole story; where it went wrong is above.", tuple(lines[first : first + _SHOWN]))


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def tail(path: str) -> str:
    """The end of a log."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().decode("utf-8", "replace")
