"""Signatures against lines: found by plain words first, so that hundreds of rows cost a log some microseconds.

A regular expression is only tried on lines that hold one of the words that each of its matches contains (`expressions`). Lines
are cut to `LINE` characters and all repetitions are bounded (`check` insists), so that no line, however hostile, makes one slow.
Lines and expressions are both in lower case: to ignore case would cost an expression its quick search for a first word.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from rocm_patch.knowledge.conditions import wanted
from rocm_patch.knowledge.expressions import alternatives, study
from rocm_patch.model import Signature

LINE: Final = 1200
"""Characters of a line that are looked at: the first three quarters and the end."""
SHORTEST: Final = 2
"""Letters of the words by which a row is looked up."""
WIDEST: Final = 20_000
"""Ways in which one start of an expression may fail."""
_HITS: Final = 500
_TRIES: Final = 4000
"""Lines on which one expression is tried at most."""
_FEW: Final = 20
"""Up to so many lines are looked through one by one; more as one text."""
_GRAM: Final = 4
_SMALL: Final = 5_000
_LARGE: Final = 200_000
_CAPITAL: Final = re.compile(r"\\.|[A-Z]")
_TOKEN: Final = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Part:
    """One alternative of a signature's expression, and the words of which one stands in whatever it matches.

    `needs` are further sets of words of which the same is true: to look for them is far cheaper than to try the expression.
    """

    words: tuple[str, ...]
    regex: re.Pattern[str]
    needs: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, pattern: str) -> Part:
        """Compile an expression in lower case."""
        facts = study(pattern)
        return cls(facts.words, re.compile(pattern), tuple(dict.fromkeys(need for need in facts.needs if need != facts.words)))

    def found(self, low: str) -> bool:
        """True if it matches somewhere in a line in lower case."""
        for need in self.needs:
            for word in need:
                if word in low:
                    break
            else:
                return False
        return self.regex.search(low) is not None


@dataclass(frozen=True)
class Pattern:
    """A signature, compiled."""

    row: Signature
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, row: Signature) -> Pattern:
        """Compile a row. Alternatives apart are quicker than together: only those whose words are there are tried."""
        small = _CAPITAL.sub(lambda match: match.group().lower() if len(match.group()) == 1 else match.group(), row.pattern)
        return cls(row, tuple(Part.of(one) for one in alternatives(small)))

    @functools.cached_property
    def _problems(self) -> tuple[tuple[frozenset[str], ...], ...]:
        """The signs of each reading that says problem: of each set one must be shown."""
        return tuple(wanted(reading.when.signs) for reading in self.row.readings if reading.severity == "problem")

    @functools.cached_property
    def _may_be_quiet(self) -> bool:
        return self.row.shows == "report" or (not self.row.general and any(reading.severity == "info" for reading in self.row.readings))

    def serious(self, possible: Set[str]) -> bool:
        """True if a reading says problem that the other lines do not rule out; what the machine says of it is asked later."""
        for groups in self._problems:
            for group in groups:
                if group.isdisjoint(possible):
                    break
            else:
                return True
        return False

    def quiet(self, possible: Set[str]) -> bool:
        """True if its lines are known to be harmless beside the others: general words in them are no complaint."""
        return self._may_be_quiet and (self.row.shows == "report" or not self.serious(possible))

    def matches(self, line: str) -> bool:
        """True if the line is one of these."""
        short = cut(line).lower()
        return any(part.found(short) for part in self.parts)


@dataclass(frozen=True)
class Finder:
    """All signatures of the tables, by the words that they need."""

    patterns: tuple[Pattern, ...]

    @functools.cached_property
    def index(self) -> Mapping[str, tuple[tuple[int, Part], ...]]:
        """The parts to try by word, each with the place of its signature in the table."""
        found: dict[str, list[tuple[int, Part]]] = {}
        for place, pattern in enumerate(self.patterns):
            for part in pattern.parts:
                for word in part.words:
                    found.setdefault(word, []).append((place, part))
        return {word: tuple(parts) for word, parts in found.items()}

    def search(self, lines: Sequence[str]) -> list[tuple[Pattern, tuple[int, ...]]]:
        """Each signature that is found, in the order of the table, with the indexes of its lines."""
        lowered = [line.lower() for line in lines]
        hits: dict[int, set[int]] = {}
        whole = "\n".join(lowered)
        starts = list(itertools.accumulate((len(low) + 1 for low in lowered), initial=0)) if len(lowered) > _FEW else []
        for word in self._words(whole):
            if len(lowered) == 1:
                there = [0]
            else:
                there = _lines_with(word, whole, starts) if starts else [index for index, low in enumerate(lowered) if word in low]
            for place, part in self.index[word]:
                known = hits.get(place)
                for index in there:
                    if (known is None or (index not in known and len(known) < _HITS)) and part.found(lowered[index]):
                        if known is None:
                            known = hits[place] = set()
                        known.add(index)
        return [(self.patterns[place], tuple(sorted(hits[place]))) for place in sorted(hits)]

    @functools.cached_property
    def _keys(self) -> Mapping[str, tuple[str, ...]]:
        """Words by their first letters; under the empty key those that are shorter."""
        found: dict[str, list[str]] = {"": []}
        for word in self.index:
            found.setdefault(word[:_GRAM] if len(word) >= _GRAM else "", []).append(word)
        return {key: tuple(words) for key, words in found.items()}

    def _words(self, whole: str) -> list[str]:
        if len(whole) <= _SMALL:
            # Most words are not there: what is there of their beginnings is told by one look at the text.
            pieces = {whole[index : index + _GRAM] for index in range(len(whole))}
            keys = self._keys
            return [word for piece in keys.keys() & pieces for word in keys[piece] if word in whole] + [word for word in keys[""] if word in whole]
        if len(whole) <= _LARGE:
            return [word for word in self.index if word in whole]
        # A vocabulary is far smaller than a large text.
        vocabulary = "\n".join(set(_TOKEN.findall(whole)))
        return [word for word in self.index if all(part in vocabulary for part in _TOKEN.findall(word))]


def _lines_with(word: str, whole: str, starts: Sequence[int]) -> list[int]:
    """The indexes of the lines that hold a word, `_TRIES` at most; `starts` are the places where lines start, and the end."""
    found = list[int]()
    place = whole.find(word)
    while place >= 0 and len(found) < _TRIES:
        index = bisect.bisect_right(starts, place) - 1
        found.append(index)
        place = whole.find(word, starts[index + 1])
    return found


def cut(line: str) -> str:
    """A line without its middle, if it is long."""
    return line if len(line) <= LINE else f"{line[: LINE * 3 // 4]} ... {line[-LINE // 4 :]}"
