"""Bytes of a pasted log -> clean lines. Anything is accepted: binary junk, mixed encodings, megabytes without an end of line."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Final

from rocm_patch.knowledge.matching import LINE
from rocm_patch.machine import redact

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-9;?]{0,16}[ -/]?[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202f\u2066-\u2069]")
_TELLING: Final = re.compile(r"gfx[0-9a-f]{3}|1002:|[A-Z]_[A-Z_]{2,40} ?=")
_SYSLOG: Final = re.compile(
    r"^((?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.+-]{8,24})) [\w.-]{1,80} (?=[\w./()-]{1,60}(?:\[\d+\])?:)"
)
_QUOTED: Final = 240
_UNIQUE: Final = 8_000
_STEMS: Final = (
    "amdgpu",
    "kfd",
    "hip",
    "hsa",
    "roc",
    "miopen",
    "gfx",
    "gpu",
    "torch",
    "tensile",
    "numpy",
    "error",
    "fail",
    "fault",
    "crash",
    "kernel",
    "memory",
)
_MANY: Final = 200
"""From so many lines on those of one kind are told once."""
_PIECES: Final = 12
_OVERLAP: Final = 100
_JUNK: Final = 12
"""A line of which more than one in so many characters could not be decoded says nothing."""


def decode(data: bytes) -> str:
    """Text of any bytes: UTF-16 where a mark or its zero bytes say so (PowerShell writes it), else UTF-8 with replacements."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    head = data[:4096]
    if len(head) > 8 and head[1::2].count(0) > len(head) // 4:
        return data.decode("utf-16-le", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


def lines(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Lines that say something, without colours and controls, each kind once, and their numbers.

    Lines that differ only in digits are one kind: a driver that complains ten thousand times says one thing.
    """
    if "\x1b" in text:
        text = _ESCAPE.sub("", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    raw = text.split("\n")
    numbered: Iterable[tuple[int, str]] = [(number, line) for number, line in enumerate(raw, 1) if line]
    if len(raw) > _MANY:
        numbered = _each_kind_once(numbered, text)
    kept = [(short, number) for number, line in numbered for short in _pieces(line) if not _says_nothing(short)]
    if len(kept) > _UNIQUE:
        # A journal speaks of much: lines that may speak of this stay first.
        low = text.lower()
        stems = [stem for stem in _STEMS if stem in low]
        kept = [item for item in kept if _holds_any(item[0].lower(), stems)]
    if len(kept) > _UNIQUE:
        # The head of a log has the machine in it, the end has the failure.
        kept = kept[: _UNIQUE // 4] + kept[-_UNIQUE * 3 // 4 :]
    return tuple(_CONTROL.sub(" ", line) for line, _ in kept), tuple(number for _, number in kept)


def _each_kind_once(numbered: Iterable[tuple[int, str]], text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without those that differ from an earlier one in numbers only."""
    # Over the whole text at once: line by line it costs ten times as much.
    for digit in "123456789":
        text = text.replace(digit, "0")
    kinds = filter(None, text.replace("0000", "0").replace("00", "0").replace("00", "0").split("\n"))
    seen = set[str]()
    for (number, line), kind in zip(numbered, kinds, strict=True):
        # Digits that name a chip or a value are no counters.
        told = ("gfx" in line or "1002:" in line or "=" in line) and _TELLING.search(line)
        if line not in seen if told else kind not in seen:
            seen.add(line if told else kind)
            yield number, line


def _says_nothing(line: str) -> bool:
    return line.isspace() or line.count("\ufffd") * _JUNK > len(line)


def _holds_any(line: str, words: list[str]) -> bool:
    return any(word in line for word in words)


def _pieces(line: str) -> tuple[str, ...]:
    """A long line in pieces: a terminal or a form may have joined many lines into one. The middle of a very long one is left out."""
    if len(line) <= LINE:
        return (line,)
    pieces = [line[start : start + LINE] for start in range(0, min(len(line), LINE * _PIECES), LINE - _OVERLAP)]
    return (*pieces[:_PIECES], line[-LINE:])


def quoted(line: str) -> str:
    """A line as it may be shown: redacted, one blank where there were many, not longer than a few hundred characters."""
    plain = " ".join(line.split())
    head = _SYSLOG.match(plain)
    short = redact.text(f"{head.group(1)} <host> {plain[head.end() :]}" if head else plain)
    return short if len(short) <= _QUOTED else short[: _QUOTED - 4] + " ..."
