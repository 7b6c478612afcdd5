"""Bytes of a pasted log -> clean lines. Anything is accepted: binary junk, mixed encodings, megabytes without an end of line."""

from __future__ import annotations

import re
from typing import Final

from rocm_patch.knowledge.matching import cut
from rocm_patch.machine import redact

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-9;?]{0,16}[ -/]?[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202f\u2066-\u2069]")
_DIGITS: Final = {ord(digit): "0" for digit in "123456789"}
_SYSLOG: Final = re.compile(
    r"^((?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.+-]{8,24})) [\w.-]{1,80} (?=[\w./()-]{1,60}(?:\[\d+\])?:)"
)
_QUOTED: Final = 240
_UNIQUE: Final = 20_000


def decode(data: bytes) -> str:
    """Text of any bytes: UTF-16 where a mark or its zero bytes say so (PowerShell writes it), else UTF-8 with replacements."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    head = data[:4096]
    if len(head) > 8 and head[1::2].count(0) > len(head) // 4:
        return data.decode("utf-16-le", "replace")
    return data.decode("utf-8-sig", "replace")


def lines(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Lines that say something, without colours and controls, each kind once, and their numbers.

    Lines that differ only in digits are one kind: a driver that complains ten thousand times says one thing.
    """
    if "\x1b" in text:
        text = _ESCAPE.sub("", text)
    raw = re.split(r"\r\n|\n|\r", text) if "\r" in text else text.split("\n")
    kinds: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(raw, 1):
        short = cut(line)
        if not short or short.isspace():
            continue
        kind = short.translate(_DIGITS) if len(raw) > 200 else f"{number}"
        if kind not in kinds:
            kinds[kind] = (short, number)
    kept = list(kinds.values())
    if len(kept) > _UNIQUE:
        # The head of a log has the machine in it, the end has the failure.
        kept = kept[: _UNIQUE // 4] + kept[-_UNIQUE * 3 // 4 :]
    return tuple(_CONTROL.sub(" ", line) for line, _ in kept), tuple(number for _, number in kept)


def quoted(line: str) -> str:
    """A line as it may be shown: redacted, one blank where there were many, not longer than a few hundred characters."""
    short = redact.text(_SYSLOG.sub(r"\1 <host> ", " ".join(line.split())))
    return short if len(short) <= _QUOTED else short[: _QUOTED - 4] + " ..."
