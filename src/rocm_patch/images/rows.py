"""Items of a file, added up to the rows that are shown. Apart from `walk`: a child that reads files sends items and needs no rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from rocm_patch.images.walk import items, tell
from rocm_patch.model import Image, TargetCode

UNREAD_LIMIT: Final = 16
"""Reasons told of one row; the rest is counted."""
TARGET_LIMIT: Final = 256
"""Targets in one row; LLVM knows some sixty, with features twice as many."""
_REASON_LIMIT: Final = 1000


@dataclass
class Rows:
    """Items added up, one row a member and kind of container."""

    path: str
    _targets: dict[tuple[str, str], dict[str, TargetCode]] = field(default_factory=dict)
    _unread: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def code(self, member: str, store: str, target: str, kernels: int, size: int) -> None:
        """Add code; `kernels` -1: not counted."""
        row = self._targets.setdefault((member, store), {})
        if target not in row and len(row) >= TARGET_LIMIT:
            self.unread(member, store, f"more than {TARGET_LIMIT} targets")
            return
        old = row.get(target, TargetCode(-1, 0))
        both = kernels if old.kernels < 0 else old.kernels if kernels < 0 else old.kernels + kernels
        row[target] = TargetCode(both, old.bytes + size)

    def unread(self, member: str, store: str, why: str) -> None:
        """Add a reason."""
        self._targets.setdefault((member, store), {})
        reasons = self._unread.setdefault((member, store), [])
        if len(reasons) < _REASON_LIMIT and why not in reasons[-1:]:
            reasons.append(why)

    def images(self) -> tuple[Image, ...]:
        """One row a member and store, members in reading order."""
        return tuple(
            Image(self.path, member, store, dict(sorted(targets.items())), _few(self._unread.get((member, store), [])))
            for (member, store), targets in self._targets.items()
        )


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


def _few(reasons: list[str]) -> tuple[str, ...]:
    distinct = list(dict.fromkeys(reasons))
    more = len(distinct) - UNREAD_LIMIT
    return tuple(distinct) if more <= 0 else (*distinct[:UNREAD_LIMIT], f"and {more} more reasons")
