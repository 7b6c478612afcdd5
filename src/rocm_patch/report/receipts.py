"""The lines of a receipt by their nature: what was seen to hold, what is to be known besides, what is left to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rocm_patch.changes.kind import NOTE, TO_DO


@dataclass(frozen=True)
class Said:
    """Lines without their marks."""

    verified: tuple[str, ...]
    notes: tuple[str, ...]
    to_do: tuple[str, ...]


def by_nature(lines: Iterable[str]) -> Said:
    """Sort by the mark before each line; one without a mark was verified."""
    every = tuple(lines)
    marked = {mark: tuple(line.removeprefix(mark) for line in every if line.startswith(mark)) for mark in (NOTE, TO_DO)}
    return Said(tuple(line for line in every if not line.startswith((NOTE, TO_DO))), marked[NOTE], marked[TO_DO])
