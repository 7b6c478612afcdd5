"""Signatures against lines: found by plain words first, so that hundreds of rows cost a log some microseconds.

A regular expression is only tried on lines that hold one of the words that each of its matches contains (`expressions`). Lines
are cut to `LINE` characters and all repetitions are bounded (`check` insists), so that no line, however hostile, makes one slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.knowledge.expressions import study
from rocm_patch.model import Signature

LINE: Final = 1200
"""Characters of a line that are looked at: the first three quarters and the end."""
SHORTEST: Final = 2
"""Letters of the words by which a row is looked up."""
WIDEST: Final = 20_000
"""Ways in which one start of an expression may fail."""
_HITS: Final = 8
_TRIES: Final = 4000
"""Lines on which one expression is tried at most."""
_LARGE: Final = 200_000
_TOKEN: Final = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Pattern:
    """A signature, compiled."""

    row: Signature
    regex: re.Pattern[str]
    words: tuple[str, ...]

    @classmethod
    def of(cls, row: Signature) -> Pattern:
        """Compile a row."""
        return cls(row, re.compile(row.pattern, re.IGNORECASE), study(row.pattern).words)

    def matches(self, line: str) -> bool:
        """True if the line is one of these."""
        return self.regex.search(cut(line)) is not None


def cut(line: str) -> str:
    """A line without its middle, if it is long."""
    return line if len(line) <= LINE else f"{line[: LINE * 3 // 4]} ... {line[-LINE // 4 :]}"


def search(patterns: Sequence[Pattern], lines: Sequence[str]) -> Iterator[tuple[Pattern, list[int]]]:
    """Each pattern that is found, with the indexes of (at most eight of) its lines."""
    lowered = [line.lower() for line in lines]
    whole = "\n".join(lowered)
    for pattern in _candidates(patterns, whole):
        hits: list[int] = []
        tries = 0
        for index, low in enumerate(lowered):
            if any(word in low for word in pattern.words):
                tries += 1
                if pattern.regex.search(lines[index]):
                    hits.append(index)
                if len(hits) == _HITS or tries == _TRIES:
                    break
        if hits:
            yield pattern, hits


def _candidates(patterns: Sequence[Pattern], whole: str) -> list[Pattern]:
    if len(whole) <= _LARGE:
        return [pattern for pattern in patterns if any(word in whole for word in pattern.words)]
    # A vocabulary is far smaller than a large text.
    vocabulary = "\n".join(set(_TOKEN.findall(whole)))
    return [pattern for pattern in patterns if any(all(part in vocabulary for part in _TOKEN.findall(word)) for word in pattern.words)]
