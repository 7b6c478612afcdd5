"""Items of a file, added up to the rows that are shown. Apart from `walk`: a child that reads files sends items and needs no rows.

A row costs half a kilobyte here and half a millisecond where it is shown, and a wheel of 4 MB can ask for 40,000 of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from rocm_patch.images.walk import items, tell
from rocm_patch.model import Image, TargetCode

ROW_LIMIT: Final = 8192
"""Rows of one file. The most members with code are a wheel's of PyTorch with the libraries of hand-tuned kernels: some thousands."""
REASON_LIMIT: Final = 1024
"""Reasons told of one file. Beyond, a row with code says how many it has, and others are counted."""
UNREAD_LIMIT: Final = 16
"""Reasons told of one row; the rest is counted."""
TARGET_LIMIT: Final = 256
"""Targets in one row; LLVM knows some sixty, with features twice as many."""
CODE_LIMIT: Final = 1 << 16
"""Targets in all rows of one file."""


@dataclass
class _Row:
    targets: dict[str, TargetCode] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    more: int = 0
    """Reasons that are not told."""


@dataclass
class Rows:
    """Items added up, one row a member and kind of container."""

    path: str
    why: str = ""
    """Why the reading of the file ended early."""
    _rows: dict[tuple[str, str], _Row] = field(default_factory=dict)
    _codes: int = 0
    _told: int = 0
    _left: int = 0
    """Items without a row."""

    def code(self, member: str, store: str, target: str, kernels: int, size: int) -> None:
        """Add code; `kernels` -1: not counted."""
        row = self._row(member, store, room=self._codes < CODE_LIMIT)
        if row is None:
            return
        old = row.targets.get(target)
        if old is None:
            if len(row.targets) >= TARGET_LIMIT or self._codes >= CODE_LIMIT:
                self.unread(member, store, f"more than {TARGET_LIMIT} targets, or {CODE_LIMIT} in the file")
                return
            self._codes += 1
            old = TargetCode(-1, 0)
        both = kernels if old.kernels < 0 else old.kernels if kernels < 0 else old.kernels + kernels
        row.targets[target] = TargetCode(both, old.bytes + size)

    def unread(self, member: str, store: str, why: str) -> None:
        """Add a reason."""
        row = self._row(member, store, room=self._told < REASON_LIMIT)
        if row is None or why in row.reasons:
            return
        if len(row.reasons) < UNREAD_LIMIT and self._told < REASON_LIMIT:
            row.reasons.append(why)
            self._told += 1
        else:
            row.more += 1

    def images(self) -> tuple[Image, ...]:
        """One row a member and store, members in reading order; what is to be said of the whole file stands in a row without a member."""
        whole = [f"{self._left:,} more pieces of code, or reasons why it cannot be read, are left out"] if self._left else []
        whole += [self.why] if self.why else []
        if whole:
            self._rows.setdefault(("", "object"), _Row())
        return tuple(
            Image(
                self.path,
                member,
                store,
                dict(sorted(row.targets.items())),
                (*row.reasons, *_more(row), *(whole if (member, store) == ("", "object") else ())),
            )
            for (member, store), row in self._rows.items()
        )

    def _row(self, member: str, store: str, *, room: bool) -> _Row | None:
        row = self._rows.get((member, store))
        if row is None and room and len(self._rows) < ROW_LIMIT:
            row = self._rows[member, store] = _Row()
        self._left += row is None
        return row


def images(path: str, count: bool = True) -> tuple[Image, ...]:
    """The rows of one file, in this process. Files of unknown origin are for `pool`."""
    rows = Rows(path)
    for member, item in items(path):
        found, why = tell(item, count)
        if found:
            rows.code(member, *found)
        if why:
            rows.unread(member, *why)
    return rows.images()


def _more(row: _Row) -> tuple[str, ...]:
    if not row.more:
        return ()
    return (f"and {row.more:,} more reasons" if row.reasons else f"reasons that are not told: {row.more:,}",)
