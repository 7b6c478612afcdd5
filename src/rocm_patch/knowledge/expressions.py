"""What can be said of a regular expression without running it: plain words that each match contains, and how slow a line can make it.

Only the plain part of the language is known here (groups, classes, bounded repetitions, looking around); the rest is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PIECE: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:[:=!]|<[=!])|[()|.^$*+?]|\{\d+(?:,\d+)?\}|[^\\]", re.DOTALL)
_COMMON: Final = frozenset(("amd", "amdgpu", "card", "device", "gpu", "rocm", "torch", "use"))
"""Words that most logs hold: they spare nothing."""


@dataclass(frozen=True)
class Facts:
    """Of one expression: `words`, one of which (in lower case) each match contains, and `ways`, in which one start can fail at most.

    `needs` are all such sets of words: of each of them one stands in whatever matches.
    """

    words: tuple[str, ...]
    ways: int
    bounded: bool
    needs: tuple[tuple[str, ...], ...] = ()


def study(pattern: str) -> Facts:
    """Read an expression. `words` holds an empty word where an alternative has no plain run of letters."""
    pieces = _PIECE.findall(pattern)
    facts, end = _alternatives(pieces, 0)
    if end != len(pieces):
        raise ValueError("unbalanced brackets")
    return facts


def alternatives(pattern: str) -> tuple[str, ...]:
    """An expression, cut at the bars outside its brackets."""
    found, depth = [""], 0
    for piece in _PIECE.findall(pattern):
        if piece == "|" and not depth:
            found.append("")
            continue
        depth += (piece == "(" or piece.startswith("(?")) - (piece == ")")
        found[-1] += piece
    return tuple(found)


def _alternatives(pieces: list[str], index: int) -> tuple[Facts, int]:
    found = list[Facts]()
    while True:
        one, index = _sequence(pieces, index)
        found.append(one)
        if index == len(pieces) or pieces[index] != "|":
            words = tuple(word for each in found for word in each.words)
            needs = found[0].needs if len(found) == 1 else (words,)
            return Facts(words, max(each.ways for each in found), all(each.bounded for each in found), needs), index
        index += 1


def _sequence(pieces: list[str], index: int) -> tuple[Facts, int]:
    """One alternative: its longest run of letters, or the words of a group that must be there."""
    best: tuple[str, ...] = ("",)
    needs = list[tuple[str, ...]]()
    run, ways, bounded = "", 1, True
    while index < len(pieces) and pieces[index] not in ("|", ")"):
        piece = pieces[index]
        group: Facts | None = None
        if piece.startswith("(?") or piece == "(":
            group, index = _alternatives(pieces, index + 1)
            if piece in ("(?!", "(?<!"):
                group = Facts(("",), group.ways, group.bounded)
            ways, bounded = ways * group.ways, bounded and group.bounded
        index += 1
        most, least, length = _repeated(pieces, index)
        index += length
        bounded = bounded and most > 0
        ways *= max(most - least + 1, 1)
        letter = _letter(piece) if group is None else ""
        if letter and (least, most) == (1, 1):
            run += letter
            continue
        run += letter * bool(least)
        needs.append((run,))
        best, run = _better(best, (run,)), ""
        if group is not None and least:
            best = _better(best, group.words)
            needs.extend(group.needs)
    needs.append((run,))
    return Facts(_better(best, (run,)), ways, bounded, tuple(need for need in needs if all(need))), index


def _repeated(pieces: list[str], index: int) -> tuple[int, int, int]:
    """Most and least times, and how many pieces say so. 0 at most: without bound."""
    piece = pieces[index] if index < len(pieces) else ""
    if piece == "?":
        return 1, 0, 1
    if piece in ("*", "+"):
        return 0, int(piece == "+"), 1
    if piece.startswith("{") and len(piece) > 1:
        least, _, most = piece[1:-1].partition(",")
        return int(most or least), int(least), 1
    return 1, 1, 0


def _letter(piece: str) -> str:
    """The plain character that a piece stands for; empty for what is no plain character."""
    if piece.startswith("\\"):
        return "" if piece[1].isalnum() else piece[1]
    return "" if len(piece) > 1 or piece in ".^$" else piece.lower()


def _better(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """The words of which the weakest is stronger; of two alike the fewer."""
    return max(first, second, key=lambda words: (min(map(_strength, words)), -len(words)))


def _strength(word: str) -> int:
    return min(len(word), 2) if word.strip() in _COMMON else len(word)
